"""Speeds of FLUX.1-dev that others have published, and ours, beside what the plan predicts for the same placement.

    python -m bench.memory.published_speeds

One picture of 1024 x 1024 in 28 steps, nothing else. Only what the plan knows is here: compiled or not is in the
efficiency of a card (``backend/planning/gpu_specs.py``), and block caches are not planned. Where a row is what the
efficiency of its card was taken from, it says nothing about the prediction; the table names these. Not here is
flux-fp8-api's 2.43 s with products in fp8 on an H100: it has one fixed scale for a whole tensor where this package has
one for every token, computed anew. The plan predicts 3.3 s for these on an H100.
"""

from __future__ import annotations

from dataclasses import dataclass

from backend.core.units import GIB
from backend.planning.activations import Workload, prediction_steps
from backend.planning.costs import Kind, Placement, moved_bytes, step_seconds
from backend.planning.gpu_specs import card_named
from modules.families.registry import known_models

FLUX_DEV = known_models()["flux-dev"]
RESIDENT: Kind = "resident"
STREAMED: Kind = "block offload"
OURS = "this package, the denoising alone"


@dataclass(frozen=True)
class Published:
    """``seconds`` that ``source`` measured on ``card``. The transformer is in ``dtype``; of it ``kept_bytes`` stay on
    the device, and the rest is streamed (None = all stays). ``fitted``: the card's efficiency, or the time of the
    precision, is taken from it."""

    card: str
    how: str
    seconds: float
    source: str
    dtype: str = "bf16"
    kept_bytes: int | None = None
    fitted: bool = False

    @property
    def predicted(self) -> float:
        """Seconds, by the plan's costs."""
        device = card_named(self.card).device()
        total = 0.0
        steps = prediction_steps(Workload(FLUX_DEV.native, FLUX_DEV.native, steps=FLUX_DEV.steps), FLUX_DEV)
        for step, previous in zip(steps, (None, *steps), strict=False):
            for name in step.components:
                component = FLUX_DEV.components[name]
                is_denoiser = name == FLUX_DEV.denoiser
                streamed = is_denoiser and self.kept_bytes is not None
                dtype = self.dtype if is_denoiser else component.dtype
                placement = Placement(STREAMED if streamed else RESIDENT, dtype)
                moved = moved_bytes(placement, component, step, previous)
                moved -= (self.kept_bytes or 0) * step.forwards if streamed else 0
                total += step_seconds(placement, component, step, moved, name == step.components[-1], device, 1)
        return total


PUBLISHED = (
    Published("H100 SXM", "bf16, compiled", 4.5, "PyTorch devlog, May 2026", fitted=True),
    Published("H100 SXM", "bf16, compiled", 4.3, "xDiT"),
    Published("H200", "bf16, compiled", 4.32, "SGLang, pull request 19673"),
    Published("H200", "bf16, compiled", 3.71, OURS, fitted=True),
    Published("H200", "fp8 products, compiled", 2.78, OURS, "fp8_compute", fitted=True),
    Published("H100 SXM", "fp8 products, compiled", 3.03, "Replicate, go_fast", "fp8_compute"),
    Published("RTX 4090", "nf4, compiled", 25.8, "diffusers' documentation", "nf4", fitted=True),
    Published("L20", "bf16, resident", 23.4, "cache-dit", fitted=True),
    Published("L20", "bf16, 16 GiB of blocks kept", 24.6, "cache-dit", kept_bytes=16 * GIB),
    Published("L20", "bf16, 8 GiB of blocks kept", 33.0, "cache-dit", kept_bytes=8 * GIB),
)


def markdown() -> str:
    rows = [["Card", "How", "Published", "Predicted", "Source"], ["---"] * 5]
    for row in PUBLISHED:
        source = row.source + (", the prediction is fitted to it" if row.fitted else "")
        rows.append([row.card, row.how, f"{row.seconds:.1f} s", f"{row.predicted:.1f} s", source])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(markdown())
