"""Finds faces, hands, persons ... in pictures with an ultralytics network (YOLO, detect or segment).

ultralytics is heavy and, by default, talks to the network and unpickles whatever it is given. So it is imported only
inside functions, and :func:`offline_ultralytics` has to run before. Its predictor is not used: it copies the network,
which a model cache can then neither move nor free. The steps between picture and boxes are ultralytics' own functions
(``modules/compat.py``), so the numbers are the same as its predictor's
(``tests/unit/modules/detection/test_yolo.py``).
"""

from __future__ import annotations

import math
import os
import pickle
import sys
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

from backend.checkpoints.build_budget import building
from backend.checkpoints.file_type import is_safetensors
from backend.core.errors import WeightsError
from backend.devices.torchvision_ops import ensure_torchvision_operators
from backend.planning.activations import OUTLINED_PIXELS
from modules.compat import (
    compute_anchors_every_call,
    letterbox,
    outlines,
    restore_image_open,
    ultralytics_loads_safely,
    unletterbox_boxes,
)
from modules.detection.description import check_sizes, read_description
from modules.detection.detections import Detections, Mask, rectangle_masks
from modules.detection.onnx import read_onnx

NMS_IOU, MAX_DETECTIONS = 0.7, 300
"""Of two boxes of a class with a larger IoU than this the less confident one is dropped, and no more than so many are
kept: ultralytics' defaults, which ADetailer uses."""

# What ultralytics, torch, yaml and safetensors raise for a damaged or foreign file, found by cutting files and changing
# bytes.
_UNREADABLE = (
    OSError, EOFError, RuntimeError, TypeError, ValueError, LookupError, AttributeError, ImportError, ArithmeticError,
    AssertionError, SyntaxError, pickle.UnpicklingError, yaml.YAMLError, SafetensorError,
)  # fmt: skip


