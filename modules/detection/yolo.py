"""Finds faces, hands, persons ... in pictures with an ultralytics network (YOLO, detect or segment).

ultralytics is heavy and, left alone, talks to the network and unpickles whatever it is given. So it is imported only
inside the functions here, :func:`offline_ultralytics` has to run before that, and its predictor is not used at all: the
predictor copies the network, which a model cache then can neither place nor evict. What it does between picture and
boxes is done here with ultralytics' own functions, so the numbers are the same (held against it in
``tests/unit/modules/detection/test_yolo.py``).
"""

from __future__ import annotations

import math
import os
import pickle
import tempfile
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml  # type: ignore[import-untyped]
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from backend.checkpoints.file_type import is_safetensors
from backend.core.errors import WeightsError
from backend.devices.torchvision_ops import ensure_torchvision_operators
from modules.detection.detections import Detections, rectangle_masks
from modules.detection.onnx import read_onnx

NMS_IOU, MAX_DETECTIONS = 0.7, 300
"""Of two boxes of a class that overlap more than this the less confident one goes; ultralytics' defaults, which
ADetailer uses."""

# What a damaged or foreign file makes ultralytics, torch, yaml and safetensors raise, found by cutting files and
# changing bytes.
_UNREADABLE = (
    OSError, EOFError, RuntimeError, TypeError, ValueError, LookupError, AttributeError, ImportError, ArithmeticError,
    AssertionError, SyntaxError, pickle.UnpicklingError, yaml.YAMLError, SafetensorError,
)  # fmt: skip


def offline_ultralytics(config_dir: Path) -> None:
    """Makes ultralytics quiet, offline and careful in this process: no requests, no pip, no log lines, no unsafe
    pickles.

    ultralytics reads these variables once, so call this before anything imports it.

    Args:
        config_dir: A writable folder for its settings; made when it is missing.
    """
    ensure_torchvision_operators()
    config_dir.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        YOLO_CONFIG_DIR=str(config_dir),
        YOLO_OFFLINE="1",
        YOLO_AUTOINSTALL="0",
        YOLO_VERBOSE="0",
        ULTRALYTICS_SKIP_REQUIREMENTS_CHECKS="1",
        ULTRALYTICS_SAFE_LOAD="1",
    )


def load_detector_network(path: Path) -> torch.nn.Module:
    """Reads a detector into a network on the CPU: float32, evaluation mode, batch norms fused, nothing to be trained.

    ``NAME.safetensors`` is our own form: the weights, beside a ``NAME.yaml`` that holds ultralytics' description of the
    architecture and ``task`` (detect or segment), ``names`` and ``imgsz``. ``NAME.onnx`` is what ultralytics exports;
    it computes on the CPU, wherever the others do. Anything else is read as an ultralytics checkpoint by the restricted
    unpickler.

    Raises:
        WeightsError: A file is missing, damaged, not a detector, or holds more than weights and known layers.
    """
    embedded = path.suffix.lower() == ".safetensors" or (
        path.is_file() and is_safetensors(path)
    )  # the content chooses, not the name
    for needed in (path, path.with_suffix(".yaml")) if embedded else (path,):
        if not needed.is_file():  # ultralytics would look for it on GitHub
            raise WeightsError(
                f"{needed.name}: this file of the detector is missing; put it there or choose another detector"
            )
    _import_ultralytics()
    if path.suffix.lower() == ".onnx":
        return read_onnx(path)
    try:
        network = _read_embedded(path) if embedded else read_checkpoint(path)
        _require_detector(network, path.name)
        # The head would otherwise keep its anchors on the device of the last call, where nobody who moves parameters
        # finds them.
        network.model[-1].dynamic = True
        return network.fuse(verbose=False).eval().requires_grad_(False)  # type: ignore[no-any-return]
    except _UNREADABLE as error:
        raise WeightsError(
            f"{path.name}: is damaged or not an ultralytics detector; get the file again or choose another detector"
        ) from error


def _require_detector(network: Any, name: str) -> None:
    from ultralytics.nn.modules import OBB, Detect, Pose

    head = network.model[
        -1
    ]  # a checkpoint's own word for its task is missing where it was not trained by ultralytics' command
    if not isinstance(head, Detect) or isinstance(head, (OBB, Pose)):
        raise WeightsError(
            f"{name}: is a {type(network).__name__}; choose a YOLO that was trained to detect or to segment"
        )
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        raise WeightsError(f"{name}: holds weights that are not numbers; get the file again")


def _import_ultralytics() -> None:
    """Makes sure that it loads safely, and takes back its ``PIL.Image.open``, which would install packages for files
    it cannot read."""
    from ultralytics.utils import SAFE_LOAD, patches

    Image.open = patches._image_open

    if not SAFE_LOAD:
        raise RuntimeError("ultralytics was imported before offline_ultralytics() was called")


def _read_embedded(path: Path) -> Any:
    from ultralytics.nn.tasks import DetectionModel, SegmentationModel

    description = yaml.safe_load(path.with_suffix(".yaml").read_text())
    build = {"detect": DetectionModel, "segment": SegmentationModel}[description["task"]]
    network = build(description, nc=len(description["names"]), verbose=False)
    network.load_state_dict(load_file(path))
    network.names, network.args = dict(enumerate(description["names"])), {"imgsz": int(description["imgsz"])}
    return network


