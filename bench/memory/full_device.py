"""Makes the device full at one call after another: ``python -m bench.memory.full_device [--stride 25] [--vram 48MB]``.

Every stage of a prediction is run once to count its device calls (operations and uploads of weights), and then again
and again, each time with an out-of-memory error at another call. It must always finish. The table says by step how
close the pictures are to those of a device with room. Pictures are small and take one step, so that every call gets its
turn.
``--stride 1`` takes every call, n every n-th.
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

from backend.core.settings import Settings
from backend.core.timeline import Timeline
from backend.devices.emulated import tensors_in
from modules.app.service import Service, start
from modules.pipeline.base import ImageBatch, Stage, no_progress
from modules.request.adetailer_unit import AdetailerUnit
from modules.request.image_request import Hires, ImageRequest

FINE_STEPS = 8
"""Of the pictures that a stage begins with: in those of one step there is no face to be found."""
PROMPT = "a close-up of a smiling woman with short red hair, green background"


class FullAt(TorchDispatchMode):
    """The device is full at the call number ``index`` (from 1; 0 = never). ``calls`` counts them.

    A call counts when it takes a floating point tensor: token ids and bytes are prepared on the host.
    """

    def __init__(self, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index, self.calls = index, 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if any(tensor.is_floating_point() for tensor in tensors_in((*args, *(kwargs or {}).values()))):
            self.calls += 1
            if self.calls == self.index:
                raise torch.OutOfMemoryError("CUDA out of memory. (injected)")
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Outcome:
    """``step`` is the step of the fallback that was retried ("none": the error was in no step), ``difference`` the
    largest of all pixels at the stage's end, in 255ths."""

    step: str
    stage: str
    difference: int
    psnr: float


def prepare(vram: str) -> tuple[Service, ImageRequest]:
    service = start(
        replace(
            Settings(),
            model="embedded",
            dtype="float32",
            emulate_vram=vram,
            log_level="ERROR",
            warm_up=False,
            prompt_cache_entries=0,
        )
    )
    logging.getLogger("backend.offload.oom_fallback").setLevel(logging.ERROR)
    side = service.profile.native // 2
    unit = AdetailerUnit(confidence=0.1, use_inpaint_width_height=True, inpaint_width=side, inpaint_height=side)
    small: dict[str, Any] = {"width": side, "height": side, "num_outputs": 2, "num_inference_steps": 1}
    return service, ImageRequest(prompt=PROMPT, seed=1, **small, hires=Hires(1.25, steps=1), adetailer=(unit,), scale=2)


def run(
    service: Service, stage: Stage, batch: ImageBatch, request: ImageRequest, index: int
) -> tuple[ImageBatch, FullAt]:
    """A stage as by a new service, with the device full at one of its calls."""
    service.fallback.learned.clear()
    service.fallback.retries.clear()
    service.models.release()
    with service.runtime.activate(), FullAt(index) as calls:
        return stage.run(batch, request), calls


def outcome(plain: ImageBatch, rescued: ImageBatch, step: str, stage: str) -> Outcome:
    expected, got = (
        np.stack([np.asarray(picture.image).astype(int) for picture in batch.pictures]) for batch in (plain, rescued)
    )
    error = np.abs(expected - got)
    mean = float(np.square(error).mean())
    return Outcome(step, stage, int(error.max()), math.inf if mean == 0 else 10 * math.log10(255**2 / mean))


def sweep(
    service: Service, request: ImageRequest, stride: int, stages: Sequence[str] = ()
) -> tuple[int, list[Outcome]]:
    """The number of device calls in a prediction (in ``stages``, where some are named), and what became of an error
    at every ``stride``-th."""
    calls, found = 0, []
    batch = ImageBatch((), Timeline(), no_progress)
    for stage in service.pipeline.stages:
        if not stage.wanted(request):
            continue
        fine, _ = run(service, stage, batch, replace(request, num_inference_steps=FINE_STEPS), 0)
        if stages and stage.name not in stages:
            batch = fine
            continue
        plain, counted = run(service, stage, batch, request, 0)
        for index in range(1 + -calls % stride, counted.calls + 1, stride):
            rescued, _ = run(service, stage, batch, request, index)
            found.append(outcome(plain, rescued, ", ".join(service.fallback.retries) or "none", stage.name))
        calls += counted.calls
        batch = fine
    return calls, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=25)
    parser.add_argument(
        "--vram", default="", help="on an emulated device of this size, with model offload; resident without"
    )
    parser.add_argument("--stage", action="append", default=[], help="only this stage; may be given several times")
    arguments = parser.parse_args()
    prepared = prepare(arguments.vram)
    torch.set_num_threads(1)  # pictures this small are drawn no faster by several
    calls, found = sweep(*prepared, arguments.stride, arguments.stage)
    print(
        f"{calls} device calls in a prediction, an error at {len(found)} of them: {len(found)} times the stage finished"
    )
    print(f"{'retried in':<24} {'times':>6} {'identical':>9} {'within 1':>9} {'at most':>8} {'least PSNR':>10}")
    for step, stage in dict.fromkeys((one.step, one.stage) for one in found):
        of = [one for one in found if (one.step, one.stage) == (step, stage)]
        counts = (
            f"{sum(o.difference == 0 for o in of):>9} {sum(o.difference <= 1 for o in of):>9} "
            f"{max(o.difference for o in of):>8}"
        )
        print(f"{f'{step} ({stage})':<24} {len(of):>6} {counts} {min(o.psnr for o in of):>10.1f}")


if __name__ == "__main__":
    main()
