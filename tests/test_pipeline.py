"""From a request to finished pictures, on the real embedded models."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PROMPT
from PIL import Image
from test_request import INPUTS

from backend.errors import InputError
from backend.timeline import Timeline
from modules.adetailer.arguments import AdetailerUnit
from modules.adetailer.crops import blur_mask
from modules.adetailer.stage import AdetailerStage
from modules.outputs import read_parameters
from modules.pipeline import ImageBatch, Picture, no_progress
from modules.request import ImageRequest
from modules.startup import Service
from training.drawing import draw_scene
from training.scene import sample_scene

REQUEST = ImageRequest(prompt=PROMPT, width=256, height=256, seed=1, num_inference_steps=6, adetailer=(AdetailerUnit(),))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.int16)


def predicted(service: Service, **changes: Any) -> tuple[list[Image.Image], dict[str, float], list[Path]]:
    metrics: dict[str, float] = {}
    files = service.predict({**INPUTS, "prompt": PROMPT, "num_inference_steps": 4, "output_format": "png", **changes}, metrics.__setitem__, no_progress)
    return [Image.open(file).convert("RGB") for file in files], metrics, files


@pytest.fixture(scope="module")
def drawn() -> ImageBatch:
    """Two drawings with one face each, not yet repaired."""
    rng = random.Random(3)
    scenes = (sample_scene(rng, (256, 256)) for _ in range(100))
    portraits = [draw_scene(scene) for scene in scenes if scene.framing == "portrait" and len(scene.people) == 1][:2]
    return ImageBatch(tuple(Picture(portrait, seed) for seed, portrait in enumerate(portraits)), Timeline(), no_progress)


def test_a_prediction_runs_every_stage_and_times_it(service: Service) -> None:
    images, metrics, files = predicted(service, seed=3)
    assert [file.name for file in files] == ["out-0.png"] and images[0].size == (512, 512)
    for stage in ("inputs", "generate", "generate.denoise", "generate.decode", "adetailer", "adetailer.detect", "upscale", "outputs"):
        assert metrics[f"{stage}.seconds"] >= 0 and metrics[f"{stage}.peak_bytes"] > 0
    assert metrics["model_bytes_moved"] == 0


def test_stages_that_are_not_wanted_do_not_run(service: Service) -> None:
    images, metrics, _ = predicted(service, adetailer=False, scale=1)
    assert images[0].size == (256, 256)
    assert not any(name.startswith(("adetailer", "upscale")) for name in metrics)


def test_the_same_request_gives_the_same_files(service: Service) -> None:
    first = predicted(service, seed=11)[2][0].read_bytes()
    predicted(service, seed=12)
    images = predicted(service, seed=11)[0]
    again = Image.open(predicted(service, seed=11)[2][0])
    assert len(first) and np.array_equal(pixels(images[0]), pixels(again))


def test_four_outputs_are_the_pictures_of_four_seeds(service: Service) -> None:
    images, _, files = predicted(service, num_outputs=4, seed=20, scale=1, adetailer=False)
    assert [file.name for file in files] == [f"out-{index}.png" for index in range(4)]
    alone = predicted(service, seed=22, scale=1, adetailer=False)[0][0]
    assert np.abs(pixels(images[2]) - pixels(alone)).max() <= 1


def test_the_file_says_how_it_was_made(service: Service) -> None:
    _, _, files = predicted(service, seed=5)
    text, record = read_parameters(files[0])
    assert text.startswith(PROMPT) and "Seed: 5," in text and "Size: 256x256" in text and "ADetailer model: " in text and "Postprocess upscale by: 2" in text
    assert record


def test_image_to_image_keeps_what_strength_leaves(service: Service, tmp_path: Path) -> None:
    source = predicted(service, seed=3, num_inference_steps=12, scale=1, adetailer=False)[0][0]
    source.save(tmp_path / "source.png")
    changes = {"image": tmp_path / "source.png", "scale": 1, "adetailer": False, "seed": 8, "num_inference_steps": 10}
    little, much = (predicted(service, prompt_strength=strength, **changes)[0][0] for strength in (0.2, 0.9))
    assert np.abs(pixels(little) - pixels(source)).mean() < np.abs(pixels(much) - pixels(source)).mean()


def test_inpainting_leaves_what_the_mask_leaves(service: Service, tmp_path: Path) -> None:
    source = predicted(service, seed=3, num_inference_steps=12, scale=1, adetailer=False)[0][0]
    mask = Image.new("L", source.size)
    mask.paste(255, (0, 128, 256, 256))
    source.save(tmp_path / "source.png")
    mask.save(tmp_path / "mask.png")
    result = predicted(service, image=tmp_path / "source.png", mask=tmp_path / "mask.png", prompt_strength=1.0, scale=1, adetailer=False)[0][0]
    changed = np.abs(pixels(result) - pixels(source)).max(axis=2)
    assert changed[:112].max() == 0 and changed[140:].mean() > 2


def test_a_failed_prediction_leaves_no_file_and_the_next_one_is_right(service: Service) -> None:
    with pytest.raises(InputError, match="prompt: is empty"):
        predicted(service, prompt=" ")
    assert list(service.outputs.iterdir()) == []
    assert len(predicted(service, scale=1, adetailer=False)[0]) == 1


def test_files_of_the_prediction_before_are_deleted(service: Service) -> None:
    before = predicted(service, scale=1, adetailer=False)[2][0]
    after = predicted(service, scale=1, adetailer=False)[2][0]
    assert after.exists() and not before.exists()


@pytest.fixture
def stage(service: Service) -> AdetailerStage:
    stage = service.pipeline.stages[2]
    assert isinstance(stage, AdetailerStage)
    return stage


class TestAdetailer:
    def test_pixels_outside_the_blurred_mask_keep_their_bytes(self, stage: AdetailerStage, drawn: ImageBatch) -> None:
        regions = stage.find(drawn.pictures, REQUEST.adetailer[0])
        assert [len(found.regions) for found in regions] == [1, 1]
        result = stage.run(drawn, replace(REQUEST, num_outputs=2))
        for before, after, of_picture in zip(drawn.pictures, result.pictures, regions, strict=True):
            changed = (pixels(before.image) != pixels(after.image)).any(axis=2)
            assert changed.any() and not changed[of_picture.regions[0].mask == 0].any()

    def test_a_picture_of_a_batch_is_repaired_as_it_is_alone(self, stage: AdetailerStage, drawn: ImageBatch) -> None:
        together = stage.run(drawn, REQUEST).pictures[1]
        alone = stage.run(drawn.with_pictures(drawn.pictures[1:]), REQUEST).pictures[0]
        assert np.abs(pixels(together.image) - pixels(alone.image)).max() <= 1

    def test_no_face_means_the_same_picture(self, stage: AdetailerStage, drawn: ImageBatch) -> None:
        empty = drawn.with_pictures([Picture(Image.new("RGB", (256, 256), "teal"), 1)])
        assert np.array_equal(pixels(stage.run(empty, REQUEST).pictures[0].image), pixels(empty.pictures[0].image))

    def test_a_prompt_of_its_own_is_used_and_noted(self, stage: AdetailerStage, drawn: ImageBatch) -> None:
        units = (AdetailerUnit(prompt="a sad bald man", denoising_strength=0.8),)
        plain = stage.run(drawn, replace(REQUEST, adetailer=(AdetailerUnit(denoising_strength=0.8),))).pictures[0]
        own = stage.run(drawn, replace(REQUEST, adetailer=units)).pictures[0]
        assert not np.array_equal(pixels(plain.image), pixels(own.image))
        assert own.parameters["ADetailer prompt"] == "a sad bald man" and own.parameters["ADetailer denoising strength"] == 0.8

    def test_the_whole_picture_can_be_painted_in_place_of_the_crop(self, stage: AdetailerStage, drawn: ImageBatch) -> None:
        unit = AdetailerUnit(inpaint_only_masked=False)
        region = stage.find(drawn.pictures, unit)[0].regions[0]
        assert region.box == (0, 0, 256, 256) and region.size == (256, 256)

    def test_blur_and_padding_shape_the_crop(self, stage: AdetailerStage, drawn: ImageBatch) -> None:
        narrow = stage.find(drawn.pictures, AdetailerUnit(inpaint_only_masked_padding=0, mask_blur=0))[0].regions[0]
        wide = stage.find(drawn.pictures, AdetailerUnit(inpaint_only_masked_padding=60, mask_blur=8))[0].regions[0]
        assert narrow.box[0] > wide.box[0] and narrow.box[3] < wide.box[3]
        assert set(np.unique(narrow.mask)) == {0, 255} and len(np.unique(wide.mask)) > 2
        assert np.array_equal(blur_mask(narrow.mask, 0), narrow.mask)

    def test_a_size_of_its_own_is_painted_at_the_nearest_on_the_grid(self, stage: AdetailerStage, drawn: ImageBatch) -> None:
        unit = AdetailerUnit(use_inpaint_width_height=True, inpaint_width=300, inpaint_height=200, inpaint_only_masked_padding=0)
        region = stage.find(drawn.pictures, unit)[0].regions[0]
        assert region.size == (288, 192)
        assert (region.box[2] - region.box[0]) / (region.box[3] - region.box[1]) == pytest.approx(1.5, rel=0.05)

    def test_steps_and_guidance_of_its_own_are_used_and_noted(self, stage: AdetailerStage, drawn: ImageBatch) -> None:
        plain = stage.run(drawn, REQUEST).pictures[0]
        own = stage.run(drawn, replace(REQUEST, adetailer=(AdetailerUnit(use_steps=True, steps=9, use_cfg_scale=True, cfg_scale=1.0),))).pictures[0]
        assert not np.array_equal(pixels(plain.image), pixels(own.image))
        noted = {key: value for key, value in own.parameters.items() if key.startswith("ADetailer") and key != "ADetailer model"}
        assert noted == {"ADetailer use separate steps": True, "ADetailer steps": 9, "ADetailer use separate CFG scale": True, "ADetailer CFG scale": 1.0}

    def test_units_run_one_after_the_other_each_on_the_result_before(self, stage: AdetailerStage, drawn: ImageBatch) -> None:
        first, second = AdetailerUnit(prompt="a sad bald man"), AdetailerUnit(prompt="a woman with blue hair", mask_blur=2)
        both = stage.run(drawn, replace(REQUEST, adetailer=(first, second))).pictures[0]
        after_first = stage.run(drawn, replace(REQUEST, adetailer=(first,)))
        assert np.array_equal(pixels(both.image), pixels(stage.run(after_first, replace(REQUEST, adetailer=(second,))).pictures[0].image))
        assert both.parameters["ADetailer prompt"] == "a sad bald man" and both.parameters["ADetailer prompt 2nd"] == "a woman with blue hair"
        assert both.parameters["ADetailer mask blur 2nd"] == 2


@pytest.fixture(scope="module")
def couple() -> ImageBatch:
    """Two people side by side, drawn."""
    rng = random.Random(3)
    scene = next(scene for scene in iter(lambda: sample_scene(rng, (384, 256)), None) if len(scene.people) == 2)
    return ImageBatch((Picture(draw_scene(scene), 11),), Timeline(), no_progress)


class TestSeveralFaces:
    def repainted(self, stage: AdetailerStage, couple: ImageBatch, **arguments: Any) -> set[str]:
        """Which faces were repainted, the "left" or the "right" one."""
        unit = AdetailerUnit(bbox_sortby="Position (left to right)", mask_blur=0, denoising_strength=1.0, **arguments)
        left, right = stage.find(couple.pictures, unit)[0].regions
        after = stage.run(couple, replace(REQUEST, adetailer=(unit,))).pictures[0].image
        changed = (pixels(couple.pictures[0].image) != pixels(after)).any(axis=2)
        return {name for name, region in (("left", left), ("right", right)) if changed[region.mask > 0].mean() > 0.5}

    def test_each_is_repainted_in_the_order_asked_for(self, stage: AdetailerStage, couple: ImageBatch) -> None:
        lefts = [region.box[0] for region in stage.find(couple.pictures, AdetailerUnit(bbox_sortby="Position (left to right)"))[0].regions]
        assert len(lefts) == 2 and lefts == sorted(lefts)
        assert self.repainted(stage, couple) == {"left", "right"}

    def test_a_face_is_skipped_by_its_prompt(self, stage: AdetailerStage, couple: ImageBatch) -> None:
        assert self.repainted(stage, couple, prompt="[SKIP] [SEP] [PROMPT]") == {"right"}
        assert self.repainted(stage, couple, prompt="[PROMPT] [SEP] [SKIP]") == {"left"}

    def test_the_seed_of_a_face_is_the_pictures_plus_its_number_or_the_same(
        self, stage: AdetailerStage, couple: ImageBatch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seeds: list[tuple[int, ...]] = []
        draw = stage.flux.draw
        monkeypatch.setattr(stage.flux, "draw", lambda drawing, *rest: (seeds.append(drawing.seeds), draw(drawing, *rest))[1])
        for same in (False, True):
            stage.run(couple, replace(REQUEST, adetailer=(AdetailerUnit(same_seed_for_each_tab=same),)))
        assert seeds == [(11,), (12,), (11,), (11,)]
