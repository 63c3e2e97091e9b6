"""Where a model is kept beside a device: resident, model offload, block offload or layer offload.

The names and their costs are those of the memory plan (``backend/memory_management.py``). A placement never changes
what a model computes, only where its bytes wait.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import zip_longest
from types import MappingProxyType

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from backend.planning.costs import Kind
from backend.stream import Transfers, tensor_bytes

BLOCK_LISTS = ("transformer_blocks", "single_transformer_blocks", "encoder.block")
"""Where models have their repeated blocks: the two kinds of Flux, the one of T5. They run in this order."""
UNET_BLOCKS = ("down_blocks", "mid_block", "up_blocks")
"""Where a UNet has its blocks, in order. One block of SDXL is 2.4 GB, so a block's parts are streamed instead."""


class TensorGroup:
    """The tensors that some modules hold themselves (not their children), loaded and unloaded together."""

    def __init__(self, modules: Iterable[nn.Module], transfers: Transfers) -> None:
        tensors = {id(tensor): tensor for module in modules for tensor in own_tensors(module)}
        self._pairs = [(tensor, tensor.data) for tensor in tensors.values()]
        self._transfers = transfers
        self.is_loaded = False
        for _, host in self._pairs:
            transfers.pin(host)

    @property
    def bytes(self) -> int:
        return sum(tensor_bytes(host) for _, host in self._pairs)

    def load(self) -> bool:
        """Uploads the tensors, unless they are on the device; returns whether it did. After an error none of them
        is."""
        if self.is_loaded:
            return False
        try:
            # weights must be ordinary tensors, also when they are loaded during an inference
            with torch.inference_mode(False), torch.no_grad():
                for tensor, host in self._pairs:
                    tensor.data = self._transfers.upload(host)
        except BaseException:
            self.unload()
            raise
        self.is_loaded = True
        return True

    def unload(self) -> None:
        """Drops the copies on the device; nothing is copied back."""
        for tensor, host in self._pairs:
            tensor.data = host
        self.is_loaded = False


class PlacedModel(ABC):
    """A model in one placement. ``borrowers`` counts the open loans; the cache keeps it."""

    is_resident = False
    is_streamed = False
    """Whether parts of it come and go during a forward, so that only one thread at a time may use it."""

    def __init__(self, module: nn.Module, transfers: Transfers) -> None:
        self.module, self.transfers, self.borrowers = module, transfers, 0

    @property
    def bytes(self) -> int:
        """The size of the whole model, wherever it is."""
        return sum(tensor_bytes(tensor) for tensor in all_tensors(self.module))

    @property
    @abstractmethod
    def is_loaded(self) -> bool:
        """Whether it can compute now."""

    @property
    @abstractmethod
    def pending_bytes(self) -> int:
        """How many bytes :meth:`load` would upload now."""

    @abstractmethod
    def load(self) -> bool:
        """Makes it ready to compute; returns whether it was not."""

    @abstractmethod
    def unload(self) -> None:
        """Drops from the device what may leave it."""

    @abstractmethod
    def detach(self) -> nn.Module:
        """Ends this placement: returns the module, complete and on the host, so that it can be placed anew."""


