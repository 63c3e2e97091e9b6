"""Lets the device be full at one call after another: ``python -m bench.full_device [--stride 25] [--vram 48MB]``.

A prediction with every stage is run once to count its device calls (operations and uploads of weights) and then again and again,
each time with an out-of-memory error at another of them. Every prediction must finish; the table says by stage how near its
pictures are to the undisturbed ones. ``--stride 1`` takes every call (half an hour on two cores), a larger one every n-th.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from backend.settings import Settings
from backend.timeline import Timeline
from modules.request import AdetailerUnit, ImageRequest
from modules.startup import Service, start

PROMPT = "a portrait of a smiling woman with long red hair, blue shirt, green background"


class FullAt(TorchDispatchMode):
    """The device is full at the call number ``index`` (from 1; 0 = never). ``calls`` counts them.

    A call counts when it takes a floating point tensor: token ids and bytes are prepared on the host.
    """

    def __init__(self, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index, self.calls = index, 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if any(isinstance(one, torch.Tensor) and one.is_floating_point() for one in tree_leaves((args, kwargs))):
            self.calls += 1
            if self.calls == self.index:
                raise torch.OutOfMemoryError("CUDA out of memory. (injected)")
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Outcome:
    """``step`` is the step of the ladder that was retried, ``difference`` the largest of all pixels, in 255ths."""

    step: str
    difference: int
    psnr: float


def prepare(vram: str) -> tuple[Service, ImageRequest]:
    service = start(replace(Settings(), model="embedded", emulate_vram=vram, log_level="ERROR", warm_up=False, prompt_cache_entries=0))
    logging.getLogger("backend.out_of_memory").setLevel(logging.ERROR)
    side = service.family.native
    return service, ImageRequest(
        prompt=PROMPT, width=side, height=side, seed=5, num_outputs=2, num_inference_steps=2, scale=2, adetailer=(AdetailerUnit(confidence=0.1),)
    )


def pictures(service: Service, request: ImageRequest, index: int) -> tuple[np.ndarray, FullAt]:
    """The pictures of a prediction as by a new service, with the device full at one call."""
    service.ladder.learned.clear()
    service.ladder.retries.clear()
    service.models.release()
    with service.computer.computing(), FullAt(index) as calls:
        batch = service.pipeline.run(request, timeline=Timeline())
    return np.stack([np.asarray(picture.image).astype(int) for picture in batch.pictures]), calls


def outcome(plain: np.ndarray, rescued: np.ndarray, retries: Mapping[str, int]) -> Outcome:
    error = np.abs(plain - rescued)
    mean = float(np.square(error).mean())
    return Outcome(", ".join(retries) or "none", int(error.max()), math.inf if mean == 0 else 10 * math.log10(255**2 / mean))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=25)
    parser.add_argument("--vram", default="", help="on an emulated device of this size, where models are swapped; resident without")
    arguments = parser.parse_args()
    service, request = prepare(arguments.vram)
    plain, counted = pictures(service, request, 0)
    plain, counted = pictures(service, request, 0)
    found: list[Outcome] = []
    for index in range(1, counted.calls + 1, arguments.stride):
        rescued, _ = pictures(service, request, index)
        found.append(outcome(plain, rescued, service.ladder.retries))
    print(f"{counted.calls} device calls in a prediction, an error at {len(found)} of them: {len(found)} predictions finished")
    print(f"{'retried':<14} {'times':>6} {'identical':>9} {'within 1':>9} {'least PSNR':>10}")
    for step in dict.fromkeys(one.step for one in found):
        of = [one for one in found if one.step == step]
        print(f"{step:<14} {len(of):>6} {sum(o.difference == 0 for o in of):>9} {sum(o.difference <= 1 for o in of):>9} {min(o.psnr for o in of):>10.1f}")


if __name__ == "__main__":
    main()
