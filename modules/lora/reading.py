"""A LoRA's file -> what it adds to each layer of a model, and which of its tensors found no place.

Every tensor is accounted for: it belongs to a change of a layer that the model has, with the right shape, or it is
named. diffusers' own conversions drop what they do not know in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from backend.checkpoints.header import read_headers
from backend.checkpoints.untrusted import untrusted
from backend.core.errors import WeightsError
from backend.stream import tensor_bytes
from modules.lora.deltas import Biased, Delta, Dora, Hadamard, Kronecker, LowRank, Whole, chosen_rows, contracted
from modules.lora.files.lora_file import LoraFile
from modules.lora.names import Layers, Shape, Table, Target, split_name, targets
from modules.lora.recognition import made_for

Parts = dict[str, torch.Tensor]
"""The tensors of one layer in the file, by what they are."""
Changes = Mapping[str, Mapping[str, Delta]]
"""By component and path."""

SETS = (
    frozenset({"down", "up"}),
    frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
    frozenset({"lokr_w1", "lokr_w2"}),
    frozenset({"lokr_w1_a", "lokr_w1_b", "lokr_w2"}),
    frozenset({"lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
    frozenset({"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}),
    frozenset({"diff"}),
    frozenset({"diff_b"}),
)
"""What a change of a layer is made of; beside it there may be what follows."""
BESIDE = frozenset({"alpha", "bias", "diff_b", "mid", "hada_t1", "hada_t2", "lokr_t2", "magnitude", "dora_scale"})
PEFT = "lora_adapter_metadata"
"""Where diffusers writes into the file's metadata what peft's configuration says."""


@dataclass(frozen=True)
class ReadLora:
    """What a file changes, and the names of its tensors that found no place, out of ``count``. ``made_for`` is the
    family that its names tell, "" where they do not."""

    changes: Changes
    unplaced: tuple[str, ...]
    count: int
    made_for: str


def tensors_of(changes: Changes) -> list[torch.Tensor]:
    return [tensor for deltas in changes.values() for delta in deltas.values() for tensor in delta.tensors]


def changes_bytes(changes: Changes) -> int:
    return sum(map(tensor_bytes, tensors_of(changes)))


def mapped_changes(changes: Changes, change: Callable[[torch.Tensor], torch.Tensor]) -> Changes:
    """A copy with other tensors, in the order of :func:`tensors_of`."""
    return {
        component: {path: delta.mapped(change) for path, delta in deltas.items()}
        for component, deltas in changes.items()
    }


@dataclass
class _Layer:
    """One layer of the file: its tensors, and their names."""

    parts: Parts = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


def read_lora(file: LoraFile, table: Table, layers: Mapping[str, Layers]) -> ReadLora:
    """Reads a file for a model with these layers, by component. Raises :class:`WeightsError` for a damaged one."""
    header = read_headers([file.path], as_stored=True)
    from safetensors import safe_open

    with untrusted(file.path.name), safe_open(file.path, "pt") as stored:
        found, unplaced = _grouped({name: stored.get_tensor(name) for name in stored.keys()}, table)
    strengths = _Strengths(header.metadata.get(PEFT, ""))
    changes: dict[str, dict[str, Delta]] = {}
    for name, layer in found.items():
        try:
            deltas = [
                (target, _delta(layer.parts, target, layers[target.component][target.path], strengths.of(name, layer)))
                for target in targets(table, name)
            ]
        except (_Unfit, RuntimeError):  # torch's word for shapes that cannot be multiplied
            unplaced += layer.names
            continue
        if any(target.path in changes.get(target.component, ()) for target, _ in deltas):
            unplaced += layer.names  # the file has the layer under another name too
            continue
        for target, delta in deltas:
            changes.setdefault(target.component, {})[target.path] = delta
    return ReadLora(changes, tuple(unplaced), len(header.entries), made_for(header.shapes))


def _grouped(tensors: Mapping[str, torch.Tensor], table: Table) -> tuple[dict[str, _Layer], list[str]]:
    """The layers of the file that the model has, and the tensors of others."""
    found: dict[str, _Layer] = {}
    unplaced: list[str] = []
    for name, tensor in tensors.items():
        layer, part = split_name(name)
        if not part or not targets(table, layer) or part in found.get(layer, _Layer()).parts:
            unplaced.append(name)
            continue
        of_layer = found.setdefault(layer, _Layer())
        # a copy: kernels round differently where memory does not begin at a multiple of their vectors, as in a file
        of_layer.parts[part] = tensor.to(torch.float32, copy=True)
        of_layer.names.append(name)
    return found, unplaced


class _Unfit(Exception):
    """The tensors of a layer are not complete, or have other shapes than the model's layer."""


