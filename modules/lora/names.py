"""Names in LoRA files: which layer a tensor is for, and what of the LoRA it is. Without torch.

Trainers name layers as diffusers does, with dots or underscores, or as the model's first code did, and put prefixes of
their own before them. All of these names are looked up in one table, which is made from the model's own layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

Shape = tuple[int, ...]
"""Of a layer's weight, outputs first."""
Layers = Mapping[str, Shape]
"""The layers of a component that a LoRA can change, by their paths."""
Rows = tuple[tuple[int, int], ...]
"""Ranges of rows, one behind the other."""

WRAPPERS = (
    "base_model_model_",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
    "diffusion_model_",
    "transformer_",
    "unet_",
    "model_",
)
"""What trainers put before the name of a layer of the denoiser."""
CLIP = ("text_encoder_", "lora_te_", "lora_te1_", "clip_l_", "clip_l_transformer_", "text_encoders_clip_l_transformer_")
SECOND = ("text_encoder_2_", "lora_te2_")
CLIP_G = (*SECOND, "clip_g_", "clip_g_transformer_", "text_encoders_clip_g_transformer_")
T5 = (*SECOND, "lora_te3_", "t5xxl_transformer_", "text_encoders_t5xxl_transformer_")
"""And before those of text encoders."""

_ADAPTER = r"(?:\.(?!weight|bias)\w+)?"  # peft may name the adapter within the tensor's name
PARTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(rf"(.+?){pattern}"), part)
    for pattern, part in (
        (rf"\.lora_A{_ADAPTER}\.weight", "down"),
        (rf"\.lora_B{_ADAPTER}\.weight", "up"),
        (rf"\.lora_B{_ADAPTER}\.bias", "bias"),
        (r"[._]lora(?:_linear_layer)?[._]down\.weight", "down"),
        (r"[._]lora(?:_linear_layer)?[._]up\.weight", "up"),
        (r"[._]lora[._]mid\.weight", "mid"),
        (r"(?<=_lora[12])\.down\.weight", "down"),  # XLabs has two for a block
        (r"(?<=_lora[12])\.up\.weight", "up"),
        (r"\.(?:lora\.)?alpha", "alpha"),
        (rf"\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?", "magnitude"),
        (r"\.dora_scale", "dora_scale"),
        *((rf"\.{part}", part) for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")),
        *((rf"\.{part}", part) for part in ("lokr_w1", "lokr_w1_a", "lokr_w1_b")),
        *((rf"\.{part}", part) for part in ("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")),
        (r"\.diff", "diff"),
        (r"\.diff_b", "diff_b"),
    )
)
"""How the names of tensors end, and what the tensors are."""


@dataclass(frozen=True)
class Target:
    """A layer of a component, and which rows of the file's larger layer are its own; none where they are the same."""

    component: str
    path: str
    rows: Rows = ()


Table = Mapping[str, tuple[Target, ...]]
"""Layers by the names in files, with underscores in place of dots."""


def no_aliases(component: str, layers: Layers) -> Iterable[tuple[str, Target]]:
    return ()


@dataclass(frozen=True)
class LoraNames:
    """How LoRA files of a family name its layers, beside the paths that diffusers has.

    Attributes:
        encoders: By text encoder what stands before the names of its layers, with underscores.
        aliases: From a component's name and its layers to further names, each with a layer that it stands for; a name
            of a layer that the model has in several pieces comes several times.
    """

    encoders: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    aliases: Callable[[str, Layers], Iterable[tuple[str, Target]]] = no_aliases

    def table(self, layers: Mapping[str, Layers]) -> Table:
        """Of all components; ``layers`` has those of each."""
        found: dict[str, tuple[Target, ...]] = {}
        for component, of_component in layers.items():
            for prefix in self.encoders.get(component, ("",)):
                for name, target in (*_own_names(component, of_component), *self.aliases(component, of_component)):
                    key = prefix + name.replace(".", "_")
                    if target not in found.get(key, ()):
                        found[key] = (*found.get(key, ()), target)
        return found


def _own_names(component: str, layers: Layers) -> Iterator[tuple[str, Target]]:
    for path in layers:
        target = Target(component, path)
        yield path, target
        if path.endswith(".to_out.0"):
            yield path.removesuffix(".0"), target
        # transformers' names of CLIP's layers before its version 5, which trainers still write
        if path.startswith("encoder.layers."):
            yield f"text_model.{path}", target


def split_name(tensor: str) -> tuple[str, str]:
    """The layer's name and what of the LoRA the tensor is; "" for both where it is none."""
    for pattern, part in PARTS:
        if found := pattern.fullmatch(tensor):
            return found[1], part
    return "", ""


def targets(table: Table, layer: str) -> tuple[Target, ...]:
    """The layers that a file means by this name; none where the model has no such layer."""
    name = layer.replace(".", "_")
    while name not in table:
        prefix = next((prefix for prefix in WRAPPERS if name.startswith(prefix)), "")
        if not prefix and "_processor_" not in name:
            return ()
        # diffusers' first LoRA files named the object that computes the attention
        name = name.removeprefix(prefix) if prefix else name.replace("_processor_", "_", 1)
    return table[name]
