"""Makes the picture of docs/adetailer.md: ``python -m bench.quality.adetailer_pictures [--out FILE]``.

One row per visible argument, on one drawing of two people: the drawing, then the argument at some of its values.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from backend.devices.torchvision_ops import ensure_torchvision_operators

ensure_torchvision_operators()  # before anything imports diffusers

from backend.core.settings import Settings  # noqa: E402
from backend.core.timeline import Timeline  # noqa: E402
from modules.app.service import start  # noqa: E402
from modules.pipeline.adetailer import AdetailerStage  # noqa: E402
from modules.pipeline.base import ImageBatch, Picture, no_progress  # noqa: E402
from modules.request.adetailer_unit import AdetailerUnit  # noqa: E402
from modules.request.image_request import ImageRequest  # noqa: E402
from training.data.drawing import draw_scene  # noqa: E402
from training.data.scene import Scene, sample_scene  # noqa: E402

SIZE = (384, 256)
PROMPT = "two people, teal background"
BLUE = {"prompt": "a serious woman with long blue hair, glasses", "denoising_strength": 0.9, "dilate_erode": 16}
"""Words that change the faces much, so that one sees where they were painted."""

ROWS: tuple[tuple[str, tuple[dict[str, Any], ...]], ...] = (
    (
        "ad_prompt",
        (
            {},
            {"prompt": "a surprised man with a beard", "denoising_strength": 0.7},
            {**BLUE, "denoising_strength": 0.8},
        ),
    ),
    (
        "[SEP], [SKIP]",
        (
            {**BLUE, "prompt": "[SKIP] [SEP] a woman with blue hair"},
            {**BLUE, "prompt": "a man with a beard [SEP] [SKIP]"},
            {**BLUE, "mask_select": "2"},
        ),
    ),
    (
        "[ASC], [DSC], ad_bbox_sortby",
        (
            {**BLUE, "prompt": "[ASC] a woman with blue hair [SEP] a man with a beard"},
            {**BLUE, "prompt": "[DSC] a woman with blue hair [SEP] a man with a beard"},
            {
                **BLUE,
                "bbox_sortby": "Area (large to small)",
                "prompt": "a woman with blue hair [SEP] a man with a beard",
            },
        ),
    ),
    ("ad_model", ({**BLUE, "model": "face_detector"}, {**BLUE, "model": "person_detector"})),
    ("ad_confidence", tuple({**BLUE, "confidence": value} for value in (0.3, 0.9, 0.97))),
    (
        "ad_mask_min_ratio, ad_mask_max_ratio",
        ({**BLUE, "mask_min_ratio": 0.04}, {**BLUE, "mask_min_ratio": 0.1}, {**BLUE, "mask_max_ratio": 0.04}),
    ),
    ("ad_denoising_strength", tuple({**BLUE, "denoising_strength": value} for value in (0.2, 0.5, 1.0))),
    ("ad_dilate_erode", tuple({**BLUE, "dilate_erode": value} for value in (-16, 4, 48))),
    ("ad_mask_blur", tuple({**BLUE, "mask_blur": value} for value in (0, 8, 24))),
    ("ad_x_offset, ad_y_offset", ({**BLUE, "x_offset": 60}, {**BLUE, "y_offset": 60}, {**BLUE, "y_offset": -60})),
    (
        "ad_mask_merge_invert",
        tuple({**BLUE, "mask_merge_invert": value} for value in ("None", "Merge", "Merge and Invert")),
    ),
    ("ad_inpaint_only_masked_padding", tuple({**BLUE, "inpaint_only_masked_padding": value} for value in (0, 32, 96))),
    ("ad_inpaint_only_masked", ({**BLUE, "inpaint_only_masked": True}, {**BLUE, "inpaint_only_masked": False}, {})),
    (
        "ad_mask_k",
        ({**BLUE, "mask_k": 1}, {**BLUE, "mask_k": 1, "mask_filter_method": "Confidence"}, {**BLUE, "mask_k": 2}),
    ),
    (
        "ad_inpaint_width, ad_inpaint_height",
        tuple(
            {**BLUE, "use_inpaint_width_height": True, "inpaint_width": width, "inpaint_height": height}
            for width, height in ((128, 128), (256, 256), (384, 192))
        ),
    ),
    (
        "ad_match_inpaint_bbox_size",
        tuple({**BLUE, "match_inpaint_bbox_size": value} for value in ("Off", "Free", "Strict")),
    ),
    ("ad_steps", tuple({**BLUE, "use_steps": True, "steps": value} for value in (2, 6, 40))),
    ("ad_cfg_scale", tuple({**BLUE, "use_cfg_scale": True, "cfg_scale": value} for value in (1.0, 3.5, 8.0))),
    (
        "ad_sampler, ad_scheduler",
        tuple(
            {**BLUE, "use_sampler": True, "sampler": "Euler", "scheduler": value}
            for value in ("Simple", "Karras", "Beta")
        ),
    ),
    ("ad_dynamic_denoise_power", tuple({**BLUE, "dynamic_denoise_power": value} for value in (-5.0, 0.0, 10.0))),
    ("ad_same_seed_for_each_tab", tuple({**BLUE, "same_seed_for_each_tab": value} for value in (False, True))),
    (
        "ad_soft_mask",
        (
            {**BLUE, "mask_blur": 24, "soft_mask": False},
            {**BLUE, "mask_blur": 24, "soft_mask": True},
            {**BLUE, "mask_blur": 48, "soft_mask": True},
        ),
    ),
    (
        "ad_color_correction",
        (
            {**BLUE, "color_correction": False},
            {**BLUE, "color_correction": True},
            {"denoising_strength": 0.4, "color_correction": True},
        ),
    ),
)


def couple() -> Scene:
    rng = random.Random(3)
    return next(scene for scene in iter(lambda: sample_scene(rng, SIZE), None) if len(scene.people) == 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images/adetailer_arguments.webp"))
    arguments = parser.parse_args()
    service = start(replace(Settings(), model="embedded", log_level="ERROR"))
    stage = next(stage for stage in service.pipeline.stages if isinstance(stage, AdetailerStage))
    drawn = draw_scene(couple())
    font, line = ImageFont.load_default(14), 24
    sheet = Image.new("RGB", (4 * SIZE[0], len(ROWS) * (SIZE[1] + line)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (label, variants) in enumerate(ROWS):
        top = row * (SIZE[1] + line)
        pen.text((6, top + 3), label, fill="black", font=font)
        sheet.paste(drawn, (0, top + line))
        for column, values in enumerate(variants, start=1):
            unit = AdetailerUnit(
                **{"bbox_sortby": "Position (left to right)", "same_seed_for_each_tab": True, **values}
            )
            request = ImageRequest(prompt=PROMPT, width=SIZE[0], height=SIZE[1], seed=4, adetailer=(unit,))
            after = stage.run(ImageBatch((Picture(drawn, 4),), Timeline(), no_progress), request).pictures[0].image
            shown = {
                key: value
                for key, value in values.items()
                if not key.startswith("use_") and (key in label or BLUE.get(key) != value)
            }
            shown = {
                key: shown[key] for key in sorted(shown, key=lambda key: key == "prompt")
            }  # what may be cut off comes last
            words = (
                ", ".join(str(value) if key == "prompt" else f"{key} {value}" for key, value in shown.items())
                or "by default"
            )
            pen.text((column * SIZE[0] + 6, top + 3), words, fill="black", font=font)
            sheet.paste(after, (column * SIZE[0], top + line))
    sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS).save(arguments.out, quality=85)


if __name__ == "__main__":
    main()
