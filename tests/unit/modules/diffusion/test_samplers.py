"""A sampler's or a schedule's name means what WebUI users know by it; all of them lead to the same picture, given
enough steps."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from support.pictures import PROMPT
from support.slow import sampled

from backend.core.timeline import Timeline
from modules.app.service import Service
from modules.detection.yolo import Detector
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor
from modules.diffusion.sampler_names import EULER, SAMPLERS, SCHEDULES
from modules.diffusion.samplers import LEAST_TIME, SOLVERS, noise_levels
from modules.diffusion.samplers import SCHEDULES as KNOWN_SCHEDULES
from modules.families.flux1.service import FluxService
from modules.pipeline.base import ImageBatch, no_progress
from modules.pipeline.generate import GenerateStage
from modules.request.image_request import ImageRequest

SHIFT = 3.158
"""e to the power of 1.15: FLUX.1-dev at 1024 x 1024."""


def shifted(times: np.ndarray) -> np.ndarray:
    return np.asarray(SHIFT * times / (1 + (SHIFT - 1) * times))


def test_the_inputs_offer_what_there_is() -> None:
    assert set(SAMPLERS) == {EULER, *SOLVERS} and tuple(KNOWN_SCHEDULES) == SCHEDULES


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_a_schedule_falls_from_pure_noise(schedule: str, steps: int) -> None:
    levels = noise_levels(schedule, steps, shifted)
    assert levels.shape == (steps,) and levels[0] == pytest.approx(1) and (np.diff(levels) < 0).all() and levels[-1] > 0


class TestSchedules:
    """The last noise level is the WebUI's where its schedule goes to the end, 0.0003 for FLUX.1-dev."""

    last = float(shifted(np.array([LEAST_TIME]))[0])

    def test_simple_is_even_in_time(self) -> None:
        assert noise_levels("Simple", 4, shifted) == pytest.approx(shifted(np.array([1, 0.75, 0.5, 0.25])))

    def test_karras_is_even_in_the_seventh_root(self) -> None:
        levels = noise_levels("Karras", 10, shifted)
        assert levels[-1] == pytest.approx(self.last) and self.last == pytest.approx(0.0003, abs=0.00002)
        assert np.diff(levels ** (1 / 7)) == pytest.approx(np.diff(levels ** (1 / 7))[0])

    def test_exponential_is_even_in_the_logarithm(self) -> None:
        levels = noise_levels("Exponential", 10, shifted)
        assert levels[-1] == pytest.approx(self.last) and np.diff(np.log(levels)) == pytest.approx(
            np.log(self.last) / 9
        )

    def test_normal_and_sgm_uniform_are_even(self) -> None:
        assert noise_levels("Normal", 3, shifted) == pytest.approx([1, (1 + self.last) / 2, self.last])
        assert noise_levels("SGM Uniform", 2, shifted) == pytest.approx([1, (1 + self.last) / 2])

    def test_beta_takes_the_quantiles_of_its_distribution(self) -> None:
        """Quantiles of the beta distribution (0.6, 0.6) at 1, 0.75, 0.5, 0.25: the last by the series of its
        integral."""
        levels = noise_levels("Beta", 4, lambda times: times)
        assert (
            levels[0] == pytest.approx(1)
            and levels[2] == pytest.approx(0.5, abs=1e-6)
            and levels[1] + levels[3] == pytest.approx(1)
        )
        x = np.linspace(0, levels[3] ** 0.6, 100_001)[1:] ** (1 / 0.6)  # u = x to the power 0.6 takes the pole away
        share = np.trapezoid((1 - x) ** -0.4 / 0.6, x**0.6)
        whole = 2 * np.trapezoid((1 - (y := np.linspace(0, 0.5**0.6, 100_001)[1:] ** (1 / 0.6))) ** -0.4 / 0.6, y**0.6)
        assert share / whole == pytest.approx(0.25, abs=1e-4)


@pytest.fixture(scope="module")
def flux(service: Service) -> FluxService:
    stage = service.pipeline.stages[0]
    assert isinstance(stage, GenerateStage)
    return stage.service