def offline_ultralytics(config_dir: Path) -> None:
    """Makes ultralytics quiet, offline and safe in this process: no requests, no pip, no log lines, no pickles that run
    code.

    ultralytics reads these variables once, so call this before anything imports it.

    Args:
        config_dir: A writable folder for its settings; made when it is missing.

    Raises:
        RuntimeError: ultralytics was imported before, and reads pickles that run code.
    """
    if "ultralytics" in sys.modules:
        _require_safe_loading()
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
    """Reads a detector into a network on the CPU: float32, evaluation mode, batch norms fused, no gradients.

    ``NAME.safetensors`` is our own format: the weights, beside a ``NAME.yaml`` with ultralytics' description of the
    architecture, ``task`` (detect or segment), ``names``, ``imgsz`` and ``containment`` (1 if left out: see
    :func:`without_contained`). ``NAME.onnx`` is ultralytics' export; it always
    computes on the CPU. Anything else is read as an ultralytics checkpoint by the restricted unpickler.

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
        compute_anchors_every_call(network)
        return network.fuse(verbose=False).eval().requires_grad_(False)  # type: ignore[no-any-return]
    except _UNREADABLE as error:
        raise WeightsError(
            f"{path.name}: is damaged or not an ultralytics detector; get the file again or choose another detector"
        ) from error


def _require_detector(network: Any, name: str) -> None:
    from ultralytics.nn.modules import OBB, Detect, Pose

    # the head tells the task; a checkpoint names it only if it was trained by ultralytics' command
    head = network.model[-1]
    if not isinstance(head, Detect) or isinstance(head, (OBB, Pose)):
        raise WeightsError(
            f"{name}: is a {type(network).__name__}; choose a YOLO that was trained to detect or to segment"
        )
    check_sizes(network.args["imgsz"], len(network.names), name)
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        raise WeightsError(f"{name}: holds weights that are not numbers; get the file again")


def _import_ultralytics() -> None:
    """Makes sure that it loads safely and leaves ``PIL.Image.open`` as it was."""
    restore_image_open()
    _require_safe_loading()


def _require_safe_loading() -> None:
    if not ultralytics_loads_safely():
        raise RuntimeError("ultralytics was imported before offline_ultralytics() was called; call it first")


def _read_embedded(path: Path) -> Any:
    from ultralytics.nn.tasks import DetectionModel, SegmentationModel

    description = read_description(path.with_suffix(".yaml"))
    build = {"detect": DetectionModel, "segment": SegmentationModel}[description["task"]]
    tensors = load_file(path)
    with building(path.with_suffix(".yaml").name, [path], len(tensors), "get the file again"):
        network = build(description, nc=len(description["names"]), verbose=False)
    network.load_state_dict(tensors)
    network.names = dict(enumerate(description["names"]))
    network.args = {"imgsz": int(description["imgsz"]), "containment": float(description.get("containment", 1))}
    return network


def read_checkpoint(path: Path) -> Any:
    """An ultralytics checkpoint by the restricted unpickler: its network as it was trained, in float32. Raises what
    ultralytics raises."""
    from ultralytics.nn.tasks import load_checkpoint

    # ultralytics changes some file names before it opens them (quotes, "yolov5s.pt"), and downloads what is missing
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "detector.pt")
        plain.symlink_to(path.resolve())
        return load_checkpoint(plain)[0]


def without_contained(boxes: torch.Tensor, most: float) -> list[int]:
    """The indices of the boxes to keep: of two boxes, N x 4, of which one lies in the other by more than the share
    ``most`` of its area, the first.

    One object can be found as two boxes whose IoU is too small for non-maximum suppression, a face with and without its
    hair for example. ADetailer keeps both, and so do its detectors here: with ``most`` 1 all boxes are kept.
    """
    kept: list[int] = []
    for index, box in enumerate(boxes if most < 1 else ()):
        others = boxes[kept]
        shared = (torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])).clamp(min=0).prod(1)
        smaller = torch.minimum((box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(1))
        if not (shared > most * smaller).any():
            kept.append(index)
    return kept if most < 1 else list(range(len(boxes)))


def round_up(length: int, stride: int) -> int:
    return math.ceil(length / stride) * stride


class Detector:
    """Detects with a network from :func:`load_detector_network` that the caller owns and moves.

    Making one costs nothing, and it keeps nothing but the network. Every call runs on the device and in the precision
    that the network has at that time.

    Args:
        class_features: For a YOLO-World: other classes instead of its own, as features of its text model,
            1 x classes x width.
    """

    def __init__(self, network: torch.nn.Module, class_features: torch.Tensor | None = None) -> None:
        self._network = cast(Any, network)  # an ultralytics model has more than a module
        self._class_features = class_features
        self._stride = max(int(self._network.stride.max()), 32)
        side = self._network.args["imgsz"]  # the size it was trained with; at another size it finds little
        height, width = side if isinstance(side, Sequence) else (side, side)
        self.size = round_up(height, self._stride), round_up(width, self._stride)
        """Height and width in pixels that a picture is fitted into."""

    def detect(
        self, images: Sequence[Image.Image], confidence: float, classes: Collection[int] | None = None
    ) -> list[Detections]:
        """What is found in each image, most confident first.

        Images of one size go through the network together. An image's result does not depend on the others.

        Args:
            images: RGB, of any sizes.
            confidence: Only what is more confident than this is found, 0 to 1.
            classes: Numbers of the classes to look for, as if there were no others; None = all.
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
        parameter = next(chain(self._network.parameters(), self._network.buffers()))
        smallest = not getattr(self._network, "fixed_size", False)
        fitted = [letterbox(np.asarray(image.convert("RGB")), self.size, smallest, self._stride) for image in images]
        channels_first = torch.from_numpy(np.stack(fitted)).to(parameter.device).permute(0, 3, 1, 2)
        pixels = channels_first.to(parameter.dtype) / 255  # N x 3 x h x w
        output = self._forward(pixels)
        segments = isinstance(output, tuple)
        predictions, prototypes = output if segments else (output, [None] * len(images))
        width, height = images[0].size
        results = []
        for prediction, prototype in zip(predictions.float(), prototypes):
            rows = self._best(prediction, confidence, classes)
            scaled = unletterbox_boxes(rows[:, :4], (pixels.shape[2], pixels.shape[3]), (height, width))
            boxes = scaled.cpu().numpy().astype(np.float64)
            if segments:
                masks = self._outlines(prototype, rows[:, 6:], scaled, (height, width))
            else:
                masks = rectangle_masks(boxes, images[0].size)
            results.append(Detections(boxes, masks, rows[:, 4].cpu().numpy().astype(np.float64)))
        return results

    @staticmethod
    def _outlines(
        prototype: torch.Tensor, coefficients: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]
    ) -> Mask:
        """N x height x width, 0 or 255, at the picture's own size, without the letterbox' bars.

        A few at a time, for the memory, and on the host where one is too large for a small card.
        """
        at_once = OUTLINED_PIXELS // math.prod(size)
        if at_once < 1:
            at_once, prototype, coefficients, boxes = 1, prototype.cpu(), coefficients.cpu(), boxes.cpu()
        parts = zip(coefficients.split(at_once), boxes.split(at_once), strict=True)
        masks = [outlines(prototype, some, of_some, size).cpu().numpy() for some, of_some in parts]
        return np.concatenate(masks or [np.zeros((0, *size), np.uint8)]) * np.uint8(255)

    def _forward(self, pixels: torch.Tensor) -> Any:
        """The raw predictions; where the network segments, a tuple of these and the prototypes of the masks."""
        if self._class_features is None:
            return self._network(pixels)[0]
        head = self._network.model[-1]
        own_classes, head.nc = head.nc, self._class_features.shape[1]
        try:
            return self._network.predict(pixels, txt_feats=self._class_features.to(pixels.device))[0]
        finally:
            head.nc = own_classes

    def _best(self, prediction: torch.Tensor, confidence: float, wanted: Collection[int] | None) -> torch.Tensor:
        """One image's raw prediction to n x (x1, y1, x2, y2, confidence, class, mask coefficients), most confident
        first.

        The same as ultralytics' ``non_max_suppression``. That one calls torchvision's wrapper as soon as anybody has
        imported torchvision, and the wrapper refuses operators that are defined in Python, as ours are beside a CPU
        build of torch.
        """
        if getattr(self._network, "end2end", False):  # such a network has done non-maximum suppression itself
            rows = prediction[prediction[:, 4] > confidence]
            return rows if wanted is None else rows[torch.isin(rows[:, 5], rows.new_tensor(list(wanted)))]
        classes = self._network.model[-1].nc if self._class_features is None else self._class_features.shape[1]
        rows = prediction.T  # centre, size, a score for each class, mask coefficients
        columns = torch.tensor(sorted(wanted or range(classes)), device=rows.device)
        scores, best = rows[:, 4 + columns].max(dim=1, keepdim=True)
        labels = columns[best]
        half = rows[:, 2:4] / 2
        rows = torch.cat([rows[:, :2] - half, rows[:, :2] + half, scores, labels, rows[:, 4 + classes :]], dim=1)[
            scores[:, 0] > confidence
        ]
        apart = rows[:, :4] + 7680 * rows[:, 5:6]  # boxes of two classes never overlap
        best = torch.ops.torchvision.nms(apart, rows[:, 4], NMS_IOU)[:MAX_DETECTIONS]
        return rows[best[without_contained(apart[best], self._network.args.get("containment", 1.0))]]
