"""Qwen3 as a text encoder: how it is known, its first layers, what lies behind them, and what both cost.

Several families read prompts with the same Qwen3-4B. Each takes hidden states from between its layers, so what lies
behind the last layer that a family reads is neither loaded nor counted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from backend.checkpoints.config import Config
from backend.checkpoints.header import Header
from backend.core.errors import WeightsError
from backend.planning.checkpoint_sizes import component
from backend.planning.model_specs import BYTES_PER_PARAMETER, Component, Cost, Curve
from modules.families.parts import Part, PartKind

QWEN3_4B = PartKind(
    "the text encoder Qwen3-4B",
    ("layers.0.self_attn.q_proj.weight",),
    {"hidden_size": 1},
    {
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "max_position_embeddings": 40960,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000},
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    },
)
QWEN3_TOKENIZERS = ("flux2-klein/tokenizer", "z-image-turbo/tokenizer")
"""Folders under the weights that hold its tokenizer, which is the same in all of them."""
PREFIX = "model."
"""What its tensors' names begin with in a folder of transformers, beside those of the layer that writes words."""


def layer_count(config: Config) -> int:
    """How many layers the file has. Raises :class:`WeightsError` where the configuration does not say."""
    count = config.get("num_hidden_layers")
    if not isinstance(count, int):
        raise WeightsError(f"{config.name} does not say num_hidden_layers; this is no Qwen3 that can be used")
    return count


def first_layers(part: Part, count: int) -> Part:
    """The text encoder without what lies behind its first ``count`` layers. Raises :class:`WeightsError` for one that
    has fewer."""
    if count > layer_count(part.config):
        raise WeightsError(f"{part.label} has {layer_count(part.config)} layers, and {count} are read; {_OTHER}")
    return _reduced(part, [name for name in part.header.shapes if _is_read(name.removeprefix(PREFIX), count)])


def following_layers(part: Part, count: int) -> Part | None:
    """What lies behind the first ``count`` layers, up to the words that the whole model writes; None where the file
    lacks any of it."""
    layers, shapes = layer_count(part.config), {name.removeprefix(PREFIX) for name in part.header.shapes}
    ends = {"norm.weight"} if part.config.get("tie_word_embeddings", True) else {"norm.weight", "lm_head.weight"}
    whole = all(f"layers.{index}.self_attn.q_proj.weight" in shapes for index in range(layers))
    if layers <= count or not whole or not ends <= shapes:
        return None
    first = first_layers(part, count).header.shapes
    return _reduced(part, [name for name in part.header.shapes if name not in first and _is_of(name, ends)])


def _is_of(name: str, ends: Collection[str]) -> bool:
    return (own := name.removeprefix(PREFIX)) in ends or own.startswith("layers.")


def _reduced(part: Part, names: Sequence[str]) -> Part:
    header = part.header
    shapes = {name: header.shapes[name] for name in names}
    return replace(part, header=Header(shapes, {name: header.formats[name] for name in names}, header.metadata))


_OTHER = "name a folder of its own model in 'base_model'"


def _is_read(name: str, count: int) -> bool:
    place, _, rest = name.partition(".")
    return place == "embed_tokens" or (place == "layers" and int(rest.partition(".")[0]) < count)


def encoder_component(part: Part, count: int, dtype: str) -> Component:
    """The first ``count`` layers as the plan counts them."""
    header = first_layers(part, count).header
    shapes = {name.removeprefix(PREFIX): shape for name, shape in header.shapes.items()}
    packed = header.packed_bytes(BYTES_PER_PARAMETER[dtype])
    return component(shapes, dtype, header.precision, packed=packed)


def write_cost(config: Mapping[str, Any], parameters: int, dtype: str) -> Cost:
    """One token that a model of so many parameters writes (x: tokens of prompt and answer). Keys and values of all of
    them are kept; beside those a token has a few vectors, and the last one a row of scores in float32."""
    width, inner, head = (int(config[name]) for name in ("hidden_size", "intermediate_size", "head_dim"))
    kept = 2 * int(config["num_hidden_layers"]) * int(config["num_key_value_heads"]) * head
    linear = (kept + 4 * width + 2 * inner) * BYTES_PER_PARAMETER[dtype]
    return Cost(Curve(fixed=2 * 4 * int(config["vocab_size"]), linear=linear), Curve(fixed=2 * parameters))


def encode_cost(config: Mapping[str, Any], read: Component, kept: int, tokens: int, dtype: str) -> Cost:
    """One prompt of at most ``tokens`` tokens (x: text tokens), of which ``kept`` hidden states are given out. Beside
    those a token has three vectors of the width and three of the inner width, sine and cosine of its position, and a
    byte for each token that it may look at."""
    width, inner, head = (int(config[name]) for name in ("hidden_size", "intermediate_size", "head_dim"))
    numbers = (kept + 3) * width + 3 * inner + 2 * head
    attention = 4 * head * int(config["num_attention_heads"]) * len(read.blocks)
    return Cost(
        Curve(linear=numbers * BYTES_PER_PARAMETER[dtype] + tokens),
        Curve(linear=2 * sum(read.blocks), square=attention),
    )