class ResidentModel(PlacedModel):
    """Uploaded once; it stays on the device and leaves no copy on the host."""

    is_resident = True

    def __init__(self, module: nn.Module, transfers: Transfers) -> None:
        super().__init__(module, transfers)
        self._is_loaded = False

    @property
    def is_loaded(self) -> bool:
        return self._is_loaded

    @property
    def pending_bytes(self) -> int:
        return 0 if self._is_loaded else self.bytes

    def load(self) -> bool:
        """As of every placement; after an error all of it is on the host again."""
        if self._is_loaded:
            return False
        hosts = [(tensor, tensor.data) for tensor in all_tensors(self.module)]
        try:
            self._move(self.transfers.upload)
        except BaseException:
            for tensor, host in hosts:
                tensor.data = host
            raise
        self._is_loaded = True
        return True

    def unload(self) -> None:
        """A resident model stays."""

    def detach(self) -> nn.Module:
        if self._is_loaded:
            self._move(self.transfers.download)
            self._is_loaded = False
        return self.module

    def _move(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for tensor in all_tensors(self.module):
                tensor.data = copy(tensor.data)


class OffloadedModel(PlacedModel):
    """Model offload: uploaded when it is borrowed, dropped when other models need the room."""

    def __init__(self, module: nn.Module, transfers: Transfers) -> None:
        vars(module).pop("forward", None)  # a graph of the whole model knows only the addresses that it was made with
        super().__init__(module, transfers)
        self._offloaded = TensorGroup(self.offloaded_modules(), transfers)

    def offloaded_modules(self) -> Iterable[nn.Module]:
        """The modules whose own tensors are on the device for as long as the model is borrowed."""
        return self.module.modules()

    @property
    def is_loaded(self) -> bool:
        return self._offloaded.is_loaded

    @property
    def pending_bytes(self) -> int:
        return 0 if self.is_loaded else self._offloaded.bytes

    def load(self) -> bool:
        return self._offloaded.load()

    def unload(self) -> None:
        self._offloaded.unload()

    def detach(self) -> nn.Module:
        self.unload()
        return self.module


class StreamedModel(OffloadedModel):
    """Its parts are loaded when their forward begins and unloaded when it ends.

    ``parts`` has for each part the modules whose tensors it needs, in the order in which the parts run. With
    ``prefetch`` the next part is uploaded while one computes, so two are on the device at a time.
    """

    is_streamed = True

    def __init__(
        self, module: nn.Module, transfers: Transfers, parts: Mapping[nn.Module, Iterable[nn.Module]], prefetch: bool
    ) -> None:
        self._inside = {id(inner) for modules in parts.values() for inner in modules}
        super().__init__(module, transfers)
        self._groups = [TensorGroup(modules, transfers) for modules in parts.values()]
        self._hooks: list[RemovableHandle] = []
        for part, group, following in zip(parts, self._groups, [*self._groups[1:], None], strict=True):
            self._hooks.append(part.register_forward_pre_hook(self._before(group, following if prefetch else None)))
            self._hooks.append(part.register_forward_hook(self._after(group)))

    def offloaded_modules(self) -> Iterable[nn.Module]:
        return [module for module in self.module.modules() if id(module) not in self._inside]

    def _before(self, group: TensorGroup, following: TensorGroup | None) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object) -> None:
            group.load()
            self.transfers.synchronize()
            if following:
                following.load()

        return hook

    @staticmethod
    def _after(group: TensorGroup) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            group.unload()

        return hook

    def unload(self) -> None:
        super().unload()
        for group in self._groups:  # a forward that failed leaves some of them loaded
            group.unload()

    def detach(self) -> nn.Module:
        for hook in self._hooks:
            hook.remove()
        return super().detach()


def block_offload(module: nn.Module, transfers: Transfers) -> PlacedModel:
    """Streams the model's blocks; while one computes the next is uploaded."""
    parts = {block: list(block.modules()) for block in block_modules(module)}
    return StreamedModel(module, transfers, parts, prefetch=True)


def layer_offload(module: nn.Module, transfers: Transfers) -> PlacedModel:
    """Streams the model's layers one at a time: the least memory, and the slowest."""
    for block in block_modules(module):
        vars(block).pop("forward", None)  # a compiled forward would not run the hooks of its layers
    layers = [part for part in module.modules() if own_tensors(part)]
    return StreamedModel(module, transfers, {layer: [layer] for layer in layers}, prefetch=False)


def own_tensors(module: nn.Module) -> list[torch.Tensor]:
    """The parameters and buffers of a module without those of its children."""
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def all_tensors(module: nn.Module) -> list[torch.Tensor]:
    """The parameters and buffers of a module and its children."""
    return [*module.parameters(), *module.buffers()]


def block_modules(module: nn.Module) -> list[nn.Module]:
    """The blocks of a model (for a UNet the parts of its blocks) in the order in which they run; it may have none."""
    named = dict(module.named_modules())
    blocks = [block for name in BLOCK_LISTS if isinstance(found := named.get(name), nn.ModuleList) for block in found]
    return blocks or [part for name in UNET_BLOCKS if (found := named.get(name)) for part in _unet_parts(found)]


def _unet_parts(blocks: nn.Module) -> Iterator[nn.Module]:
    """Of every block the residual and attention parts in turn, then what resamples."""
    for block in blocks if isinstance(blocks, nn.ModuleList) else [blocks]:
        pairs = zip_longest(*(getattr(block, name, ()) for name in ("resnets", "attentions")))
        yield from (part for pair in pairs for part in pair if part is not None)
        yield from getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) or ()


PLACED_MODELS: Mapping[Kind, Callable[[nn.Module, Transfers], PlacedModel]] = MappingProxyType(
    {
        "resident": ResidentModel,
        "model offload": OffloadedModel,
        "block offload": block_offload,
        "layer offload": layer_offload,
    }
)
