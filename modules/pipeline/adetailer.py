"""The detail pass: find, mask, crop, repaint at the model's own size, put back (after Bing-su/adetailer)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from modules.adetailer.crops import composite, correct_colors
from modules.adetailer.debug_images import draw_found
from modules.adetailer.regions import Found, Region, batches, choose_regions
from modules.detection.detections import Detections
from modules.detection.service import Detectors
from modules.diffusion.base import DiffusionService
from modules.diffusion.denoise_request import DenoiseRequest, steps_run
from modules.diffusion.inpaint_mask import inpaint_mask
from modules.diffusion.samplers import EULER
from modules.face_restoration.service import FaceRestoration
from modules.pipeline.base import ImageBatch, Picture
from modules.request.adetailer_unit import AdetailerUnit, region_prompt
from modules.request.image_request import MAX_SEED, ImageRequest


@dataclass(frozen=True)
class InpaintJob:
    """One region of one picture (an index of the batch), with its words, what it shall not show, and its seed."""

    picture: int
    region: Region
    prompt: str
    negative: str
    seed: int


class AdetailerStage:
    """Repaints what the units of a request find. Mask j of a picture is painted with the picture's seed plus j.

    Regions that do not see each other's change are painted in batches of at most ``max_batch``, over all pictures; the
    others one after the other, each on the result before. The pictures are those that one region at a time gives.
    """

    name = "adetailer"

    def __init__(
        self,
        service: DiffusionService,
        detectors: Detectors,
        max_batch: int,
        restoration: FaceRestoration | None = None,
    ) -> None:
        self.service = service
        self.detectors = detectors
        self.max_batch = max_batch
        self.restoration = restoration

    def wanted(self, request: ImageRequest) -> bool:
        return bool(request.adetailer)

    def run(self, batch: ImageBatch, request: ImageRequest) -> ImageBatch:
        for number, unit in enumerate(request.adetailer):
            with batch.timeline.span("detect"):
                found = self.find(batch.pictures, unit, request.mask)
            if batch.debug_sink:
                for index, (picture, of_picture) in enumerate(zip(batch.pictures, found, strict=True)):
                    batch.debug_sink(f"found-{index}-unit-{number + 1}", draw_found(picture.image, of_picture))
            images = [picture.image for picture in batch.pictures]
            inpaint_jobs = self.inpaint_jobs(batch.pictures, found, unit, request)
            total, done = sum(len(one) for one in inpaint_jobs), 0
            for together in inpaint_jobs:
                batch.progress(self.name, done, total)
                done += len(together)
                for one, painted in zip(together, self.paint(images, together, unit, request, batch), strict=True):
                    images[one.picture] = composite(images[one.picture], painted, one.region.box, one.region.mask)
            batch.progress(self.name, total, total)
            batch = batch.with_pictures(
                picture.changed(image, **self.parameters(unit, number, of_picture, request))
                for picture, image, of_picture in zip(batch.pictures, images, found, strict=True)
            )
        return batch

    def inpaint_jobs(
        self, pictures: Sequence[Picture], found: Sequence[Found], unit: AdetailerUnit, request: ImageRequest
    ) -> list[list[InpaintJob]]:
        """What is painted together, in order. All of one batch have one size, as many steps to run, and one negative
        prompt."""
        alike: dict[tuple[float | str, ...], list[InpaintJob]] = {}
        for index, (picture, of_picture) in enumerate(zip(pictures, found, strict=True)):
            for turn, regions in enumerate(batches(of_picture.regions)):
                for region in regions:
                    seed = picture.seed + (0 if unit.same_seed_for_each_tab else region.number - 1)
                    words = region_prompt(unit.prompt, request.prompt, region.number - 1) or ""
                    negative = region_prompt(unit.negative_prompt, request.negative_prompt, region.number - 1) or ""
                    strength = unit.strength(region.area_ratio)
                    # the strength decides how many steps are run, and nothing else
                    key = (turn, *region.size, strength > 0, steps_run(self.steps(unit, request), strength), negative)
                    alike.setdefault(key, []).append(InpaintJob(index, region, words, negative, seed % (MAX_SEED + 1)))
        groups = [alike[key] for key in sorted(alike, key=lambda key: key[0])]
        return [
            group[start : start + self.max_batch] for group in groups for start in range(0, len(group), self.max_batch)
        ]

    def find(self, pictures: Sequence[Picture], unit: AdetailerUnit, mask: Image.Image | None = None) -> list[Found]:
        """What is to be repainted in every picture; nothing where the input ``mask`` keeps it."""
        found = self.detect([picture.image for picture in pictures], unit)
        size, canvas = pictures[0].image.size, self.service.family.canvas  # the pictures of a batch have one size
        allowed = np.asarray(inpaint_mask(mask, size)) if mask else None
        return [choose_regions(detections, unit, size, canvas, allowed) for detections in found]

    @staticmethod
    def steps(unit: AdetailerUnit, request: ImageRequest) -> int:
        """Of a whole drawing, of which the strength then runs a share."""
        return unit.steps if unit.use_steps else request.num_inference_steps

    def detect(self, images: Sequence[Image.Image], unit: AdetailerUnit) -> list[Detections]:
        """All that the unit's detector sees in every image."""
        return self.detectors.detect(images, unit.confidence, unit.model, unit.model_classes)

    def paint(
        self,
        images: Sequence[Image.Image],
        together: Sequence[InpaintJob],
        unit: AdetailerUnit,
        request: ImageRequest,
        batch: ImageBatch,
    ) -> list[Image.Image]:
        """The new content of some regions' boxes, at the size that is painted at."""
        regions = [one.region for one in together]
        crops, masks = (
            [one.region.crop(images[one.picture]) for one in together],
            [region.crop_mask() for region in regions],
        )
        _, schedule = unit.sampling(request.sampler, request.scheduler)
        denoise_request = DenoiseRequest(
            prompts=tuple(one.prompt for one in together),
            seeds=tuple(one.seed for one in together),
            width=regions[0].size[0],
            height=regions[0].size[1],
            steps=self.steps(unit, request),
            guidance=unit.cfg_scale if unit.use_cfg_scale else request.guidance_scale,
            images=tuple(crops),
            masks=tuple(masks),
            strength=unit.strength(regions[0].area_ratio),
            differential=unit.soft_mask,
            schedule=schedule,
            go_fast=request.go_fast,
            negative=together[0].negative,
        )
        painted = self.service.generate(denoise_request, batch.timeline)
        if unit.restore_face:
            assert self.restoration is not None  # else the argument is refused before anything runs
            with batch.timeline.span("restore"):
                painted = [image for image, _ in self.restoration.restore(painted, self.name)]
        if not unit.color_correction:
            return painted
        return [correct_colors(new, crop, mask) for new, crop, mask in zip(painted, crops, masks, strict=True)]

    def parameters(self, unit: AdetailerUnit, number: int, found: Found, request: ImageRequest) -> dict[str, object]:
        """The unit as WebUI users read it: the model, and what is not the default; "2nd" and on after the names of
        further units.

        In our own record also the boxes, and what was found but not repainted, with the reason.
        """
        suffix = ("", " 2nd", " 3rd", " 4th")[number]
        changed = unit.changed()
        sampler, schedule = unit.sampling(request.sampler, request.scheduler)
        if sampler != EULER:
            changed["sampler"] = EULER
        if unit.use_sampler:
            changed["scheduler"] = schedule
        note = (
            {f"_adetailer_sampler{suffix}": f"{sampler} begins from pure noise only, so {EULER} repainted the details"}
            if sampler != EULER
            else {}
        )
        return {
            **note,
            **{
                f"ADetailer {label}{suffix}": value
                for label, value in {"model": unit.model or self.detectors.default, **changed}.items()
            },
            f"_adetailer_regions{suffix}": [region.box for region in found.regions],
            f"_adetailer_skipped{suffix}": list(found.skipped),
        }
