"""What a model with a UNet of Stable Diffusion is: one of the two families, or one of their relatives."""

from __future__ import annotations

from modules.families.parts import PartKind
from modules.families.source import Source
from modules.families.stable_diffusion.parts import UNET_MARKS

SDXL, SD15 = "SDXL", "SD 1.5"
UNET = PartKind("a UNet", UNET_MARKS)
ENCODERS = (
    ("conditioner.embedders.1.model.", SDXL),
    ("conditioner.embedders.0.model.", "an SDXL refiner"),
    ("cond_stage_model.model.", "SD 2.1"),
)
"""By the text encoders of a single file: how their tensors are called."""
TEXT_LAYER = "attn2.to_k.weight"
WIDTHS = {1024: "SD 2.1", 1280: "an SDXL refiner"}
"""Of the text that a UNet reads, where the others read 768 (SD 1.5) and 2048 (SDXL)."""
SIZE_LAYERS = ("label_emb.0.0.weight", "add_embedding.linear_1.weight")
"""A layer that only SDXL's UNet has, beside its refiner's: it reads the size of the picture."""
FIRST_LAYERS = ("input_blocks.0.0.weight", "conv_in.weight")
USUAL_CHANNELS, INPAINTING_CHANNELS = 4, 9
"""Of a UNet: latents; and beside them those of a masked picture, and its mask."""


def what_is(source: Source) -> str:
    """ "SDXL" or "SD 1.5" for a model of these families, words such as "an SDXL refiner" for a relative, "" for
    anything else."""
    return _what_file(source) if source.file else _what_folder(source)


def _what_file(source: Source) -> str:
    if not any(UNET.prefixes(source.tensors)):
        return ""
    by_encoder = next((what for beginning, what in ENCODERS if source.holds(beginning)), "")
    what = by_encoder or WIDTHS.get(_text_width(source), "")
    what = what or (SDXL if source.shape(UNET, *SIZE_LAYERS) else SD15)
    first = source.shape(UNET, *FIRST_LAYERS)
    return _with_channels(what, first[1] if len(first) > 1 else USUAL_CHANNELS)


def _text_width(source: Source) -> int:
    """Of the text that its layers read."""
    return next((shape[-1] for name, shape in source.tensors.items() if name.endswith(TEXT_LAYER) and shape), 0)


def _what_folder(source: Source) -> str:
    if not source.has("unet"):  # without its configuration it is still clear what the folder should hold
        pipeline = "" if source.has("transformer") else source.pipeline_class
        if pipeline.startswith("StableDiffusionXL"):
            return SDXL
        return SD15 if pipeline == "StableDiffusionPipeline" else ""
    unet = source.config("unet")
    first, second = ((source.path / name).is_dir() for name in ("text_encoder", "text_encoder_2"))
    width = unet.get("cross_attention_dim")
    if second:
        what = SDXL if first and width != 1280 else "an SDXL refiner"
    elif first:
        what = "SD 2.1" if width == 1024 else SD15
    else:
        what = "a UNet without text encoders"
    return _with_channels(what, unet.get("in_channels", USUAL_CHANNELS))


def _with_channels(what: str, channels: int) -> str:
    """``what``, or words for a model of it that takes further pictures."""
    if channels == USUAL_CHANNELS or what not in (SDXL, SD15, "SD 2.1"):
        return what
    kind = "inpainting model" if channels == INPAINTING_CHANNELS else "model"
    return f"an {what} {kind} whose UNet takes {channels} channels in place of {USUAL_CHANNELS}"
