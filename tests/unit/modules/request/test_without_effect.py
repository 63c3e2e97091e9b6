"""What was given and is not read is told, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
from support.requests_data import DETECTORS, EMBEDDED, INPUTS

from modules.pipeline.adetailer import AdetailerStage
from modules.pipeline.hires import HiresStage
from modules.request.defaults import DEFAULTS
from modules.request.parser import build_request

NETWORK = "other.safetensors"


def notices(profile: str = "studio", **changes: Any) -> tuple[str, ...]:
    return build_request({**INPUTS, **changes}, EMBEDDED, DETECTORS, (NETWORK,), defaults=DEFAULTS[profile]).notices


HIRES = {
    "hr_scale": 2.0,
    "hr_steps": 5,
    "hr_upscaler": "Lanczos",
    "denoising_strength": 0.5,
    "hr_prompt": "a fox",
    "hr_tiles": "on",
}
DETAIL = {"ad_prompt": "a", "ad_hands_prompt": "b", "adetailer_args": "{}", "adetailer_args_hands": "[]"}


@pytest.mark.parametrize(
    ("needed", "unread"),
    [
        ("enable_hr", HIRES),
        ("adetailer", DETAIL),
        ("image", {"prompt_strength": 0.5}),
        ("mask", {"inpaint_only_masked": False, "inpaint_only_masked_padding": 8}),
        ("prompt_upsampling", {"prompt_upsampling_seed": 3}),
        ("a scale above 1", {"upscaler": NETWORK}),
    ],
)
def test_an_input_without_what_it_needs_is_told(needed: str, unread: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"adetailer": False, "scale": 1.0}
    assert notices(**plain) == ()
    for name, value in unread.items():
        assert notices(**plain, **{name: value}) == (f"{name}: has no effect without {needed}",)


def test_every_input_of_the_two_stages_is_tried() -> None:
    assert set(HiresStage.inputs) == {"enable_hr", *HIRES}
    assert set(AdetailerStage.inputs) == {"adetailer", "ad_mask", *DETAIL}  # without the stage ad_mask is refused


@pytest.mark.parametrize("profile", ["studio", "hosted"])
def test_clients_that_send_every_default_are_told_nothing(profile: str) -> None:
    usual = {"prompt_strength": EMBEDDED.strength, "inpaint_only_masked": DEFAULTS[profile].inpaint_only_masked}
    assert notices(profile, adetailer=False, scale=1.0, **usual) == ()


def test_what_is_read_is_not_told() -> None:
    read: dict[str, Any] = {"enable_hr": True, "hr_scale": 2.0, "upscaler": NETWORK, "scale": 1.0}
    assert notices(**read, adetailer=True, ad_prompt="a fox") == ()
    assert notices(**{**read, "hr_upscaler": "Lanczos"}) == ("upscaler: has no effect without a scale above 1",)


@pytest.mark.parametrize(("strength", "told"), [(0.3, True), (0.59, True), (0.6, False), (1.0, False)])
def test_latents_that_are_repainted_too_little_are_told(strength: float, told: bool) -> None:
    found = notices(enable_hr=True, hr_upscaler="Latent (bicubic)", denoising_strength=strength)
    assert [line.partition(":")[0] for line in found] == ["denoising_strength"] * told
