"""Text encoders that are the beginning of a language model: what of it lies behind, and how both write together.

The layers that read prompts are loaded once, for both. What lies behind them is a model of its own in the memory plan
and in the model cache, and is used only by who writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from backend.planning.checkpoint_sizes import component
from backend.planning.model_specs import Component, ModelSpec
from modules.families.parts import Part, PartKind
from modules.families.qwen3 import PREFIX, QWEN3_TOKENIZERS, following_layers, layer_count, write_cost
from modules.families.source import Source

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class TextWriter:
    """A Qwen3 of which the first ``read`` layers are a text encoder.

    Attributes:
        encoder: The component that holds them.
        part: What lies behind them.
        tokenizer: Its folder.
    """

    encoder: str
    part: Part
    read: int
    tokenizer: Path

    @property
    def label(self) -> str:
        """What messages and files call it."""
        return f"{self.encoder} of {self.tokenizer.parent.name}"

    @property
    def share(self) -> float:
        """The layers behind, as a share of those that are loaded anyway."""
        return (layer_count(self.part.config) - self.read) / self.read

    def added_to(self, spec: ModelSpec, name: str, dtype: str) -> ModelSpec:
        """The spec with what lies behind the encoder as a model of this name, which stays whole and is not rounded. The
        memory of writing is planned, but the seconds of one token only: few requests ask for it, and the placements
        should be those that are fastest for the others."""
        header = self.part.header
        shapes = {path.removeprefix(PREFIX): shape for path, shape in header.shapes.items()}
        count = component(shapes, dtype, header.precision).parameters
        whole = count + spec.components[self.encoder].parameters
        return replace(
            spec,
            components={name: Component(count, dtype, on_disk=header.precision), **spec.components},
            costs={**spec.costs, "write": write_cost(self.part.config, whole, dtype)},
            writers=(self.encoder, name),
        )

    def load(self, dtype: torch.dtype) -> nn.Module:
        """What lies behind the encoder, in host memory. Raises :class:`backend.core.errors.WeightsError`."""
        from modules.families.qwen3_network import load_following_layers

        return load_following_layers(self.part, self.read, dtype)

    def network(self, encoder: nn.Module, behind: nn.Module) -> nn.Module:
        """Both as one ``Qwen3ForCausalLM``, which holds no weights of its own."""
        from modules.families.qwen3_network import joined

        return joined(self.part.config, encoder, behind)


def qwen3_writer(source: Source, kinds: Mapping[str, PartKind], read: int) -> TextWriter | None:
    """The language model that the source's ``text_encoder`` begins, of which a family reads so many layers; None where
    its files do not hold all of it."""
    part = source.part("text_encoder", kinds)
    behind = following_layers(part, read)
    folder = source.tokenizer("tokenizer", part, QWEN3_TOKENIZERS)
    return None if behind is None else TextWriter("text_encoder", behind, read, folder)
