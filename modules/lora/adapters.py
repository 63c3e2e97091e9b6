"""Puts LoRA files onto loaded models for as long as these are lent, and takes them off again.

A file's tensors stay apart from the weights, so they work with weights in every precision and in every placement, any
number at once. Nothing is fused, so taking them off leaves no trace: the next picture is that of a fresh process. What
was used last stays on the device, as far as the memory plan has room for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from backend.core.texts import shortened
from backend.core.units import format_bytes
from backend.offload.placements import block_modules, computing_with, is_compiled
from modules.lora.deltas import Delta, layer_shape
from modules.lora.files.lora_file import LoraError, LoraFile
from modules.lora.names import Layers, LoraNames, Table
from modules.lora.reading import Changes, ReadLora, changes_bytes, mapped_changes, read_lora, tensors_of
from modules.lora.slots import LayerSlot, adapted, padded_rank

if TYPE_CHECKING:
    from backend.model_cache_optimizer import ModelCache

Loras = tuple[tuple[LoraFile, float], ...]
"""Files with their scales."""

KEPT_ON_HOST = 8
"""Files whose tensors are kept in the host's memory."""
LISTED = 300
"""Characters of the names that a message lists at most."""


@dataclass(frozen=True)
class Adapted:
    """What adapters are for: the model's name, its family as messages call it, the components that they may change, and
    how files of the family name their layers."""

    name: str
    family: str
    components: tuple[str, ...]
    names: LoraNames


