"""Files of weights -> module: built without memory, then given the file's tensors in the wanted precision. No second
copy, no random start.

The tensors of a file are mapped, and several readers bring its pages in: as fast as the disk when they are not in
memory, nothing to do when they are, and no byte of a second copy. ``bench/speed/loading.py`` holds this against the
other loaders there are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backend.checkpoints.build_budget import building
from backend.checkpoints.config import Config, check_model_folder, read_config
from backend.checkpoints.folder_files import RESTORE, shard_files
from backend.checkpoints.header import OTHER_FORM, read_headers
from backend.checkpoints.packed_weight import PackedWeight
from backend.checkpoints.page_cache import read_ahead
from backend.checkpoints.stored_weights import StoredWeights
from backend.checkpoints.untrusted import untrusted
from backend.core.errors import WeightsError

QUANTIZED_BY = ("bitsandbytes", "gguf", "fp8", "compressed-tensors", "modelopt")
"""Libraries whose weights are read, as far as the files' headers allow it."""


def read_tensors(
    files: Iterable[Path], dtype: torch.dtype, prefixes: tuple[str, ...] = ("",)
) -> dict[str, torch.Tensor]:
    """The weights whose names begin so, by name; floating point ones in ``dtype``. Matrices that a file has quantized
    are a :class:`PackedWeight` each, with values in ``dtype``. A damaged file is a :class:`WeightsError`."""
    files = list(files)
    header = read_headers(files)
    read_ahead(files)
    stored = StoredWeights(header)
    return {name: stored.weight(name, dtype) for name in header.shapes if name.startswith(prefixes)}


def assign_tensors(module: nn.Module, tensors: Mapping[str, torch.Tensor], label: str) -> None:
    """Gives a module (built on the meta device) its tensors. Missing, surplus and misshapen ones are a
    :class:`WeightsError`."""
    own = module.state_dict()
    wrong = sorted(set(own) ^ set(tensors)) or sorted(name for name in own if own[name].shape != tensors[name].shape)
    if wrong:
        raise WeightsError(
            f"{label} does not fit its config.json ({len(wrong)} tensors differ, first '{wrong[0]}'); {RESTORE}"
        )
    module.load_state_dict(_unpacked(tensors, _linear_weights(module)), assign=True)


def _linear_weights(module: nn.Module) -> set[str]:
    """The weights that may stay packed."""
    return {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Linear)}


def _unpacked(tensors: Mapping[str, torch.Tensor], but: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """The tensors with the values of packed ones, but of some."""
    return {
        name: tensor.values() if isinstance(tensor, PackedWeight) and name not in but else tensor
        for name, tensor in tensors.items()
    }


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
    config = component_config(folder)
    with building(config.name, files, tensors), torch.device("meta"):
        module: nn.Module = kind.from_config(dict(config))
    return module


def load_transformers_module(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """One text encoder of a diffusers folder."""
    check_model_folder(folder)
    files = shard_files(folder)
    tensors = read_tensors(files, dtype)
    return transformers_module(kind, component_config(folder), tensors, files, dtype, folder.name)


def transformers_module(
    kind: Any,
    config: Config,
    tensors: Mapping[str, torch.Tensor],
    files: Iterable[Path],
    dtype: torch.dtype,
    label: str,
) -> nn.Module:
    """A module of transformers with these tensors, which are from ``files``, by transformers' own loader, which knows
    every naming of them.

    Raises :class:`WeightsError`, which begins with ``label``, for tensors that do not fit the configuration.
    """
    module: nn.Module | None
    with building(config.name, files, len(tensors), RESTORE):
        settings = kind.config_class.from_dict(dict(config))
        if module := _packed_module(kind, settings, tensors, dtype):
            return module
        module, info = kind.from_pretrained(
            None,
            config=settings,
            state_dict=_unpacked(tensors),
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
        )
    # transformers would start what the file lacks with random numbers
    wrong = sorted(str(name) for kind_of_fault in ("missing_keys", "mismatched_keys") for name in info[kind_of_fault])
    if wrong:
        raise WeightsError(
            f"{label} does not fit its config.json ({len(wrong)} tensors differ, first '{wrong[0]}'); {RESTORE}"
        )
    return module


def _packed_module(kind: Any, config: Any, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> nn.Module | None:
    """A module of transformers whose matrices stay packed. None where there are none, or where its own loader has to
    rename tensors, to fill buffers, or to keep layers in float32, as that of T5 does beside float16."""
    if dtype == torch.float16 or not any(isinstance(tensor, PackedWeight) for tensor in tensors.values()):
        return None
    with torch.device("meta"):
        module: nn.Module = kind(config)
    own = module.state_dict()
    known = {name: tensor for name, tensor in tensors.items() if name in own}
    if any(own[name].shape != tensor.shape for name, tensor in known.items()) or list(module.buffers()):
        return None
    module.load_state_dict(_unpacked(known, _linear_weights(module)), assign=True, strict=False)
    module.tie_weights()  # type: ignore[operator]
    return None if any(parameter.is_meta for parameter in module.parameters()) else module


def component_config(folder: Path) -> Config:
    """The ``config.json`` of a component, without what it says about quantization: the files themselves say that.

    Raises :class:`WeightsError` for a form that is not read.
    """
    config = read_config(folder / "config.json")
    quantization = config.pop("quantization_config", None)
    if isinstance(quantization, Mapping):
        method = str(quantization.get("quant_method", ""))[:40]
        if not method.startswith(QUANTIZED_BY):
            raise WeightsError(
                f"{config.name}: weights that are quantized by {method or 'nobody'} are not read; {OTHER_FORM}"
            )
    return config


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
