"""A Qwen3 of a few thousand weights with a tokenizer and a chat template, as several families have one."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

WIDTH, LAYERS = 24, 28
TEMPLATE = (
    "{%- set ns = namespace(last=messages|length - 1) %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
"""As that of the published Qwen3 writes one turn of a user."""
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_qwen3(folder: Path, layers: int = LAYERS, width: int = WIDTH) -> None:
    """``text_encoder`` and ``tokenizer`` in a pipeline's folder: a token is a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    table = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    table.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    table.decoder = decoders.ByteLevel()
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=table, pad_token=MARKS[0], eos_token=MARKS[2], additional_special_tokens=list(MARKS)
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "tokenizer")
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=320,
        hidden_size=width,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder / "text_encoder")
