"""The detail pass of one unit, on the real embedded models: which regions it chooses, how it inpaints them, and what
stays as it is, to the byte."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.people import couple, crowd, portraits
from support.pictures import PROMPT

from backend.core.timeline import Timeline
from modules.adetailer.detail_pass import DetailPass
from modules.adetailer.inpaint_jobs import inpaint_jobs
from modules.adetailer.regions import ChosenRegions
from modules.app.service import Service
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor
from modules.inpainting.crops import correct_colors
from modules.pipeline.adetailer import AdetailerStage
from modules.request.adetailer_unit import AdetailerUnit
from modules.request.image_request import ImageRequest
from training.data.drawing import draw_scene
from training.data.scene import sample_scene

REQUEST = ImageRequest(prompt=PROMPT, width=256, height=256, seed=1, num_inference_steps=6)
UNIT = AdetailerUnit()
LEFT_TO_RIGHT = "Position (left to right)"


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.int16)


@pytest.fixture
def detail_pass(service: Service) -> DetailPass:
    return next(stage.detail_pass for stage in service.pipeline.stages if isinstance(stage, AdetailerStage))


def inpainted(
    detail_pass: DetailPass,
    images: list[Image.Image],
    unit: AdetailerUnit = UNIT,
    request: ImageRequest = REQUEST,
    seed: int = 11,
) -> list[Image.Image]:
    chosen = detail_pass.choose(images, unit)
    return detail_pass.inpaint(images, range(seed, seed + len(images)), chosen, unit, request, Timeline())


def test_pixels_outside_the_blurred_mask_keep_their_bytes(detail_pass: DetailPass) -> None:
    images = portraits(2, seed=3)
    chosen = detail_pass.choose(images, UNIT)
    assert [len(one.regions) for one in chosen] == [1, 1]
    for before, after, one in zip(images, inpainted(detail_pass, images), chosen, strict=True):
        changed = (pixels(before) != pixels(after)).any(axis=2)
        assert changed.any() and not changed[one.regions[0].mask == 0].any()


@pytest.mark.parametrize("seed", range(16))
def test_pixels_outside_the_blurred_mask_keep_their_bytes_whatever_the_arguments(
    detail_pass: DetailPass, seed: int
) -> None:
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
    masks = [region.mask for region in detail_pass.choose([image], unit)[0].regions]
    [after] = inpainted(detail_pass, [image], unit, replace(REQUEST, num_inference_steps=2), seed)
    untouched = np.all([mask == 0 for mask in masks], axis=0) if masks else np.ones((height, width), bool)
    assert np.array_equal(pixels(after)[untouched], pixels(image)[untouched])


def test_no_face_means_the_same_picture(detail_pass: DetailPass) -> None:
    empty = Image.new("RGB", (256, 256), "teal")
    assert np.array_equal(pixels(inpainted(detail_pass, [empty])[0]), pixels(empty))


def test_the_whole_picture_can_be_inpainted_instead_of_the_crop(detail_pass: DetailPass) -> None:
    region = detail_pass.choose(portraits(1, seed=3), AdetailerUnit(inpaint_only_masked=False))[0].regions[0]
    assert region.box == (0, 0, 256, 256) and region.size == (256, 256)


def test_blur_and_padding_shape_the_crop(detail_pass: DetailPass) -> None:
    images = portraits(1, seed=3)
    narrow, wide = (
        detail_pass.choose(images, AdetailerUnit(inpaint_only_masked_padding=padding, mask_blur=blur))[0].regions[0]
        for padding, blur in ((0, 0), (60, 8))
    )
    assert narrow.box[0] > wide.box[0] and narrow.box[3] < wide.box[3]
    assert set(np.unique(narrow.mask)) == {0, 255} and len(np.unique(wide.mask)) > 2


def test_a_size_of_its_own_becomes_the_nearest_on_the_grid(detail_pass: DetailPass) -> None:
    unit = AdetailerUnit(
        use_inpaint_width_height=True, inpaint_width=300, inpaint_height=200, inpaint_only_masked_padding=0
    )
    region = detail_pass.choose(portraits(1, seed=3), unit)[0].regions[0]
    assert region.size == (288, 192)
    assert (region.box[2] - region.box[0]) / (region.box[3] - region.box[1]) == pytest.approx(1.5, rel=0.05)


class TestSeveralFaces:
    def chosen(self, detail_pass: DetailPass, image: Image.Image, **arguments: Any) -> ChosenRegions:
        return detail_pass.choose([image], AdetailerUnit(bbox_sortby=LEFT_TO_RIGHT, **arguments))[0]

    def repainted(self, detail_pass: DetailPass, **arguments: Any) -> set[str]:
        """Which faces were repainted, the "left" or the "right" one."""
        image = couple()
        unit = AdetailerUnit(bbox_sortby=LEFT_TO_RIGHT, mask_blur=0, denoising_strength=1.0, **arguments)
        left, right = self.chosen(detail_pass, image, mask_blur=0).regions
        [after] = inpainted(detail_pass, [image], unit)
        changed = (pixels(image) != pixels(after)).any(axis=2)
        return {name for name, region in (("left", left), ("right", right)) if changed[region.mask > 0].mean() > 0.5}

    def test_each_is_repainted_in_the_order_asked_for(self, detail_pass: DetailPass) -> None:
        lefts = [region.box[0] for region in self.chosen(detail_pass, couple()).regions]
        assert len(lefts) == 2 and lefts == sorted(lefts)
        assert self.repainted(detail_pass) == {"left", "right"}

    def test_a_face_is_skipped_by_its_prompt(self, detail_pass: DetailPass) -> None:
        assert self.repainted(detail_pass, prompt="[SKIP] [SEP] [PROMPT]") == {"right"}
        assert self.repainted(detail_pass, prompt="[PROMPT] [SEP] [SKIP]") == {"left"}

    def test_only_the_selected_one_is_repainted(self, detail_pass: DetailPass) -> None:
        image = couple()
        unit = AdetailerUnit(bbox_sortby=LEFT_TO_RIGHT, mask_select="2")
        [chosen] = detail_pass.choose([image], unit)
        assert [region.number for region in chosen.regions] == [2] and "number 1" in str(chosen.skipped)
        changed = (pixels(image) != pixels(inpainted(detail_pass, [image], unit)[0])).any(axis=2)
        assert changed.any() and not changed[chosen.regions[0].mask == 0].any()


class TestBatches:
    def sizes(self, detail_pass: DetailPass, unit: AdetailerUnit = UNIT) -> list[int]:
        jobs = inpaint_jobs(detail_pass.choose([crowd()], unit), (21,), unit, REQUEST, detail_pass.max_batch)
        return [len(batch) for batch in jobs]

    def test_faces_far_apart_are_inpainted_in_one_batch(self, detail_pass: DetailPass) -> None:
        assert self.sizes(detail_pass) == [4]

    def test_faces_whose_crops_overlap_follow_one_after_the_other(self, detail_pass: DetailPass) -> None:
        sizes = self.sizes(detail_pass, AdetailerUnit(inpaint_only_masked_padding=256))
        assert len(sizes) > 1 and sum(sizes) == 4

    def test_the_pictures_are_those_of_one_face_at_a_time(self, detail_pass: DetailPass) -> None:
        alone = DetailPass(detail_pass.service, detail_pass.detectors, max_batch=1)
        one_by_one, at_once = (inpainted(each, [crowd()])[0] for each in (alone, detail_pass))
        assert np.abs(pixels(one_by_one) - pixels(at_once)).max() <= 1

    def test_a_picture_of_a_batch_is_repaired_as_it_is_alone(self, detail_pass: DetailPass) -> None:
        images = portraits(2, seed=3)
        together = inpainted(detail_pass, images)[1]
        alone = inpainted(detail_pass, images[1:], seed=12)[0]
        assert np.abs(pixels(together) - pixels(alone)).max() <= 1

    def test_progress_counts_the_regions(self, detail_pass: DetailPass) -> None:
        told: list[tuple[int, int]] = []
        pair = DetailPass(detail_pass.service, detail_pass.detectors, max_batch=3)
        images = [crowd()]
        chosen = pair.choose(images, UNIT)
        pair.inpaint(images, (21,), chosen, UNIT, REQUEST, Timeline(), lambda done, total: told.append((done, total)))
        assert told == [(0, 4), (3, 4), (4, 4)]


class TestSoftMasks:
    @staticmethod
    def ramp() -> Image.Image:
        return Image.fromarray(np.linspace(0, 255, 256).astype(np.uint8)[None].repeat(256, 0))

    def change(self, detail_pass: DetailPass, mask: Image.Image, differential: bool) -> np.ndarray:
        """How much every column of a picture changes, in the mean of 32 columns each."""
        images = tuple(portraits(1, seed=3))
        request = DenoiseRequest(
            (PROMPT,), (3,), 256, 256, 6, 3.5, images=images, masks=(mask,), strength=0.9, differential=differential
        )
        changed = detail_pass.service.generate(request, Monitor(Timeline()))[0]
        black = replace(request, masks=(Image.new("L", (256, 256)),))
        unchanged = detail_pass.service.generate(black, Monitor(Timeline()))[0]
        return np.abs(pixels(changed) - pixels(unchanged)).mean(axis=(0, 2)).reshape(8, 32).mean(axis=1)

    def test_a_darker_place_changes_less(self, detail_pass: DetailPass) -> None:
        soft, hard = (self.change(detail_pass, self.ramp(), differential) for differential in (True, False))
        assert soft[1] < soft[-1]  # it grows with the mask, where a hard one has an edge in the middle
        assert soft[5] < hard[5]

    def test_a_mask_of_black_and_white_is_the_same_either_way(self, detail_pass: DetailPass) -> None:
        mask = Image.new("L", (256, 256))
        mask.paste(255, (64, 64, 192, 192))
        assert np.array_equal(self.change(detail_pass, mask, True), self.change(detail_pass, mask, False))


def test_colour_correction_brings_the_surroundings_of_a_face_nearer_to_the_picture(detail_pass: DetailPass) -> None:
    [image] = portraits(1, seed=3)
    region = detail_pass.choose([image], UNIT)[0].regions[0]
    crop, mask = region.crop(image), region.crop_mask()
    request = DenoiseRequest((PROMPT,), (3,), *region.size, 6, 3.5, images=(crop,), masks=(mask,), strength=0.4)
    painted = detail_pass.service.generate(request, Monitor(Timeline()))[0]
    around = np.asarray(mask) == 0

    def shift(result: Image.Image) -> float:
        return float(np.abs((pixels(result) - pixels(crop))[around].mean(axis=0)).max())

    assert shift(correct_colors(painted, crop, mask)) <= min(0.6, shift(painted))
