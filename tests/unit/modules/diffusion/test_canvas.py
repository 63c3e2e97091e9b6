"""The sizes that families generate."""

from __future__ import annotations

import pytest
from support.requests_data import EMBEDDED

from modules.diffusion.canvas import ASPECT_RATIOS, Canvas

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
