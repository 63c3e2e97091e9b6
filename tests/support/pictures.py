"""The prompt and the quick request that several tests share."""

from __future__ import annotations

from typing import Any

PROMPT = "a portrait of a smiling woman with long red hair, glasses, blue shirt, green background"

PICTURE: dict[str, Any] = {
    "prompt": "a portrait of a smiling woman with long red hair, blue shirt, green background",
    "num_inference_steps": 4,
    "seed": 7,
    "output_format": "png",
}
"""Inputs of a quick prediction that runs every stage."""
