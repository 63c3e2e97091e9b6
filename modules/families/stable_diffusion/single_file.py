"""Single-file checkpoints of SDXL and SD 1.5, in the key names of their first code, as the parts of a diffusers model.

The renaming is diffusers' own. What a part looks like is in its ``config.json``, so nothing has to be asked from a hub.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from backend.checkpoints.loader import RESTORE, assign_tensors, read_tensors
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


def kind_of(names: Iterable[str]) -> str | None:
    """The family, "sdxl" or "sd15", by the names of the tensors; None for anything else."""
    known = tuple(names)
    if not any(name.startswith("model.diffusion_model.input_blocks.") for name in known):
        return None
    for kind, beginning in (("sdxl", PREFIXES["text_encoder_2"]), ("sd15", PREFIXES["text_encoder"][:1])):
        if any(name.startswith(beginning) for name in known):
            return kind
    return None


def load_part(file: Path, component: str, module_class: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """One part of the file as a diffusers or transformers module of this class; ``folder`` holds its ``config.json``.

    Raises :class:`WeightsError` where the file does not hold the part, or one of another shape.
    """
    tensors = read_tensors([file], dtype, PREFIXES[component])
    if component.startswith("text_encoder"):
        return _text_encoder(tensors, component, module_class, folder, dtype, file.name)
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    config = module_class.load_config(folder, local_files_only=True)
    converted = (convert_ldm_unet_checkpoint if component == "unet" else convert_ldm_vae_checkpoint)(tensors, config)
    with torch.device("meta"):
        module: nn.Module = module_class.from_config(config)
    assign_tensors(module, converted, f"{component} of {file.name}")
    return module


def _text_encoder(
    tensors: dict[str, torch.Tensor], component: str, module_class: Any, folder: Path, dtype: torch.dtype, label: str
) -> nn.Module:
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint

    config = module_class.config_class.from_pretrained(folder, local_files_only=True)
    if component == "text_encoder":
        converted = convert_ldm_clip_checkpoint(tensors)
    else:
        with torch.device("meta"):
            shape = module_class(config)
        converted = convert_open_clip_checkpoint(shape, tensors, PREFIXES[component][0])
    module, info = module_class.from_pretrained(
        None, config=config, state_dict=converted, dtype=dtype, output_loading_info=True
    )
    wrong = sorted(str(name) for kind in ("missing_keys", "mismatched_keys") for name in info[kind])
    if wrong:
        raise WeightsError(
            f"{component} of {label} does not fit its config.json ({len(wrong)} tensors differ, first '{wrong[0]}'); "
            f"{RESTORE}"
        )
    return module  # type: ignore[no-any-return]
