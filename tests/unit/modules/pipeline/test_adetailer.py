"""The stage ``adetailer`` on the real embedded models: its units, what the files say, and the debug images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.people import couple, portraits
from support.pictures import PROMPT
from support.requests_data import DETECTORS, EMBEDDED, INPUTS

from backend.core.errors import InputError
from backend.core.timeline import Timeline
from modules.app.service import Service
from modules.pipeline.adetailer import AdetailerStage
from modules.pipeline.base import ImageBatch, Picture, no_progress
from modules.request.adetailer_unit import AdetailerUnit
from modules.request.image_request import ImageRequest
from modules.request.parser import build_request

REQUEST = ImageRequest(
    prompt=PROMPT, width=256, height=256, seed=1, num_inference_steps=4, adetailer=(AdetailerUnit(),)
)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.int16)


def batch_of(*images: Image.Image) -> ImageBatch:
    return ImageBatch(tuple(Picture(image, seed) for seed, image in enumerate(images)), Timeline(), no_progress)


@pytest.fixture(scope="module")
def drawn() -> ImageBatch:
    """A drawing with one face."""
    return batch_of(*portraits(1, seed=3))


@pytest.fixture
def stage(service: Service) -> AdetailerStage:
    return next(stage for stage in service.pipeline.stages if isinstance(stage, AdetailerStage))


def test_the_stage_is_wanted_when_there_are_units(stage: AdetailerStage) -> None:
    assert stage.wanted(REQUEST) and not stage.wanted(replace(REQUEST, adetailer=()))


def test_a_prompt_of_its_own_is_used_and_noted(stage: AdetailerStage, drawn: ImageBatch) -> None:
    units = (AdetailerUnit(prompt="a sad bald man", denoising_strength=0.8),)
    plain = stage.run(drawn, replace(REQUEST, adetailer=(AdetailerUnit(denoising_strength=0.8),))).pictures[0]
    own = stage.run(drawn, replace(REQUEST, adetailer=units)).pictures[0]
    assert not np.array_equal(pixels(plain.image), pixels(own.image))
    assert (
        own.parameters["ADetailer prompt"] == "a sad bald man" and own.parameters["ADetailer denoising strength"] == 0.8
    )


def test_steps_and_guidance_of_its_own_are_used_and_noted(stage: AdetailerStage, drawn: ImageBatch) -> None:
    plain = stage.run(drawn, REQUEST).pictures[0]
    own = stage.run(
        drawn,
        replace(REQUEST, adetailer=(AdetailerUnit(use_steps=True, steps=9, use_cfg_scale=True, cfg_scale=1.0),)),
    ).pictures[0]
    assert not np.array_equal(pixels(plain.image), pixels(own.image))
    noted = {
        key: value for key, value in own.parameters.items() if key.startswith("ADetailer") and key != "ADetailer model"
    }
    assert noted == {
        "ADetailer use separate steps": True,
        "ADetailer steps": 9,
        "ADetailer use separate CFG scale": True,
        "ADetailer CFG scale": 1.0,
    }


def test_a_sampler_of_its_own_is_used_as_far_as_it_can_be_and_noted(stage: AdetailerStage, drawn: ImageBatch) -> None:
    plain, karras, solver = (
        stage.run(drawn, replace(REQUEST, adetailer=(unit,))).pictures[0]
        for unit in (
            AdetailerUnit(),
            AdetailerUnit(use_sampler=True, sampler="Euler", scheduler="Karras"),
            AdetailerUnit(use_sampler=True),  # DPM++ 2M Karras
        )
    )
    assert not np.array_equal(pixels(plain.image), pixels(karras.image)) and np.array_equal(
        pixels(karras.image), pixels(solver.image)
    )
    assert karras.parameters["ADetailer use separate sampler"] and karras.parameters["ADetailer scheduler"] == "Karras"
    assert solver.parameters["ADetailer sampler"] == "Euler" and solver.parameters["ADetailer scheduler"] == "Karras"
    assert "_adetailer_sampler" not in karras.parameters
    assert (
        solver.parameters["_adetailer_sampler"]
        == "DPM++ 2M starts from pure noise only, so Euler repainted the details"
    )


def test_units_run_one_after_the_other_each_on_the_result_before(stage: AdetailerStage, drawn: ImageBatch) -> None:
    first, second = (
        AdetailerUnit(prompt="a sad bald man"),
        AdetailerUnit(prompt="a woman with blue hair", mask_blur=2),
    )
    both = stage.run(drawn, replace(REQUEST, adetailer=(first, second))).pictures[0]
    after_first = stage.run(drawn, replace(REQUEST, adetailer=(first,)))
    assert np.array_equal(
        pixels(both.image), pixels(stage.run(after_first, replace(REQUEST, adetailer=(second,))).pictures[0].image)
    )
    assert (
        both.parameters["ADetailer prompt"] == "a sad bald man"
        and both.parameters["ADetailer prompt 2nd"] == "a woman with blue hair"
    )
    assert both.parameters["ADetailer mask blur 2nd"] == 2


def test_what_is_skipped_is_neither_recorded_as_repainted_nor_drawn_so(stage: AdetailerStage) -> None:
    shown: list[tuple[str, Image.Image]] = []
    for prompt in ("", "[SKIP] [SEP] [PROMPT]"):
        unit = AdetailerUnit(prompt=prompt)
        batch = replace(batch_of(couple()), debug_sink=lambda name, image: shown.append((name, image)))
        parameters = stage.run(batch, replace(REQUEST, adetailer=(unit,))).pictures[0].parameters
        regions, skipped = parameters["_adetailer_regions"], parameters["_adetailer_skipped"]
        assert isinstance(regions, list) and isinstance(skipped, list) and len(regions) + len(skipped) == 2
    assert skipped == ["detection 1: [SKIP] in ad_prompt, it is number 1"]
    assert [name for name, _ in shown] == ["before-0", "found-0-unit-1"] * 2
    (_, before), (_, first), (_, again), (_, second) = shown
    assert np.array_equal(pixels(before), pixels(couple())) and np.array_equal(pixels(again), pixels(couple()))
    assert not np.array_equal(pixels(first), pixels(second))


class TestOwnMask:
    """The input ``ad_mask``: what was painted is repainted."""

    @pytest.fixture
    def mask(self) -> Image.Image:
        """One area in the upper left corner, far from the face."""
        mask = Image.new("L", (256, 256))
        mask.paste(255, (8, 8, 40, 40))
        return mask

    def test_its_areas_are_regions_of_the_first_unit_beside_the_faces(
        self, stage: AdetailerStage, drawn: ImageBatch, mask: Image.Image
    ) -> None:
        picture = drawn.pictures[0]
        units = (AdetailerUnit(denoising_strength=0.6), AdetailerUnit(model="person_detector", mask_k=1))
        plain, own = (
            stage.run(drawn.with_pictures([picture]), replace(REQUEST, adetailer=units, ad_mask=one)).pictures[0]
            for one in (None, mask)
        )
        regions = own.parameters["_adetailer_regions"]
        assert isinstance(regions, list) and isinstance(plain.parameters["_adetailer_regions"], list)
        assert len(regions) == len(plain.parameters["_adetailer_regions"]) + 1 and regions[0][:2] == (0, 0)
        assert len(own.parameters["_adetailer_regions 2nd"]) == 1  # type: ignore[arg-type]

    def test_a_unit_that_names_it_repaints_nothing_else(
        self, stage: AdetailerStage, drawn: ImageBatch, mask: Image.Image
    ) -> None:
        picture = drawn.pictures[0]
        unit = AdetailerUnit(model="mask", denoising_strength=0.9, mask_blur=0, dilate_erode=0, prompt="a red wall")
        own = stage.run(drawn.with_pictures([picture]), replace(REQUEST, adetailer=(unit,), ad_mask=mask)).pictures[0]
        assert own.parameters["ADetailer model"] == "mask"
        changed = (pixels(own.image) != pixels(picture.image)).any(axis=2)
        assert changed[8:40, 8:40].mean() > 0.9
        changed[8:40, 8:40] = False
        assert not changed.any(), "every other pixel keeps its value"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"adetailer": False}, "ad_mask: is for the detail pass, which is off"),
        ({"adetailer_args": '{"ad_model": "None"}'}, "ad_mask: is for the detail pass, which is off"),
        ({"paint": "black"}, "ad_mask: leaves nothing to repaint"),
        ({"aspect_ratio": "16:9"}, "ad_mask: must have the size"),
        (
            {"ad_mask": None, "adetailer_args": '{"ad_model": "mask"}'},
            "adetailer_args: ad_model 'mask' needs the input",
        ),
        (
            {"adetailer_args": '{"ad_model": "mask", "ad_model_classes": "cat"}'},
            "adetailer_args: ad_model_classes of mask",
        ),
    ],
)
def test_an_own_mask_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    file = tmp_path / "mask.png"
    Image.new("L", (64, 64), changes.pop("paint", "white")).save(file)
    inputs = {**INPUTS, "adetailer": True, "scale": 1.0, "ad_mask": file, **changes}
    with pytest.raises(InputError, match=f"^{problem}"):
        build_request(inputs, EMBEDDED, DETECTORS)
