"""The text encoders that several families have: how they are known, and what the published ones are."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from modules.families.parts import PartKind

_CLIP: Mapping[str, Any] = MappingProxyType(
    {
        "model_type": "clip_text_model",
        "bos_token_id": 0,
        "eos_token_id": 2,  # transformers then takes the token with the highest number for the end
        "pad_token_id": 1,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
    }
)
CLIP_L = PartKind(
    "the text encoder CLIP-L",
    ("text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight"),
    {"hidden_size": 1},
    {
        **_CLIP,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
    },
    hint=r"clip_l|embedders\.0\.|text_encoder\b|cond_stage_model",
)
CLIP_G = PartKind(
    "the text encoder CLIP-G",
    ("positional_embedding", *CLIP_L.marks),
    {"hidden_size": 1},
    {
        **_CLIP,
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
    },
    hint=r"clip_g|embedders\.1\.|text_encoder_2",
)
T5_XXL = PartKind(
    "the text encoder T5-XXL",
    ("shared.weight", "encoder.embed_tokens.weight"),
    {"d_model": 1},
    {
        "model_type": "t5",
        "d_ff": 10240,
        "d_kv": 64,
        "d_model": 4096,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "num_heads": 64,
        "num_layers": 24,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "vocab_size": 32128,
    },
)
CLIP_TOKENIZERS = ("FLUX.1-schnell/tokenizer", "FLUX.1-dev/tokenizer", "SDXL/tokenizer", "SD-1.5/tokenizer")
"""Folders under the weights that hold CLIP's tokenizer, which is the same in all of them."""
CLIP_G_TOKENIZERS = ("SDXL/tokenizer_2",)
T5_TOKENIZERS = ("FLUX.1-schnell/tokenizer_2", "FLUX.1-dev/tokenizer_2")
