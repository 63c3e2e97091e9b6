"""Makes ``import torchvision`` work beside a CPU build of torch.

The torchvision wheels on PyPI are built for CUDA; beside torch's CPU build their compiled operators do not load, and
the import then fails with ``operator torchvision::nms does not exist``. diffusers, transformers, ultralytics and
spandrel all import torchvision, and none of them needs more than its Python parts and ``nms``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_definitions: list[torch.library.Library] = []  # a Library undoes its definitions when it is collected


def native_operators_load() -> bool:
    """Whether torchvision's compiled operators load beside this torch. They stay loaded when they do."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    folder = Path(next(iter(spec.submodule_search_locations)))
    libraries = sorted([*folder.glob("_C*.so"), *folder.glob("_C*.pyd")])
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, "nms")


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression, as ``torchvision.ops.nms`` does it.

    ``boxes`` is N x 4 (x1, y1, x2, y2), ``scores`` N; returns the kept indices, best score first.
    """
    order = scores.argsort(descending=True, stable=True)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while order.numel():
        best, rest = order[0], order[1:]
        kept.append(best)
        top_left = torch.maximum(boxes[best, :2], boxes[rest, :2])
        bottom_right = torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        overlap = (bottom_right - top_left).clamp(min=0).prod(dim=1)
        order = rest[overlap / (area[best] + area[rest] - overlap) <= iou_threshold]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.long, device=boxes.device)


def ensure_torchvision_operators() -> bool:
    """Defines ``torchvision::nms`` and ``torchvision::qnms`` in pure torch where the compiled ones do not load.

    Call it before anything imports torchvision. Returns whether the operators were defined here.
    """
    if _definitions or native_operators_load():
        return bool(_definitions)
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl(name, nms, "CompositeExplicitAutograd")
    _definitions.append(library)
    return True
