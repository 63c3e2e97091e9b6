"""The four ways in which a model lives beside a device: resident, swapped, grouped, sequential.

The names and their prices are those of the memory plan (``backend/memory_management.py``). A model never changes its
arithmetic by where it lives, only where its bytes wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import zip_longest
from types import MappingProxyType

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from backend.planning.costs import Kind
from backend.stream import Transfers, tensor_bytes

BLOCK_LISTS = ("transformer_blocks", "single_transformer_blocks", "encoder.block")
"""Where the models have their repeated blocks: Flux's two kinds, T5's one. They run in this order."""
UNET_BLOCKS = ("down_blocks", "mid_block", "up_blocks")
"""Where a UNet has its blocks, in their order. One of SDXL is 2.4 GB, so it is their parts that are streamed."""


class TensorGroup:
    """The tensors that some modules hold themselves (not their children), which arrive on the device and leave it
    together."""

    def __init__(self, modules: Iterable[nn.Module], transfers: Transfers) -> None:
        tensors = {
            id(t): t for module in modules for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        }
        self._pairs = [(tensor, tensor.data) for tensor in tensors.values()]
        self._transfers = transfers
        self.is_loaded = False
        for _, host in self._pairs:
            transfers.pin(host)

    @property
    def bytes(self) -> int:
        return sum(tensor_bytes(host) for _, host in self._pairs)

    def load(self) -> None:
        """Uploads what is not on the device. An error leaves nothing half there."""
        if self.is_loaded:
            return
        try:
            # a weight is an ordinary tensor, also when it arrives in the middle of an inference
            with torch.inference_mode(False), torch.no_grad():
                for tensor, host in self._pairs:
                    tensor.data = self._transfers.upload(host)
        except BaseException:
            self.unload()
            raise
        self.is_loaded = True

    def unload(self) -> None:
        """Drops the device's copies; nothing is copied back."""
        for tensor, host in self._pairs:
            tensor.data = host
        self.is_loaded = False


class PlacedModel:
    """A model that is resident: it goes to the device once, stays, and leaves nothing on the host.

    ``borrowers`` counts the loans that are open; the cache keeps it.
    """

    is_resident = True

    def __init__(self, module: nn.Module, transfers: Transfers) -> None:
        self.module, self.transfers, self.borrowers, self.is_loaded = module, transfers, 0, False

    @property
    def bytes(self) -> int:
        """All of the model, wherever it is."""
        return sum(tensor_bytes(tensor) for tensor in (*self.module.parameters(), *self.module.buffers()))

    @property
    def pending_bytes(self) -> int:
        """What :meth:`arrive` would bring now."""
        return 0 if self.is_loaded else self.bytes

    def load(self) -> bool:
        """Makes the model ready to be lent; returns whether it was not."""
        if self.is_loaded:
            return False
        with torch.inference_mode(False), torch.no_grad():
            for tensor in (*self.module.parameters(), *self.module.buffers()):
                tensor.data = self.transfers.upload(tensor.data)
        self.is_loaded = True
        return True

    def unload(self) -> None:
        """Leaves the device. A resident model does not."""

    def end(self) -> nn.Module:
        """Gives the module back, whole and on the host, to live in another way."""
        if self.is_loaded:
            with torch.inference_mode(False), torch.no_grad():
                for tensor in (*self.module.parameters(), *self.module.buffers()):
                    tensor.data = self.transfers.download(tensor.data)
            self.is_loaded = False
        return self.module


class OffloadedModel(PlacedModel):
    """Uploaded when it is borrowed, dropped when others are."""

    is_resident = False

    def __init__(self, module: nn.Module, transfers: Transfers) -> None:
        super().__init__(module, transfers)
        self._offloaded = TensorGroup(self.offloaded_modules(), transfers)

    def offloaded_modules(self) -> Iterable[nn.Module]:
        """The modules whose own tensors are on the device for as long as the model is lent."""
        return self.module.modules()

    @property
    def pending_bytes(self) -> int:
        return 0 if self.is_loaded else self._offloaded.bytes

    def load(self) -> bool:
        if self.is_loaded:
            return False
        self._offloaded.load()
        self.is_loaded = True
        return True

    def unload(self) -> None:
        self._offloaded.unload()
        self.is_loaded = False

    def end(self) -> nn.Module:
        self.unload()
        return self.module


class StreamedModel(OffloadedModel):
    """Its parts arrive when their forward begins and leave when it ends. ``parts`` are in the order in which they run.

    With ``ahead`` the next part arrives while one computes, so two are on the device at a time.
    """

    def __init__(
        self, module: nn.Module, transfers: Transfers, parts: Mapping[nn.Module, Iterable[nn.Module]], ahead: bool
    ) -> None:
        self._inside = {id(inner) for modules in parts.values() for inner in modules}
        super().__init__(module, transfers)
        self._groups = [TensorGroup(modules, transfers) for modules in parts.values()]
        self._hooks: list[RemovableHandle] = []
        for part, group, following in zip(parts, self._groups, [*self._groups[1:], None], strict=True):
            self._hooks.append(part.register_forward_pre_hook(self._before(group, following if ahead else None)))
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
        for group in self._groups:  # a forward that was broken off leaves some behind
            group.unload()

    def end(self) -> nn.Module:
        for hook in self._hooks:
            hook.remove()
        return super().end()


def grouped(module: nn.Module, transfers: Transfers) -> PlacedModel:
    """Streams its blocks; while one computes the next one arrives."""
    return StreamedModel(
        module, transfers, {block: list(block.modules()) for block in block_modules(module)}, ahead=True
    )


def sequential(module: nn.Module, transfers: Transfers) -> PlacedModel:
    """Its layers pass through the device one at a time: the least memory, and the slowest."""
    for block in block_modules(module):
        vars(block).pop("forward", None)  # a compiled forward, which would not run the hooks of its layers
    holders = [
        part
        for part in module.modules()
        if any(True for _ in (*part.parameters(recurse=False), *part.buffers(recurse=False)))
    ]
    return StreamedModel(module, transfers, {part: [part] for part in holders}, ahead=False)


def block_modules(module: nn.Module) -> list[nn.Module]:
    """The blocks of a model (of a UNet their parts) in the order in which they run; none for a model that has none."""
    named = dict(module.named_modules())
    blocks = [block for name in BLOCK_LISTS if isinstance(found := named.get(name), nn.ModuleList) for block in found]
    return blocks or [part for name in UNET_BLOCKS if (found := named.get(name)) for part in _unet_parts(found)]


def _unet_parts(blocks: nn.Module) -> Iterator[nn.Module]:
    """Residual and attention parts by turns, then what changes the size."""
    for block in blocks if isinstance(blocks, nn.ModuleList) else [blocks]:
        turns = zip_longest(*(getattr(block, name, ()) for name in ("resnets", "attentions")))
        yield from (part for turn in turns for part in turn if part is not None)
        yield from getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) or ()


PLACED_MODELS: Mapping[Kind, Callable[[nn.Module, Transfers], PlacedModel]] = MappingProxyType(
    {"resident": PlacedModel, "model offload": OffloadedModel, "block offload": grouped, "layer offload": sequential}
)

DOWNGRADES: Mapping[Kind, Kind] = MappingProxyType(
    {"resident": "model offload", "model offload": "block offload", "block offload": "layer offload"}
)
"""The next way that needs less of the device, and more time."""
