"""Lends models: each is read once, lives where the memory plan says, is never moved in vain, and is counted.

>>> with models.on_device("transformer") as (transformer,):
...     transformer(...)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from backend.offload.placements import DOWNGRADES, PLACED_MODELS, PlacedModel, block_modules
from backend.planning.costs import Kind
from backend.stream import HostTransfers, Transfers

logger = logging.getLogger(__name__)

Loader = Callable[[], nn.Module]
Prepare = Callable[[str, nn.Module], nn.Module]


def unchanged(name: str, module: nn.Module) -> nn.Module:
    return module


@dataclass(frozen=True)
class CacheStats:
    """What happened since the start: borrows that found the model on the device (hits) or had to bring it (misses),
    evictions, prefetches, weight bytes that went to the device (none ever come back), and by model the seconds of
    reading and its bytes."""

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

    ``placements`` says how each lives (resident where it says nothing), ``transfers`` how its bytes travel, and
    ``headroom`` how many bytes a prefetch must leave free for the computation that goes on meanwhile. ``prepare`` gets
    every model after it was read, with its name, before it is placed.
    """

    def __init__(
        self,
        device: torch.device,
        transfers: Transfers | None = None,
        placements: Mapping[str, Kind] | None = None,
        headroom: int = 0,
        prepare: Prepare = unchanged,
    ) -> None:
        self._headroom = headroom
        self._prepare = prepare
        self.device = device
        self._transfers = transfers or HostTransfers()
        self._placements = dict(placements or {})
        self._loaders: dict[str, Loader] = {}
        self._placed: dict[str, PlacedModel] = {}
        self._lock = threading.RLock()
        self._stats = CacheStats()

    def register(self, name: str, loader: Loader) -> None:
        """Makes a model known; nothing is read yet."""
        self._loaders[name] = loader

    def names(self) -> tuple[str, ...]:
        """All models that are known, in the order in which they were registered."""
        return tuple(self._loaders)

    @contextmanager
    def on_device(self, *names: str) -> Iterator[tuple[nn.Module, ...]]:
        """Lends models, in the order asked for, ready to compute on the device. May be nested, and used from several
        threads.

        Models that may leave and that nobody has borrowed make room first. An error inside leaves the loan in order.
        """
        with self._lock:
            borrowed = [self._placed_model(name) for name in names]
            self._make_room(borrowed)
            for placed in borrowed:
                placed.borrowers += 1
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

    def prefetch(self, name: str) -> bool:
        """Begins to bring a model that will be borrowed next, if it is read and there is room. Call it inside the
        loan before."""
        with self._lock:
            placed = self._placed.get(name)
            if (
                placed is None
                or not placed.pending_bytes
                or placed.pending_bytes + self._headroom > self._transfers.free_bytes()
            ):
                return False
            try:
                placed.load()
            except torch.OutOfMemoryError:  # fragments: it comes when it is borrowed
                return False
            self._stats = replace(self._stats, prefetches=self._stats.prefetches + 1)
            return True

    def load(self, name: str) -> None:
        """Reads a model, unless it is read already, and brings it to the device if that is where it lives."""
        with self._lock:
            placed = self._placed_model(name)
            if placed.is_resident:
                placed.load()
                self._transfers.synchronize()

    def release(self) -> None:
        """Drops from the device every model that may leave and that nobody has borrowed."""
        with self._lock:
            self._make_room([])

    def downgrade(self) -> str:
        """Places models one step leaner for good: residents are swapped; when there are none, those that have blocks
        are streamed.

        Gives what was changed in words, or nothing when no leaner way is left. Models that are lent stay as they are.
        """
        with self._lock:
            for kind, leaner in DOWNGRADES.items():
                changing = [
                    name
                    for name in self._placed
                    if self._transfers.has_device_memory and self._may_become(name, kind, leaner)
                ]
                for name in changing:
                    self._placed[name] = PLACED_MODELS[leaner](self._placed[name].end(), self._transfers)
                    self._placements[name] = leaner
                if changing:
                    return f"{', '.join(changing)} {leaner}"
            return ""

    def stats(self) -> CacheStats:
        with self._lock:
            return replace(self._stats, bytes_moved=self._transfers.bytes_uploaded)

    def _placed_model(self, name: str) -> PlacedModel:
        if name not in self._placed:
            begin = time.perf_counter()
            with torch.inference_mode(
                False
            ):  # weights are ordinary tensors, also when a stage is the first to ask for them
                module = self._prepare(name, self._loaders[name]().eval().requires_grad_(False))
            placed = PLACED_MODELS[self._placements.get(name, "resident")](module, self._transfers)
            seconds = time.perf_counter() - begin
            self._placed[name] = placed
            self._stats = replace(
                self._stats,
                load_seconds={**self._stats.load_seconds, name: seconds},
                model_bytes={**self._stats.model_bytes, name: placed.bytes},
            )
            logger.info("%s: %.1f MiB read in %.2f s", name, placed.bytes / 2**20, seconds)
        return self._placed[name]

    def _may_become(self, name: str, kind: Kind, leaner: Kind) -> bool:
        placed = self._placed[name]
        has_way = leaner == "model offload" or bool(block_modules(placed.module))
        return self._placements.get(name, "resident") == kind and has_way and not placed.borrowers

    def _make_room(self, wanted: list[PlacedModel]) -> None:
        for placed in self._placed.values():
            if not placed.is_resident and not placed.borrowers and placed not in wanted and placed.is_loaded:
                placed.unload()
                self._stats = replace(self._stats, evictions=self._stats.evictions + 1)

    def _count(self, moved: bool) -> None:
        stats = self._stats
        self._stats = replace(stats, misses=stats.misses + 1) if moved else replace(stats, hits=stats.hits + 1)
