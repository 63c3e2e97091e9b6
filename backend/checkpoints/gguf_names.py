"""llama.cpp's names of the tensors of a T5 encoder and of a Qwen3, as its GGUF files have them, in transformers'
names. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

OUTER: Mapping[str, str] = MappingProxyType(
    {"token_embd.weight": "shared.weight", "enc.output_norm.weight": "encoder.final_layer_norm.weight"}
)
INNER: Mapping[str, str] = MappingProxyType(
    {
        "attn_q": "layer.0.SelfAttention.q",
        "attn_k": "layer.0.SelfAttention.k",
        "attn_v": "layer.0.SelfAttention.v",
        "attn_o": "layer.0.SelfAttention.o",
        "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
        "attn_norm": "layer.0.layer_norm",
        "ffn_gate": "layer.1.DenseReluDense.wi_0",
        "ffn_up": "layer.1.DenseReluDense.wi_1",
        "ffn_down": "layer.1.DenseReluDense.wo",
        "ffn_norm": "layer.1.layer_norm",
    }
)
BLOCK = re.compile(r"enc\.blk\.(\d+)\.(\w+)\.weight")
DECODER = ("dec.", "output.weight")
"""The other half of a T5, which no picture needs."""

OUTER_DECODER: Mapping[str, str] = MappingProxyType(
    {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight", "output.weight": "lm_head.weight"}
)
INNER_DECODER: Mapping[str, str] = MappingProxyType(
    {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
)
DECODER_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def transformers_names(names: list[str]) -> dict[str, str]:
    """By llama.cpp's names those of transformers, without the decoder's of a T5; names of anything else stay as they
    are."""
    if any(BLOCK.fullmatch(name) for name in names):
        return {name: _renamed(name) for name in names if not name.startswith(DECODER)}
    if any(DECODER_BLOCK.fullmatch(name) for name in names):
        return {name: _renamed_decoder(name) for name in names}
    return {name: name for name in names}


def _renamed(name: str) -> str:
    found = BLOCK.fullmatch(name)
    if found and found[2] in INNER:
        return f"encoder.block.{found[1]}.{INNER[found[2]]}.weight"
    return OUTER.get(name, name)


def _renamed_decoder(name: str) -> str:
    found = DECODER_BLOCK.fullmatch(name)
    if found and found[2] in INNER_DECODER:
        return f"layers.{found[1]}.{INNER_DECODER[found[2]]}.weight"
    return OUTER_DECODER.get(name, name)
