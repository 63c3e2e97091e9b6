"""Quantized models on disk, so that only the first start rounds their weights.

An entry is one safetensors file with everything that a start needs: the tensors, the class and configuration of the
module, and the paths of its quantized layers. Its key names the files that the weights came from, by size, date and
samples of their content. Files that do not have the checksums that they were written with are made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from backend.core.files import RESERVED_BYTES, atomic_files, can_be_written, has_room
from backend.core.locks import NO_LOCKS, open_locked
from backend.core.units import format_bytes
from backend.offload.placements import all_tensors
from backend.offload.quantized_linear import FORMATS, QuantizedLinear, replace_layer
from backend.stream import tensor_bytes

logger = logging.getLogger(__name__)

VERSION = "1"
"""Of the entries, and of how weights are rounded: another one makes all of them anew."""
SOURCE_FILES = (".safetensors", ".sft", ".gguf", ".json")
"""How the names of the files end that decide what a model is."""
SAMPLES, SAMPLE_BYTES = 8, 4096
"""How many pieces of a file are read to recognize it, and their size."""
READERS = 4
SMALLEST = 2**28
"""Bytes of a model from which on it is kept: a smaller one is rounded in a second."""


class DamagedEntryError(Exception):
    """An entry that is not what was written."""


def content_key(places: Iterable[Path], *details: str) -> str:
    """A name for what is made from the files of weights in ``places`` (files, or folders with all that is inside), in
    the way that ``details`` say. Another file, date or sample of the content gives another name. Raises OSError."""
    digest = hashlib.sha256("\0".join((VERSION, *details)).encode())
    for place in places:
        files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.suffix in SOURCE_FILES)
        for file in files:
            stat = file.stat()
            digest.update(f"\0{file.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
            with file.open("rb") as opened:
                for index in range(SAMPLES):
                    digest.update(os.pread(opened.fileno(), SAMPLE_BYTES, index * stat.st_size // SAMPLES))
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class QuantizedCache:
    """Entries in ``folders``: read from all, written into the first that can be written. The least recently used are
    deleted when there are more than ``max_bytes``; 0 keeps none. Models of less than ``smallest`` bytes are not kept,
    and none where less than ``reserved`` bytes of the disk would stay free.
    """

    folders: Sequence[Path]
    max_bytes: int
    smallest: int = SMALLEST
    reserved: int = RESERVED_BYTES

    def module(self, key: str, make: Callable[[], nn.Module]) -> nn.Module:
        """The model of that key: from its entry, or as ``make`` makes it, and then kept. It is on the host.

        Of several processes that need the same entry one makes it, and the others wait.
        """
        if not self.max_bytes:
            return make()
        if (module := self._find(key)) is not None:
            return module
        folder = next(filter(can_be_written, self.folders), None)
        if folder is None:
            logger.info("quantized weights are not kept for the next start: no folder for them can be written")
            return make()
        with _locked(folder):
            if (module := self._find(key)) is not None:  # made by the one that had the lock
                return module
            module = make()
            if not self._keep(folder, key, module):
                return module
        found = self._find(key)  # its pages are the file's, and take no memory of their own
        return module if found is None else found

    def _find(self, key: str) -> nn.Module | None:
        for folder in self.folders:
            file = folder / f"{key}.safetensors"
            if not file.is_file():
                continue
            try:
                module = read_entry(file)
            except (DamagedEntryError, SafetensorError, OSError) as problem:
                logger.warning("%s of the cache of quantized weights is damaged and made again: %s", file.name, problem)
                _delete(file)
                continue
            _touch(file)
            return module
        return None

    def _keep(self, folder: Path, key: str, module: nn.Module) -> bool:
        size = sum(tensor_bytes(tensor) for tensor in all_tensors(module))
        if not self.smallest <= size <= self.max_bytes or not is_rebuildable(module):
            return False
        if not has_room(folder, size, self.reserved):
            logger.warning(
                "quantized weights (%s) are not kept for the next start: the disk is full", format_bytes(size)
            )
            return False
        try:
            self._make_room(folder, size)
            with atomic_files([folder / f"{key}.safetensors"]) as [part]:
                write_entry(part, module)
        except OSError as problem:
            logger.warning("quantized weights are not kept for the next start: %s", problem.strerror or problem)
            return False
        logger.info("quantized weights (%s) are kept in '%s' for the next start", format_bytes(size), folder.name)
        return True

    def _make_room(self, folder: Path, size: int) -> None:
        """Deletes the entries that were not used for longest, until ``size`` more bytes are within the limit."""
        entries = sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        held = {file: file.stat().st_size for file in entries}
        while held and sum(held.values()) + size > self.max_bytes:
            oldest = next(iter(held))
            del held[oldest]
            _delete(oldest)


def is_rebuildable(module: nn.Module) -> bool:
    """Whether the module can be built again from the name of its class and its configuration."""
    return _library_class(type(module).__name__) is type(module)


def write_entry(file: Path, module: nn.Module) -> None:
    """Raises OSError."""
    quantized = {path: layer for path, layer in module.named_modules() if isinstance(layer, QuantizedLinear)}
    formats = {kind: name for name, kind in FORMATS.items()}
    saved = module.state_dict()  # without what is computed again
    shared = {id(parameter) for _, parameter in module.named_parameters()}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, nn.Parameter) or id(tensor) in shared:
            tensors[name] = saved[name].contiguous()
            shared.discard(id(tensor))  # a tensor with two names is written once
    described: Any = module if hasattr(module, "to_json_string") else module.config  # diffusers', transformers'
    metadata = {
        "class": type(module).__name__,
        "config": described.to_json_string(),
        "layers": json.dumps({path: [formats[type(layer)], str(layer.dtype)] for path, layer in quantized.items()}),
        "checksums": json.dumps(checksums(tensors)),
    }
    save_file(tensors, file, metadata)


def read_entry(file: Path) -> nn.Module:
    """The module of an entry, for inference; its tensors are mapped. Raises :class:`DamagedEntryError`, OSError and
    SafetensorError."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    if metadata.get("checksums") != json.dumps(checksums(tensors)):
        raise DamagedEntryError("its content is not what was written")
    try:
        module = _empty(metadata["class"], json.loads(metadata["config"]))
        for path, (name, dtype) in json.loads(metadata["layers"]).items():
            layer = module.get_submodule(path)
            assert isinstance(layer, nn.Linear)
            stored = {key: tensors.pop(f"{path}.{key}") for key in FORMATS[name].parts}
            replace_layer(module, path, FORMATS[name](layer, getattr(torch, dtype.removeprefix("torch.")), stored))
        module.load_state_dict(tensors, assign=True, strict=False)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as problem:  # of another version
        raise DamagedEntryError(
            f"it does not fit this version ({str(problem).partition(chr(10))[0][:100]})"
        ) from problem
    if callable(tie := getattr(module, "tie_weights", None)):
        tie()
    if any(tensor.is_meta for tensor in all_tensors(module)):
        raise DamagedEntryError("it lacks tensors")
    return module.eval()


