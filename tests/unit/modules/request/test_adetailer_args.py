"""ADetailer's arguments as JSON: its names and ranges; what cannot be honoured is refused by name, never ignored."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import pytest
from support.adetailer_units import ADETAILERS, CHOICES, RANGES, WRONG, beyond

from backend.core.errors import InputError
from modules.request.adetailer_args import UNSUPPORTED, UnusedArguments, units_from_json
from modules.request.adetailer_unit import AdetailerUnit


def units(given: object) -> tuple[AdetailerUnit, ...]:
    return units_from_json(json.dumps(given), "adetailer_args")


def refused(given: object) -> str:
    with pytest.raises(InputError) as error:
        units(given)
    assert str(error.value).startswith("adetailer_args: ") and "\n" not in str(error.value)
    return str(error.value)


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


def test_every_argument_of_adetailer_is_known_and_of_ours_only_the_global_settings_and_four_more_are_not_its() -> None:
    ours = {field.name for field in fields(AdetailerUnit)}
    assert {*ours, *UNSUPPORTED, *(field.name for field in fields(UnusedArguments))} >= {
        "model",
        *ADETAILERS,
        *OTHERS,
        *CONTROLNET,
    }
    settings = {"bbox_sortby", "same_seed_for_each_tab", "dynamic_denoise_power", "match_inpaint_bbox_size"}
    assert ours - {"model", *ADETAILERS} == settings | {"mask_select", "soft_mask", "color_correction", "sam"}


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


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_honoured_is_refused_only_when_it_is_asked_for(name: str) -> None:
    nothing, reason = UNSUPPORTED[name]
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


def test_strict_may_be_called_as_in_adetailers_settings() -> None:
    assert units({"ad_match_inpaint_bbox_size": "Strict (SDXL only)"}) == units(
        {"ad_match_inpaint_bbox_size": "Strict"}
    )


@pytest.mark.parametrize("text", ["{", "[" * 5000, '{"ad_prompt": "x"} x', '{"ad_prompt": "' + "x" * 30_000 + '"}'])
def test_text_that_is_no_json_or_too_much_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^adetailer_args: is (not valid JSON|30017 characters long; at most 20000)"):
        units_from_json(text, "adetailer_args")


SCRIPTS = {
    "Comments": {"args": []},
    "Refiner": {"args": [False, "", 0.8]},
    "ControlNet": {"args": [{"enabled": False}]},
}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda args: {"alwayson_scripts": {**SCRIPTS, "ADetailer": {"args": args}}},
        lambda args: {"alwayson_scripts": {"adetailer": {"args": args}}},
        lambda args: {"ADetailer": {"args": args}},
        lambda args: {"args": args},
        lambda args: args,
    ],
)
def test_the_json_of_a_webuis_api_is_taken_as_it_is(wrapped: Any) -> None:
    unit = {"ad_confidence": 0.5}
    assert units(wrapped([True, False, unit])) == units(unit)
    assert units(wrapped([False, unit])) == ()


def test_another_script_that_is_on_is_refused_by_name() -> None:
    controlnet = {"args": [{"model": "canny"}]}
    assert "the script 'ControlNet' beside ADetailer" in refused(
        {"alwayson_scripts": {"ADetailer": {"args": [{}]}, "ControlNet": controlnet}}
    )
    assert "has alwayson_scripts without ADetailer" in refused({"alwayson_scripts": {"ControlNet": controlnet}})


@pytest.mark.parametrize("nothing", [None, "", "None"])
def test_what_is_off_may_be_unset(nothing: object) -> None:
    off = {
        **{f"ad_{name}": nothing for name in fields_of_unused()},
        **dict.fromkeys(("ad_steps", "ad_cfg_scale", "ad_sampler", "ad_scheduler", "ad_inpaint_width"), nothing),
        **dict.fromkeys(("ad_controlnet_model", "ad_use_vae"), nothing),
    }
    assert units(off) == units({})
    if nothing != "None":
        assert "ad_steps must be" in refused({"ad_use_steps": True, "ad_steps": nothing})


def fields_of_unused() -> list[str]:
    return [field.name for field in fields(UnusedArguments)]


def test_none_in_place_of_json_is_nothing_special() -> None:
    assert units_from_json(" None ", "adetailer_args") == units({})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"ad_prompt": "a", "ad_prompt": "b"}', "has 'ad_prompt' twice in one object"),
        ('{"ad_prompt": ' + "[" * 17 + "]" * 17 + "}", "more than 16 levels deep"),
        ('{"ad_mask_k": ' + "9" * 5_000 + "}", "a number has too many digits"),
    ],
)
def test_json_that_other_readers_take_silently_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        units_from_json(text, "adetailer_args")
