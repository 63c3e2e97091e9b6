"""Names of layers in LoRA files for FLUX.2, held against diffusers' own renaming of checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from support.original_flux2 import transformer_names
from support.small_flux2 import write_klein

from modules.families.flux2_klein.lora_names import LORA_NAMES
from modules.lora.names import targets


def test_every_layer_is_found_by_its_first_name_with_its_own_rows(tmp_path: Path) -> None:
    own = load_file(write_klein(tmp_path) / "transformer" / "diffusion_pytorch_model.safetensors")
    layers = {name.removesuffix(".weight"): tuple(tensor.shape) for name, tensor in own.items() if tensor.ndim == 2}
    table, found = LORA_NAMES.table({"transformer": layers}), set()
    for name, tensor in transformer_names(own).items():
        if tensor.ndim == 2:
            layer = name.removesuffix(".weight")
            for written in (layer, f"diffusion_model.{layer}", "lora_unet_" + layer.replace(".", "_")):
                for target in targets(table, written):
                    rows = torch.cat([tensor[begin:end] for begin, end in target.rows or ((0, len(tensor)),)])
                    assert torch.equal(rows, own[f"{target.path}.weight"]), written
                    found.add(target.path)
    assert found == set(layers)
