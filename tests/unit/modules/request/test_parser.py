"""From inputs to a request; a wrong input is named before any model runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.requests_data import DETECTORS, EMBEDDED, INPUTS, SCHNELL, SDXL

from backend.core.errors import InputError
from modules.detection.classes import ClassSet
from modules.diffusion.profile import ModelProfile
from modules.request.adetailer_unit import HANDS, AdetailerUnit
from modules.request.parser import build_request


def saved(folder: Path, name: str, size: tuple[int, int] = (64, 48)) -> Path:
    Image.new("RGB", size, "red").save(folder / name)
    return folder / name


def test_seed_0_is_a_seed_and_no_seed_is_a_random_one() -> None:
    assert build_request(INPUTS, EMBEDDED, DETECTORS).seed == 0
    assert len({build_request({**INPUTS, "seed": None}, EMBEDDED, DETECTORS).seed for _ in range(4)}) > 1


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"prompt": "  "}, "prompt", "is empty"),
        ({"prompt": "\u200b\u2060 \u202e"}, "prompt", "is empty"),
        ({"num_outputs": 5}, "num_outputs", "from 1 to 4"),
        ({"num_inference_steps": 0}, "num_inference_steps", "from 1 to 50"),
        ({"guidance_scale": -1}, "guidance_scale", "from 0 to 10"),
        ({"sampler": "Euler a"}, "sampler", "must be one of Euler, DPM++ 2M, DPM++ 2M SDE, UniPC, not 'Euler a'"),
        (
            {"scheduler": "KL Optimal"},
            "scheduler",
            "must be one of Simple, Karras, Exponential, Beta, Normal, SGM Uniform, not 'KL Optimal'",
        ),
        (
            {"negative_prompt": "blurry"},
            "negative_prompt",
            "Flux has none; leave it empty, and say in 'prompt' what the picture should show instead",
        ),
        (
            {"sampler": "UniPC", "scheduler": "Karras"},
            "scheduler",
            "'Karras' goes with the sampler Euler; UniPC takes Simple",
        ),
        ({"scale": 9}, "scale", "from 1 to 8"),
        ({"output_format": "gif"}, "output_format", "webp, jpg, png"),
        ({"output_quality": 101}, "output_quality", "from 0 to 100"),
        ({"prompt_strength": 1.5}, "prompt_strength", "from 0 to 1"),
        ({"seed": -1}, "seed", "from 0 to"),
        ({"aspect_ratio": "16:8"}, "aspect_ratio", "did you mean '16:9'"),
        ({"aspect_ratio": "custom", "width": 256}, "height", "is needed"),
        (
            {"aspect_ratio": "custom", "width": 300, "height": 256},
            "width",
            "must be a multiple of 32 for this model, not 300; use 288 or 320",
        ),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        build_request({**INPUTS, **changes}, EMBEDDED, DETECTORS)
    assert caught.value.field == field and message in str(caught.value) and "\n" not in str(caught.value)


def test_a_mask_needs_an_image_of_its_shape(tmp_path: Path) -> None:
    image, other = saved(tmp_path, "image.png"), saved(tmp_path, "mask.png", (64, 47))
    with pytest.raises(InputError, match="mask: needs an image"):
        build_request({**INPUTS, "mask": image}, EMBEDDED, DETECTORS)
    with pytest.raises(InputError, match=r"mask: must have the size of the image \(64x48\) or its shape, not 64x47"):
        build_request({**INPUTS, "image": image, "mask": other}, EMBEDDED, DETECTORS)
    double = saved(tmp_path, "double.png", (128, 96))
    assert build_request({**INPUTS, "image": image, "mask": double}, EMBEDDED, DETECTORS).mask


def test_a_mask_without_white_says_so(tmp_path: Path) -> None:
    image = saved(tmp_path, "image.png")
    for name, colour in (("black.png", 0), ("dark.png", 100)):
        Image.new("L", (64, 48), colour).save(tmp_path / name)
        with pytest.raises(InputError, match="^mask: leaves nothing to repaint; paint white what is to change"):
            build_request({**INPUTS, "image": image, "mask": tmp_path / name}, EMBEDDED, DETECTORS)


def test_what_is_left_out_is_as_the_family_likes_it() -> None:
    asked = {
        name: build_request({**INPUTS, "go_fast": False}, family, DETECTORS)
        for name, family in (("dev", EMBEDDED), ("schnell", SCHNELL), ("sdxl", SDXL))
    }
    assert [(request.num_inference_steps, request.guidance_scale) for request in asked.values()] == [
        (28, 3.5),
        (4, 3.5),
        (30, 5.0),
    ]
    assert (
        build_request({**INPUTS, "num_inference_steps": 7, "guidance_scale": 0.0}, SDXL, DETECTORS).guidance_scale
        == 0.0
    )


def test_a_stable_diffusion_model_takes_a_negative_prompt_and_karras_with_every_sampler() -> None:
    request = build_request(
        {**INPUTS, "negative_prompt": "blurry", "sampler": "DPM++ 2M", "scheduler": "Karras", "go_fast": False},
        SDXL,
        DETECTORS,
    )
    assert (request.negative_prompt, request.scheduler) == ("blurry", "Karras")
    with pytest.raises(
        InputError,
        match="^scheduler: 'Normal' goes with the sampler Euler; UniPC takes Simple or Karras or Exponential$",
    ):
        build_request({**INPUTS, "sampler": "UniPC", "scheduler": "Normal"}, SDXL, DETECTORS)
    with pytest.raises(InputError, match="^go_fast: is not for SDXL; leave it out$"):
        build_request({**INPUTS, "go_fast": True}, SDXL, DETECTORS)


def test_guidance_of_its_own_is_refused_where_the_model_takes_none() -> None:
    schnell = replace(SCHNELL, name="flux-schnell")
    asked = {**INPUTS, "adetailer_args": '{"ad_use_cfg_scale": true, "ad_cfg_scale": 5}'}
    assert build_request(asked, EMBEDDED, DETECTORS).adetailer[0].cfg_scale == 5
    with pytest.raises(
        InputError,
        match="^adetailer_args: ad_use_cfg_scale cannot be honoured: flux-schnell takes no guidance; leave it out$",
    ):
        build_request(asked, schnell, DETECTORS)


@pytest.mark.parametrize(
    ("profile", "inputs", "told"),
    [
        (SCHNELL, {"guidance_scale": 2.0}, ["guidance_scale: has no effect, schnell takes no guidance"]),
        (SCHNELL, {"guidance": 7.0}, ["guidance_scale: has no effect, schnell takes no guidance"]),
        (SCHNELL, {"guidance_scale": 3.5}, []),
        (
            SDXL,
            {"guidance_scale": 1.0, "negative_prompt": "blurry"},
            ["negative_prompt: has no effect at a guidance_scale of 1; give one above 1"],
        ),
        (SDXL, {"guidance_scale": 1.5, "negative_prompt": "blurry"}, []),
        (SDXL, {"guidance_scale": 1.0}, []),
        (
            replace(SDXL, inputs=replace(SDXL.inputs, negative_above=0)),
            {"guidance_scale": 0.5, "negative_prompt": "x"},
            [],
        ),
    ],
)
def test_guidance_and_negative_prompts_that_change_nothing_are_told(
    profile: ModelProfile, inputs: dict[str, Any], told: list[str]
) -> None:
    request = build_request({**INPUTS, **inputs}, profile, DETECTORS)
    assert list(request.notices) == told
    if profile.inputs.guidance is None:
        assert request.guidance_scale == profile.guidance


class TestAdetailerInputs:
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
            match=r"^adetailer_args: ad_model 'hand_yolov8n.pt' is not installed.*; leave it out, or use face_yolov8n.pt$",
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
            (
                {"adetailer_args_hands": '{"ad_model": "zebra"}'},
                "adetailer_args_hands: ad_model 'zebra' is not installed; ",
            ),
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
            InputError, match="^ad_hands_prompt: no detector for hands is installed; leave it out, or run scripts"
        ):
            self.build(ad_hands_prompt="a hand")

    def test_a_unit_that_names_its_detector_needs_no_other_and_the_error_names_what_was_given(self) -> None:
        world = {**DETECTORS, "world.pt": ClassSet(("face", "hand"), world=True)}
        asked = {**INPUTS, "adetailer_args_hands": '{"ad_model": "world.pt", "ad_model_classes": "hand"}'}
        assert build_request(asked, EMBEDDED, world).adetailer[1].model == "world.pt"
        with pytest.raises(InputError, match="^adetailer_args_hands: no detector for hands is installed"):
            build_request({**INPUTS, "adetailer_args_hands": "{}"}, EMBEDDED, world)


def test_a_negative_prompt_of_a_unit_is_a_notice_where_the_model_has_none() -> None:
    given = {**INPUTS, "adetailer": True, "adetailer_args": '[{"ad_negative_prompt": "a hat"}, {"ad_confidence": 0.5}]'}
    request = build_request(given, EMBEDDED, DETECTORS)
    assert request.notices == ("ad_negative_prompt: is left out, Flux has no negative prompt",)
    assert [unit.negative_prompt for unit in request.adetailer] == ["", ""]
    request = build_request(given, SDXL, DETECTORS)
    assert request.notices == () and request.adetailer[0].negative_prompt == "a hat"


def test_a_unit_whose_prompt_becomes_too_long_is_refused() -> None:
    given = {**INPUTS, "prompt": "x" * 2_000, "adetailer": True, "ad_prompt": "[PROMPT]" * 11}
    with pytest.raises(
        InputError, match=r"ad_prompt: is 22000 characters long with \[PROMPT\] filled in; at most 20000"
    ):
        build_request(given, EMBEDDED, DETECTORS)