class Adapters:
    """The adapters of one model.

    Attributes:
        limit: How many bytes of the device they may take; None where nothing says.
    """

    def __init__(self, models: ModelCache, model: Adapted, dtype: torch.dtype) -> None:
        self.limit: int | None = None
        self._models, self._model, self._dtype = models, model, dtype
        self._read: OrderedDict[str, ReadLora] = OrderedDict()
        """In the host's memory, by the hash of the file; the one used last at the end."""
        self._uploaded: OrderedDict[str, Changes] = OrderedDict()
        """On the device, likewise."""
        self._slots: dict[str, Mapping[str, LayerSlot]] = {}

    def check(self, loras: Sequence[LoraFile]) -> list[str]:
        """Reads files before any model runs; returns a line for each that was made for more than this model has.

        Raises :class:`LoraError` for a file of another family, one that changes nothing here, and for more than the
        device has room for.
        """
        notices = []
        for lora in loras:
            read = self._of(lora)
            if read.unplaced:
                notices.append(
                    f"LoRA '{shortened(lora.name)}': {len(read.unplaced)} of its {read.count} tensors fit no layer of "
                    f"{self._model.name} and are left out: {shortened(', '.join(read.unplaced), LISTED)}"
                )
        total = sum({lora.sha256: changes_bytes(self._of(lora).changes) for lora in loras}.values())
        if self.limit is not None and total > self.limit:
            raise LoraError(
                f"the LoRA files take {format_bytes(total)} of the device's memory, and 'lora_memory' has "
                f"{format_bytes(self.limit)} for them; use fewer or smaller ones, or raise 'lora_memory'"
            )
        return notices

    def key(self, components: Sequence[str], loras: Loras) -> tuple[tuple[str, float], ...]:
        """What of ``loras`` changes these components: equal keys, equal results."""
        touching = (
            (lora.sha256, scale)
            for lora, scale in _summed(loras)
            if any(name in self._of(lora).changes for name in components)
        )
        return tuple(sorted(touching))

    @contextmanager
    def on_device(self, components: Sequence[str], loras: Loras) -> Iterator[tuple[nn.Module, ...]]:
        """Lends models as :meth:`ModelCache.on_device` does; inside they compute with the files at their scales.

        By one thread at a time: the layers of a lent model are changed.
        """
        with self._models.on_device(*components) as lent, self._applied(components, lent, loras):
            yield lent

    @contextmanager
    def _applied(self, components: Sequence[str], lent: Sequence[nn.Module], loras: Loras) -> Iterator[None]:
        wanted = _summed(loras)
        uploaded = [(self._on_device(lora, wanted), scale) for lora, scale in wanted]
        with ExitStack() as stack:
            for component, module in zip(components, lent, strict=True):
                changed: dict[str, list[tuple[Delta, float]]] = {}
                compiled = self._compiled_layers(component, module) if wanted else {}
                for changes, scale in uploaded:
                    for path, delta in changes.get(component, {}).items():
                        changed.setdefault(path, []).append((delta, scale))
                of_slots = {path: changed.pop(path, []) for path in compiled}
                rank = padded_rank(of_slots.values())
                like = torch.empty(0, device=self._models.device, dtype=self._dtype)
                for path, slot in compiled.items():
                    stack.enter_context(slot.filled(of_slots[path], rank, like))
                for path, deltas in changed.items():
                    layer: Any = module.get_submodule(path)
                    stack.enter_context(computing_with(layer, partial(partial, adapted, layer, deltas)))
            yield

    def _of(self, lora: LoraFile) -> ReadLora:
        """The file's content, in the type that the model computes in."""
        if lora.sha256 not in self._read:
            with self._models.on_host():
                self._read[lora.sha256] = self._checked(lora)
            if len(self._read) > KEPT_ON_HOST:
                self._read.popitem(last=False)
        self._read.move_to_end(lora.sha256)
        return self._read[lora.sha256]

    def _checked(self, lora: LoraFile) -> ReadLora:
        label, own = f"LoRA '{shortened(lora.name)}'", self._model.family
        read = read_lora(lora, self._table, self._layers)
        if read.unplaced and read.made_for not in ("", own):
            raise LoraError(f"{label} is for {read.made_for}, and the model is {own} ({self._model.name})")
        if not read.changes:
            raise LoraError(
                f"{label} changes nothing of {self._model.name}: none of its {read.count} tensors fits one of the "
                f"model's layers ({shortened(', '.join(read.unplaced), LISTED)})"
            )
        return replace(read, changes=mapped_changes(read.changes, lambda tensor: tensor.to(self._dtype)))

    def _on_device(self, lora: LoraFile, wanted: Loras) -> Changes:
        """The file's content on the device; others that are not ``wanted`` make room for it."""
        if lora.sha256 not in self._uploaded:
            changes = self._of(lora).changes
            used = {one.sha256 for one, _ in wanted}
            for other in [sha256 for sha256 in self._uploaded if sha256 not in used]:
                held = sum(map(changes_bytes, self._uploaded.values()))
                if self.limit is not None and held + changes_bytes(changes) > self.limit:
                    del self._uploaded[other]
            uploaded = iter(self._models.upload(tensors_of(changes)))
            self._uploaded[lora.sha256] = mapped_changes(changes, lambda tensor: next(uploaded))
        self._uploaded.move_to_end(lora.sha256)
        return self._uploaded[lora.sha256]

    def _compiled_layers(self, component: str, module: nn.Module) -> Mapping[str, LayerSlot]:
        """The linear layers of blocks that are compiled, by path, with the slots that they keep."""
        if component not in self._slots:
            inside = {id(part) for block in block_modules(module) if is_compiled(block) for part in block.modules()}
            self._slots[component] = {
                path: LayerSlot(part)
                for path, part in module.named_modules()
                if isinstance(part, nn.Linear) and id(part) in inside
            }
        return self._slots[component]

    @cached_property
    def _layers(self) -> Mapping[str, Layers]:
        return {name: _changeable(self._models.module(name)) for name in self._model.components}

    @cached_property
    def _table(self) -> Table:
        return self._model.names.table(self._layers)


def _summed(loras: Loras) -> Loras:
    """Every file once, those at scale 0 left out."""
    scales: dict[LoraFile, float] = {}
    for lora, scale in loras:
        scales[lora] = scales.get(lora, 0.0) + scale
    return tuple((lora, scale) for lora, scale in scales.items() if scale)


def _changeable(module: nn.Module) -> Layers:
    """The layers that a file can change, with the shapes of their weights."""
    return {path: layer_shape(part) for path, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
