"""Whether requests that wait should be drawn as one batch: ``python -m bench.speed.batching [--runs 5] [--json]``.

Four requests of one size and so many steps, one after the other and as one batch, warm, on the embedded models; sizes
that take little and much work a step. And what the plan's model of costs says of FLUX.1-dev on a card of 80 GB.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from typing import Any

from backend.core.settings import Settings
from backend.memory_management import MemoryRules, Workload, plan_memory
from backend.planning.gpu_specs import nearest_card
from bench.support.markdown import table
from modules.families.registry import known_models

BATCH = 4
STEPS = 8
CARD_BANDWIDTH = 2.0e12
"""Bytes per second from the memory of an A100 or H100 of 80 GB to its processors, on the low side."""


def denoise_seconds(service: Any, megapixels: str, outputs: int, seed: int) -> float:
    """Of one request; everything but the denoising is done picture by picture in a batch too."""
    metrics: dict[str, float] = {}
    inputs = {
        "prompt": "a smiling woman with red hair, blue shirt, green background",
        "megapixels": megapixels,
        "num_inference_steps": STEPS,
        "num_outputs": outputs,
        "seed": seed,
        "adetailer": False,
        "scale": 1.0,
    }
    service.predict(inputs, metrics.__setitem__, lambda stage, done, total: None)
    return metrics["generate.denoise.seconds"]


def measured(runs: int) -> list[dict[str, Any]]:
    """On this machine, alternating; medians in seconds."""
    from modules.app.service import start

    service = start(replace(Settings(), model="embedded", log_level="ERROR"))
    rows = []
    for megapixels in ("0.25", "1"):
        single: list[float] = []
        batch: list[float] = []
        for run in range(runs + 1):
            single.append(sum(denoise_seconds(service, megapixels, 1, BATCH * run + each) for each in range(BATCH)))
            batch.append(denoise_seconds(service, megapixels, BATCH, BATCH * run))
        one_by_one, together = statistics.median(single[1:]), statistics.median(batch[1:])  # the first one warms up
        rows.append(
            {
                "model": f"embedded, {megapixels} megapixels",
                "one_by_one": round(one_by_one, 3),
                "as_one_batch": round(together, 3),
                "ratio": round(one_by_one / together, 2),
                "at_most": "",
            }
        )
    return rows


def planned() -> list[dict[str, Any]]:
    """Whole predictions by FLUX.1-dev on a card of 80 GB, by the plan: there the work is the same, and each step reads
    the weights from the card's own memory."""
    models, card = known_models()["flux-dev"], nearest_card(80 * 10**9)
    device = card.device(80 * 10**9, 64 * 10**9)
    rows = []
    for side in (512, 1024):
        one, four = (
            plan_memory(device, models, Workload(side, side, outputs, models.steps), MemoryRules()).predicted_seconds
            for outputs in (1, BATCH)
        )
        weights = models.components[models.denoiser].size("bf16") / CARD_BANDWIDTH
        step = one / models.steps
        rows.append(
            {
                "model": f"FLUX.1-dev, {card.name} 80 GB, {side} x {side}",
                "one_by_one": round(BATCH * one, 1),
                "as_one_batch": round(four, 1),
                "ratio": round(BATCH * one / four, 2),
                "at_most": round(BATCH * step / (BATCH * step - (BATCH - 1) * weights), 2),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [*measured(arguments.runs), *planned()]
    print(json.dumps(rows) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
