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
from modules.adetailer.arguments import SORT_ORDERS, AdetailerUnit, region_prompt
from modules.adetailer.crops import Box, blur_mask, composite, crop_region, expand_crop_region
from modules.adetailer.detection import Detector
from modules.adetailer.masks import Detections, Mask, filter_by_ratio, keep_largest, preprocess_detections, sort_detections
from modules.flux import Drawing, FluxService
from modules.pipeline import ImageBatch, Picture
from modules.request import MAX_SEED, ImageRequest

LABELS = {
    "inpaint_only_masked_padding": "inpaint padding",
    "mask_k": "mask only top k",
    "use_steps": "use separate steps",
    "use_cfg_scale": "use separate CFG scale",
    "cfg_scale": "CFG scale",
}
"""What ADetailer calls arguments in the parameters of a picture, where it is not their name."""


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
        for number, unit in enumerate(request.adetailer):
            with batch.timeline.span("detect"):
                regions = self.find(batch.pictures, unit)
            total = sum(len(of_picture) for of_picture in regions)
            pictures, done = list(batch.pictures), 0
            # the j-th mask of every picture in one batch
            for index, together in enumerate(zip_longest(*regions)):
                chosen = [i for i, region in enumerate(together) if region]
                batch.progress(self.name, done, total)
                done += len(chosen)
                prompt = region_prompt(unit.prompt, request.prompt, index)
                if prompt is None:
                    continue
                seeds = [(pictures[i].seed + (0 if unit.same_seed_for_each_tab else index)) % (MAX_SEED + 1) for i in chosen]
                repainted = self.repaint([pictures[i].image for i in chosen], [together[i] for i in chosen], prompt, seeds, unit, request, batch)
                for i, image in zip(chosen, repainted, strict=True):
                    pictures[i] = replace(pictures[i], image=image)
            batch.progress(self.name, total, total)
            batch = batch.with_pictures(
                picture.changed(picture.image, **self.parameters(unit, number), _adetailer_regions=[region.box for region in of_picture])
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
        """Ratio filter, top k, order, mask shape, then the crops: ADetailer's order."""
        kept = filter_by_ratio(detections, unit.mask_min_ratio, unit.mask_max_ratio, image_size)
        kept = keep_largest(kept, unit.mask_k, unit.mask_filter_method)
        kept = sort_detections(kept, SORT_ORDERS[unit.bbox_sortby], image_size)
        shaped = preprocess_detections(kept, unit.dilate_erode, unit.x_offset, unit.y_offset, unit.mask_merge_invert)
        return [region for mask in shaped.masks if (region := self.region(mask, image_size, unit))]

    def region(self, mask: Mask, image_size: tuple[int, int], unit: AdetailerUnit) -> Region | None:
        blurred = blur_mask(mask, unit.mask_blur)
        canvas = self.flux.family.canvas
        wanted = (unit.inpaint_width, unit.inpaint_height) if unit.use_inpaint_width_height else (canvas.native, canvas.native)
        target = canvas.fitted(*wanted)
        if not unit.inpaint_only_masked:
            size = target if unit.use_inpaint_width_height else canvas.fitted(*image_size)
            return Region((0, 0, *image_size), blurred, size) if np.any(blurred) else None
        box = crop_region(blurred, unit.inpaint_only_masked_padding)
        if box is None:
            return None
        return Region(expand_crop_region(box, *target, *image_size), blurred, target)

    def repaint(
        self,
        images: Sequence[Image.Image],
        regions: Sequence[Region],
        prompt: str,
        seeds: Sequence[int],
        unit: AdetailerUnit,
        request: ImageRequest,
        batch: ImageBatch,
    ) -> list[Image.Image]:
        """One region of each image repainted. All regions of one call have one size."""
        drawing = Drawing(
            prompts=(prompt,) * len(images),
            seeds=tuple(seeds),
            width=regions[0].size[0],
            height=regions[0].size[1],
            steps=unit.steps if unit.use_steps else request.num_inference_steps,
            guidance=unit.cfg_scale if unit.use_cfg_scale else request.guidance_scale,
            images=tuple(region.crop(image) for region, image in zip(regions, images, strict=True)),
            masks=tuple(region.crop_mask() for region in regions),
            strength=unit.denoising_strength,
        )
        painted = self.flux.draw(drawing, batch.timeline)
        return [composite(image, new, region.box, region.mask) for image, new, region in zip(images, painted, regions, strict=True)]

    def parameters(self, unit: AdetailerUnit, number: int) -> dict[str, object]:
        """The unit as WebUI users read it: the model, and what is not the default; "2nd" and on after the names of further units."""
        suffix = ("", " 2nd", " 3rd", " 4th")[number]
        changed = {
            LABELS.get(field.name, field.name.replace("_", " ")): getattr(unit, field.name)
            for field in fields(unit)
            if field.name != "model" and getattr(unit, field.name) != field.default
        }
        return {f"ADetailer {label}{suffix}": value for label, value in {"model": self.detector_name, **changed}.items()}