class _Strengths:
    """How strong each layer is: ``alpha`` over the rank. It stands beside the layer, or in the file's metadata."""

    def __init__(self, metadata: str) -> None:
        try:
            told = json.loads(metadata) if metadata else {}
        except ValueError as error:
            raise WeightsError(f"the metadata '{PEFT}' is not JSON: {error}") from None
        self._told: Mapping[str, object] = told if isinstance(told, dict) else {}

    def of(self, name: str, layer: _Layer) -> float:
        parts = layer.parts
        rank = _rank(parts)
        if not rank:
            return 1.0
        if "alpha" in parts:
            return float(parts["alpha"]) / rank
        component, _, path = name.partition(".")
        alpha = self._told.get(f"{component}.lora_alpha", rank)
        patterns = self._told.get(f"{component}.alpha_pattern")
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            if path == pattern or path.endswith(f".{pattern}") or re.fullmatch(rf"(.*\.)?({pattern})", path):
                alpha = value
        if not isinstance(alpha, int | float):
            raise WeightsError(f"the metadata '{PEFT}' has no number for alpha")
        return float(alpha) / (math.sqrt(rank) if self._told.get(f"{component}.use_rslora") else rank)


def _rank(parts: Parts) -> int:
    """0 where nothing is of a lower rank, so that there is no strength either."""
    for name in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
        if name in parts:
            return int(parts[name].shape[0])
    return 0


def _delta(parts: Parts, target: Target, shape: Shape, strength: float) -> Delta:
    """What the tensors of one layer in the file add to a layer of the model whose weight has this shape."""
    kinds = [kind for kind in SETS if kind <= parts.keys()]
    kind = max(kinds, key=len, default=frozenset())
    if not kind or parts.keys() - kind - BESIDE:
        raise _Unfit
    delta = None if kind == {"diff_b"} else _weight(parts, target, shape, strength)
    if delta is not None and tuple(delta.mapped(_without_data).matrix().shape) != shape:
        raise _Unfit
    if delta is not None and ("magnitude" in parts or "dora_scale" in parts):
        delta = _dora(parts, delta, target, shape)
    for part, factor in (("bias", strength), ("diff_b", 1.0)):
        if part in parts:
            bias = chosen_rows(parts[part].flatten(), target.rows)
            if len(bias) != shape[0]:
                raise _Unfit
            delta = Biased(delta, factor * bias)
    assert delta is not None
    return delta


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("meta")


def _weight(parts: Parts, target: Target, shape: Shape, strength: float) -> Delta:
    if "diff" in parts:
        return Whole(chosen_rows(parts["diff"], target.rows).reshape(shape))
    if "down" in parts:
        down = _with_kernel(parts["down"], parts.get("mid"))
        up = strength * parts["up"].flatten(1)
        if up.shape[1] != down.shape[0]:
            raise _Unfit
        return LowRank(down.reshape(len(down), *shape[1:]), chosen_rows(up, target.rows))
    if "hada_w1_a" in parts:
        first, second = (
            (parts[f"hada_w{n}_a"], _with_kernel(parts[f"hada_w{n}_b"], parts.get(f"hada_t{n}"))) for n in (1, 2)
        )
        ups = (first[0].T if "hada_t1" in parts else first[0], second[0].T if "hada_t2" in parts else second[0])
        return Hadamard(shape, strength, target.rows, ups[0], ups[1], first[1], second[1])
    return _kronecker(parts, target, shape, strength)


def _kronecker(parts: Parts, target: Target, shape: Shape, strength: float) -> Delta:
    first = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    if "lokr_w2" in parts:
        second = parts["lokr_w2"]
    elif "lokr_t2" in parts:
        second = contracted(parts["lokr_w2_a"].T, _with_kernel(parts["lokr_w2_b"], parts["lokr_t2"]))
    else:
        second = contracted(parts["lokr_w2_a"], parts["lokr_w2_b"])
    return Kronecker(shape, strength, target.rows, first, second)


def _with_kernel(down: torch.Tensor, core: torch.Tensor | None) -> torch.Tensor:
    """``down``, rank x inputs, with the kernel that LyCORIS keeps apart: ``core``, rank x rank x sides."""
    return down if core is None else torch.einsum("ij...,jk->ik...", core, down.flatten(1))


def _dora(parts: Parts, delta: Delta, target: Target, shape: Shape) -> Delta:
    """LyCORIS writes the lengths of rows as outputs x 1, those of columns as 1 x inputs; peft has rows only."""
    lengths = parts["magnitude"] if "magnitude" in parts else parts["dora_scale"]
    of_inputs = "dora_scale" in parts and lengths.ndim > 1 and lengths.shape[0] == 1 and lengths.numel() == shape[1]
    lengths = lengths.flatten() if of_inputs else chosen_rows(lengths.flatten(), target.rows)
    # columns of a larger layer have their length over all its rows
    if len(lengths) != shape[1 if of_inputs else 0] or (of_inputs and target.rows):
        raise _Unfit
    return Dora(delta, lengths, of_inputs)
