"""An ADetailer unit: the defaults, ranges, choices and labels of ADetailer's arguments."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError
from support.adetailer_units import ADETAILERS, CHOICES, RANGES

from modules.request.adetailer_unit import (
    SORT_ORDERS,
    AdetailerUnit,
    longest_prompt,
    region_prompt,
    region_prompts,
    skipping_mark,
)


def test_the_defaults_are_adetailers() -> None:
    assert {name: getattr(AdetailerUnit(), name) for name in ADETAILERS} == ADETAILERS


def test_the_ranges_are_those_of_adetailers_sliders_and_of_the_webui() -> None:
    share, offset, side = (0, 1), (-200, 200), (64, 2048)
    assert {
        "confidence": share,
        "mask_k": (0, math.inf),
        "mask_min_ratio": share,
        "mask_max_ratio": share,
        "dilate_erode": (-128, 128),
        "x_offset": offset,
        "y_offset": offset,
        "mask_blur": (0, 64),
        "denoising_strength": share,
        "inpaint_only_masked_padding": (0, 256),
        "inpaint_width": side,
        "inpaint_height": side,
        "steps": (1, 150),
        "cfg_scale": (0, 30),
        "dynamic_denoise_power": (-10, 10),
        "noise_multiplier": (0.5, 1.5),
        "clip_skip": (1, 12),
        "controlnet_weight": share,
        "controlnet_guidance_start": share,
        "controlnet_guidance_end": share,
    } == RANGES


def test_the_choices_are_adetailers() -> None:
    assert {
        "mask_filter_method": ("Area", "Confidence"),
        "mask_merge_invert": ("None", "Merge", "Merge and Invert"),
        "bbox_sortby": tuple(SORT_ORDERS),
        "match_inpaint_bbox_size": ("Off", "Strict", "Free"),
    } == CHOICES


def test_only_what_is_not_the_default_goes_into_the_parameters_by_adetailers_labels() -> None:
    assert AdetailerUnit(model="face.pt").changed() == {}
    changed = AdetailerUnit(mask_k=2, use_cfg_scale=True, cfg_scale=3, mask_blur=8, inpaint_only_masked_padding=0)
    assert changed.changed() == {
        "mask only top k": 2,
        "mask blur": 8,
        "inpaint padding": 0,
        "use separate CFG scale": True,
        "CFG scale": 3.0,
    }


def test_a_unit_that_is_changed_is_checked_again() -> None:
    with pytest.raises(ValidationError, match="mask_blur"):
        replace(AdetailerUnit(), mask_blur=65)


class TestSampling:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({}, ("UniPC", "Beta")),
            ({"sampler": "Euler", "scheduler": "Karras"}, ("UniPC", "Beta")),
            ({"use_sampler": True}, ("DPM++ 2M", "Karras")),
            ({"use_sampler": True, "sampler": "Euler"}, ("Euler", "Beta")),
            ({"use_sampler": True, "sampler": "Euler", "scheduler": "Karras"}, ("Euler", "Karras")),
            (
                {"use_sampler": True, "sampler": "DPM++ 2M Karras", "scheduler": "SGM Uniform"},
                ("DPM++ 2M", "SGM Uniform"),
            ),
        ],
    )
    def test_a_units_own_goes_over_the_requests_where_it_is_switched_on(
        self, given: dict[str, Any], expected: tuple[str, str]
    ) -> None:
        assert AdetailerUnit(**given).sampling("UniPC", "Beta") == expected


@pytest.mark.parametrize(
    ("power", "area", "strength"), [(1, 0.25, 0.3), (-1, 0.5, 0.8), (-10, 1.0, 0.999), (10, 1.0, 0.0), (0, 1.0, 0.4)]
)
def test_dynamic_strength_stays_between_nothing_and_everything(power: float, area: float, strength: float) -> None:
    assert AdetailerUnit(dynamic_denoise_power=power).strength(area) == pytest.approx(strength)


class TestPrompts:
    def test_an_empty_one_is_the_main_prompt(self) -> None:
        assert region_prompt("", "a man", 0) == region_prompt("  ", "a man", 5) == "a man"

    def test_sep_gives_each_region_its_words_and_the_last_to_the_rest(self) -> None:
        assert [region_prompt("a [SEP] b[SEP]c", "main", index) for index in range(5)] == ["a", "b", "c", "c", "c"]

    def test_prompt_stands_for_the_main_prompt(self) -> None:
        assert region_prompt("[PROMPT], smiling", "a man", 0) == "a man, smiling"
        assert region_prompt("x [SEP] ", "a man", 1) == "a man"

    def test_skip_skips_exactly_that_region(self) -> None:
        assert [region_prompt("[SKIP] [SEP] a [SEP] no [SKIP]", "main", index) for index in range(3)] == [
            None,
            "a",
            "no [SKIP]",
        ]


def test_stop_skips_its_region_and_all_that_follow() -> None:
    prompt = "[ASC] a [SEP] [STOP] [SEP] c"
    assert [region_prompt(prompt, "main", index) for index in range(4)] == ["a", None, None, None]
    assert [skipping_mark(prompt, index) for index in range(3)] == ["", "[STOP]", "[STOP]"]
    assert list(region_prompts(prompt, "main")) == ["a"]
    assert list(region_prompts("[PROMPT], a [SEP] [SKIP] [SEP] b [SEP] b [SEP]", "main")) == ["main, a", "b", "main"]


@pytest.mark.parametrize("mark", ["[LAB]", "[CONCAT]", "[RND]", "[ALL]"])
@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_marks_that_are_not_supported_are_refused_by_name(mark: str, name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"ad_{name} has {mark}, a mark of Impact-Pack")):
        AdetailerUnit(**{name: f"{mark} a face"})  # type: ignore[arg-type]


def test_the_length_of_a_prompt_is_known_without_making_it() -> None:
    for prompt in ("", "a", "[PROMPT] and [PROMPT]", "a [SEP] [PROMPT][PROMPT]"):
        longest = max(len(part.replace("[PROMPT]", "m" * 30)) for part in prompt.split("[SEP]"))
        assert longest_prompt(prompt, "m" * 30) == longest
