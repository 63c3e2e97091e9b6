"""What a file or a folder is that no family takes, in words for the error. All of it is data: patterns of tensor names
with what has such tensors, the most telling first."""

from __future__ import annotations

import re
from collections.abc import Sequence

from modules.families.source import Source
from modules.lora.recognition import is_adapter, made_for

Table = Sequence[tuple[str, str]]

CONTROL = r"control_model\.|controlnet_|input_hint_block|zero_convs|pos_embed_input\."
CONTROLLED: Table = (
    (r"double_blocks\.|single_transformer_blocks\.|controlnet_x_embedder", "a ControlNet for Flux"),
    (r"joint_blocks|pos_embed_input|transformer_blocks\.", "a ControlNet for Stable Diffusion 3"),
    (r"", "a ControlNet for Stable Diffusion"),
)

RELATIVES: Table = (
    (r"distilled_guidance_layer\.", "Chroma"),
    (r"redux_(up|down)\.", "FLUX.1 Redux, which turns a picture into a prompt"),
    (
        r"individual_token_refiner|img_attn_qkv\.|double_blocks\.\d+\.img_attn_q\.",
        "a video model of the Hunyuan family",
    ),
    (r"double_stream_blocks\.", "HiDream"),
    (r"joint_blocks\.\d+\.x_block\.attn\.ln_[qk]", "Stable Diffusion 3.5"),
    (r"joint_blocks\.", "Stable Diffusion 3"),
    (r"double_layers\.|joint_transformer_blocks\.", "AuraFlow"),
    (r"transformer_blocks\.\d+\.img_mod\.", "Qwen-Image"),
    (r"x_pad_token", ""),  # Z-Image, which has a family
    (r"cap_embedder\.|caption_embedder\.", "a model of the Lumina family"),
    (r"patchify_proj|vocoder\.|(^|\.)audio_", "a video model of the LTX family"),
    (r"blocks\.\d+\.cross_attn\.(k|norm_k)\.|condition_embedder\.time_embedder", "a video model of the Wan family"),
    (r"t5_y_embedder|patch_embed\.text_proj|blocks\.block\d+\.", "a video model"),
    (r"time_mixer|time_stack|temporal_transformer|motion_modules", "a video model of the Stable Diffusion family"),
    (r"caption_projection|adaln_single|y_embedder\.y_", "a model of the PixArt family"),
    (r"(^|\.)pos_embed\.proj\.", "Stable Diffusion 3"),
    (r"effnet_mapper|clip_txt_pooled_mapper|clf\.1\.", "Stable Cascade"),
    (r"encoder_hid_proj", "Kolors, or another UNet with a text encoder of its own"),
    (r"^(edm_mean|edm_vpred\.sigma_max)$", "an EDM model (Playground v2.5, CosXL), which is sampled in another way"),
)
"""Models that look like one of the families, and are none."""

PARTS: Table = (
    (r"^(ip_adapter|image_proj)\b|image_proj_model", "an IP-Adapter"),
    (r"^(emb_params|string_to_param|string_to_token|clip_g|clip_l|\*)(\.\*)?$", "a textual inversion embedding"),
    (r"(^|\.)vision_model\.|(^|\.)visual\.", "a vision encoder"),
    (
        r"text_model\.|(^|\.)token_embedding\.|(^|\.)encoder\.block\.\d|(^|\.)transformer\.resblocks\.|^shared\.weight$",
        "a text encoder",
    ),
    (r"^enc\.blk\.|^token_embd\.", "a text encoder or a language model"),
    (r"(^|\.)model\.layers\.\d|^model\.embed_tokens|^transformer\.h\.\d", "a language model"),
    (r"decoder\.conv_in\.|(^|\.)decoder\.(middle|upsamples)\.", "a VAE"),
    (r"^(decoder|encoder)(\.layers)?\.\d+\.|^(first_stage_model|vae)\.|^(de|en)coder\.", "a VAE"),
    (
        r"^(params_ema\.)?(conv_first|conv_body|body\.\d|upconv\d)|^model\.0\.weight|^layers\.\d+\.residual_group",
        "an upscaler",
    ),
    (r"^(model\.)+\d+\.(conv|cv\d|m)\.", "a detector"),
    (r"^(encoder|decoder|model)\.(quantize|ft_layers|fuse_convs)|stylegan_decoder\.|^style_convs", "a face restorer"),
)
"""Parts of a model, and what works beside one."""

PIPELINES: Table = (
    (r"^FluxControlNet", "a ControlNet for Flux"),
    (r"^FluxPriorRedux|^ReduxImageEncoder", "FLUX.1 Redux, which turns a picture into a prompt"),
    (r"^Flux2(?!Klein)", "FLUX.2 dev, whose text encoder is Mistral"),
    (r"^Chroma", "Chroma"),
    (r"^(StableDiffusion3|SD3)", "Stable Diffusion 3 or 3.5"),
    (r"^QwenImage", "Qwen-Image"),
    (r"^ZImage(Omni|ControlNet)", "a Z-Image that reads more than words"),
    (
        r"^StableVideo|^(Wan|Hunyuan|LTX|CogVideo|Mochi|Cosmos|Allegro|Skyreels|AnimateDiff|TextToVideo)",
        "a video model",
    ),
    (r"^(Stable)?(Cascade|Wuerstchen)", "Stable Cascade"),
    (r"ControlNet", "a ControlNet"),
    (r"^UNetMotion|MotionAdapter", "a motion module"),
    (r"^Autoencoder|^VQModel", "a VAE"),
    (r"^(CLIPText|T5Encoder|UMT5|CLIPTextModel)", "a text encoder"),
    (r"^(CLIPVision|Siglip)", "a vision encoder"),
    (r"(ForCausalLM|ForConditionalGeneration)$", "a language model"),
    (r"Upscale", "an upscaler in diffusers' layout"),
)
"""By the class that ``model_index.json`` or a component's ``config.json`` names."""
ARCHITECTURE = "modelspec.architecture"
"""Where a file's metadata names what it is (Stability AI's model specification)."""


def refused(source: Source) -> str:
    """What the source is, if it looks like a model of a family and is none; "" for all else."""
    if not source.file:
        return _first(PIPELINES, source.pipeline_class) if source.pipeline_class else ""
    names = "\n".join(source.tensors)
    if is_adapter(source.tensors):
        family = made_for(source.tensors)
        return f"a LoRA for {family}" if family else "a LoRA"
    if re.search(CONTROL, names, re.MULTILINE):
        return _first(CONTROLLED, names)
    return _first(RELATIVES, names)


def described(source: Source) -> str:
    """ "a VAE", or "" when the thing is not known."""
    if not source.file:
        return f"a {source.pipeline_class}" if source.pipeline_class else ""
    return _first(PARTS, "\n".join(source.tensors)) or source.header.metadata.get(ARCHITECTURE, "")


def _first(table: Table, text: str) -> str:
    return next((what for pattern, what in table if re.search(pattern, text, re.MULTILINE)), "")
