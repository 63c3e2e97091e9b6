"""Which family of models a LoRA was made for, by the names and shapes of its tensors. All of it is data, and without
torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

Shapes = Mapping[str, tuple[int, ...]]

ADAPTER = (
    r"[._]lora\d?[._]?(A|B|down|up|mid)\b|\.(hada_[wt]\d|lokr_[wt]\d\w*|dora_scale|oft_(blocks|diag)|boft_\w+)\b"
    r"|\.(diff|diff_b|set_weight)$|^(bundle_emb|lora_\w+)\."
)
"""A file with such tensors changes a model instead of being one: LoRA, LoHa, LoKr, DoRA and the like."""
ADAPTED: Sequence[tuple[str, str]] = (
    (r"double_stream_modulation|to_qkv_mlp_proj", "FLUX.2"),
    (r"distilled_guidance_layer", "Chroma"),
    (r"img_mod_1|txt_mod_1|transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)", "Qwen-Image"),
    (r"joint_blocks|joint_transformer_blocks", "Stable Diffusion 3"),
    (r"double_blocks|single_blocks|single_transformer_blocks", "Flux"),
    (r"(^|[._])blocks[._]\d+[._](self_attn|cross_attn|ffn)", "a video model of the Wan family"),
    (r"(^|[._])(noise_refiner|context_refiner|layers[._]\d+[._](attention|feed_forward))", "Z-Image or Lumina"),
    (
        r"caption_projection|adaln_single|^(transformer\.|diffusion_model\.)?transformer_blocks\.\d+\.attn[12]\.",
        "a transformer of another family",
    ),
    (r"lora_te2_|lora_unet_input_blocks|text_encoder_2\.", "SDXL"),
    (r"lora_te_|lora_te1_|lora_unet_|unet\.|down_blocks|text_encoder\.", "SD 1.5"),
    (r"(^|\.)transformer_blocks\.", "Flux"),
)
ADAPTED_WIDTHS: Mapping[int, str] = MappingProxyType({2048: "SDXL", 1024: "SD 2.1", 768: "SD 1.5"})
"""Of the text that the adapted layers read, where the model has a UNet."""
UNET_FAMILIES = frozenset(("SDXL", "SD 1.5"))
READ_TEXT = re.compile(r"attn2[._]to_[kv]")


def is_adapter(shapes: Shapes) -> bool:
    """Whether tensors of these names change a model instead of being one."""
    return re.search(ADAPTER, "\n".join(shapes), re.MULTILINE) is not None


def made_for(shapes: Shapes) -> str:
    """The family's name as messages have it, "Flux" for instance; "" where that is not known."""
    names = "\n".join(shapes)
    family = next((what for pattern, what in ADAPTED if re.search(pattern, names, re.MULTILINE)), "")
    if family in UNET_FAMILIES:
        read = {side for name, shape in shapes.items() if READ_TEXT.search(name) for side in shape}
        return next((what for width, what in ADAPTED_WIDTHS.items() if width in read), family)
    return family
