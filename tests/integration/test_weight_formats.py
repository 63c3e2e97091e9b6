"""The same Flux model in every form in which hubs have it: the weights that a family loads are those that the form's own
library computes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.bitsandbytes_files import nf4_parts
from support.emulated_runs import REQUEST, Run, run_emulated
from support.gguf_files import quantized, write_gguf
from support.original_flux import original_layout
from torch import nn

from backend.checkpoints.gguf_names import INNER, OUTER
from backend.checkpoints.loader import load_transformers_module
from backend.checkpoints.packed_weight import PackedWeight, unpack
from backend.core.settings import ROOT, Settings
from backend.planning.costs import Kind, Placement
from backend.planning.model_specs import PACKED
from modules.app.model_files import Files, find_files

Tensors = dict[str, torch.Tensor]
FOLDER = ROOT / "weights" / "embedded" / "flux"
PREFIX = "model.diffusion_model."
E4M3 = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def plain() -> Tensors:
    tensors = load_file(FOLDER / "transformer" / "diffusion_pytorch_model.safetensors")
    return {name: tensor.float() for name, tensor in original_layout(tensors).items()}


def is_quantized(name: str, tensor: torch.Tensor) -> bool:
    """What such files quantize: the matrices of the blocks."""
    return tensor.dim() == 2 and "blocks" in name


def scaled_fp8(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    scale = (weight.abs().max() / 448).reshape(1)
    return {"": (weight / scale).to(E4M3), "<.weight>.scale_weight": scale}, (weight / scale).to(E4M3).float() * scale


def written(file: Path, plain: Tensors, form: Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]) -> Tensors:
    """Writes the matrices of the blocks in a form of safetensors, and returns all values."""
    tensors, values = {}, dict(plain)
    for name, tensor in plain.items():
        parts, values[name] = form(tensor) if is_quantized(name, tensor) else ({"": tensor}, tensor)
        for end, part in parts.items():
            own = name.removesuffix(".weight") + end.removeprefix("<.weight>") if end.startswith("<") else name + end
            tensors[own] = part.contiguous()
    save_file(tensors, file)
    return values


def write_nf4(file: Path, plain: Tensors) -> Tensors:
    return written(file, plain, nf4_parts)


def write_scaled_fp8(file: Path, plain: Tensors) -> Tensors:
    values = written(file, {PREFIX + name: tensor for name, tensor in plain.items()}, scaled_fp8)
    save_file(load_file(file) | {PREFIX + "scaled_fp8": torch.zeros(2, dtype=E4M3)}, file)
    return {name.removeprefix(PREFIX): tensor for name, tensor in values.items()}


def write_ggufs(*formats: str) -> Callable[[Path, Tensors], Tensors]:
    def write(file: Path, plain: Tensors) -> Tensors:
        kinds = {
            name: formats[len(name) % len(formats)] if is_quantized(name, tensor) else "F32"
            for name, tensor in plain.items()
        }
        write_gguf(file, {name: (tensor, kinds[name]) for name, tensor in plain.items()})
        return {name: quantized(tensor, kinds[name]) for name, tensor in plain.items()}

    return write


FORMS: Mapping[str, tuple[str, Callable[[Path, Tensors], Tensors]]] = {
    "scaled fp8": ("flux.safetensors", write_scaled_fp8),
    "NF4": ("flux.SFT", write_nf4),
    "Q8_0": ("flux.gguf", write_ggufs("Q8_0")),
    "several formats": ("flux.GGUF", write_ggufs("Q4_0", "Q5_1", "BF16")),
}


def files_of(path: Path) -> Files:
    return find_files(replace(Settings(), model=str(path), base_model="embedded"))


def same_weights(module: nn.Module, expected: Mapping[str, torch.Tensor]) -> bool:
    own = unpack(module).state_dict()
    return own.keys() == expected.keys() and all(torch.equal(own[name], expected[name]) for name in own)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_gives_the_values_of_its_form(tmp_path: Path, plain: Tensors, form: str) -> None:
    from modules.families.flux1.single_file import to_diffusers

    name, write = FORMS[form]
    values = write(tmp_path / name, plain)
    files = files_of(tmp_path / name)
    module = files.load("transformer", torch.float32)
    blocks = [name for name, tensor in module.named_parameters() if tensor.dim() == 2 and "blocks" in name]
    packed = [name for name in blocks if isinstance(module.get_parameter(name), PackedWeight)]
    assert len(packed) == len(blocks) or form == "several formats"
    assert same_weights(module, to_diffusers(values))
    planned = files.spec(torch.float32).components["transformer"]
    assert planned.parameters == sum(tensor.numel() for tensor in plain.values())


def quantized_folder(folder: Path, method: str) -> Tensors:
    """A component's folder as diffusers and transformers save it after they have quantized it with bitsandbytes."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
    file = next(folder.glob("*.safetensors"))
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    return written(file, tensors, nf4_parts)


