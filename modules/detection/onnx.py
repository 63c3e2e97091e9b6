"""A detector in an ONNX file, run by onnxruntime, with the interface of ultralytics' networks that
:class:`~modules.detection.yolo.Detector` uses."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from backend.checkpoints.untrusted import untrusted
from backend.core.data_files import DataError
from backend.core.errors import WeightsError
from modules.detection.description import MAX_DESCRIPTION, check_sizes
from modules.detection.external_data import check_external_data

MAX_BATCH = 64
"""Pictures at once. Fewer are filled up with blank ones."""


class OnnxNetwork(torch.nn.Module):
    """Runs on the CPU; results go to the device of the pictures.

    Attributes:
        names: The classes by number.
        args: ``imgsz``, height and width in pixels that the file was exported for.
        batch: How many pictures it takes at once; 0 for any number.
        fixed_size: Whether it takes pictures of that size only.
    """

    def __init__(self, session: Any, description: Mapping[str, str]) -> None:
        super().__init__()
        self.task = description["task"]
        self.names: dict[int, str] = literal(description["names"])
        self.args = {"imgsz": literal(description["imgsz"])}
        self.stride = torch.tensor([int(description["stride"])])
        # with either, the file does non-maximum suppression and its rows are x1, y1, x2, y2, confidence, class
        self.end2end = description.get("end2end") == "True" or bool(literal(description.get("args", "{}")).get("nms"))
        self.model = (SimpleNamespace(nc=len(self.names)),)
        self.register_buffer("place", torch.zeros(1))  # so that a cache can tell and change the device
        self._session = session
        given = session.get_inputs()[0]
        self._input = given.name
        self._dtype = torch.float16 if given.type == "tensor(float16)" else torch.float32
        batch, _, height, width = given.shape  # a dimension that is not fixed has a name
        self.batch = batch if isinstance(batch, int) else 0
        self.fixed_size = isinstance(height, int) or isinstance(width, int)

    def forward(self, pixels: torch.Tensor) -> tuple[Any]:
        """N x 3 x h x w, 0 to 1 -> what a network of ultralytics gives first: predictions, or these and the
        prototypes of masks."""
        count, batch = len(pixels), self.batch or len(pixels)
        filled = torch.nn.functional.pad(
            pixels.to("cpu", self._dtype), (0, 0) * 3 + (0, -count % batch)
        )  # blank pictures fill up the last batch
        runs = [self._session.run(None, {self._input: part.contiguous().numpy()}) for part in filled.split(batch)]
        outputs = [
            torch.cat([torch.from_numpy(one) for one in same])[:count].to(pixels.device)
            for same in zip(*runs, strict=True)
        ]
        return (outputs[0] if len(outputs) == 1 else tuple(outputs),)


def literal(text: str) -> Any:
    """A Python literal in a description. Raises what ``ast.literal_eval`` raises, and ValueError for a text that is
    longer than a description."""
    if len(text) > MAX_DESCRIPTION:
        raise ValueError("a description is too long")
    return ast.literal_eval(text)


def read_onnx(path: Path) -> torch.nn.Module:
    """An ONNX file as ``yolo export format=onnx`` writes it, for boxes or for masks.

    Raises:
        WeightsError: onnxruntime is missing, or the file is damaged, or not such a detector.
    """
    try:
        import onnxruntime
    except ImportError:
        raise WeightsError(
            f"{path.name}: an ONNX detector needs the package onnxruntime; install it (pip install onnxruntime) or "
            "remove the file"
        ) from None
    try:
        check_external_data(path)
    except DataError as problem:
        raise WeightsError(f"{path.name}: {problem}; get the file again") from None
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever it raises for a file that it cannot read; its exceptions have no common base
        raise WeightsError(f"{path.name}: is damaged or not an ONNX model; get the file again") from error
    description = session.get_modelmeta().custom_metadata_map
    if description.get("task") not in ("detect", "segment") or not {"names", "imgsz", "stride"} <= description.keys():
        raise WeightsError(
            f"{path.name}: lacks the classes and size that ultralytics' exports have; export a YOLO that detects or "
            "segments to ONNX"
        )
    with untrusted(path.name, "export it anew"):
        network = OnnxNetwork(session, description)
    check_sizes(network.args["imgsz"], len(network.names), path.name)
    if network.batch > MAX_BATCH:
        raise WeightsError(f"{path.name}: takes {network.batch} pictures at once; export it with a batch of 1")
    return network
