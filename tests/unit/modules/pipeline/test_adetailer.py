"""The detail pass on the real embedded models: what is repainted, how, and in which order; and what stays as it is,
to the byte."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.pictures import PROMPT

from backend.core.timeline import Timeline
from modules.adetailer.crops import blur_mask, correct_colors
from modules.app.service import Service
from modules.diffusion.denoise_request import DenoiseRequest, steps_run
from modules.pipeline.adetailer import AdetailerStage
from modules.pipeline.base import ImageBatch, Picture, no_progress
from modules.request.adetailer_unit import AdetailerUnit
from modules.request.image_request import ImageRequest
from training.data.drawing import draw_scene
from training.data.scene import sample_scene

REQUEST = ImageRequest(
    prompt=PROMPT, width=256, height=256, seed=1, num_inference_steps=6, adetailer=(AdetailerUnit(),)
)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.int16)


@pytest.fixture(scope="module")
def drawn() -> ImageBatch:
    """Two drawings with one face each, not yet repaired."""
    rng = random.Random(3)
    scenes = (sample_scene(rng, (256, 256)) for _ in range(100))
    portraits = [draw_scene(scene) for scene in scenes if scene.framing == "portrait" and len(scene.people) == 1][:2]
    return ImageBatch(
        tuple(Picture(portrait, seed) for seed, portrait in enumerate(portraits)), Timeline(), no_progress
    )


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
        assert (
            own.parameters["ADetailer prompt"] == "a sad bald man"
            and own.parameters["ADetailer denoising strength"] == 0.8
        )

    def test_the_whole_picture_can_be_painted_in_place_of_the_crop(
        self, stage: AdetailerStage, drawn: ImageBatch
    ) -> None:
        unit = AdetailerUnit(inpaint_only_masked=False)
        region = stage.find(drawn.pictures, unit)[0].regions[0]
        assert region.box == (0, 0, 256, 256) and region.size == (256, 256)

    def test_blur_and_padding_shape_the_crop(self, stage: AdetailerStage, drawn: ImageBatch) -> None:
        narrow = stage.find(drawn.pictures, AdetailerUnit(inpaint_only_masked_padding=0, mask_blur=0))[0].regions[0]
        wide = stage.find(drawn.pictures, AdetailerUnit(inpaint_only_masked_padding=60, mask_blur=8))[0].regions[0]
        assert narrow.box[0] > wide.box[0] and narrow.box[3] < wide.box[3]
        assert set(np.unique(narrow.mask)) == {0, 255} and len(np.unique(wide.mask)) > 2
        assert np.array_equal(blur_mask(narrow.mask, 0), narrow.mask)

    def test_a_size_of_its_own_is_painted_at_the_nearest_on_the_grid(
        self, stage: AdetailerStage, drawn: ImageBatch
    ) -> None:
        unit = AdetailerUnit(
            use_inpaint_width_height=True, inpaint_width=300, inpaint_height=200, inpaint_only_masked_padding=0
        )
        region = stage.find(drawn.pictures, unit)[0].regions[0]
        assert region.size == (288, 192)
        assert (region.box[2] - region.box[0]) / (region.box[3] - region.box[1]) == pytest.approx(1.5, rel=0.05)

    def test_steps_and_guidance_of_its_own_are_used_and_noted(self, stage: AdetailerStage, drawn: ImageBatch) -> None:
        plain = stage.run(drawn, REQUEST).pictures[0]
        own = stage.run(
            drawn,
            replace(REQUEST, adetailer=(AdetailerUnit(use_steps=True, steps=9, use_cfg_scale=True, cfg_scale=1.0),)),
        ).pictures[0]
        assert not np.array_equal(pixels(plain.image), pixels(own.image))
        noted = {
            key: value
            for key, value in own.parameters.items()
            if key.startswith("ADetailer") and key != "ADetailer model"
        }
        assert noted == {
            "ADetailer use separate steps": True,
            "ADetailer steps": 9,
            "ADetailer use separate CFG scale": True,
            "ADetailer CFG scale": 1.0,
        }

    def test_a_sampler_of_its_own_is_used_as_far_as_it_can_be_and_noted(
        self, stage: AdetailerStage, drawn: ImageBatch
    ) -> None:
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
        assert (
            karras.parameters["ADetailer use separate sampler"] and karras.parameters["ADetailer scheduler"] == "Karras"
        )
        assert (
            solver.parameters["ADetailer sampler"] == "Euler" and solver.parameters["ADetailer scheduler"] == "Karras"
        )
        assert "_adetailer_sampler" not in karras.parameters
        assert (
            solver.parameters["_adetailer_sampler"]
            == "DPM++ 2M begins from pure noise only, so Euler repainted the details"
        )

    def test_units_run_one_after_the_other_each_on_the_result_before(
        self, stage: AdetailerStage, drawn: ImageBatch
    ) -> None:
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
        left, right = stage.find(couple.pictures, replace(unit, prompt=""))[0].regions
        after = stage.run(couple, replace(REQUEST, adetailer=(unit,))).pictures[0].image
        changed = (pixels(couple.pictures[0].image) != pixels(after)).any(axis=2)
        return {name for name, region in (("left", left), ("right", right)) if changed[region.mask > 0].mean() > 0.5}

    def test_each_is_repainted_in_the_order_asked_for(self, stage: AdetailerStage, couple: ImageBatch) -> None:
        lefts = [
            region.box[0]
            for region in stage.find(couple.pictures, AdetailerUnit(bbox_sortby="Position (left to right)"))[0].regions
        ]
        assert len(lefts) == 2 and lefts == sorted(lefts)
        assert self.repainted(stage, couple) == {"left", "right"}

    def test_a_face_is_skipped_by_its_prompt(self, stage: AdetailerStage, couple: ImageBatch) -> None:
        assert self.repainted(stage, couple, prompt="[SKIP] [SEP] [PROMPT]") == {"right"}
        assert self.repainted(stage, couple, prompt="[PROMPT] [SEP] [SKIP]") == {"left"}

    def test_what_is_skipped_is_neither_recorded_as_repainted_nor_drawn_so(
        self, stage: AdetailerStage, couple: ImageBatch
    ) -> None:
        shown: list[Image.Image] = []
        for prompt in ("", "[SKIP] [SEP] [PROMPT]"):
            unit = AdetailerUnit(prompt=prompt)
            batch = replace(couple, debug_sink=lambda name, image: shown.append(image))
            parameters = stage.run(batch, replace(REQUEST, adetailer=(unit,))).pictures[0].parameters
            regions, skipped = parameters["_adetailer_regions"], parameters["_adetailer_skipped"]
            assert isinstance(regions, list) and isinstance(skipped, list) and len(regions) + len(skipped) == 2
        assert skipped == ["detection 1: [SKIP] in ad_prompt, it is number 1"]
        assert not np.array_equal(pixels(shown[0]), pixels(shown[1]))

    def test_the_seed_of_a_face_is_the_pictures_plus_its_number_or_the_same(
        self, stage: AdetailerStage, couple: ImageBatch
    ) -> None:
        for same, seeds in ((False, {11, 12}), (True, {11})):
            unit = AdetailerUnit(same_seed_for_each_tab=same)
            batches = stage.inpaint_jobs(couple.pictures, stage.find(couple.pictures, unit), unit, REQUEST)
            assert {one.seed for together in batches for one in together} == seeds

    def test_only_the_selected_one_is_repainted(self, stage: AdetailerStage, couple: ImageBatch) -> None:
        unit = AdetailerUnit(bbox_sortby="Position (left to right)", mask_select="2")
        right = stage.find(couple.pictures, unit)[0].regions
        assert [region.number for region in right] == [2]
        after = stage.run(couple, replace(REQUEST, adetailer=(unit,))).pictures[0]
        changed = (pixels(couple.pictures[0].image) != pixels(after.image)).any(axis=2)
        assert changed.any() and not changed[right[0].mask == 0].any()
        assert after.parameters["_adetailer_skipped"] and "number 1" in str(after.parameters["_adetailer_skipped"])


@pytest.fixture(scope="module")
def crowd() -> ImageBatch:
    """Four people in one picture, far from each other: four drawn portraits side by side, twice as large as what is
    painted at."""
    rng = random.Random(5)
    scenes = [
        scene
        for scene in (sample_scene(rng, (256, 256)) for _ in range(60))
        if scene.framing == "portrait" and len(scene.people) == 1
    ][:4]
    canvas = Image.new("RGB", (1024, 256))
    for index, scene in enumerate(scenes):
        canvas.paste(draw_scene(scene), (256 * index, 0))
    return ImageBatch((Picture(canvas, 21),), Timeline(), no_progress)


class TestTogether:
    def test_faces_that_lie_apart_are_painted_in_one_batch(self, stage: AdetailerStage, crowd: ImageBatch) -> None:
        unit = REQUEST.adetailer[0]
        batches = stage.inpaint_jobs(crowd.pictures, stage.find(crowd.pictures, unit), unit, REQUEST)
        assert [len(together) for together in batches] == [4]

    def test_with_dynamic_strength_those_with_as_many_steps_are_still_painted_together(
        self, stage: AdetailerStage, crowd: ImageBatch
    ) -> None:
        unit = AdetailerUnit(dynamic_denoise_power=1)
        found = stage.find(crowd.pictures, unit)
        assert len({unit.strength(region.area_ratio) for region in found[0].regions}) == 4
        steps = [steps_run(28, unit.strength(region.area_ratio)) for region in found[0].regions]
        batches = stage.inpaint_jobs(crowd.pictures, found, unit, replace(REQUEST, num_inference_steps=28))
        assert (
            sorted(len(together) for together in batches) == sorted(steps.count(number) for number in set(steps))
            and len(batches) < 4
        )

    def test_the_pictures_are_those_of_one_face_at_a_time(self, stage: AdetailerStage, crowd: ImageBatch) -> None:
        alone = AdetailerStage(stage.service, stage.detectors, max_batch=1)
        one_by_one, at_once = (each.run(crowd, REQUEST).pictures[0].image for each in (alone, stage))
        assert np.abs(pixels(one_by_one) - pixels(at_once)).max() <= 1

    def test_faces_that_see_each_other_come_one_after_the_other(self, stage: AdetailerStage, crowd: ImageBatch) -> None:
        unit = AdetailerUnit(inpaint_only_masked_padding=256)
        batches = stage.inpaint_jobs(crowd.pictures, stage.find(crowd.pictures, unit), unit, REQUEST)
        assert len(batches) > 1 and sum(len(together) for together in batches) == 4

    def test_a_batch_holds_what_the_plan_allows(self, stage: AdetailerStage, crowd: ImageBatch) -> None:
        narrow = AdetailerStage(stage.service, stage.detectors, max_batch=3)
        unit = REQUEST.adetailer[0]
        assert [
            len(together)
            for together in narrow.inpaint_jobs(crowd.pictures, narrow.find(crowd.pictures, unit), unit, REQUEST)
        ] == [3, 1]


@pytest.mark.parametrize("seed", range(50))
def test_pixels_whose_blurred_mask_is_0_keep_their_bytes(stage: AdetailerStage, seed: int) -> None:
    rng = random.Random(seed)
    width, height = rng.randrange(150, 400), rng.randrange(150, 400)
    image = draw_scene(sample_scene(rng, (256, 256))).resize((width, height), Image.Resampling.LANCZOS)
    unit = AdetailerUnit(
        confidence=0.05,
        dilate_erode=rng.randrange(-12, 24),
        x_offset=rng.randrange(-40, 40),
        y_offset=rng.randrange(-40, 40),
        mask_merge_invert=rng.choice(("None", "None", "Merge", "Merge and Invert")),
        mask_blur=rng.randrange(0, 24),
        denoising_strength=rng.random(),
        inpaint_only_masked=rng.random() < 0.8,
        inpaint_only_masked_padding=rng.randrange(0, 80),
        soft_mask=rng.random() < 0.5,
        color_correction=rng.random() < 0.5,
        use_inpaint_width_height=True,
        inpaint_width=rng.choice((64, 128, 192)),
        inpaint_height=rng.choice((64, 128, 192)),
    )
    batch = ImageBatch((Picture(image, seed),), Timeline(), no_progress)
    masks = [region.mask for region in stage.find(batch.pictures, unit)[0].regions]
    after = stage.run(batch, replace(REQUEST, num_inference_steps=2, adetailer=(unit,))).pictures[0].image
    untouched = np.all([mask == 0 for mask in masks], axis=0) if masks else np.ones((height, width), bool)
    assert np.array_equal(pixels(after)[untouched], pixels(image)[untouched])


class TestSoftMasks:
    @staticmethod
    def ramp() -> Image.Image:
        return Image.fromarray(np.linspace(0, 255, 256).astype(np.uint8)[None].repeat(256, 0))

    def change(self, stage: AdetailerStage, image: Image.Image, mask: Image.Image, soft: bool) -> np.ndarray:
        """How much every column of a picture changes, on the average of 32 columns each."""
        drawing = DenoiseRequest(
            (PROMPT,), (3,), 256, 256, 12, 3.5, images=(image,), masks=(mask,), strength=0.9, differential=soft
        )
        drawn = stage.service.generate(drawing, Timeline())[0]
        unchanged = stage.service.generate(replace(drawing, masks=(Image.new("L", (256, 256)),)), Timeline())[0]
        return np.abs(pixels(drawn) - pixels(unchanged)).mean(axis=(0, 2)).reshape(8, 32).mean(axis=1)

    def test_a_darker_place_changes_less(self, stage: AdetailerStage, drawn: ImageBatch) -> None:
        soft = self.change(stage, drawn.pictures[0].image, self.ramp(), differential=True)
        hard = self.change(stage, drawn.pictures[0].image, self.ramp(), differential=False)
        assert soft[1] < soft[-1]  # it grows with the mask, where a hard one has an edge in the middle
        assert soft[5] < hard[5]

    def test_a_mask_of_black_and_white_is_the_same_either_way(self, stage: AdetailerStage, drawn: ImageBatch) -> None:
        mask = Image.new("L", (256, 256))
        mask.paste(255, (64, 64, 192, 192))
        image = drawn.pictures[0].image
        assert np.array_equal(self.change(stage, image, mask, True), self.change(stage, image, mask, False))


class TestColorCorrection:
    def test_a_shift_that_the_untouched_part_shows_is_taken_off_everywhere(self) -> None:
        before = Image.effect_noise((64, 64), 40).convert("RGB")
        mask = Image.new("L", (64, 64))
        mask.paste(255, (16, 16, 48, 48))
        shifted = Image.fromarray((pixels(before).clip(20, 235) + np.array([9, -6, 3])).astype(np.uint8))
        corrected = pixels(
            correct_colors(shifted, Image.fromarray(pixels(before).clip(20, 235).astype(np.uint8)), mask)
        )
        assert np.array_equal(corrected, pixels(before).clip(20, 235))

    def test_without_an_untouched_part_nothing_is_known(self) -> None:
        painted = Image.new("RGB", (32, 32), "red")
        assert correct_colors(painted, Image.new("RGB", (32, 32), "blue"), Image.new("L", (32, 32), 255)) is painted

    def test_the_surroundings_of_a_repainted_face_come_nearer_to_the_picture(
        self, stage: AdetailerStage, drawn: ImageBatch
    ) -> None:
        image = drawn.pictures[0].image
        region = stage.find(drawn.pictures, REQUEST.adetailer[0])[0].regions[0]
        crop, mask = region.crop(image), region.crop_mask()
        painted = stage.service.generate(
            DenoiseRequest((PROMPT,), (3,), *region.size, 6, 3.5, images=(crop,), masks=(mask,), strength=0.4),
            Timeline(),
        )[0]
        around = np.asarray(mask) == 0

        def shift(result: Image.Image) -> float:
            return float(np.abs((pixels(result) - pixels(crop))[around].mean(axis=0)).max())

        assert shift(correct_colors(painted, crop, mask)) <= min(0.6, shift(painted))
