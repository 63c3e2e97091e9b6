"""The arguments of one ADetailer unit (version 25.3), with their defaults, ranges, choices and labels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from backend.core.errors import nearest
from backend.core.validation import STRICT, Text, WholeNumber, fields_of
from modules.diffusion.sampler_names import MOST_STRENGTH, SAMPLERS, SCHEDULES

OFF = "None"
OWN_MASK = "mask"
"""The model of a unit that repaints what the input ``ad_mask`` shows, and detects nothing."""
SAME_SCHEDULER = "Use same scheduler"

SortOrder = Literal["None", "Position (left to right)", "Position (center to edge)", "Area (large to small)"]
SORT_ORDERS: Mapping[SortOrder, str] = MappingProxyType(
    {
        "None": "None",
        "Position (left to right)": "Left to right",
        "Position (center to edge)": "Center to edge",
        "Area (large to small)": "Area",
    }
)
"""ADetailer's names for the orders of :func:`modules.adetailer.masks.sort_detections`."""

PROMPT_ORDERS = ("[ASC]", "[DSC]", "[ASC-SIZE]", "[DSC-SIZE]")
"""What a prompt may begin with, as in Impact-Pack: the order of the regions by left edge (then top edge) or by area,
ascending or descending."""
SKIP, STOP, SEPARATOR, MAIN_PROMPT = "[SKIP]", "[STOP]", "[SEP]", "[PROMPT]"
OTHER_MARKS = ("[RND]", "[LAB]", "[ALL]", "[CONCAT]")
"""Marks of Impact-Pack that are refused."""

Ratio = Annotated[float, Field(ge=0, le=1)]
Offset = Annotated[WholeNumber, Field(ge=-200, le=200)]
InpaintSide = Annotated[WholeNumber, Field(ge=64, le=2048)]


def _region_numbers(text: str) -> str:
    if not re.fullmatch(r"(\s*[1-9]\d{0,3}\s*(,(?=.)|$))*", text):
        raise ValueError(f"must be numbers of regions in their order, such as 2 or 1, 3, not '{text[:40]}'")
    return text


def _strict_for_short(value: object) -> object:
    return "Strict" if value == "Strict (SDXL only)" else value  # as ADetailer's settings have it


@dataclass(frozen=True, config=STRICT)
class AdetailerUnit:
    """One ADetailer pass: what to detect, which detections to repaint, in which order, and how.

    The fields are ADetailer's arguments without ``ad_``. A field's title is its label in the parameters of a picture,
    where that differs from its name. ``model`` is the detector ("": the default one for faces, "None": the unit is
    off). The fields from ``bbox_sortby`` on are global settings in ADetailer; here each unit has its own. The last
    four are additions of this package. Ranges are those of ADetailer's sliders; steps and CFG scale have the WebUI's.
    """

    model: Text = ""
    model_classes: Text = ""
    tab_enable: bool = True
    prompt: Text = ""
    negative_prompt: Text = ""
    confidence: Ratio = 0.3
    mask_filter_method: Annotated[Literal["Area", "Confidence"], Field(title="method to decide top k masks")] = "Area"
    mask_k: Annotated[WholeNumber, Field(ge=0, title="mask only top k")] = 0
    mask_min_ratio: Ratio = 0.0
    mask_max_ratio: Ratio = 1.0
    dilate_erode: Annotated[WholeNumber, Field(ge=-128, le=128)] = 4
    x_offset: Offset = 0
    y_offset: Offset = 0
    mask_merge_invert: Literal["None", "Merge", "Merge and Invert"] = "None"
    mask_blur: Annotated[WholeNumber, Field(ge=0, le=64)] = 4
    denoising_strength: Ratio = 0.4
    inpaint_only_masked: bool = True
    inpaint_only_masked_padding: Annotated[WholeNumber, Field(ge=0, le=256, title="inpaint padding")] = 32
    use_inpaint_width_height: bool = False
    inpaint_width: InpaintSide = 512
    inpaint_height: InpaintSide = 512
    use_steps: Annotated[bool, Field(title="use separate steps")] = False
    steps: Annotated[WholeNumber, Field(ge=1, le=150)] = 28
    use_cfg_scale: Annotated[bool, Field(title="use separate CFG scale")] = False
    cfg_scale: Annotated[float, Field(ge=0, le=30, title="CFG scale")] = 7.0
    use_sampler: Annotated[bool, Field(title="use separate sampler")] = False
    sampler: Text = "DPM++ 2M Karras"
    scheduler: Text = SAME_SCHEDULER
    restore_face: bool = False
    bbox_sortby: SortOrder = "None"
    same_seed_for_each_tab: bool = False
    dynamic_denoise_power: Annotated[float, Field(ge=-10, le=10)] = 0.0
    match_inpaint_bbox_size: Annotated[Literal["Off", "Strict", "Free"], BeforeValidator(_strict_for_short)] = "Off"
    mask_select: Annotated[str, AfterValidator(_region_numbers)] = ""
    soft_mask: bool = False
    color_correction: bool = False
    sam: Annotated[bool, Field(title="SAM 2")] = False

    def __post_init__(self) -> None:
        if self.mask_min_ratio > self.mask_max_ratio:
            raise ValueError(
                f"ad_mask_min_ratio is {self.mask_min_ratio}, more than ad_mask_max_ratio, {self.mask_max_ratio}"
            )
        for name, prompt in (("prompt", self.prompt), ("negative_prompt", self.negative_prompt)):
            if mark := next((mark for mark in OTHER_MARKS if mark in prompt), ""):
                raise ValueError(
                    f"ad_{name} has {mark}, a mark of Impact-Pack that is not supported; leave it out, or use "
                    f"{SEPARATOR}, {SKIP}, {STOP}, {MAIN_PROMPT}"
                )
        if self.use_sampler:
            sampler, schedule = self.sampling(SAMPLERS[0], SCHEDULES[0])
            for name, value, offered in (("sampler", sampler, SAMPLERS), ("scheduler", schedule, SCHEDULES)):
                if value not in offered:
                    close = nearest(value, offered)
                    raise ValueError(f"ad_{name} must be one of {', '.join(offered)}, not '{value[:40]}'{close}")

    @property
    def enabled(self) -> bool:
        return self.tab_enable and self.model != OFF

    @property
    def selected(self) -> frozenset[int]:
        """The numbers of the regions that ``mask_select`` lists, from 1. Empty means all."""
        return frozenset(int(number) for number in self.mask_select.split(",") if number.strip())

    def strength(self, area_ratio: float) -> float:
        """The denoising strength for a region whose box covers ``area_ratio`` of the picture. A positive
        ``dynamic_denoise_power`` lowers it for large regions, a negative one raises it."""
        rest = max(1 - area_ratio, 1e-6)  # 0, for a box as large as the picture, has no negative power
        return min(MOST_STRENGTH, self.denoising_strength * math.pow(rest, self.dynamic_denoise_power))

    def sampling(self, sampler: str, schedule: str) -> tuple[str, str]:
        """The sampler and schedule of the unit, by default those of the request, which are given. The names are those
        of ``modules/diffusion/samplers.py``.

        An older sampler name contains the schedule ("DPM++ 2M Karras"); ``scheduler`` overrides it.
        """
        if not self.use_sampler:
            return sampler, schedule
        old = next((name for name in SCHEDULES if self.sampler.endswith(f" {name}")), "")
        own = old or schedule if self.scheduler == SAME_SCHEDULER else self.scheduler
        return self.sampler.removesuffix(f" {old}") if old else self.sampler, own

    def changed(self) -> dict[str, object]:
        """The arguments that are not at their default, by the labels that ADetailer writes into the parameters of a
        picture. ``model`` is left out."""
        titles = {name: field.title for name, field in fields_of(AdetailerUnit).items()}
        return {
            titles[field.name] or field.name.replace("_", " "): getattr(self, field.name)
            for field in fields(self)
            if field.name != "model" and getattr(self, field.name) != field.default
        }


