"""A detector in an ONNX file, run by onnxruntime, with the face that :class:`~modules.detection.yolo.Detector` knows
of ultralytics' networks."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from backend.core.errors import WeightsError


class OnnxNetwork(torch.nn.Module):
    """Runs on the CPU; results go to where the pictures came from.

    Attributes:
        names: The classes by number.
        args: ``imgsz``, height and width in pixels that the file was exported for.
        fixed_size: Whether it takes pictures of that size only.
    """

    def __init__(self, session: Any, description: Mapping[str, str]) -> None:
        super().__init__()
        self.task = description["task"]
        self.names: dict[int, str] = ast.literal_eval(description["names"])
        self.args = {"imgsz": ast.literal_eval(description["imgsz"])}
        self.stride = torch.tensor([int(description["stride"])])
        # either way the file suppresses by itself, and its rows are x1, y1, x2, y2, confidence, class
        self.end2end = description.get("end2end") == "True" or bool(
            ast.literal_eval(description.get("args", "{}")).get("nms")
        )
        self.model = (SimpleNamespace(nc=len(self.names)),)
        self.register_buffer("place", torch.zeros(1))  # tells where a cache has put this network
        self._session = session
        given = session.get_inputs()[0]
        self._input = given.name
        self._dtype = torch.float16 if given.type == "tensor(float16)" else torch.float32
        batch, _, height, width = given.shape  # a dimension that is not fixed has a name
        self._batch = batch if isinstance(batch, int) else 0
        self.fixed_size = isinstance(height, int) or isinstance(width, int)

    def forward(self, pixels: torch.Tensor) -> tuple[Any]:
        """N x 3 x h x w, 0 to 1 -> what a network of ultralytics gives first: predictions, or these and the
        prototypes of masks."""
        count, batch = len(pixels), self._batch or len(pixels)
        filled = torch.nn.functional.pad(
            pixels.to("cpu", self._dtype), (0, 0) * 3 + (0, -count % batch)
        )  # blank pictures, up to whole batches
        runs = [self._session.run(None, {self._input: part.contiguous().numpy()}) for part in filled.split(batch)]
        outputs = [
            torch.cat([torch.from_numpy(one) for one in same])[:count].to(pixels.device)
            for same in zip(*runs, strict=True)
        ]
        return (outputs[0] if len(outputs) == 1 else tuple(outputs),)


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
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever it raises for a file that it cannot read; its exceptions have no common base
        raise WeightsError(f"{path.name}: is damaged or not an ONNX model; get the file again") from error
    description = session.get_modelmeta().custom_metadata_map
    if description.get("task") not in ("detect", "segment") or not {"names", "imgsz", "stride"} <= description.keys():
        raise WeightsError(
            f"{path.name}: says nothing of classes and size as ultralytics' exports do; export a YOLO that detects or "
            "segments to ONNX"
        )
    return OnnxNetwork(session, description)
