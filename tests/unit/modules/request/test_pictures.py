"""The pictures of a request: what models that read them ask for, and which size follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from PIL import Image
from support.requests_data import DETECTORS, EMBEDDED, INPUTS, SDXL

from backend.core.errors import InputError
from modules.diffusion.canvas import Canvas
from modules.diffusion.profile import ModelProfile
from modules.families.flux1.published import DEPTH, FILL, KONTEXT, KONTEXT_RATIOS, KONTEXT_SIZES, Variant
from modules.families.flux2_klein import FLUX2_KLEIN
from modules.request.defaults import DEFAULTS
from modules.request.image_request import ImageRequest
from modules.request.parser import build_request


def profile(variant: Variant) -> ModelProfile:
    return replace(
        EMBEDDED,
        native=1024,
        latent_factor=8,
        inputs=variant.inputs,
        guidance=variant.guidance,
        strength=variant.strength,
        aspect_ratio=variant.aspect_ratio,
    )


LOOKS = replace(EMBEDDED, native=1024, latent_factor=8, inputs=FLUX2_KLEIN.inputs)
DEV, FILLS, EDITS, CONTROLLED = (
    replace(EMBEDDED, native=1024, latent_factor=8),
    profile(FILL),
    profile(KONTEXT),
    profile(DEPTH),
)


def request(of: ModelProfile, **inputs: Any) -> ImageRequest:
    return build_request({**INPUTS, **inputs}, of, DETECTORS)


def refusal(of: ModelProfile, **inputs: Any) -> str:
    with pytest.raises(InputError) as caught:
        request(of, **inputs)
    return str(caught.value)


def saved(path: Path, size: tuple[int, int] = (640, 480), mode: str = "RGB", colour: Any = "red") -> Path:
    Image.new(mode, size, colour).save(path)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return saved(tmp_path / "photo.png")


@pytest.fixture
def white(tmp_path: Path) -> Path:
    return saved(tmp_path / "white.png", mode="L", colour=255)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (FILLS, "image: is needed by FLUX.1 Fill: the picture to start from"),
        (EDITS, "input_image: is needed by FLUX.1 Kontext: the picture to edit"),
        (CONTROLLED, "control_image: is needed by FLUX.1 Depth: the picture that says what is where"),
    ],
)
def test_a_model_that_reads_a_picture_asks_for_it(of: ModelProfile, message: str) -> None:
    assert refusal(of) == message


@pytest.mark.parametrize(
    ("of", "field", "message"),
    [
        (DEV, "input_image", "input_image: is not for Flux; leave it out"),
        (SDXL, "images", "images: is not for SDXL; leave it out"),
        (FILLS, "images", "images: is not for FLUX.1 Fill; give 'image' in its place"),
        (SDXL, "control_image", "control_image: is not for SDXL; leave it out"),
        (FILLS, "input_image", "input_image: is not for FLUX.1 Fill; give 'image' in its place"),
        (EDITS, "control_image", "control_image: is not for FLUX.1 Kontext; give 'input_image' in its place"),
    ],
)
def test_a_picture_that_a_model_does_not_read_is_refused(
    of: ModelProfile, field: str, message: str, photo: Path
) -> None:
    assert refusal(of, **{field: [photo] if field == "images" else photo}) == message


def test_references_come_in_the_order_in_which_they_are_given(tmp_path: Path) -> None:
    first, second, third = (saved(tmp_path / f"{side}.png", (side, side)) for side in (64, 80, 96))
    made = request(LOOKS, input_image=third, images=[second, first])
    assert [one.width for one in made.references] == [96, 80, 64]
    assert [one.width for one in request(LOOKS, images=[first, third]).references] == [64, 96]
    assert request(LOOKS, images=[]).references == request(LOOKS).references == ()
    assert len(request(EDITS, images=[first]).references) == 1, "the name does not matter to a model that takes one"


def test_too_many_references_are_refused(photo: Path) -> None:
    assert refusal(LOOKS, images=[photo] * 6) == "images: are 6 pictures; FLUX.2 klein takes at most 5"
    assert refusal(LOOKS, input_image=photo, images=[photo] * 5) == (
        "images: are 6 pictures with input_image; FLUX.2 klein takes at most 5"
    )
    assert refusal(EDITS, images=[photo] * 2) == "images: are 2 pictures; FLUX.1 Kontext takes at most 1"


def test_a_reference_that_cannot_be_read_is_named_by_its_number(tmp_path: Path, photo: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    assert refusal(LOOKS, images=[photo, tmp_path / "text.png"]).startswith("images: file 2: is not an image")
    assert refusal(LOOKS, images=[tmp_path / "none.png"]) == "images: file 1: there is no file 'none.png'"


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"output_megapixels": "0.25"}, (512, 512)),
        ({"output_megapixels": "0.5"}, (720, 720)),
        ({"output_megapixels": "2", "aspect_ratio": "16:9"}, (1904, 1088)),
        ({"output_megapixels": "4"}, (2048, 2048)),
        ({"output_megapixels": "4", "aspect_ratio": "21:9"}, (3072, 1280)),
        ({"megapixels": "4", "aspect_ratio": "9:16"}, (1536, 2688)),
    ],
)
def test_klein_draws_up_to_four_megapixels(given: dict[str, Any], size: tuple[int, int]) -> None:
    made = request(LOOKS, **given)
    assert (made.width, made.height) == size


def test_the_shape_of_the_first_reference_at_every_area(tmp_path: Path) -> None:
    for width, height in ((640, 480), (1000, 125), (333, 334), (71, 97)):
        first = saved(tmp_path / "first.png", (width, height))
        for area in LOOKS.inputs.areas:
            made = request(LOOKS, images=[first], aspect_ratio="match_input_image", output_megapixels=area)
            assert made.width * made.height == pytest.approx(float(area) * 1024**2, rel=0.1)
            assert made.width / made.height == pytest.approx(width / height, rel=0.05)


def test_other_models_refuse_areas_that_they_do_not_draw() -> None:
    assert refusal(DEV, output_megapixels="4") == (
        "megapixels: must be one of 1, 0.25, match_input for this model, not '4'"
    )


def test_fill_asks_for_a_mask_or_transparent_parts(tmp_path: Path, photo: Path, white: Path) -> None:
    assert refusal(FILLS, image=photo) == (
        "mask: is needed by FLUX.1 Fill: white where the picture is painted; give one, or an image with transparent "
        "parts"
    )
    assert request(FILLS, image=photo, mask=white).mask is not None
    cut = Image.new("RGBA", (640, 480), "red")
    cut.paste((0, 0, 0, 0), (100, 100, 300, 200))
    cut.save(tmp_path / "cut.png")
    mask = request(FILLS, image=tmp_path / "cut.png").mask
    assert mask is not None and mask.getbbox() == (100, 100, 300, 200) and mask.getextrema() == (0, 255)
    assert request(DEV, image=tmp_path / "cut.png").mask is None, "other models take transparency for a background"


def test_a_mask_that_is_given_counts_more_than_transparent_parts(tmp_path: Path, white: Path) -> None:
    see_through = saved(tmp_path / "glass.png", mode="RGBA", colour=(9, 9, 9, 0))
    mask = request(FILLS, image=see_through, mask=white).mask
    assert mask is not None and mask.getextrema() == (255, 255)


def test_fill_paints_all_of_the_mask_unless_it_is_told_less(photo: Path, white: Path) -> None:
    assert request(FILLS, image=photo, mask=white).prompt_strength == 1.0
    assert request(FILLS, image=photo, mask=white, prompt_strength=0.5).prompt_strength == 0.5
    assert request(DEV, image=photo).prompt_strength == 0.8


def test_the_range_of_guidance_is_that_of_the_model(photo: Path, white: Path) -> None:
    assert request(FILLS, image=photo, mask=white).guidance_scale == 30
    assert request(FILLS, image=photo, mask=white, guidance=100.0).guidance_scale == 100
    assert request(EDITS, input_image=photo).guidance_scale == 2.5
    assert refusal(EDITS, input_image=photo, guidance=11.0) == (
        "guidance_scale: must be from 0 to 10 for FLUX.1 Kontext, not 11.0"
    )


@pytest.mark.parametrize(
    ("size", "megapixels", "expected"),
    [
        ((640, 480), "1", (1152, 864)),
        ((640, 480), "0.25", (576, 416)),
        ((640, 480), "match_input", (640, 480)),
        ((650, 490), "match_input", (640, 480)),
        ((3000, 2000), "match_input", (1440, 960)),
        ((1000, 4000), "match_input", (352, 1440)),
    ],
)
@pytest.mark.parametrize("of", [FILLS, CONTROLLED])
def test_fill_and_depth_have_the_sizes_of_their_hosts(
    tmp_path: Path, of: ModelProfile, size: tuple[int, int], megapixels: str, expected: tuple[int, int]
) -> None:
    """The sides in multiples of 32, rounded down."""
    picture, mask = saved(tmp_path / "p.png", size), saved(tmp_path / "m.png", size, "L", 255)
    given = {"image": picture, "mask": mask} if of is FILLS else {"control_image": picture}
    made = request(of, megapixels=megapixels, **given)
    assert (made.width, made.height) == expected


def test_other_models_take_the_area_of_the_image_too(tmp_path: Path) -> None:
    made = request(DEV, image=saved(tmp_path / "p.png", (900, 600)), megapixels="match_input")
    assert (made.width, made.height) == (896, 592)
    assert refusal(DEV, megapixels="match_input") == (
        "megapixels: 'match_input' takes the size of a given picture, and there is none; give another"
    )


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({}, (1184, 880)),
        ({"aspect_ratio": "match_input_image"}, (1184, 880)),
        ({"aspect_ratio": "16:9"}, (1328, 800)),
        ({"aspect_ratio": "3:2"}, (1248, 832)),
        ({"aspect_ratio": "custom", "width": 512, "height": 768}, (512, 768)),
        ({"megapixels": "0.25"}, (592, 448)),
        ({"megapixels": "match_input"}, (640, 480)),
    ],
)
def test_kontext_has_sizes_of_its_own(photo: Path, inputs: dict[str, Any], expected: tuple[int, int]) -> None:
    made = request(EDITS, input_image=photo, **inputs)
    assert (made.width, made.height) == expected
    assert [one.size for one in made.references] == [(640, 480)]


def test_the_sizes_of_kontext_are_those_of_diffusers() -> None:
    assert list(KONTEXT_SIZES) == PREFERRED_KONTEXT_RESOLUTIONS
    assert set(KONTEXT_RATIOS.values()) <= set(KONTEXT_SIZES)
    canvas = Canvas(1024, 16, preferred=KONTEXT_SIZES)
    rng = np.random.default_rng(0)
    for width, height in rng.integers(64, 4096, (200, 2)).tolist():
        _, *theirs = min((abs(width / height - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
        assert canvas.reference_size(width, height) == canvas.nearest_preferred(width, height) == tuple(theirs)


def test_where_no_picture_is_read_its_shape_cannot_be_matched() -> None:
    assert refusal(DEV, aspect_ratio="match_input_image").startswith("aspect_ratio: 'match_input_image' takes the size")


def test_hosted_kontext_is_fast_and_hosted_fill_is_not(photo: Path, white: Path) -> None:
    hosted = DEFAULTS["hosted"]
    edits = build_request({**INPUTS, "input_image": photo}, EDITS, DETECTORS, defaults=hosted)
    fills = build_request({**INPUTS, "image": photo, "mask": white}, FILLS, DETECTORS, defaults=hosted)
    assert edits.go_fast and not fills.go_fast


@pytest.mark.parametrize("of", [FILLS, EDITS], ids=["fill", "edit"])
def test_a_picture_that_is_only_finished_needs_nothing_else(of: ModelProfile, photo: Path) -> None:
    """The detail pass gives the model the crop and its mask."""
    made = request(of, image=photo, prompt_strength=0.0)
    assert made.keeps_image and made.mask is None and made.references == ()
    assert "control_image: is needed" in refusal(CONTROLLED, image=photo, prompt_strength=0.0)


def test_outpainting_makes_the_mask_that_a_filling_model_needs(photo: Path) -> None:
    made = request(FILLS, image=photo, outpaint="left=100")
    assert made.mask is not None and made.image is not None and made.mask.size == made.image.size == (740, 480)
    assert made.prompt_strength == 1.0


def test_a_mask_beside_outpaint_has_the_shape_of_the_image(photo: Path, tmp_path: Path) -> None:
    mask = saved(tmp_path / "mask.png", (740, 480), "L", "white")
    assert refusal(DEV, image=photo, mask=mask, outpaint="left=100") == (
        "mask: must have the size of the image (640x480) or its shape, not 740x480"
    )
