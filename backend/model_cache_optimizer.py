"""Lends models: each is read once, placed as the memory plan says, and moved only when that is needed.

>>> with models.on_device("transformer") as (transformer,):
...     transformer(...)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from backend.devices.probe import host_memory
from backend.offload.oom_fallback import OutOfMemory, clear_memory, is_out_of_memory
from backend.offload.placements import PlacedModel, block_modules, placed_model
from backend.offload.tensor_groups import ordinary_tensors
from backend.planning.costs import FEWEST_STREAMED, Kind
from backend.stream import HostTransfers, Transfers, packed

logger = logging.getLogger(__name__)

LEAST_KEPT = 1 / 8
"""Share of a model's blocks below which keeping some is given up when memory is short."""

Loader = Callable[[], nn.Module]
Prepare = Callable[[str, nn.Module], nn.Module]


def unchanged(name: str, module: nn.Module) -> nn.Module:
    return module


@dataclass(frozen=True)
class CacheStats:
    """Counts since the start: loans that found the model on the device (hits) or had to upload it (misses), evictions,
    prefetches, uploaded bytes of weights, and for each model its size in bytes and the seconds that reading took."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    prefetches: int = 0
    bytes_moved: int = 0
    load_seconds: Mapping[str, float] = field(default_factory=dict)
    model_bytes: Mapping[str, int] = field(default_factory=dict)

    def table(self) -> str:
        lines = [f"{'model':<18} {'MiB':>9} {'load s':>7}"]
        lines += [
            f"{name:<18} {self.model_bytes[name] / 2**20:>9.1f} {seconds:>7.2f}"
            for name, seconds in self.load_seconds.items()
        ]
        counts = f"hits {self.hits}, misses {self.misses}, evictions {self.evictions}, prefetches {self.prefetches}"
        return "\n".join([*lines, f"{counts}, {self.bytes_moved / 2**20:.1f} MiB moved"])


class ModelCache:
    """Models by name.

    Args:
        placements: How each model is placed; resident where it says nothing.
        transfers: How bytes reach the device.
        headroom: For models by name the bytes that a prefetch must leave free while they are lent, for what they
            compute.
        prepare: Called with the name and the model after it was read and before it is placed; returns the model to use.
        kept_blocks: Of partial models, how many blocks stay on the device.
    """

    def __init__(
        self,
        device: torch.device,
        transfers: Transfers | None = None,
        placements: Mapping[str, Kind] | None = None,
        headroom: Mapping[str, int] | None = None,
        prepare: Prepare = unchanged,
        kept_blocks: Mapping[str, int] | None = None,
    ) -> None:
        self.device = device
        self._transfers = transfers or HostTransfers()
        self._placements = dict(placements or {})
        self._kept_blocks = dict(kept_blocks or {})
        self._headroom = headroom or {}
        self._prepare = prepare
        self._loaders: dict[str, Loader] = {}
        self._placed: dict[str, PlacedModel] = {}
        self._stats = CacheStats()
        self._lock = threading.RLock()
        self._returned = threading.Condition(self._lock)
        self._streaming_threads: list[int] = []
        """The thread of every open loan of a streamed model. All are the same."""

    def register(self, name: str, loader: Loader) -> None:
        """Makes a model known; nothing is read yet."""
        self._loaders[name] = loader

    def forget(self, name: str) -> None:
        """Takes back :meth:`register` for a model that could not be loaded."""
        del self._loaders[name]

    def names(self) -> tuple[str, ...]:
        """All models that are known, in the order in which they were registered."""
        return tuple(self._loaders)

    @contextmanager
    def on_device(self, *names: str) -> Iterator[tuple[nn.Module, ...]]:
        """Lends models, in the order asked for, ready to compute on the device. Loans may be nested.

        Models that may leave the device and that nobody has borrowed make room first. Several threads may borrow the
        same model at once, unless it is streamed: its parts come and go during a forward, so another thread waits until
        the loan ends.
        """
        with self._lock:
            self._returned.wait_for(lambda: self._may_borrow(names))
            borrowed = [self._placed_model(name) for name in names]
            streamed = any(placed.is_streamed for placed in borrowed)
            self._make_room(borrowed)
            for placed in borrowed:
                placed.borrowers += 1
            if streamed:
                self._streaming_threads.append(threading.get_ident())
        try:
            with self._lock:
                for placed in borrowed:
                    self._count(placed.load())
                self._transfers.synchronize()
            yield tuple(placed.module for placed in borrowed)
        finally:
            with self._lock:
                for placed in borrowed:
                    placed.borrowers -= 1
                if streamed:
                    self._streaming_threads.pop()
                    self._returned.notify_all()

    def prefetch(self, name: str) -> bool:
        """Starts to upload a model that will be borrowed next, if it has been read and there is room; returns whether
        it did. To be called inside of the loan before."""
        with self._lock:
            placed = self._placed.get(name)
            if placed is None or not placed.pending_bytes:
                return False
            lent = [one for one, model in self._placed.items() if model.borrowers]
            headroom = max((self._headroom.get(one, 0) for one in lent), default=0)
            if placed.pending_bytes + headroom > self._transfers.free_bytes():
                return False
            try:
                placed.load()
            except torch.OutOfMemoryError:  # free memory may be fragmented: it is uploaded when it is borrowed
                return False
            self._stats = replace(self._stats, prefetches=self._stats.prefetches + 1)
            return True

    def module(self, name: str) -> nn.Module:
        """A model as it is built, to look at; its weights may be anywhere."""
        with self._lock:
            return self._placed_model(name).module

    def on_host(self) -> AbstractContextManager[None]:
        """Inside, tensors that are made on the CPU are in the host's memory, also beside an emulated device."""
        return self._transfers.on_host()

    def upload(self, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Copies on the device of tensors that are none of a model's, ready to compute with."""
        with self._lock, ordinary_tensors():
            copies = self._transfers.upload(packed(tensors))
            self._transfers.synchronize()
            return copies

    def load(self, name: str) -> None:
        """Reads a model, unless it has been read, and uploads what of it stays on the device.

        Where that does not fit, because something else took memory after the plan was made, a resident model changes to
        model offload, and a partial one keeps fewer blocks.
        """
        with self._lock:
            while reason := self._why_not_loaded(self._placed_model(name)):
                # only here, outside of the handler, has the error let go of what was uploaded
                clear_memory()
                kind = self._kind(name)
                change = self._place(
                    {name: ("model offload", 0) if kind == "resident" else self._with_fewer_blocks(name)}
                )
                if not change:
                    raise OutOfMemory(f"{name}: the memory is too small to load it: {reason}")
                logger.warning(
                    "%s does not fit as planned, and other models follow when it is used: %s", change, reason
                )

    def _why_not_loaded(self, placed: PlacedModel) -> str:
        """Uploads what stays on the device; returns what the device says where that does not fit."""
        try:
            placed.load_standing()
            self._transfers.synchronize()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return str(error).partition("\n")[0] or "out of memory"
        return ""

    def release(self) -> None:
        """Drops from the device all models that may leave it and that nobody has borrowed."""
        with self._lock:
            self._make_room([])

    def offload_others(self, names: Collection[str]) -> str:
        """Changes models other than ``names`` so that nothing of them stays on the device between their loans: resident
        ones to model offload, partial ones to block offload.

        Returns what was changed in words, or nothing when nothing could be: models that are lent stay as they are, and
        so do those that the host has no memory for.
        """
        downgrade: dict[Kind, Kind] = {"resident": "model offload", "partial": "block offload"}
        with self._lock:
            others = {name: self._kind(name) for name in self._placed if name not in names}
            return self._place({name: (downgrade[kind], 0) for name, kind in others.items() if kind in downgrade})

    def stream(self, names: Collection[str]) -> str:
        """Changes those of ``names`` that have blocks for good: to partial with half as many blocks on the device, then
        to block offload, then to layer offload.

        Returns what was changed in words, or nothing, as :meth:`offload_others` does.
        """
        with self._lock:
            having = [name for name in names if name in self._placed and block_modules(self._placed[name].module)]
            by_block = [name for name in having if self._kind(name) == "block offload"]
            fewer = {
                name: self._with_fewer_blocks(name)
                for name in having
                if self._kind(name) not in ("block offload", "layer offload")
            }
            return self._place(fewer) or self._place(dict.fromkeys(by_block, ("layer offload", 0)))

    def _with_fewer_blocks(self, name: str) -> tuple[Kind, int]:
        """The placement to take next in place of one that keeps blocks, and the number of those that stay."""
        kind, blocks = self._kind(name), len(block_modules(self._placed[name].module))
        if kind == "model offload":  # what stays would be in the way of other models
            return "block offload", 0
        kept = min((self._kept_blocks[name] if kind == "partial" else blocks) // 2, blocks - FEWEST_STREAMED)
        return ("partial", kept) if kept >= LEAST_KEPT * blocks else ("block offload", 0)

    def stats(self) -> CacheStats:
        with self._lock:
            return replace(self._stats, bytes_moved=self._transfers.bytes_uploaded)

    def _may_borrow(self, names: Collection[str]) -> bool:
        # one thread for all streamed models, so that no two threads can wait for each other's
        if not self._streaming_threads or self._streaming_threads[-1] == threading.get_ident():
            return True
        return not any(self._placed_model(name).is_streamed for name in names)

    def _kind(self, name: str) -> Kind:
        return self._placements.get(name, "resident")

    def _placed_model(self, name: str) -> PlacedModel:
        if name not in self._placed:
            begin = time.perf_counter()
            # weights must be ordinary tensors, also when they are read during an inference
            with torch.inference_mode(False):
                module = self._prepare(name, self._loaders[name]().eval().requires_grad_(False))
            placed = placed_model(module, self._transfers, self._kind(name), self._kept_blocks.get(name, 0))
            seconds = time.perf_counter() - begin
            self._placed[name] = placed
            self._stats = replace(
                self._stats,
                load_seconds={**self._stats.load_seconds, name: seconds},
                model_bytes={**self._stats.model_bytes, name: placed.bytes},
            )
            logger.info("%s: %.1f MiB read in %.2f s", name, placed.bytes / 2**20, seconds)
        return self._placed[name]

    def _place(self, places: Mapping[str, tuple[Kind, int]]) -> str:
        """Places models anew, each in a kind with so many blocks that stay, except those that are lent and those that
        do not fit into the host's memory."""
        if not self._transfers.has_device_memory:
            return ""
        changed: dict[str, list[str]] = {}
        for name, (kind, kept) in places.items():
            placed = self._placed[name]
            if placed.borrowers or placed.standing_bytes > host_memory()[1]:
                continue
            self._placed[name] = placed_model(placed.detach(), self._transfers, kind, kept)
            self._placements[name], self._kept_blocks[name] = kind, kept
            changed.setdefault(f"{kind} with {kept} blocks" if kept else kind, []).append(name)
        return ", ".join(f"{place} for {', '.join(names)}" for place, names in changed.items())

    def _make_room(self, wanted: Collection[PlacedModel]) -> None:
        for placed in self._placed.values():
            if not placed.is_resident and not placed.borrowers and placed not in wanted and placed.is_loaded:
                placed.unload()
                self._stats = replace(self._stats, evictions=self._stats.evictions + 1)

    def _count(self, uploaded: bool) -> None:
        stats = self._stats
        self._stats = replace(stats, misses=stats.misses + 1) if uploaded else replace(stats, hits=stats.hits + 1)
