"""The stage that runs ADetailer's units over the pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from modules.pipeline.base import ImageBatch, Services, Stage
from modules.request.adetailer_unit import AdetailerUnit, region_prompts
from modules.request.image_request import ImageRequest

if TYPE_CHECKING:
    from modules.adetailer.detail_pass import DetailPass

BEFORE = "before-"
"""The name of the intermediate image of a picture before the first unit, without the picture's index."""


class AdetailerStage(Stage):
    """Runs the detail pass of every unit, each on the result of the one before."""

    name = "adetailer"
    inputs = ("adetailer", "ad_prompt", "ad_hands_prompt", "adetailer_args", "adetailer_args_hands", "ad_mask")
    models = ("detectors",)
    optional_models = ("face_restorer",)
    settings = ("face_detector", "face_restorer")

    def __init__(self, detail_pass: DetailPass) -> None:
        self.detail_pass = detail_pass

    @classmethod
    def import_libraries(cls, scratch: Path) -> None:
        from modules.detection.yolo import offline_ultralytics

        offline_ultralytics(scratch / "ultralytics")
        import ultralytics.nn.tasks  # noqa: F401

        import modules.adetailer.detail_pass  # noqa: F401

    @classmethod
    def build(cls, services: Services) -> Self:
        from modules.adetailer.detail_pass import DetailPass

        assert services.detectors is not None
        max_batch = services.plan.max_detail_batch
        return cls(DetailPass(services.diffusion, services.detectors, max_batch, services.face_restoration))

    def wanted(self, request: ImageRequest) -> bool:
        return bool(request.adetailer)

    def notices(self, request: ImageRequest) -> list[str]:
        """For every unit that of its first prompt which has one; the request's own prompts are told elsewhere."""
        notes: list[str] = []
        for unit in request.adetailer:
            for name, own, main in (
                ("ad_prompt", unit.prompt, request.prompt),
                ("ad_negative_prompt", unit.negative_prompt, request.negative_prompt),
            ):
                prompts = region_prompts(own, main) if own else ()
                of_unit = (self.detail_pass.service.prompt_notes(name, prompt) for prompt in prompts if prompt != main)
                notes += next(filter(None, of_unit), [])
        return notes

    def run(self, batch: ImageBatch, request: ImageRequest) -> ImageBatch:
        if batch.debug_sink:
            for index, picture in enumerate(batch.pictures):
                batch.debug_sink(f"{BEFORE}{index}", picture.image)
        for number, unit in enumerate(request.adetailer):
            batch = self._run_unit(batch, number, unit, request)
        return batch

    def _run_unit(self, batch: ImageBatch, number: int, unit: AdetailerUnit, request: ImageRequest) -> ImageBatch:
        from modules.adetailer.debug_images import draw_regions
        from modules.adetailer.parameters import unit_parameters
        from modules.inpainting.input_mask import changeable

        images = [picture.image for picture in batch.pictures]
        with batch.timeline.span("detect"):
            own_mask = request.ad_mask if request.uses_ad_mask(number) else None
            chosen = self.detail_pass.choose(images, unit, changeable(request, images[0].size), own_mask)
            batch.check()
        if batch.debug_sink:
            for index, (image, of_picture) in enumerate(zip(images, chosen, strict=True)):
                batch.debug_sink(f"found-{index}-unit-{number + 1}", draw_regions(image, of_picture))
        seeds = [picture.seed for picture in batch.pictures]
        progress = partial(batch.progress, self.name)
        images = self.detail_pass.inpaint(
            images, seeds, chosen, unit, request, batch.timeline, progress, batch.check, batch.loras
        )
        default = self.detail_pass.detectors.default
        return batch.with_pictures(
            picture.changed(image, **unit_parameters(unit, number, of_picture, request, default))
            for picture, image, of_picture in zip(batch.pictures, images, chosen, strict=True)
        )
