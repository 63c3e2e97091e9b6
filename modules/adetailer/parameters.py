"""What the files say about the detail pass."""

from __future__ import annotations

import numpy as np

from modules.adetailer.regions import ChosenRegions
from modules.detection.detections import Detections
from modules.diffusion.sampler_names import EULER
from modules.request.adetailer_unit import AdetailerUnit
from modules.request.image_request import ImageRequest


def unit_parameters(
    unit: AdetailerUnit, number: int, chosen: ChosenRegions, request: ImageRequest, default_model: str
) -> dict[str, object]:
    """The parameters of one picture for unit ``number`` (from 0), under ADetailer's labels: the model, and every
    argument that is not at its default. Labels of further units end in "2nd" and so on.

    Names that begin with an underscore go to our own record: the boxes of the regions, what was detected (box and
    confidence, in the order of their numbers), and what of it was not inpainted, with the reason. ``default_model`` is
    the name of the default detector.
    """
    suffix = ("", " 2nd", " 3rd", " 4th")[number]
    changed = unit.changed()
    sampler, schedule = unit.sampling(request.sampler, request.scheduler)
    note: dict[str, object] = {}
    if sampler != EULER:
        changed["sampler"] = EULER
        note[f"_adetailer_sampler{suffix}"] = f"{sampler} starts from pure noise only, so {EULER} repainted the details"
    if unit.use_sampler:
        changed["scheduler"] = schedule
    labelled = {"model": unit.model or default_model, **changed}
    return {
        **note,
        **{f"ADetailer {label}{suffix}": value for label, value in labelled.items()},
        f"_adetailer_regions{suffix}": [region.box for region in chosen.regions],
        f"_adetailer_found{suffix}": _found(chosen.detections),
        f"_adetailer_skipped{suffix}": list(chosen.skipped),
    }


def _found(detections: Detections) -> list[tuple[float, ...]]:
    """x1, y1, x2, y2 in pixels and the confidence of everything that was detected."""
    rows = np.column_stack([detections.boxes, detections.confidences])[np.argsort(detections.numbers, kind="stable")]
    return [tuple(round(float(value), 3) for value in row) for row in rows]
