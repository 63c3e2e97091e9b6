"""From the regions of a batch of pictures to the inpainting jobs, grouped into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modules.adetailer.regions import ChosenRegions, batches
from modules.diffusion.denoise_request import steps_run
from modules.inpainting.region import Region
from modules.request.adetailer_unit import AdetailerUnit, region_prompt
from modules.request.image_request import MAX_SEED, ImageRequest
from modules.request.lora_use import LoraUse, in_region


@dataclass(frozen=True)
class InpaintJob:
    """One region of picture ``picture`` (an index), with its prompts, its seed, and the LoRA files that are for it."""

    picture: int
    region: Region
    prompt: str
    negative: str
    seed: int
    loras: tuple[LoraUse, ...] = ()


def unit_steps(unit: AdetailerUnit, request: ImageRequest) -> int:
    """The steps of a whole schedule; the strength decides which share of them is run."""
    return unit.steps if unit.use_steps else request.num_inference_steps


def inpaint_jobs(
    chosen: Sequence[ChosenRegions],
    seeds: Sequence[int],
    unit: AdetailerUnit,
    request: ImageRequest,
    max_batch: int,
) -> list[list[InpaintJob]]:
    """The batches in which the regions are inpainted, in order, each of at most ``max_batch`` jobs.

    ``chosen`` and ``seeds`` are those of the pictures. The jobs of a batch have one size, run the same number of steps
    and share their negative prompt and their LoRA files. Region j of a picture (from 0) has the picture's seed plus j.
    """
    groups: dict[tuple[Any, ...], list[InpaintJob]] = {}
    for picture, (of_picture, picture_seed) in enumerate(zip(chosen, seeds, strict=True)):
        for turn, regions in enumerate(batches(of_picture.regions)):
            for region in regions:
                index = region.number - 1
                seed = picture_seed + (0 if unit.same_seed_for_each_tab else index)
                prompt = region_prompt(unit.prompt, request.prompt, index) or ""
                negative = region_prompt(unit.negative_prompt, request.negative_prompt, index) or ""
                # of the strength only the number of steps matters, and whether there are any
                strength = unit.strength(region.area_ratio)
                steps = steps_run(unit_steps(unit, request), strength)
                loras = in_region(prompt, request.loras)
                key = (turn, *region.size, strength > 0, steps, negative, loras)
                job = InpaintJob(picture, region, prompt, negative, seed % (MAX_SEED + 1), loras)
                groups.setdefault(key, []).append(job)
    ordered = [groups[key] for key in sorted(groups, key=lambda key: key[0])]
    return [group[start : start + max_batch] for group in ordered for start in range(0, len(group), max_batch)]
