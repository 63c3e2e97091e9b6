"""The detail pass: find, mask, crop, repaint at the model's own size, put back (after Bing-su/adetailer)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import zip_longest

from PIL import Image

from backend.model_cache_optimizer import ModelCache
from backend.out_of_memory import Rung
from modules.adetailer.arguments import AdetailerUnit, region_prompt
from modules.adetailer.crops import composite
from modules.adetailer.detection import Detector
from modules.adetailer.masks import Detections
from modules.adetailer.regions import Found, Region, choose_regions
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
                found = self.find(batch.pictures, unit)
            total = sum(len(of_picture.regions) for of_picture in found)
            pictures, done = list(batch.pictures), 0
            # the j-th mask of every picture in one batch
            for index, together in enumerate(zip_longest(*(of_picture.regions for of_picture in found))):
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
                picture.changed(picture.image, **self.parameters(unit, number, of_picture, request.prompt))
                for picture, of_picture in zip(pictures, found, strict=True)
            )
        return batch

    def find(self, pictures: Sequence[Picture], unit: AdetailerUnit) -> list[Found]:
        """What is to be repainted in every picture."""
        images = [picture.image for picture in pictures]

        def detect(together: int) -> list[Detections]:
            with self.models.on_device("face_detector") as (network,):
                detector = Detector(network)
                batches = [images[start : start + together] for start in range(0, len(images), together)]
                return [found for batch in batches for found in detector.detect(batch, unit.confidence)]

        rungs = [Rung("all pictures together", partial(detect, len(images))), Rung("one picture at a time", partial(detect, 1))]
        found = self.flux.ladder.climb("detect", rungs, "num_outputs")
        canvas = self.flux.family.canvas
        return [choose_regions(detections, unit, picture.image.size, canvas) for picture, detections in zip(pictures, found, strict=True)]

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

    def parameters(self, unit: AdetailerUnit, number: int, found: Found, prompt: str) -> dict[str, object]:
        """The unit as WebUI users read it: the model, and what is not the default; "2nd" and on after the names of further units.

        In our own record also the boxes, and what was found but not repainted, with the reason.
        """
        suffix = ("", " 2nd", " 3rd", " 4th")[number]
        changed = {
            LABELS.get(field.name, field.name.replace("_", " ")): getattr(unit, field.name)
            for field in fields(unit)
            if field.name != "model" and getattr(unit, field.name) != field.default
        }
        by_prompt = [f"region {index + 1}: [SKIP]" for index in range(len(found.regions)) if region_prompt(unit.prompt, prompt, index) is None]
        return {
            **{f"ADetailer {label}{suffix}": value for label, value in {"model": self.detector_name, **changed}.items()},
            f"_adetailer_regions{suffix}": [region.box for region in found.regions],
            f"_adetailer_skipped{suffix}": [*found.skipped, *by_prompt],
        }
