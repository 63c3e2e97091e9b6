"""What a file or a folder is that no family recognizes, in words for the error."""

from __future__ import annotations

from collections.abc import Sequence

from modules.families.source import Source

ARCHITECTURE = "modelspec.architecture"
"""Where a file's metadata names what it is (Stability AI's model specification)."""

FILES: Sequence[tuple[tuple[str, ...], str]] = (
    (("joint_blocks.", "model.diffusion_model.joint_blocks."), "Stable Diffusion 3"),
    (("cap_embedder.", "model.diffusion_model.cap_embedder."), "a model of the Lumina family"),
    (("transformer_blocks.0.img_mod.", "model.diffusion_model.transformer_blocks.0.img_mod."), "Qwen-Image"),
    (("control_model.", "controlnet_", "input_hint_block."), "a ControlNet"),
    (("ip_adapter.", "image_proj."), "an IP-Adapter"),
    (("emb_params", "clip_g", "clip_l"), "a textual inversion embedding"),
    (("text_model.", "transformer.text_model.", "encoder.block.", "model.layers."), "a text encoder"),
    (("decoder.", "encoder.", "first_stage_model.", "vae."), "a VAE"),
    (("conv_first.", "body.0.", "model.0.weight", "params_ema."), "an upscaler"),
    (("model.0.conv.", "model.model.0.conv."), "a detector"),
)
"""By the beginnings of tensor names, the most telling first."""
ADAPTER_PARTS = (".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".lora.down.", ".lora.up.", ".hada_w1", ".lokr_")


def is_adapter(source: Source) -> bool:
    """Whether the file changes a model instead of being one: LoRA, LoHa, LoKr."""
    return any(part in name for name in source.tensors for part in ADAPTER_PARTS)


def described(source: Source) -> str:
    """ "a VAE", or "" when the thing is not known."""
    if not source.file:
        return f"a {source.pipeline_class}" if source.pipeline_class else ""
    if is_adapter(source):
        return "a LoRA"
    for beginnings, what in FILES:
        if source.holds(*beginnings):
            return what
    return source.header.metadata.get(ARCHITECTURE, "")
