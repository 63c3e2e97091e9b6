"""The detail pass of one unit: detect, choose regions, inpaint each at the model's own size, and paste it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from PIL import Image

from backend.core.cancellation import Check, never_canceled
from modules.adetailer.inpaint_jobs import InpaintJob, inpaint_jobs, unit_steps
from modules.adetailer.own_mask import areas_of, joined
from modules.adetailer.regions import ChosenRegions, choose_regions
from modules.detection.detections import Mask
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor
from modules.inpainting.crops import composite, correct_colors
from modules.lora.files.lora_file import LoraFile
from modules.request.adetailer_unit import OWN_MASK, AdetailerUnit
from modules.request.image_request import ImageRequest

if TYPE_CHECKING:
    from backend.core.timeline import Timeline
    from modules.detection.service import DetectionService
    from modules.diffusion.base import DiffusionService
    from modules.face_restoration.service import FaceRestoration

NO_LORAS: Mapping[str, LoraFile] = MappingProxyType({})
LOWER = "adetailer"
"""The input to lower, for the error when memory is too small."""


class DetailPass:
    """Inpaints what the detector of a unit finds in a batch of pictures.

    Regions that do not overlap are inpainted together, over all pictures, at most ``max_batch`` at a time. The others
    follow one after the other, each on the result of the one before. The pictures are the same as with one region at a
    time.
    """

    def __init__(
        self,
        service: DiffusionService,
        detectors: DetectionService,
        max_batch: int,
        restoration: FaceRestoration | None = None,
    ) -> None:
        self.service = service
        self.detectors = detectors
        self.max_batch = max_batch
        self.restoration = restoration

    def choose(
        self,
        images: Sequence[Image.Image],
        unit: AdetailerUnit,
        allowed: Mask | None = None,
        own_mask: Image.Image | None = None,
    ) -> list[ChosenRegions]:
        """The regions of every image, all of which have one size. ``allowed`` is H x W, 0 where nothing may change;
        the white areas of ``own_mask`` (L) are regions too, before those that are detected."""
        painted = areas_of(own_mask, images[0].size) if own_mask else None
        if unit.model == OWN_MASK:
            assert painted is not None  # without it the parser refuses such a unit
            detections = [painted] * len(images)
        else:
            detections = self.detectors.detect(images, unit.confidence, unit.model, unit.model_classes, unit.sam)
            detections = [joined(painted, one) for one in detections] if painted else detections
        canvas = self.service.profile.canvas
        return [choose_regions(one, unit, images[0].size, canvas, allowed) for one in detections]

    def inpaint(
        self,
        images: Sequence[Image.Image],
        seeds: Sequence[int],
        chosen: Sequence[ChosenRegions],
        unit: AdetailerUnit,
        request: ImageRequest,
        timeline: Timeline,
        progress: Callable[[int, int], None] = lambda done, total: None,
        check: Check = never_canceled,
        loras: Mapping[str, LoraFile] = NO_LORAS,
    ) -> list[Image.Image]:
        """The images with their chosen regions inpainted. ``progress`` is told the regions done and the total;
        ``check`` is called after every step; ``loras`` has the files by what the request calls them."""
        result = list(images)
        jobs = inpaint_jobs(chosen, seeds, unit, request, self.max_batch)
        total, done = sum(map(len, jobs)), 0
        for batch in jobs:
            progress(done, total)
            done += len(batch)
            files = tuple((loras[use.reference], use.scale) for use in batch[0].loras)
            crops = self._inpaint_batch(result, batch, unit, request, timeline, check, files)
            for job, crop in zip(batch, crops, strict=True):
                result[job.picture] = composite(result[job.picture], crop, job.region.box, job.region.mask)
        progress(total, total)
        return result

    def _inpaint_batch(
        self,
        images: Sequence[Image.Image],
        batch: Sequence[InpaintJob],
        unit: AdetailerUnit,
        request: ImageRequest,
        timeline: Timeline,
        check: Check,
        loras: tuple[tuple[LoraFile, float], ...],
    ) -> list[Image.Image]:
        """The new content of the regions' boxes, at the size at which it was inpainted."""
        first = batch[0].region
        crops = [job.region.crop(images[job.picture]) for job in batch]
        masks = [job.region.crop_mask() for job in batch]
        _, schedule = unit.sampling(request.sampler, request.scheduler)
        denoise_request = DenoiseRequest(
            prompts=tuple(job.prompt for job in batch),
            seeds=tuple(job.seed for job in batch),
            width=first.size[0],
            height=first.size[1],
            steps=unit_steps(unit, request),
            guidance=unit.cfg_scale if unit.use_cfg_scale else request.guidance_scale,
            images=tuple(crops),
            masks=tuple(masks),
            strength=unit.strength(first.area_ratio),
            differential=unit.soft_mask,
            schedule=schedule,
            go_fast=request.go_fast,
            negative=batch[0].negative,
            # a model that edits looks at what it repaints, whatever the request's own reference pictures show
            references=tuple((crop,) for crop in crops) if self.service.profile.inputs.references[0] else (),
            loras=loras,
            controls=self._control_crops(images, batch, request.control_image),
        )
        inpainted = self.service.generate(denoise_request, Monitor(timeline, check=check))
        if unit.restore_face:
            assert self.restoration is not None  # the parser refuses ad_restore_face without a face restorer
            with timeline.span("restore"):
                inpainted = [
                    image for image, _ in self.restoration.restore(inpainted, LOWER, lambda done, total: check())
                ]
        if unit.color_correction:
            return [correct_colors(new, crop, mask) for new, crop, mask in zip(inpainted, crops, masks, strict=True)]
        return inpainted

    @staticmethod
    def _control_crops(
        images: Sequence[Image.Image], batch: Sequence[InpaintJob], control: Image.Image | None
    ) -> tuple[Image.Image, ...]:
        """What the control image shows of every region."""
        if control is None:
            return ()
        whole = control.resize(images[0].size, Image.Resampling.LANCZOS)  # all pictures have one size
        return tuple(job.region.crop(whole) for job in batch)