def checksums(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """By name, in the order of the names. Several readers also bring mapped tensors into memory."""
    names = sorted(tensors)
    with ThreadPoolExecutor(READERS) as readers:
        return dict(zip(names, readers.map(lambda name: _checksum(tensors[name]), names)))


def _checksum(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _library_class(name: str) -> Any:
    """The class of diffusers or transformers that has this name; None where there is none."""
    import diffusers
    import transformers

    if not name.isidentifier() or not name.endswith("Model"):
        return None
    return getattr(diffusers, name, None) or getattr(transformers, name, None)


def _empty(name: str, config: Mapping[str, Any]) -> nn.Module:
    """A module of that class without memory. Raises ValueError for an unknown one."""
    kind = _library_class(name)
    if kind is None:
        raise ValueError(f"no class '{name[:60]}'")
    with torch.device("meta"):
        if hasattr(kind, "from_config"):
            made: nn.Module = kind.from_config(dict(config))
        else:
            made = kind(kind.config_class.from_dict(dict(config)))
    return made


def _touch(file: Path) -> None:
    """Notes that an entry was used; one that cannot be written is never deleted either."""
    try:
        os.utime(file)
    except OSError:
        logger.debug("%s cannot be touched", file)


def _delete(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as problem:
        logger.debug("%s cannot be deleted: %s", file, problem)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time make entries, where the file system has locks."""
    try:
        descriptor = open_locked(folder / ".lock", fcntl.LOCK_EX, os.O_RDWR | os.O_CREAT)
    except OSError as problem:
        if problem.errno not in NO_LOCKS:
            raise
        yield
        return
    try:
        yield
    finally:
        os.close(descriptor)
