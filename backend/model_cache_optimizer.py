"""Lends models: each is read once, stays where it is, and is counted.

>>> with models.on_device("transformer") as (transformer,):
...     transformer(...)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

logger = logging.getLogger(__name__)

Loader = Callable[[], nn.Module]


@dataclass
class CacheStats:
    """What was lent since the start: borrows that found the model on the device (hits) or not (misses), loads, bytes moved, seconds."""

    hits: int = 0
    misses: int = 0
    bytes_moved: int = 0
    load_seconds: dict[str, float] = field(default_factory=dict)
    model_bytes: dict[str, int] = field(default_factory=dict)

    def table(self) -> str:
        lines = [f"{'model':<18} {'MiB':>9} {'load s':>7}"]
        lines += [f"{name:<18} {self.model_bytes[name] / 2**20:>9.1f} {seconds:>7.2f}" for name, seconds in self.load_seconds.items()]
        return "\n".join([*lines, f"hits {self.hits}, misses {self.misses}, {self.bytes_moved / 2**20:.1f} MiB moved"])


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


class ModelCache:
    """Models by name. A model is loaded when it is first borrowed (or by :meth:`load`) and then stays on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._loaders: dict[str, Loader] = {}
        self._resident: dict[str, nn.Module] = {}
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
        """Lends models, in the order asked for, on the device. May be nested, and used from several threads."""
        modules = []
        with self._lock:
            for name in names:
                if name in self._resident:
                    self._stats.hits += 1
                else:
                    self._stats.misses += 1
                    self.load(name)
                modules.append(self._resident[name])
        yield tuple(modules)

    def load(self, name: str) -> None:
        """Reads a model and brings it to the device, unless it is there already."""
        with self._lock:
            if name in self._resident:
                return
            begin = time.perf_counter()
            module = self._loaders[name]().eval().requires_grad_(False).to(self.device)
            seconds, size = time.perf_counter() - begin, module_bytes(module)
            self._resident[name] = module
            self._stats.load_seconds[name] = seconds
            self._stats.model_bytes[name] = size
            self._stats.bytes_moved += size
            logger.info("%s: %.1f MiB loaded in %.2f s", name, size / 2**20, seconds)

    def stats(self) -> CacheStats:
        return self._stats
