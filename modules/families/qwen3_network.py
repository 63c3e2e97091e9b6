"""The networks of Qwen3: its first layers, what lies behind them, and both together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from modules.families.part_loading import load_diffusers_part
from modules.families.parts import Part
from modules.families.qwen3 import PREFIX, first_layers


class WordTable(nn.Embedding):
    """Embeds the ids of tokens. For hidden states it gives the scores of all tokens, where the first and the last layer
    of a model have the same weights; so these are there once, wherever they wait."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return functional.linear(given, self.weight) if given.is_floating_point() else super().forward(given)


class FollowingLayers(nn.Module):
    """What lies behind the first layers; it is no network that can be called."""

    def __init__(self, layers: nn.ModuleList, norm: nn.Module, lm_head: nn.Module | None) -> None:
        super().__init__()
        self.layers, self.norm, self.lm_head = layers, norm, lm_head


@dataclass(frozen=True)
class _First:
    """Makes the network of the first layers, as diffusers' classes make theirs."""

    count: int

    def from_config(self, config: Mapping[str, Any]) -> nn.Module:
        settings = Qwen3Config.from_dict({**config, "num_hidden_layers": self.count, "layer_types": None})
        model: nn.Module = Qwen3Model(settings)
        model.norm = nn.Identity()  # belongs behind the last layer of all
        model.embed_tokens = WordTable(settings.vocab_size, settings.hidden_size, settings.pad_token_id)
        with torch.device("cpu"):  # its tables are computed, and in no file
            model.rotary_emb = Qwen3RotaryEmbedding(settings)
        return model


@dataclass(frozen=True)
class _Following:
    """Makes what follows so many layers."""

    count: int

    def from_config(self, config: Mapping[str, Any]) -> nn.Module:
        whole = Qwen3ForCausalLM(Qwen3Config.from_dict(dict(config)))
        head = None if whole.config.tie_word_embeddings else whole.lm_head
        return FollowingLayers(whole.model.layers[self.count :], whole.model.norm, head)


def load_first_layers(part: Part, count: int, dtype: torch.dtype) -> nn.Module:
    """The words' table and the first ``count`` layers, of class ``Qwen3Model``. Raises
    :class:`backend.core.errors.WeightsError` where the files are damaged or do not fit."""
    return load_diffusers_part(_First(count), first_layers(part, count), dtype, _own_names)


def load_following_layers(part: Part, count: int, dtype: torch.dtype) -> nn.Module:
    """What :func:`modules.families.qwen3.following_layers` has found behind the first ``count`` layers. Raises as
    :func:`load_first_layers`."""

    def renamed(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        return {_counted_from(name, count): tensor for name, tensor in _own_names(tensors, config).items()}

    return load_diffusers_part(_Following(count), part, dtype, renamed)


def joined(config: Mapping[str, Any], first: Any, following: Any) -> nn.Module:
    """Both as a language model. Its layers are theirs, wherever the weights of these are."""
    with torch.device("meta"):
        whole = Qwen3ForCausalLM(Qwen3Config.from_dict(dict(config)))
    whole.model.embed_tokens, whole.model.rotary_emb = first.embed_tokens, first.rotary_emb
    whole.model.layers = nn.ModuleList([*first.layers, *following.layers])
    whole.model.norm, whole.lm_head = following.norm, following.lm_head or first.embed_tokens
    model: nn.Module = whole.eval()
    return model


def _own_names(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def _counted_from(name: str, first: int) -> str:
    """The name of a layer's tensor, counted from that layer on."""
    kind, _, rest = name.partition(".")
    if kind != "layers":
        return name
    index, _, rest = rest.partition(".")
    return f"{kind}.{int(index) - first}.{rest}"
