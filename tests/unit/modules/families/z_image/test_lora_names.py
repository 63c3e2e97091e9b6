"""Names of layers in LoRA files for Z-Image, held against those of a checkpoint in the names of its first code."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from support.original_z_image import original_names
from support.small_z_image import write_z_image

from modules.families.z_image.lora_names import LORA_NAMES
from modules.lora.names import targets


def test_every_layer_is_found_by_its_first_name_with_its_own_rows(tmp_path: Path) -> None:
    own = load_file(write_z_image(tmp_path) / "transformer" / "diffusion_pytorch_model.safetensors")
    own = {name: tensor for name, tensor in own.items() if name.endswith(".weight") and tensor.ndim == 2}
    layers = {name.removesuffix(".weight"): tuple(tensor.shape) for name, tensor in own.items()}
    table, found = LORA_NAMES.table({"transformer": layers}), set()
    for name, tensor in original_names(own).items():
        layer = name.removesuffix(".weight")
        for written in (layer, f"diffusion_model.{layer}", "lora_unet_" + layer.replace(".", "_")):
            for target in targets(table, written):
                rows = torch.cat([tensor[begin:end] for begin, end in target.rows or ((0, len(tensor)),)])
                assert torch.equal(rows, own[f"{target.path}.weight"]), written
                found.add(target.path)
    assert found == set(layers)
