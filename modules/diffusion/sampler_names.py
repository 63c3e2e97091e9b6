"""The names of samplers and schedules, and how much they redraw at most, for what must not import those themselves."""

from __future__ import annotations

from typing import Literal, get_args

Sampler = Literal["Euler", "DPM++ 2M", "DPM++ 2M SDE", "UniPC"]
Schedule = Literal["Simple", "Karras", "Exponential", "Beta", "Normal", "SGM Uniform"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
"""Those of ``modules/diffusion/samplers.py``; the first of each is the default."""

MOST_STRENGTH = 0.999
"""Of a picture that Hires fix or the detail pass redraws, as the WebUI has it: it always begins from what was there."""