FACES = AdetailerUnit()
HANDS = AdetailerUnit(
    confidence=0.28, denoising_strength=0.35, dilate_erode=16, mask_blur=8, inpaint_only_masked_padding=72
)
"""Defaults for hands, which need more context than faces and a lower denoising strength."""


def prompt_order(unit_prompt: str) -> tuple[str, str]:
    """The order tag at the start of the prompt (one of ``PROMPT_ORDERS``, or ""), and the prompt without it."""
    words = unit_prompt.lstrip()
    order = next((order for order in PROMPT_ORDERS if words.startswith(order)), "")
    return order, words.removeprefix(order)


def region_prompt(unit_prompt: str, main_prompt: str, index: int) -> str | None:
    """The prompt for region ``index`` (from 0) of a picture; None when that region is to be skipped.

    ``[SEP]`` separates the prompts of the regions, and the last one is for all further regions. ``[PROMPT]`` and an
    empty part stand for the main prompt. A part that is exactly ``[SKIP]`` skips its region, ``[STOP]`` its region and
    all that follow.
    """
    if skipping_mark(unit_prompt, index):
        return None
    return _parts(unit_prompt, index)[-1].replace(MAIN_PROMPT, main_prompt) or main_prompt


def region_prompts(unit_prompt: str, main_prompt: str) -> Iterator[str]:
    """The prompts of the regions as far as they differ, in their order, without those that are skipped."""
    seen: set[str] = set()
    for part in _parts(unit_prompt, unit_prompt.count(SEPARATOR)):
        if part == STOP:
            return
        if part != SKIP and part not in seen:
            seen.add(part)
            yield part.replace(MAIN_PROMPT, main_prompt) or main_prompt


def skipping_mark(unit_prompt: str, index: int) -> str:
    """The mark for which region ``index`` (from 0) is skipped, or ""."""
    parts = _parts(unit_prompt, index)
    return STOP if STOP in parts else SKIP if parts[-1] == SKIP else ""


def _parts(unit_prompt: str, index: int) -> list[str]:
    """The parts of a prompt up to that of region ``index``, which is the last one."""
    return [part.strip() for part in prompt_order(unit_prompt)[1].split(SEPARATOR)][: index + 1]


def longest_prompt(unit_prompt: str, main_prompt: str) -> int:
    """The characters of the longest prompt that :func:`region_prompt` makes of these."""
    parts = unit_prompt.split(SEPARATOR)
    return max(len(part) + part.count(MAIN_PROMPT) * (len(main_prompt) - len(MAIN_PROMPT)) for part in parts)
