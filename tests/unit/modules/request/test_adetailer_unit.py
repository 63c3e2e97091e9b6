"""ADetailer's arguments: its names, its defaults, its ranges; what cannot be honoured is refused by name, never
ignored."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest
from pydantic import ValidationError
from support.requests_data import DETECTORS, EMBEDDED, INPUTS
from support.wrong_units import CHOICES, RANGES, WRONG, beyond

from backend.core.errors import InputError
from modules.detection.classes import ClassSet
from modules.request.adetailer_args import NOT_HERE, WithoutEffect, units_from_json
from modules.request.adetailer_unit import HANDS, SORT_ORDERS, AdetailerUnit, region_prompt
from modules.request.parser import build_request


def units(given: object) -> tuple[AdetailerUnit, ...]:
    return units_from_json(json.dumps(given), "adetailer_args")


def refused(given: object) -> str:
    with pytest.raises(InputError) as error:
        units(given)
    assert str(error.value).startswith("adetailer_args: ") and "\n" not in str(error.value)
    return str(error.value)


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
"""Of ADetailer 25.3.0, arguments with a default that this package takes over."""
OTHERS = {
    "use_checkpoint",
    "checkpoint",
    "use_vae",
    "vae",
    "use_noise_multiplier",
    "noise_multiplier",
    "use_clip_skip",
    "clip_skip",
}
CONTROLNET = {
    "controlnet_model",
    "controlnet_module",
    "controlnet_weight",
    "controlnet_guidance_start",
    "controlnet_guidance_end",
}


def test_the_defaults_are_adetailers() -> None:
    [unit] = units({})
    assert {name: getattr(unit, name) for name in ADETAILERS} == ADETAILERS


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


def test_every_argument_of_adetailer_is_known_and_of_ours_only_the_global_settings_and_three_more_are_not_its() -> None:
    ours = {field.name for field in fields(AdetailerUnit)}
    assert {*ours, *NOT_HERE, *(field.name for field in fields(WithoutEffect))} >= {
        "model",
        *ADETAILERS,
        *OTHERS,
        *CONTROLNET,
    }
    settings = {"bbox_sortby", "same_seed_for_each_tab", "dynamic_denoise_power", "match_inpaint_bbox_size"}
    assert ours - {"model", *ADETAILERS} == settings | {"mask_select", "soft_mask", "color_correction"}


def test_a_unit_as_adetailer_writes_it_is_taken_as_it_is() -> None:
    off = {
        "use_checkpoint": False,
        "checkpoint": None,
        "use_vae": False,
        "vae": None,
        "use_noise_multiplier": False,
        "noise_multiplier": 1.0,
    }
    controlnet = {
        "controlnet_model": "None",
        "controlnet_module": "None",
        "controlnet_weight": 1.0,
        "controlnet_guidance_start": 0.0,
    }
    whole = {
        f"ad_{name}": value
        for name, value in {
            **ADETAILERS,
            **off,
            **controlnet,
            "use_clip_skip": False,
            "clip_skip": 1,
            "steps": 60,
        }.items()
    }
    assert units({**whole, "is_api": True}) == (AdetailerUnit(steps=60),)


def test_one_unit_or_a_list_of_four() -> None:
    assert [unit.confidence for unit in units([{"ad_confidence": 0.1 * n} for n in range(1, 5)])] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4]
    )
    assert "has 5 units; at most 4" in refused([{}] * 5)


def test_the_list_of_a_webui_is_understood() -> None:
    assert units([True, False, {"ad_mask_k": 2}, {"ad_model": "None"}]) == (AdetailerUnit(mask_k=2),)
    assert units([False, False, {"ad_mask_k": 2}]) == ()


def test_a_unit_that_is_off_is_not_run() -> None:
    assert units([{"ad_tab_enable": False}, {"ad_model": "None"}, {"ad_prompt": "x"}]) == (AdetailerUnit(prompt="x"),)


@pytest.mark.parametrize("name", RANGES)
def test_every_range_is_held_at_both_ends(name: str) -> None:
    low, high = RANGES[name]
    for value in (low, high if math.isfinite(high) else 10**6):
        [unit] = units({f"ad_{name}": value})
        assert getattr(unit, name, value) == value
    range_in_words = f"from {low} to {high}" if math.isfinite(high) else f"at least {low}"
    for value in beyond(name):
        assert f"ad_{name} must be {range_in_words}, not {value}" in refused({f"ad_{name}": value})


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_is_held(name: str) -> None:
    for value in CHOICES[name]:
        assert getattr(units({f"ad_{name}": value})[0], name) == value
    assert "did you mean" in refused({f"ad_{name}": CHOICES[name][1][:-1]})


@pytest.mark.parametrize(("given", "words"), WRONG)
def test_what_is_wrong_is_named(given: object, words: str) -> None:
    assert words in refused(given)


@pytest.mark.parametrize("name", NOT_HERE)
def test_what_cannot_be_honoured_is_refused_only_when_it_is_asked_for(name: str) -> None:
    nothing, reason = NOT_HERE[name]
    assert units({f"ad_{name}": nothing}) == (AdetailerUnit(),)
    asked: Any = True if nothing is False else "something"
    assert f"ad_{name} cannot be honoured: {reason}" in refused({f"ad_{name}": asked})


@pytest.mark.parametrize(
    ("name", "value"),
    [("checkpoint", 5), ("clip_skip", "x"), ("noise_multiplier", 9), ("controlnet_guidance_start", "banana")],
)
def test_what_counts_beside_them_only_is_checked_all_the_same(name: str, value: object) -> None:
    assert f"ad_{name} must be " in refused({f"ad_{name}": value})
    assert units({f"ad_{name}": None}) == (AdetailerUnit(),)


class TestSampling:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({}, ("UniPC", "Beta")),
            ({"ad_sampler": "Euler", "ad_scheduler": "Karras"}, ("UniPC", "Beta")),
            ({"ad_use_sampler": True}, ("DPM++ 2M", "Karras")),
            ({"ad_use_sampler": True, "ad_sampler": "Euler"}, ("Euler", "Beta")),
            ({"ad_use_sampler": True, "ad_sampler": "Euler", "ad_scheduler": "Karras"}, ("Euler", "Karras")),
            (
                {"ad_use_sampler": True, "ad_sampler": "DPM++ 2M Karras", "ad_scheduler": "SGM Uniform"},
                ("DPM++ 2M", "SGM Uniform"),
            ),
        ],
    )
    def test_a_units_own_goes_over_the_requests_where_it_is_switched_on(
        self, given: dict[str, Any], expected: tuple[str, str]
    ) -> None:
        assert units(given)[0].sampling("UniPC", "Beta") == expected


def test_strict_may_be_called_as_in_adetailers_settings() -> None:
    assert units({"ad_match_inpaint_bbox_size": "Strict (SDXL only)"}) == units(
        {"ad_match_inpaint_bbox_size": "Strict"}
    )


@pytest.mark.parametrize(
    ("power", "area", "strength"), [(1, 0.25, 0.3), (-1, 0.5, 0.8), (-10, 1.0, 0.999), (10, 1.0, 0.0), (0, 1.0, 0.4)]
)
def test_dynamic_strength_stays_between_nothing_and_everything(power: float, area: float, strength: float) -> None:
    assert AdetailerUnit(dynamic_denoise_power=power).strength(area) == pytest.approx(strength)


def test_guidance_of_its_own_is_refused_where_the_model_takes_none() -> None:
    schnell = replace(EMBEDDED, name="flux-schnell", distilled_guidance=False)
    asked = {**INPUTS, "adetailer_args": '{"ad_use_cfg_scale": true, "ad_cfg_scale": 5}'}
    assert build_request(asked, EMBEDDED, DETECTORS).adetailer[0].cfg_scale == 5
    with pytest.raises(
        InputError,
        match="^adetailer_args: ad_use_cfg_scale cannot be honoured: flux-schnell takes no guidance; leave it out$",
    ):
        build_request(asked, schnell, DETECTORS)


@pytest.mark.parametrize("text", ["{", "[" * 5000, '{"ad_prompt": "x"} x', '{"ad_prompt": "' + "x" * 30_000 + '"}'])
def test_text_that_is_no_json_or_too_much_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^adetailer_args: is (not valid JSON|30017 characters long; at most 20000)"):
        units_from_json(text, "adetailer_args")


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


class TestInputs:
    @staticmethod
    def build(**changes: object) -> tuple[AdetailerUnit, ...]:
        return build_request({**INPUTS, **changes}, EMBEDDED, DETECTORS).adetailer

    def test_without_arguments_there_is_one_unit_for_faces(self) -> None:
        assert self.build(ad_prompt="a sad face") == (AdetailerUnit(prompt="a sad face"),)

    def test_the_plain_inputs_go_over_the_arguments(self) -> None:
        two = json.dumps([{"ad_prompt": "a", "ad_mask_k": 1}, {"ad_prompt": "b"}])
        assert [unit.prompt for unit in self.build(adetailer_args=two, ad_prompt="c")] == ["c", "b"]
        assert self.build(adetailer_args=two, adetailer=False) == ()

    def test_a_detector_that_is_not_here_is_named_with_those_that_are(self) -> None:
        assert self.build(adetailer_args='{"ad_model": "face_yolov8n.pt"}')[0].model == "face_yolov8n.pt"
        with pytest.raises(
            InputError,
            match=r"^adetailer_args: ad_model 'hand_yolov8n.pt' is not here.*; leave it out, or use face_yolov8n.pt$",
        ):
            self.build(adetailer_args='{"ad_model": "hand_yolov8n.pt"}')

    HANDED = {**DETECTORS, "world.pt": ClassSet(("face", "hand"), world=True), "hand_detector": ClassSet(("hand",))}

    def both(self, **changes: object) -> tuple[AdetailerUnit, ...]:
        return build_request({**INPUTS, **changes}, EMBEDDED, self.HANDED).adetailer

    @pytest.mark.parametrize(
        "changes", [{"ad_hands_prompt": "a hand"}, {"adetailer_args_hands": '{"ad_prompt": "a hand"}'}]
    )
    def test_hands_come_after_the_faces_with_what_hands_need(self, changes: dict[str, str]) -> None:
        assert self.both(**changes) == (AdetailerUnit(), replace(HANDS, model="hand_detector", prompt="a hand"))
        assert self.both(**changes, adetailer=False) == ()

    def test_arguments_go_over_what_hands_need(self) -> None:
        given = '[{"ad_confidence": 0.5}, {"ad_model": "world.pt", "ad_model_classes": "hand"}]'
        faces, first, second = self.both(adetailer_args_hands=given, ad_hands_prompt="a hand")
        assert first == replace(HANDS, model="hand_detector", confidence=0.5, prompt="a hand")
        assert second == replace(HANDS, model="world.pt", model_classes="hand")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"adetailer_args_hands": '{"ad_mask_blur": 65}'},
                "adetailer_args_hands: ad_mask_blur must be from 0 to 64, not 65",
            ),
            ({"adetailer_args_hands": '{"ad_model": "zebra"}'}, "adetailer_args_hands: ad_model 'zebra' is not here; "),
            (
                {"adetailer_args_hands": "[{}, {}, {}, {}]"},
                "adetailer_args_hands: has 4 units beside 1 others; at most 4 are run",
            ),
        ],
    )
    def test_what_is_wrong_is_told_of_the_right_input(self, changes: dict[str, str], message: str) -> None:
        with pytest.raises(InputError) as error:
            self.both(**changes)
        assert str(error.value).startswith(message)

    def test_without_a_detector_of_hands_there_is_no_unit_for_them(self) -> None:
        with pytest.raises(
            InputError, match="^ad_hands_prompt: no detector of hands is here; leave it out, or bring one"
        ):
            self.build(ad_hands_prompt="a hand")

    def test_a_unit_that_names_its_detector_needs_no_other_and_the_error_names_what_was_given(self) -> None:
        world = {**DETECTORS, "world.pt": ClassSet(("face", "hand"), world=True)}
        asked = {**INPUTS, "adetailer_args_hands": '{"ad_model": "world.pt", "ad_model_classes": "hand"}'}
        assert build_request(asked, EMBEDDED, world).adetailer[1].model == "world.pt"
        with pytest.raises(InputError, match="^adetailer_args_hands: no detector of hands is here"):
            build_request({**INPUTS, "adetailer_args_hands": "{}"}, EMBEDDED, world)
