"""The detail pass: find, mask, crop, repaint at the model's own size, put back (after Bing-su/adetailer)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import zip_longest

import numpy as np
from PIL import Image

from backend.model_cache_optimizer import ModelCache
from backend.out_of_memory import Rung
from modules.adetailer.crops import Box, blur_mask, composite, crop_region, expand_crop_region
from modules.adetailer.detection import Detector
from modules.adetailer.masks import Detections, Mask, filter_by_ratio, keep_largest, preprocess_detections
from modules.flux import Drawing, FluxService
from modules.pipeline import ImageBatch, Picture
from modules.request import AdetailerUnit, ImageRequest


@dataclass(frozen=True)
class Region:
    """What is cut out of a picture to be repainted: ``mask`` is the whole picture's, blurred; ``size`` what is painted at."""

    box: Box
    mask: Mask
    size: tuple[int, int]

    def crop(self, image: Image.Image) -> Image.Image:
        return image.crop(self.box).resize(self.size, Image.Resampling.LANCZOS)

    def crop_mask(self) -> Image.Image:
        return Image.fromarray(self.mask).crop(self.box).resize(self.size, Image.Resampling.LANCZOS)


class AdetailerStage:
    """Repaints what the units of a request find. Mask j of a picture is painted with the picture's seed plus j.

    The masks of one picture come one after the other, each on the result before; pictures of a batch go together.
    """

    name = "adetailer"

    def __init__(self, flux: FluxService, models: ModelCache, detector_name: str) -> None:
        self.flux = flux
        self.models = models
        self.detector_name = detector_name

    def wanted(self, request: ImageRequest) -> bool:
        return bool(request.adetailer)

    def run(self, batch: ImageBatch, request: ImageRequest) -> ImageBatch:
        for unit in request.adetailer:
            with batch.timeline.span("detect"):
                regions = self.find(batch.pictures, unit)
            total = sum(len(of_picture) for of_picture in regions)
            pictures, done = list(batch.pictures), 0
            # the j-th mask of every picture in one batch
            for index, together in enumerate(zip_longest(*regions)):
                chosen = [number for number, region in enumerate(together) if region]
                batch.progress(self.name, done, total)
                repainted = self.repaint(
                    [pictures[i].image for i in chosen], [together[i] for i in chosen], [pictures[i].seed + index for i in chosen], unit, request, batch
                )
                for number, image in zip(chosen, repainted, strict=True):
                    pictures[number] = replace(pictures[number], image=image)
                done += len(chosen)
            batch.progress(self.name, total, total)
            batch = batch.with_pictures(
                picture.changed(picture.image, **self.parameters(unit), _adetailer_regions=[region.box for region in of_picture])
                for picture, of_picture in zip(pictures, regions, strict=True)
            )
        return batch

    def find(self, pictures: Sequence[Picture], unit: AdetailerUnit) -> list[list[Region]]:
        """The regions of every picture, in the order in which they are repainted."""
        images = [picture.image for picture in pictures]

        def detect(together: int) -> list[Detections]:
            with self.models.on_device("face_detector") as (network,):
                detector = Detector(network)
                batches = [images[start : start + together] for start in range(0, len(images), together)]
                return [found for batch in batches for found in detector.detect(batch, unit.confidence)]

        rungs = [Rung("all pictures together", partial(detect, len(images))), Rung("one picture at a time", partial(detect, 1))]
        found = self.flux.ladder.climb("detect", rungs, "num_outputs")
        return [self.regions(picture.image.size, detections, unit) for picture, detections in zip(pictures, found, strict=True)]

    def regions(self, image_size: tuple[int, int], detections: Detections, unit: AdetailerUnit) -> list[Region]:
        """Ratio filter, top k, mask shape, then the crops: ADetailer's order."""
        kept = filter_by_ratio(detections, unit.mask_min_ratio, unit.mask_max_ratio, image_size)
        kept = keep_largest(kept, unit.mask_k, unit.mask_filter_method)
        shaped = preprocess_detections(kept, unit.dilate_erode, unit.x_offset, unit.y_offset, unit.mask_merge_invert)
        return [region for mask in shaped.masks if (region := self.region(mask, image_size, unit))]

    def region(self, mask: Mask, image_size: tuple[int, int], unit: AdetailerUnit) -> Region | None:
        blurred = blur_mask(mask, unit.mask_blur)
        canvas = self.flux.family.canvas
        if not unit.inpaint_only_masked:
            size = tuple(max(1, round(side / canvas.multiple)) * canvas.multiple for side in image_size)
            return Region((0, 0, *image_size), blurred, size) if np.any(blurred) else None  # type: ignore[arg-type]
        box = crop_region(blurred, unit.inpaint_only_masked_padding)
        if box is None:
            return None
        return Region(expand_crop_region(box, canvas.native, canvas.native, *image_size), blurred, (canvas.native, canvas.native))

    def repaint(
        self, images: Sequence[Image.Image], regions: Sequence[Region], seeds: Sequence[int], unit: AdetailerUnit, request: ImageRequest, batch: ImageBatch
    ) -> list[Image.Image]:
        """One region of each image repainted. All regions of one call have one size."""
        drawing = Drawing(
            prompts=(unit.prompt or request.prompt,) * len(images),
            seeds=tuple(seeds),
            width=regions[0].size[0],
            height=regions[0].size[1],
            steps=request.num_inference_steps,
            guidance=request.guidance_scale,
            images=tuple(region.crop(image) for region, image in zip(regions, images, strict=True)),
            masks=tuple(region.crop_mask() for region in regions),
            strength=unit.denoising_strength,
        )
        painted = self.flux.draw(drawing, batch.timeline)
        return [composite(image, new, region.box, region.mask) for image, new, region in zip(images, painted, regions, strict=True)]

    def parameters(self, unit: AdetailerUnit) -> dict[str, object]:
        """The unit as WebUI users read it: the model, and what is not the default."""
        labels = {"prompt": "prompt", "denoising_strength": "denoising strength", "inpaint_only_masked_padding": "inpaint padding", "mask_k": "mask only top k"}
        changed = {
            f"ADetailer {labels.get(field.name, field.name.replace('_', ' '))}": getattr(unit, field.name)
            for field in fields(unit)
            if getattr(unit, field.name) != field.default
        }
        return {"ADetailer model": self.detector_name, **changed}
