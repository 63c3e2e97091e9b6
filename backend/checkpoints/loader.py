"""safetensors -> module: built without memory, then given the file's tensors in the wanted precision. No second copy,
no random start.

The tensors of a file are mapped, and several readers bring its pages in: as fast as the disk when they are not in
memory, nothing to do when they are, and no byte of a second copy. ``bench/speed/loading.py`` holds this against the
other loaders there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from backend.checkpoints.build_budget import building
from backend.checkpoints.config import MAX_TABLE, check_model_folder, read_config
from backend.checkpoints.header import read_headers
from backend.checkpoints.page_cache import read_ahead
from backend.checkpoints.untrusted import untrusted
from backend.core.data_files import DataError, read_json
from backend.core.errors import WeightsError

RESTORE = "restore the file, or choose another 'model' in config_optimized.json"


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a component's folder: those that its index names, or the one there is."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    files = _indexed(indexes[0]) if indexes else sorted(folder.glob("*.safetensors"))[:1]
    for file in files:
        if not file.is_file():
            raise WeightsError(f"{folder.name}/{file.name} is missing; {RESTORE}")
    if not files:
        raise WeightsError(f"{folder.name} holds no .safetensors file; {RESTORE}")
    return files


def _indexed(index: Path) -> list[Path]:
    """The files that an index of weights names, which lie beside it."""
    name = f"{index.parent.name}/{index.name}"
    try:
        entries = read_json(index, MAX_TABLE).get("weight_map")
    except FileNotFoundError:  # a link that leads nowhere
        raise WeightsError(f"{name} is missing; {RESTORE}") from None
    except DataError as problem:
        raise WeightsError(f"{name} {problem}; {RESTORE}") from None
    if not isinstance(entries, dict) or not all(isinstance(file, str) for file in entries.values()):
        raise WeightsError(f"{name} is damaged (no files in its weight_map); {RESTORE}")
    files = sorted(set(entries.values()))
    if outside := [file for file in files if file != Path(file).name or file in ("", "..")]:
        raise WeightsError(f"{name} names a file outside of its folder, '{outside[0][:60]}'; {RESTORE}")
    return [index.parent / file for file in files]


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
    files = shard_files(folder)
    tensors = read_tensors(files, dtype)
    module = empty_diffusers_module(kind, folder, files, len(tensors))
    assign_tensors(module, tensors, folder.name)
    return module


def empty_diffusers_module(kind: Any, folder: Path, files: Iterable[Path], tensors: int) -> nn.Module:
    """A module on the meta device as ``config.json`` in ``folder`` describes it, for ``files`` with so many
    ``tensors``."""
    config = read_config(folder / "config.json")
    with building(config.name, files, tensors), torch.device("meta"):
        module: nn.Module = kind.from_config(dict(config))
    return module


def load_transformers_module(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """One text encoder of a diffusers folder, by transformers' own loader, which knows every naming of its weights."""
    files = shard_files(folder)
    half = ".fp16." in files[0].name  # the half-precision variant of a repository that has several
    module: nn.Module
    module, info = load_pretrained(kind, folder, files, dtype, variant="fp16" if half else None)
    # transformers would start what the file lacks with random numbers
    wrong = sorted(str(name) for kind_of_fault in ("missing_keys", "mismatched_keys") for name in info[kind_of_fault])
    if wrong:
        raise WeightsError(
            f"{folder.name} does not fit its config.json ({len(wrong)} tensors differ, first '{wrong[0]}'); {RESTORE}"
        )
    return module


def load_pretrained(
    kind: Any, folder: Path, files: Iterable[Path], dtype: torch.dtype, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """The model that transformers reads from a folder whose weights are ``files``, and what it says about the loading.

    No code of the folder is run. Raises :class:`WeightsError` for files that are damaged or do not fit each other.
    """
    check_model_folder(folder)
    files = list(files)
    tensors = len(read_headers(files).shapes)
    read_ahead(files)
    with building(f"{folder.name}/config.json", files, tensors, RESTORE):
        model, info = kind.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    return model, info


def load_tokenizer(kind: Any, folder: Path) -> Any:
    """The tokenizer in a folder: ``kind`` is its class, for example ``CLIPTokenizer``. No code of the folder is run.

    Raises :class:`WeightsError` for files that are damaged or do not fit each other.
    """
    if not folder.is_dir():
        raise WeightsError(f"{folder.name} is missing; {RESTORE}")
    check_model_folder(folder)
    with untrusted(f"{folder.name}/tokenizer.json", RESTORE):
        tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer("a")
    return tokenizer
