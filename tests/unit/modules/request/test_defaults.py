"""What a request gets that leaves inputs out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.requests_data import DETECTORS, EMBEDDED, INPUTS, SCHNELL, SDXL

from backend.core.errors import InputError
from modules.diffusion.profile import HostDefaults, ModelProfile
from modules.families.flux2_klein import FLUX2_KLEIN
from modules.request.defaults import DEFAULTS
from modules.request.image_request import ImageRequest
from modules.request.parser import build_request

DEV = replace(EMBEDDED, native=1024, host=HostDefaults(guidance=3.0))


def request(profile: ModelProfile, defaults: str, **inputs: Any) -> ImageRequest:
    return build_request({**INPUTS, **inputs}, profile, DETECTORS, defaults=DEFAULTS[defaults])


def finish(made: ImageRequest) -> tuple[int, float, bool, float]:
    return len(made.adetailer), made.scale, made.go_fast, made.guidance_scale


def test_studio_repaints_faces_and_upscales() -> None:
    assert finish(request(DEV, "studio")) == (1, 2.0, False, 3.5)


def test_hosted_does_what_hosted_flux_does() -> None:
    assert finish(request(DEV, "hosted")) == (0, 1.0, True, 3.0)


def test_what_is_given_counts_with_both() -> None:
    given = {"adetailer": True, "scale": 3.0, "go_fast": False, "guidance_scale": 6.0}
    for defaults in DEFAULTS:
        assert finish(request(DEV, defaults, **given)) == (1, 3.0, False, 6.0)


def test_other_families_keep_their_own_guidance_and_take_no_go_fast() -> None:
    assert finish(request(SDXL, "hosted")) == (0, 1.0, False, SDXL.guidance)
    assert finish(request(SCHNELL, "hosted"))[2] is True


def test_go_fast_is_not_used_with_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (512, 512)).save(tmp_path / "image.png")
    assert not request(DEV, "hosted", image=tmp_path / "image.png").go_fast


def test_the_masked_part_alone_is_drawn_but_on_hosts(tmp_path: Path) -> None:
    for name, mode in (("image", "RGB"), ("mask", "L")):
        Image.new(mode, (512, 512), "white").save(tmp_path / f"{name}.png")
    given = {"image": tmp_path / "image.png", "mask": tmp_path / "mask.png"}
    assert request(DEV, "studio", **given).keeps_image and not request(DEV, "hosted", **given).keeps_image
    assert not request(DEV, "studio", inpaint_only_masked=False, **given).keeps_image
    assert request(DEV, "hosted", inpaint_only_masked=True, **given).keeps_image
    assert request(DEV, "hosted", image=given["image"], outpaint="top=64").keeps_image


def test_a_finished_picture_keeps_its_size_with_both(tmp_path: Path) -> None:
    Image.new("RGB", (1999, 1501)).save(tmp_path / "image.png")
    for defaults in DEFAULTS:
        made = request(DEV, defaults, image=tmp_path / "image.png", prompt_strength=0.0)
        assert made.keeps_image and made.picture_size == (1999, 1501)


def test_guidance_is_another_name_of_guidance_scale() -> None:
    assert request(DEV, "studio", guidance=0.0).guidance_scale == 0.0
    assert request(DEV, "studio", guidance=4.0, guidance_scale=4.0).guidance_scale == 4.0
    with pytest.raises(InputError, match="^guidance: is 3, and guidance_scale is 3.5; give one$"):
        request(DEV, "hosted", guidance=3.0, guidance_scale=3.5)


def test_output_megapixels_is_another_name_of_megapixels() -> None:
    quarter, whole = request(DEV, "studio", output_megapixels="0.25"), request(DEV, "studio")
    assert (quarter.width, quarter.megapixels, whole.width, whole.megapixels) == (512, "0.25", 1024, "1")
    with pytest.raises(InputError, match="^output_megapixels: is 1, and megapixels is 0.25; give one$"):
        request(DEV, "studio", output_megapixels="1", megapixels="0.25")


def test_format_and_quality_are_those_of_the_models_hosts() -> None:
    klein = replace(DEV, host=HostDefaults(go_fast=False, output_format="jpg", output_quality=95))
    for profile, defaults, expected in (
        (DEV, "studio", ("webp", 80, False)),
        (DEV, "hosted", ("webp", 80, True)),
        (klein, "studio", ("webp", 80, False)),
        (klein, "hosted", ("jpg", 95, False)),
    ):
        made = request(profile, defaults)
        assert (made.output_format, made.output_quality, made.go_fast) == expected
    given = request(klein, "hosted", output_format="png", output_quality=7)
    assert (given.output_format, given.output_quality) == ("png", 7)


def test_go_fast_of_models_that_skip_nothing_is_told_and_of_others_refused() -> None:
    klein = replace(DEV, inputs=FLUX2_KLEIN.inputs)
    made = request(klein, "hosted", go_fast=True)
    assert not made.go_fast and made.notices == ("go_fast: has no effect, no step of FLUX.2 klein is skipped",)
    assert request(klein, "hosted", go_fast=False).notices == ()
    with pytest.raises(InputError, match="^go_fast: is not for SDXL; leave it out$"):
        request(SDXL, "hosted", go_fast=True)


@pytest.mark.parametrize(("defaults", "size"), [("hosted", (640, 480)), ("studio", (1184, 880))])
def test_only_hosts_give_a_picture_the_size_of_its_image(defaults: str, size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", (640, 480)).save(tmp_path / "image.png")
    made = request(replace(DEV, latent_factor=8), defaults, image=tmp_path / "image.png")
    assert (made.width, made.height) == size


def test_hosts_round_sizes_and_say_so() -> None:
    custom = {"aspect_ratio": "custom", "width": 500, "height": 512}
    made = request(replace(DEV, latent_factor=8), "hosted", **custom)
    assert (made.width, made.height) == (496, 512)
    assert made.notices == ("width: 500 is no size of this model, 496 is drawn",)
    with pytest.raises(InputError, match="^width: must be a multiple of 16"):
        request(replace(DEV, latent_factor=8), "studio", **custom)
