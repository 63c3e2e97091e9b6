"""Single-file checkpoints of SDXL and SD 1.5, in the key names of their first code, as the parts of a diffusers model.

The renaming is diffusers' own. What a part looks like is in its ``config.json``, so nothing has to be asked from a hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from backend.checkpoints.build_budget import building
from backend.checkpoints.config import check_model_folder, read_config
from backend.checkpoints.folder_files import RESTORE
from backend.checkpoints.loader import assign_tensors, empty_diffusers_module, read_tensors
from backend.checkpoints.untrusted import untrusted
from backend.core.errors import WeightsError

PREFIXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "unet": ("model.diffusion_model.",),
        "vae": ("first_stage_model.",),
        "text_encoder": ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer."),
        "text_encoder_2": ("conditioner.embedders.1.model.",),
    }
)
"""How the names of each part's tensors begin: SD 1.5's, SDXL's."""


def diffusers_shapes(
    shapes: Mapping[str, tuple[int, ...]], component: str, config: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """The shapes in a file's header as those of the component's tensors, in diffusers' layout where it is one of
    diffusers' components; ``config`` is the component's."""
    own = {name: shape for name, shape in shapes.items() if name.startswith(PREFIXES[component])}
    if component.startswith("text_encoder") or not own:
        return own
    without_data = {name: torch.empty(shape, device="meta") for name, shape in own.items()}
    with untrusted(f"{component} of the checkpoint"):
        return {name: tuple(tensor.shape) for name, tensor in _converted(component, without_data, config).items()}


def load_part(file: Path, component: str, module_class: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """One part of the file as a diffusers or transformers module of this class; ``folder`` holds its ``config.json``.

    Raises :class:`WeightsError` where the file does not hold the part, or one of another shape.
    """
    tensors = read_tensors([file], dtype, PREFIXES[component])
    if component.startswith("text_encoder"):
        with building(file.name, [file], len(tensors)):
            return _text_encoder(tensors, component, module_class, folder, dtype, file.name)
    module = empty_diffusers_module(module_class, folder, [file], len(tensors))
    with untrusted(file.name):
        converted = _converted(component, tensors, read_config(folder / "config.json"))
    assign_tensors(module, converted, f"{component} of {file.name}")
    return module


def _converted(
    component: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """A UNet's or an autoencoder's tensors in diffusers' layout."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    convert: Any = convert_ldm_unet_checkpoint if component == "unet" else convert_ldm_vae_checkpoint
    converted: dict[str, torch.Tensor] = convert(dict(tensors), dict(config))
    return converted


def _text_encoder(
    tensors: dict[str, torch.Tensor], component: str, module_class: Any, folder: Path, dtype: torch.dtype, label: str
) -> nn.Module:
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint

    check_model_folder(folder)
    config = module_class.config_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if component == "text_encoder":
        converted = convert_ldm_clip_checkpoint(tensors)
    else:
        with torch.device("meta"):
            shape = module_class(config)
        converted = convert_open_clip_checkpoint(shape, tensors, PREFIXES[component][0])
    module, info = module_class.from_pretrained(
        None, config=config, state_dict=converted, dtype=dtype, output_loading_info=True, trust_remote_code=False
    )
    wrong = sorted(str(name) for kind in ("missing_keys", "mismatched_keys") for name in info[kind])
    if wrong:
        raise WeightsError(
            f"{component} of {label} does not fit its config.json ({len(wrong)} tensors differ, first '{wrong[0]}'); "
            f"{RESTORE}"
        )
    return module  # type: ignore[no-any-return]
