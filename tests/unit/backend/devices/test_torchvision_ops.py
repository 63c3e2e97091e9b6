"""torchvision can be imported beside any build of torch, and who imports it too early is told."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from backend.core.settings import ROOT
from backend.devices.torchvision_ops import native_operators_load, nms


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def test_torchvision_can_be_imported_after_the_call() -> None:
    process = run(
        "from backend.devices.torchvision_ops import ensure_torchvision_operators\n"
        "first = ensure_torchvision_operators()\n"
        "import torch, torchvision\n"
        "boxes = torch.tensor([[0., 0., 10., 10.], [1., 1., 10., 10.], [20., 0., 30., 10.]])\n"
        "assert torch.ops.torchvision.nms(boxes, torch.tensor([.5, .9, .7]), .5).tolist() == [1, 2]\n"
        "assert ensure_torchvision_operators() == first\n"
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.skipif(native_operators_load(), reason="torchvision's own operators load beside this torch")
def test_a_call_after_a_failed_import_says_what_to_do() -> None:
    process = run(
        "from backend.devices.torchvision_ops import ensure_torchvision_operators\n"
        "try:\n"
        "    import torchvision\n"
        "except RuntimeError:\n"
        "    ensure_torchvision_operators()\n"
    )
    assert process.stderr.splitlines()[-1].startswith(
        "RuntimeError: torchvision was imported before ensure_torchvision_operators() was called"
    )


def test_of_boxes_that_overlap_the_best_is_kept() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 4], [50, 50, 60, 60]])
    scores = torch.tensor([0.6, 0.9, 0.8, 0.1])
    assert nms(boxes, scores, 0.5).tolist() == [1, 2, 3]
    assert nms(boxes[:0], scores[:0], 0.5).tolist() == []