def drawn(flux: FluxService, **changes: object) -> np.ndarray:
    values: dict[str, object] = {
        "prompts": (PROMPT,),
        "seeds": (3,),
        "width": 128,
        "height": 128,
        "steps": 20,
        "guidance": 3.5,
    }
    return np.asarray(flux.generate(DenoiseRequest(**{**values, **changes}), Monitor(Timeline()))[0]).astype(float)  # type: ignore[arg-type]


SEEDS = (4, 5, 6)
"""Of several, because how fast the steps of one seed come to an end is chance: between two pictures it may go either
way for long."""


def several(flux: FluxService, **changes: object) -> np.ndarray:
    return np.stack(
        flux.generate(
            DenoiseRequest((PROMPT,) * len(SEEDS), SEEDS, 128, 128, guidance=3.5, **changes), Monitor(Timeline())
        )
    ).astype(float)  # type: ignore[arg-type]


def psnr(ones: np.ndarray, others: np.ndarray) -> float:
    """The median over the pictures, in dB."""
    return float(np.median(10 * np.log10(255**2 / np.square(ones - others).mean(axis=(1, 2, 3)))))


@pytest.fixture(scope="module")
def exact(flux: FluxService) -> np.ndarray:
    """The pictures that infinitely many steps would give, nearly."""
    return several(flux, steps=40)


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    sampled(
        [
            *((EULER, schedule) for schedule in SCHEDULES),
            *((sampler, SCHEDULES[0]) for sampler in SOLVERS if "SDE" not in sampler),
        ],
        3,
    ),
)
def test_all_lead_to_the_same_picture(flux: FluxService, exact: np.ndarray, sampler: str, schedule: str) -> None:
    few, many = (psnr(several(flux, sampler=sampler, schedule=schedule, steps=steps), exact) for steps in (3, 24))
    assert many > few + 2 and many > 18  # those that spend their steps on the last noise come there slowly


def test_the_noise_of_every_step_is_the_seeds_own_whatever_else_is_drawn(flux: FluxService) -> None:
    asked = {"sampler": "DPM++ 2M SDE", "steps": 6}
    alone = drawn(flux, **asked)
    assert np.array_equal(alone, drawn(flux, **asked))
    together = flux.generate(
        DenoiseRequest((PROMPT,) * 2, (8, 3), 128, 128, guidance=3.5, **asked), Monitor(Timeline())
    )[1]  # type: ignore[arg-type]
    assert np.abs(alone - np.asarray(together)).max() <= 1
    assert np.abs(alone - drawn(flux, sampler="DPM++ 2M", steps=6)).mean() > 1


def test_with_fresh_noise_at_every_step_the_picture_shows_what_was_asked_for(
    service: Service, flux: FluxService
) -> None:
    """Green behind, red hair: as with the other samplers."""
    picture = drawn(flux, width=256, height=256, sampler="DPM++ 2M SDE", steps=20)
    plain = drawn(flux, width=256, height=256, steps=20)
    assert np.abs(picture[:24].mean(axis=(0, 1)) - plain[:24].mean(axis=(0, 1))).max() < 30
    with service.models.on_device("face_detector") as (network,):
        [found] = Detector(network).detect([Image.fromarray(picture.astype(np.uint8))], 0.5)
    assert len(found) == 1


def test_the_pictures_of_a_schedule_are_repainted_with_it(flux: FluxService) -> None:
    image = Image.new("RGB", (128, 128), "teal")
    plain, karras = (
        drawn(flux, images=(image,), strength=0.6, steps=8, schedule=schedule) for schedule in ("Simple", "Karras")
    )
    assert not np.array_equal(plain, karras)


def test_where_a_picture_is_begun_from_euler_is_taken_and_noted(flux: FluxService) -> None:
    image = Image.new("RGB", (128, 128), "teal")
    request = ImageRequest(
        prompt=PROMPT, width=128, height=128, seed=3, num_inference_steps=4, sampler="UniPC", image=image
    )
    picture = GenerateStage(flux).run(ImageBatch((), Timeline(), no_progress), request).pictures[0]
    assert picture.parameters == {
        "Sampler": "Euler",
        "_sampler": "UniPC starts from pure noise only, so Euler redrew the image",
    }
