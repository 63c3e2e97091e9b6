"""The sizes that families generate."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.requests_data import EMBEDDED

from modules.diffusion.canvas import ASPECT_RATIOS, MAX_AREA_CHANGE, MAX_SQUEEZE, Canvas

FLUX = Canvas(1024, 16)


def test_flux_sizes_are_those_of_hosted_models() -> None:
    assert {ratio: FLUX.size(ratio, "1") for ratio in ASPECT_RATIOS} == dict(ASPECT_RATIOS)
    assert FLUX.size("1:1", "0.25") == (512, 512)


@pytest.mark.parametrize("ratio", ASPECT_RATIOS)
@pytest.mark.parametrize("megapixels", ["1", "0.25"])
def test_the_embedded_family_scales_every_ratio_onto_its_grid(ratio: str, megapixels: str) -> None:
    width, height = EMBEDDED.canvas.size(ratio, megapixels)
    wanted = ASPECT_RATIOS[ratio][0] / ASPECT_RATIOS[ratio][1]
    assert width % 32 == height % 32 == 0
    assert abs(width - wanted * height) <= 32 * (1 + wanted) / 2 + 1


def squeeze(size: tuple[int, int], ratio: float) -> float:
    return math.exp(abs(math.log(size[0] / size[1] / ratio))) - 1


@given(ratio=st.floats(1 / 8, 8), grid=st.sampled_from([(512, 8), (1024, 8), (1024, 16)]))
def test_a_picture_of_any_shape_is_squeezed_by_at_most_a_hundredth(ratio: float, grid: tuple[int, int]) -> None:
    native, multiple = grid
    width, height = native * math.sqrt(ratio), native / math.sqrt(ratio)
    size = Canvas(native, multiple).in_shape(width, height)
    assert squeeze(size, ratio) <= MAX_SQUEEZE + 1e-9 and size[0] % multiple == size[1] % multiple == 0
    assert 0.9 < size[0] * size[1] / native**2 < 1.1


def test_that_of_a_phone_too() -> None:
    for width, height in ((1242, 2688), (1170, 2532), (1080, 2400), (4032, 3024), (1440, 3200)):
        scale = 1024 / math.sqrt(width * height)
        assert squeeze(FLUX.in_shape(width * scale, height * scale), width / height) <= MAX_SQUEEZE


def test_usual_sizes_stay_the_nearest_ones() -> None:
    for width, height in ASPECT_RATIOS.values():
        assert FLUX.in_shape(width, height) == (width, height)
    assert FLUX.in_shape(1254.1, 836.1) == FLUX.fitted(1254.1, 836.1) == (1248, 832)


@given(ratio=st.floats(1 / 8, 8))
def test_a_coarse_grid_squeezes_least_within_the_area(ratio: float) -> None:
    width, height = 256 * math.sqrt(ratio), 256 / math.sqrt(ratio)
    size = Canvas(256, 32).in_shape(width, height)
    assert squeeze(size, ratio) <= 0.06 and 1 / MAX_AREA_CHANGE <= size[0] * size[1] / 256**2 <= MAX_AREA_CHANGE
