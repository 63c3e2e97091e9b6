"""ADetailer's arguments, and units that must be refused, each with what the error says."""

from __future__ import annotations

import math
from typing import Any

from backend.core.validation import bounds, choices, fields_of
from modules.request.adetailer_args import NOT_HERE, WithoutEffect
from modules.request.adetailer_unit import AdetailerUnit

FIELDS = {**fields_of(AdetailerUnit), **fields_of(WithoutEffect)}
RANGES = {name: bounds(field) for name, field in FIELDS.items() if math.isfinite(bounds(field)[0])}
CHOICES = {name: choices(field) for name, field in FIELDS.items() if choices(field)}


ADETAILERS: dict[str, Any] = {
    **{
        "model_classes": "",
        "tab_enable": True,
        "prompt": "",
        "negative_prompt": "",
        "confidence": 0.3,
        "mask_filter_method": "Area",
        "mask_k": 0,
    },
    **{
        "mask_min_ratio": 0.0,
        "mask_max_ratio": 1.0,
        "dilate_erode": 4,
        "x_offset": 0,
        "y_offset": 0,
        "mask_merge_invert": "None",
        "mask_blur": 4,
    },
    **{
        "denoising_strength": 0.4,
        "inpaint_only_masked": True,
        "inpaint_only_masked_padding": 32,
        "use_inpaint_width_height": False,
    },
    **{
        "inpaint_width": 512,
        "inpaint_height": 512,
        "use_steps": False,
        "steps": 28,
        "use_cfg_scale": False,
        "cfg_scale": 7.0,
    },
    **{"use_sampler": False, "sampler": "DPM++ 2M Karras", "scheduler": "Use same scheduler", "restore_face": False},
}


def beyond(name: str) -> list[float]:
    low, high = RANGES[name]
    return [low - 1, high + 1] if math.isfinite(high) else [low - 1]


WRONG: list[tuple[object, str]] = [
    *[
        ({"ad_confidense": 0.5}, "unknown argument 'ad_confidense' (did you mean 'ad_confidence'?)"),
        ({"confidence": 0.5}, "unknown argument 'confidence' (did you mean 'ad_confidence'?)"),
        ([{}, {"ad_mask_k": "2"}], "unit 2: ad_mask_k must be a whole number, not '2'"),
        ({"ad_mask_k": True}, "ad_mask_k must be a whole number, not true"),
        ({"ad_mask_k": 1.5}, "ad_mask_k must be a whole number, not 1.5"),
        ({"ad_confidence": float("nan")}, "ad_confidence must be from 0 to 1, not nan"),
        ({"ad_dilate_erode": float("inf")}, "ad_dilate_erode must be a whole number, not inf"),
        ({"ad_inpaint_only_masked": 1}, "ad_inpaint_only_masked must be true or false, not 1"),
        ({"ad_prompt": None}, "ad_prompt must be text, not null"),
        (
            {"ad_mask_min_ratio": 0.5, "ad_mask_max_ratio": 0.4},
            "ad_mask_min_ratio is 0.5, more than ad_mask_max_ratio, 0.4",
        ),
        (["x"], "must be a JSON object"),
        (7, "must be a JSON object"),
        ([{}] * 5, "has 5 units; at most 4 are run"),
        (
            {"ad_use_sampler": True, "ad_sampler": "Euler a"},
            "ad_sampler must be one of Euler, DPM++ 2M, DPM++ 2M SDE, UniPC, not 'Euler a'",
        ),
        (
            {"ad_use_sampler": True, "ad_scheduler": "Turbo"},
            "ad_scheduler must be one of Simple, Karras, Exponential, Beta, Normal, SGM Uniform, not 'Turbo'",
        ),
        ({"ad_checkpoint": 5}, "ad_checkpoint must be text, not 5"),
    ],
    *[({f"ad_{name}": value}, f"ad_{name} must be ") for name in RANGES for value in beyond(name)],
    *[
        ({f"ad_{name}": "something"}, f"ad_{name} must be one of {', '.join(CHOICES[name])}, not 'something'")
        for name in CHOICES
    ],
    *[
        ({f"ad_{name}": True if nothing is False else "something"}, f"ad_{name} cannot be honoured: {reason}")
        for name, (nothing, reason) in NOT_HERE.items()
    ],
]
"""Units that are refused, and words of the error; ``tests/e2e/test_server.py`` sends them all over HTTP."""
