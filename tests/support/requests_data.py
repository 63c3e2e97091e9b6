"""Model families as requests see them, and inputs with their defaults."""

from __future__ import annotations

from typing import Any

from modules.detection.classes import ClassSet
from modules.families.family import Family

EMBEDDED = Family("embedded", native=256, tokens=40, latent_factor=16, distilled_guidance=True)
SCHNELL = Family("schnell", native=1024, tokens=256, latent_factor=8, distilled_guidance=False, steps=4)


SDXL = Family(
    "sdxl",
    native=1024,
    tokens=77,
    latent_factor=8,
    distilled_guidance=False,
    kind="sdxl",
    latent_channels=4,
    steps=30,
    guidance=5.0,
)


DETECTORS = {"face_yolov8n.pt": ClassSet(("face",))}


INPUTS: dict[str, Any] = {
    "prompt": "a fox",
    "negative_prompt": "",
    "aspect_ratio": "1:1",
    "width": None,
    "height": None,
    "megapixels": "1",
    "num_outputs": 1,
    "num_inference_steps": None,
    "guidance_scale": None,
    "sampler": "Euler",
    "scheduler": "Simple",
    "seed": 0,
    "image": None,
    "mask": None,
    "prompt_strength": 0.8,
    "enable_hr": False,
    "hr_scale": 1.3,
    "hr_steps": 0,
    "hr_upscaler": "ESRGAN",
    "denoising_strength": 0.3,
    "adetailer": True,
    "ad_prompt": "",
    "ad_hands_prompt": "",
    "adetailer_args": "",
    "adetailer_args_hands": "",
    "upscaler": "",
    "face_enhance": False,
    "scale": 2.0,
    "prompt_upsampling": False,
    "prompt_upsampling_seed": None,
    "go_fast": False,
    "output_format": "webp",
    "output_quality": 80,
}