def test_a_folder_that_bitsandbytes_quantized_is_read(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "flux")
    values = quantized_folder(tmp_path / "flux" / "transformer", "bitsandbytes")
    files = files_of(tmp_path / "flux")
    assert files.spec(torch.float32).components["transformer"].on_disk == "nf4"
    assert same_weights(files.load("transformer", torch.float32), values)


def test_a_folder_of_another_library_is_named(tmp_path: Path) -> None:
    from support.refusals import refusal

    shutil.copytree(FOLDER, tmp_path / "flux")
    quantized_folder(tmp_path / "flux" / "transformer", "torchao")
    told = refusal(lambda: files_of(tmp_path / "flux").load("transformer", torch.float32))
    assert "transformer/config.json" in told and "torchao" in told


def test_the_text_encoder_of_a_gguf_file_stays_packed_and_computes_the_same(tmp_path: Path) -> None:
    from transformers import T5EncoderModel

    folder = tmp_path / "text_encoder_2"
    shutil.copytree(FOLDER / "text_encoder_2", folder)
    file = next(folder.glob("*.safetensors"))
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    theirs = {ours: name for name, ours in OUTER.items()}
    inner = {ours: name for name, ours in INNER.items()}
    for name in tensors:
        if found := re.fullmatch(r"encoder\.block\.(\d+)\.(.+)\.weight", name):
            theirs[name] = f"enc.blk.{found[1]}.{inner[found[2]]}.weight"
    kinds = {n: "Q8_0" if t.dim() == 2 and t.shape[1] % 32 == 0 else "F32" for n, t in tensors.items()}
    write_gguf(file, {theirs[name]: (tensor, kinds[name]) for name, tensor in tensors.items()}, "t5encoder")
    module = load_transformers_module(T5EncoderModel, folder, torch.float32)
    assert any(isinstance(parameter, PackedWeight) for parameter in module.parameters())
    expected = T5EncoderModel.from_pretrained(
        None,
        config=module.config,
        state_dict={name: quantized(t, kinds[name]) for name, t in tensors.items()},
        dtype=torch.float32,
        trust_remote_code=False,
    )
    tokens = torch.arange(12).view(1, 12)
    with torch.no_grad():
        assert torch.equal(module(tokens)[0], expected(tokens)[0])


@pytest.fixture(scope="module")
def packed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose transformer is in NF4 and whose T5 is in fp8, as folders have them."""
    folder = tmp_path_factory.mktemp("packed") / "flux"
    shutil.copytree(FOLDER, folder)
    quantized_folder(folder / "transformer", "bitsandbytes")
    file = next((folder / "text_encoder_2").glob("*.safetensors"))
    save_file({name: tensor.to(E4M3) for name, tensor in load_file(file).items()}, file)
    return folder


def placed_packed(folder: Path, kind: Kind, dtype: str, scratch: Path) -> Run:
    components = files_of(folder).spec(torch.float32).components
    placements = {
        name: Placement(kind, dtype) if one.packed else Placement("resident", "fp32")
        for name, one in components.items()
    }
    assert sum(placement.dtype == dtype for placement in placements.values()) >= 2
    return run_emulated(placements, 10**9, scratch, str(folder), replace(REQUEST, scale=1, adetailer=()))


def test_packed_weights_give_the_same_picture_in_every_placement_in_as_little_memory_as_planned(
    packed_folder: Path, tmp_path: Path
) -> None:
    plain = placed_packed(packed_folder, "resident", "fp32", tmp_path)
    for kind in ("resident", "model offload", "block offload"):
        run = placed_packed(packed_folder, kind, PACKED, tmp_path)
        assert (run.picture == plain.picture).all(), kind
        assert run.predicted_peak == pytest.approx(run.device.peak_bytes, rel=0.1), kind
    components = files_of(packed_folder).spec(torch.float32).components
    for name in ("transformer", "text_encoder_2"):
        size = run.models.stats().model_bytes[name]
        assert size == pytest.approx(components[name].size(PACKED), rel=0.05)
        assert size < 0.6 * plain.models.stats().model_bytes[name]