def read_checkpoint(path: Path) -> Any:
    """An ultralytics checkpoint by the restricted unpickler: its network as it was trained, in float32. Raises what
    ultralytics raises."""
    from ultralytics.nn.tasks import load_checkpoint

    # ultralytics changes some file names before it opens them (quotes, "yolov5s.pt"), and downloads what it then
    # misses.
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "detector.pt")
        plain.symlink_to(path.resolve())
        return load_checkpoint(plain)[0]


class Detector:
    """Detects with a network from :func:`load_detector_network` that somebody else owns, places and evicts.

    Building one costs nothing, and it keeps nothing but the network. Every call runs on the device and in the precision
    that the network then has.

    Args:
        words: For a YOLO-World: other classes in place of those that are baked in, as features 1 x classes x width of
            its text model.
    """

    def __init__(self, network: torch.nn.Module, words: torch.Tensor | None = None) -> None:
        self._network = cast(Any, network)  # an ultralytics model has more than a module
        self._words = words
        self._stride = max(int(self._network.stride.max()), 32)
        side = self._network.args["imgsz"]  # of its training; a network that is given another size finds little
        height, width = side if isinstance(side, Sequence) else (side, side)
        self.size = tuple(math.ceil(length / self._stride) * self._stride for length in (height, width))
        """Height and width in pixels that a picture is fitted into."""

    def detect(
        self, images: Sequence[Image.Image], confidence: float, classes: Collection[int] | None = None
    ) -> list[Detections]:
        """What is found in each image, most confident first.

        Images of one size go through the network together. An image's result does not depend on the others.

        Args:
            images: RGB, of any sizes.
            confidence: Only what is more confident than this is found, 0 to 1.
            classes: Numbers of the classes that are looked for, as if there were no others; None = all.
        """
        by_size: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            by_size[image.size].append(index)
        found: dict[int, Detections] = {}
        for indices in by_size.values():
            found.update(
                zip(indices, self._detect_same_size([images[index] for index in indices], confidence, classes))
            )
        return [found[index] for index in range(len(images))]

    @torch.inference_mode()
    def _detect_same_size(
        self, images: Sequence[Image.Image], confidence: float, classes: Collection[int] | None
    ) -> list[Detections]:
        from ultralytics.data.augment import LetterBox
        from ultralytics.utils.ops import process_mask_native, scale_boxes

        parameter = next(chain(self._network.parameters(), self._network.buffers()))
        fit = LetterBox(self.size, auto=not getattr(self._network, "fixed_size", False), stride=self._stride)
        fitted = torch.from_numpy(
            np.stack([np.asarray(fit(image=np.asarray(image.convert("RGB")))) for image in images])
        )
        pixels = fitted.to(parameter.device).permute(0, 3, 1, 2).to(parameter.dtype) / 255  # N x 3 x h x w
        output = self._forward(pixels)
        segments = isinstance(output, tuple)
        predictions, prototypes = output if segments else (output, [None] * len(images))
        width, height = images[0].size
        results = []
        for prediction, prototype in zip(predictions.float(), prototypes):
            rows = self._best(prediction, confidence, classes)
            scaled: Any = scale_boxes((pixels.shape[2], pixels.shape[3]), rows[:, :4], (height, width))
            boxes = scaled.cpu().numpy().astype(np.float64)
            if segments:  # at the picture's own size, without the letterbox' bars
                shapes = process_mask_native(prototype, rows[:, 6:], scaled, (height, width))
                masks = shapes.cpu().numpy() * np.uint8(255)
            else:
                masks = rectangle_masks(boxes, images[0].size)
            results.append(Detections(boxes, masks, rows[:, 4].cpu().numpy().astype(np.float64)))
        return results

    def _forward(self, pixels: torch.Tensor) -> Any:
        """The raw predictions, and with them the prototypes of the masks where the network segments."""
        if self._words is None:
            return self._network(pixels)[0]
        head = self._network.model[-1]
        baked_in, head.nc = head.nc, self._words.shape[1]
        try:
            return self._network.predict(pixels, txt_feats=self._words.to(pixels.device))[0]
        finally:
            head.nc = baked_in

    def _best(self, prediction: torch.Tensor, confidence: float, wanted: Collection[int] | None) -> torch.Tensor:
        """One image's raw prediction to n x (x1, y1, x2, y2, confidence, class, mask coefficients), most confident
        first.

        What ultralytics' ``non_max_suppression`` does. That one calls torchvision's wrapper as soon as anybody has
        imported torchvision, and the wrapper refuses operators that are defined in Python, as ours are beside a CPU
        build of torch.
        """
        if getattr(self._network, "end2end", False):  # such a network suppresses by itself
            rows = prediction[prediction[:, 4] > confidence]
            return rows if wanted is None else rows[torch.isin(rows[:, 5], rows.new_tensor(list(wanted)))]
        classes = self._network.model[-1].nc if self._words is None else self._words.shape[1]
        rows = prediction.T  # centre, size, a score for each class, mask coefficients
        columns = torch.tensor(sorted(wanted or range(classes)), device=rows.device)
        scores, best = rows[:, 4 + columns].max(dim=1, keepdim=True)
        labels = columns[best]
        half = rows[:, 2:4] / 2
        rows = torch.cat([rows[:, :2] - half, rows[:, :2] + half, scores, labels, rows[:, 4 + classes :]], dim=1)[
            scores[:, 0] > confidence
        ]
        apart = rows[:, :4] + 7680 * rows[:, 5:6]  # boxes of two classes never overlap
        return rows[torch.ops.torchvision.nms(apart, rows[:, 4], NMS_IOU)[:MAX_DETECTIONS]]
