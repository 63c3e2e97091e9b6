"""Which layers' rounding to fp8 changes pictures, and how far: ``python -m bench.quality.fp8_layers [--prompts 12]
[--steps 28] [--weights weights] [--row "all layers"]``.

Every row rounds a part of the embedded transformer and computes in float32; the first one is bfloat16, which rounds
everything else too. Held-out prompts, a seed each: PSNR against the plain pictures, and the mean squared error of all
(of 255; 20.6 is 35 dB).
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from backend.offload.quantized_linear import (
    FP8,
    FP8_MAX,
    Fp8ComputeLinear,
    Fp8Linear,
    QuantizedLinear,
    quantizable,
    replace_layer,
)
from bench.quality.speedups import embedded, pictures_of
from bench.support.markdown import table
from modules.app.service import Service
from training.data.held_out import held_out_prompts

EVERY = "."
QUERIES_AND_KEYS = r"\.attn\.(to_[qk]|add_[qk]_proj)$"
FIRST_BLOCK = r"^transformer_blocks\.0\."
PARTS: Mapping[str, str] = MappingProxyType(
    {
        "queries and keys": QUERIES_AND_KEYS,
        "values": r"\.attn\.(to_v|add_v_proj)$",
        "attention's output, double blocks": r"\.attn\.(to_out|to_add_out)",
        "feed-forward, double blocks": r"\.ff(_context)?\.net\.",
        "first half of the feed-forward, single blocks": r"\.proj_mlp$",
        "output, single blocks": r"^single.*\.proj_out$",
        "first block": FIRST_BLOCK,
        "last block": r"^single_transformer_blocks\.5\.",
    }
)


class LeastErrorScales(Fp8ComputeLinear):
    """Of eight scales a row, within a factor of two, that with the least squared error of the weights."""

    @staticmethod
    def encode(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        weight = weight.float()
        largest = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / FP8_MAX
        scales = torch.cat([largest * 2 ** (step / 8) for step in range(8)], dim=1)
        errors = [((weight / one).to(FP8).float() * one - weight).square().sum(1) for one in scales.split(1, dim=1)]
        scale = scales.gather(1, torch.stack(errors, 1).argmin(1, keepdim=True))
        return {"quantized": (weight / scale).to(FP8), "scale": scale}


Rounded = tuple[type[QuantizedLinear], str, str]
"""How, which layers of the blocks, and which of them stay as they are; both are searched in their paths."""
NONE = "$^"
ROWS: Mapping[str, Rounded] = MappingProxyType(
    {
        "all layers": (Fp8ComputeLinear, EVERY, NONE),
        "all, weights only": (Fp8Linear, EVERY, r"norm"),
        "all, scales of least error": (LeastErrorScales, EVERY, NONE),
        **{f"only {name}": (Fp8ComputeLinear, layers, NONE) for name, layers in PARTS.items()},
        "all but queries and keys": (Fp8ComputeLinear, EVERY, QUERIES_AND_KEYS),
        "all but the first block": (Fp8ComputeLinear, EVERY, FIRST_BLOCK),
        "all but both": (Fp8ComputeLinear, EVERY, f"{QUERIES_AND_KEYS}|{FIRST_BLOCK}"),
    }
)


def draw_rounded(service: Service, rounded: Rounded, prompts: Sequence[str], steps: int) -> tuple[Any, float]:
    """The pictures with some layers rounded, which are put back, and the share of the blocks' weights in them."""
    kind, layers, kept = rounded
    with service.models.on_device(service.profile.denoiser) as (transformer,):
        every = dict(quantizable(transformer, Fp8ComputeLinear))
        chosen = {path: layer for path, layer in every.items() if re.search(layers, path) and not re.search(kept, path)}
        for path, layer in chosen.items():
            replace_layer(transformer, path, kind(layer, service.runtime.device.dtype))
        try:
            drawn, _ = pictures_of(service, prompts, steps)
        finally:
            for path, layer in chosen.items():
                replace_layer(transformer, path, layer)
    return drawn, weights_in(chosen) / weights_in(every)


def weights_in(layers: Mapping[str, nn.Linear]) -> int:
    return sum(layer.in_features * layer.out_features for layer in layers.values())


def row(name: str, share: float, drawn: Sequence[Image.Image], plain: Sequence[Image.Image]) -> dict[str, object]:
    errors = [
        float(np.square(np.asarray(one).astype(float) - np.asarray(other)).mean())
        for one, other in zip(drawn, plain, strict=True)
    ]
    likeness = [10 * math.log10(255**2 / max(error, 1e-9)) for error in errors]
    return {
        "rounded": name,
        "of the weights": f"{share:.0%}",
        "median dB": round(statistics.median(likeness), 1),
        "worst dB": round(min(likeness), 1),
        "from 35 dB on": f"{sum(one >= 35 for one in likeness)} of {len(likeness)}",
        "squared error": round(statistics.mean(errors), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--weights", default="weights", help="the folder of the embedded models")
    parser.add_argument("--row", action="append", choices=list(ROWS), default=[])
    arguments = parser.parse_args()
    prompts, steps = [prompt for prompt, _ in held_out_prompts()[: arguments.prompts]], arguments.steps
    service = embedded(arguments.weights, dtype="float32")
    plain, _ = pictures_of(service, prompts, steps)
    in_16_bits, _ = pictures_of(embedded(arguments.weights, dtype="bfloat16"), prompts, steps)
    print(table([row("nothing, but all in bfloat16", 0, in_16_bits, plain)]), flush=True)
    for name in arguments.row or ROWS:  # each takes a minute
        drawn, share = draw_rounded(service, ROWS[name], prompts, steps)
        print(table([row(name, share, drawn, plain)]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
