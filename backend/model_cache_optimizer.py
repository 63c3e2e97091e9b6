"""Lends models: each is read once, placed as the memory plan says, and moved only when that is needed.

>>> with models.on_device("transformer") as (transformer,):
...     transformer(...)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from backend.devices.probe import host_memory
from backend.offload.oom_fallback import OutOfMemory, clear_memory, is_out_of_memory
from backend.offload.placements import PLACED_MODELS, PlacedModel, block_modules
from backend.planning.costs import Kind
from backend.stream import HostTransfers, Transfers

logger = logging.getLogger(__name__)

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
        headroom: Bytes that a prefetch must leave free for the computation that runs meanwhile.
        prepare: Called with the name and the model after it was read and before it is placed; returns the model to use.
    """

    def __init__(
        self,
        device: torch.device,
        transfers: Transfers | None = None,
        placements: Mapping[str, Kind] | None = None,
        headroom: int = 0,
        prepare: Prepare = unchanged,
    ) -> None:
        self.device = device
        self._transfers = transfers or HostTransfers()
        self._placements = dict(placements or {})
        self._headroom = headroom
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
            if placed.pending_bytes + self._headroom > self._transfers.free_bytes():
                return False
            try:
                placed.load()
            except torch.OutOfMemoryError:  # free memory may be fragmented: it is uploaded when it is borrowed
                return False
            self._stats = replace(self._stats, prefetches=self._stats.prefetches + 1)
            return True

    def load(self, name: str) -> None:
        """Reads a model, unless it has been read, and uploads it if it is resident.

        One that does not fit, because something else took memory after the plan was made, changes to model offload.
        """
        with self._lock:
            placed = self._placed_model(name)
            if not placed.is_resident:
                return
            try:
                placed.load()
                self._transfers.synchronize()
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            # only here, outside of the handler, has the error let go of what was uploaded
            clear_memory()
            change = self._place({name: "model offload"})
            if not change:
                raise OutOfMemory(f"{name}: the memory is too small to load it: {reason}")
            logger.warning("%s does not fit as planned, and other models follow when it is used: %s", change, reason)

    def release(self) -> None:
        """Drops from the device all models that may leave it and that nobody has borrowed."""
        with self._lock:
            self._make_room([])

    def offload_others(self, names: Collection[str]) -> str:
        """Changes resident models other than ``names`` to model offload for good, so that those have the device for
        themselves.

        Returns what was changed in words, or nothing when nothing could be: models that are lent stay as they are, and
        so do those that the host has no memory for.
        """
        with self._lock:
            others = [name for name in self._placed if name not in names and self._kind(name) == "resident"]
            return self._place(dict.fromkeys(others, "model offload"))

    def stream(self, names: Collection[str]) -> str:
        """Changes those of ``names`` that have blocks to block offload for good, or from there to layer offload.

        Returns what was changed in words, or nothing, as :meth:`offload_others` does.
        """
        with self._lock:
            having = [name for name in names if name in self._placed and block_modules(self._placed[name].module)]
            whole = [name for name in having if self._kind(name) in ("resident", "model offload")]
            by_block = [name for name in having if self._kind(name) == "block offload"]
            return self._place(dict.fromkeys(whole, "block offload")) or self._place(
                dict.fromkeys(by_block, "layer offload")
            )

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
            placed = PLACED_MODELS[self._kind(name)](module, self._transfers)
            seconds = time.perf_counter() - begin
            self._placed[name] = placed
            self._stats = replace(
                self._stats,
                load_seconds={**self._stats.load_seconds, name: seconds},
                model_bytes={**self._stats.model_bytes, name: placed.bytes},
            )
            logger.info("%s: %.1f MiB read in %.2f s", name, placed.bytes / 2**20, seconds)
        return self._placed[name]

    def _place(self, kinds: Mapping[str, Kind]) -> str:
        """Places models anew, except those that are lent and those that do not fit into the host's memory."""
        if not self._transfers.has_device_memory:
            return ""
        changed: dict[Kind, list[str]] = {}
        for name, kind in kinds.items():
            placed = self._placed[name]
            # a resident model has no copy on the host, unless it was not loaded
            if placed.borrowers or (placed.is_resident and placed.is_loaded and placed.bytes > host_memory()[1]):
                continue
            self._placed[name] = PLACED_MODELS[kind](placed.detach(), self._transfers)
            self._placements[name] = kind
            changed.setdefault(kind, []).append(name)
        return ", ".join(f"{kind} for {', '.join(names)}" for kind, names in changed.items())

    def _make_room(self, wanted: Collection[PlacedModel]) -> None:
        for placed in self._placed.values():
            if not placed.is_resident and not placed.borrowers and placed not in wanted and placed.is_loaded:
                placed.unload()
                self._stats = replace(self._stats, evictions=self._stats.evictions + 1)

    def _count(self, uploaded: bool) -> None:
        stats = self._stats
        self._stats = replace(stats, misses=stats.misses + 1) if uploaded else replace(stats, hits=stats.hits + 1)
