"""safetensors -> module: built without memory, then given the file's tensors in the wanted precision. No second copy,
no random start.

The tensors of a file are mapped, and several readers bring its pages in: as fast as the disk when they are not in
memory, nothing to do when they are, and no byte of a second copy. ``bench/speed/loading.py`` holds this against the
other loaders there are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from backend.checkpoints.page_cache import read_ahead
from backend.core.errors import WeightsError

RESTORE = "restore the file, or choose another 'model' in config_optimized.json"


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a component's folder: those that its index names, or the one there is."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        names = sorted(set(json.loads(indexes[0].read_text())["weight_map"].values()))
        files = [folder / Path(name).name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))[:1]
    for file in files:
        if not file.is_file():
            raise WeightsError(f"{folder.name}/{file.name} is missing; {RESTORE}")
    if not files:
        raise WeightsError(f"{folder.name} holds no .safetensors file; {RESTORE}")
    return files


def read_tensors(
    files: Iterable[Path], dtype: torch.dtype | None, prefixes: tuple[str, ...] = ("",)
) -> dict[str, torch.Tensor]:
    """The tensors whose names begin so, by name; floating point ones in ``dtype`` when it is given. A damaged file
    is a :class:`WeightsError`."""
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            read_ahead([file])
            with safe_open(file, framework="pt") as opened:
                for name in filter(lambda name: name.startswith(prefixes), opened.keys()):
                    tensor = opened.get_tensor(name)
                    tensors[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        except (SafetensorError, OSError):
            raise WeightsError(f"{file.parent.name}/{file.name} is damaged or cut off; {RESTORE}") from None
    return tensors


def assign_tensors(module: nn.Module, tensors: Mapping[str, torch.Tensor], label: str) -> None:
    """Gives a module (built on the meta device) its tensors. Missing, surplus and misshapen ones are a
    :class:`WeightsError`."""
    own = module.state_dict()
    wrong = sorted(set(own) ^ set(tensors)) or sorted(name for name in own if own[name].shape != tensors[name].shape)
    if wrong:
        raise WeightsError(
            f"{label} does not fit its config.json ({len(wrong)} tensors differ, first '{wrong[0]}'); {RESTORE}"
        )
    module.load_state_dict(dict(tensors), assign=True)


def load_diffusers_module(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """One component of a diffusers folder: ``kind`` is its class, for example ``FluxTransformer2DModel``."""
    with torch.device("meta"):
        module: nn.Module = kind.from_config(kind.load_config(folder, local_files_only=True))
    assign_tensors(module, read_tensors(shard_files(folder), dtype), folder.name)
    return module


def load_transformers_module(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """One text encoder of a diffusers folder, by transformers' own loader, which knows every naming of its weights."""
    files = shard_files(folder)
    read_ahead(files)
    half = ".fp16." in files[0].name  # the half-precision variant of a repository that has several
    try:
        module, info = kind.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            variant="fp16" if half else None,
        )
    except SafetensorError:
        raise WeightsError(f"{folder.name} holds a damaged or cut off file; {RESTORE}") from None
    # transformers would start what the file lacks with random numbers
    wrong = sorted(str(name) for kind_of_fault in ("missing_keys", "mismatched_keys") for name in info[kind_of_fault])
    if wrong:
        raise WeightsError(
            f"{folder.name} does not fit its config.json ({len(wrong)} tensors differ, first '{wrong[0]}'); {RESTORE}"
        )
    return module  # type: ignore[no-any-return]
