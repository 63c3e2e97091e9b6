"""What a model with a UNet of Stable Diffusion is: one of the two families, or one of their relatives."""

from __future__ import annotations

from modules.families.source import Source
from modules.families.unsupported import is_adapter

UNET = "model.diffusion_model."
FIRST_LAYER = f"{UNET}input_blocks.0.0.weight"
ENCODERS = (
    ("conditioner.embedders.1.model.", "SDXL"),
    ("conditioner.embedders.0.model.", "an SDXL refiner"),
    ("cond_stage_model.transformer.", "SD 1.5"),
    ("cond_stage_model.model.", "SD 2.1"),
)
"""By the text encoders of a single file: how their tensors are called."""
SD2_WIDTH, REFINER_WIDTH = 1024, 1280
"""Of the text that a UNet reads, where the others read 768 (SD 1.5) and 2048 (SDXL)."""
USUAL_CHANNELS, INPAINTING_CHANNELS = 4, 9
"""Of a UNet: latents; and beside them those of a masked picture, and its mask."""
ADAPTED_XL = ("lora_te2_", "lora_unet_input_blocks", "text_encoder_2.")
ADAPTED = ("lora_te_", "lora_te1_", "lora_unet_", "unet.", "down_blocks.", "text_encoder.")


def what_is(source: Source) -> str:
    """ "SDXL" or "SD 1.5" for a model of these families, words such as "an SDXL refiner" for a relative, "" for
    anything else."""
    return _what_file(source) if source.file else _what_folder(source)


def _what_file(source: Source) -> str:
    if is_adapter(source):
        return _what_adapter(source)
    if source.holds("control_model.", "controlnet_cond_embedding."):
        return "a ControlNet for Stable Diffusion"
    if source.holds("down_blocks.") and source.holds("up_blocks.") and source.holds("time_embedding."):
        return "a UNet without text encoders"
    if not source.holds(f"{UNET}input_blocks.", "input_blocks."):
        return ""
    what = next((what for beginning, what in ENCODERS if source.holds(beginning)), "a UNet without text encoders")
    shape = source.tensors.get(FIRST_LAYER, (0, USUAL_CHANNELS))
    return _with_channels(what, shape[1])


def _what_adapter(source: Source) -> str:
    attention = (shape for name, shape in source.tensors.items() if "attn2_to_k" in name or "attn2.to_k" in name)
    widths = {side for shape in attention for side in shape}
    if source.holds(*ADAPTED_XL) or 2048 in widths:
        return "a LoRA for SDXL"
    if SD2_WIDTH in widths:
        return "a LoRA for SD 2.1"
    return "a LoRA for SD 1.5" if source.holds(*ADAPTED) else ""


def _what_folder(source: Source) -> str:
    if not source.has("unet"):  # without its configuration it is still clear what the folder should hold
        pipeline = "" if source.has("transformer") else source.pipeline_class
        if pipeline.startswith("StableDiffusionXL"):
            return "SDXL"
        return "SD 1.5" if pipeline == "StableDiffusionPipeline" else ""
    unet = source.config("unet")
    first, second = ((source.path / name).is_dir() for name in ("text_encoder", "text_encoder_2"))
    width = unet.get("cross_attention_dim")
    if second:
        what = "SDXL" if first and width != REFINER_WIDTH else "an SDXL refiner"
    elif first:
        what = "SD 2.1" if width == SD2_WIDTH else "SD 1.5"
    else:
        what = "a UNet without text encoders"
    return _with_channels(what, unet.get("in_channels", USUAL_CHANNELS))


def _with_channels(what: str, channels: int) -> str:
    """``what``, or words for a model of it that takes further pictures."""
    if channels == USUAL_CHANNELS or what not in ("SDXL", "SD 1.5", "SD 2.1"):
        return what
    kind = "inpainting model" if channels == INPAINTING_CHANNELS else "model"
    return f"an {what} {kind} whose UNet takes {channels} channels in place of {USUAL_CHANNELS}"
