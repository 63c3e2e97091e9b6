"""Model folders of the published sizes without their bytes: sparse safetensors files with the right headers."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import safetensors
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    ZImageTransformer2DModel,
)
from support.small_flux2 import INDEX as KLEIN_INDEX
from support.small_qwen3 import write_qwen3 as write_small_qwen3
from support.small_z_image import INDEX as Z_IMAGE_INDEX
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

import backend.checkpoints.page_cache
from backend.core.settings import ROOT
from backend.devices.torchvision_ops import ensure_torchvision_operators
from bench.gpu import checkpoint
from bench.speed import stable_diffusion
from modules.families.flux2_klein.parts import FLOW
from modules.families.flux2_klein.parts import PARTS as KLEIN_PARTS
from modules.families.qwen3 import QWEN3_4B
from modules.families.z_image.parts import PARTS as Z_IMAGE_PARTS
from modules.families.z_image.parts import TURBO_SHIFT
from training.package import MODEL_INDEX

if TYPE_CHECKING:
    from support.fake_cuda import FakeCard

ensure_torchvision_operators()

NAMES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
FORMATS = {dtype: name for name, dtype in NAMES.items()}
KLEIN = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
TOKENIZERS = ROOT / "weights" / "embedded" / "flux"


def write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.bfloat16) -> None:
    """A safetensors file with these tensors that takes no room on the disk."""
    entries: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + prod(shape) * dtype.itemsize
        entries[name] = {"dtype": FORMATS[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def write_sparse_component(folder: Path, module: Any) -> None:
    """The folder of a component as large as ``module``, which may be on the meta device."""
    transformers_made = hasattr(module, "get_input_embeddings")
    name = "model.safetensors" if transformers_made else "diffusion_pytorch_model.safetensors"
    kept, own = module.state_dict(), dict([*module.named_parameters(), *module.named_buffers()])
    write_sparse(folder / name, {name: tuple(tensor.shape) for name, tensor in own.items() if name in kept})
    (module.config if transformers_made else module).save_pretrained(folder) if transformers_made else (
        module.save_config(folder)
    )


SHORT: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "flux1": {
        "transformer": {"num_layers": 2, "num_single_layers": 4},
        "vae": {"layers_per_block": 1},
        "text_encoder": {"num_hidden_layers": 2},
        "text_encoder_2": {"num_layers": 3},
    },
    "sdxl": {
        "unet": {"transformer_layers_per_block": (1, 1, 2)},
        "vae": {"layers_per_block": 1},
        "text_encoder": {"num_hidden_layers": 2},
        "text_encoder_2": {"num_hidden_layers": 2},
    },
    "sd15": {"unet": {"layers_per_block": 1}, "vae": {"layers_per_block": 1}, "text_encoder": {"num_hidden_layers": 2}},
    "klein": {"transformer": {"num_layers": 2, "num_single_layers": 4}, "vae": {"layers_per_block": 1}},
    "z_image": {
        "transformer": {"n_layers": 4},
        "vae": {"layers_per_block": 1},
        "text_encoder": {"num_hidden_layers": 4},
    },
}
"""What a model has less of that is as wide as the published one, but has few blocks and is made in a second."""


def write_flux(folder: Path, short: bool = False) -> Path:
    """FLUX.1-dev, 33.7 GB, or a short one."""
    for component, sizes in checkpoint.FLUX_DEV.items():
        with torch.device("meta"):
            less = SHORT["flux1"][component] if short else {}
            module: nn.Module = checkpoint.build(component, {**sizes, **less})
        write_sparse_component(folder / component, module)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(TOKENIZERS / name, folder / name)
    FlowMatchEulerDiscreteScheduler(**checkpoint.SCHEDULER).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX))
    return folder


def write_stable_diffusion(folder: Path, family: str, short: bool = False) -> Path:
    """SDXL, 6.9 GB, or SD 1.5, 2.1 GB; or a short one."""
    stable_diffusion.write(folder, family)  # tokenizers, scheduler and model_index.json as they are
    for component, sizes in stable_diffusion.FULL[family].items():
        shutil.rmtree(folder / component)
        with torch.device("meta"):
            less = SHORT[family][component] if short else {}
            module = stable_diffusion.build(component, {**sizes, **less})
        write_sparse_component(folder / component, module)
    return folder


def write_qwen3(folder: Path, less: Mapping[str, Any]) -> None:
    """Qwen3-4B, 8 GB, with a small tokenizer."""
    write_small_qwen3(folder)
    shutil.rmtree(folder / "text_encoder")
    with torch.device("meta"):
        module = Qwen3ForCausalLM(Qwen3Config.from_dict({**QWEN3_4B.published, **less}))
    write_sparse_component(folder / "text_encoder", module)


def write_klein(folder: Path, short: bool = False) -> Path:
    """FLUX.2 klein 4B, 16 GB, or a short one, whose text encoder is whole: three of its layers are read."""
    less = SHORT["klein"] if short else {}
    write_qwen3(folder, {})
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(**{**KLEIN, **less.get("transformer", {})})
        vae = AutoencoderKLFlux2.from_config({**KLEIN_PARTS["vae"].published, **less.get("vae", {})})
    write_sparse_component(folder / "transformer", transformer)
    write_sparse_component(folder / "vae", vae)
    FlowMatchEulerDiscreteScheduler(**FLOW).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({**KLEIN_INDEX, "is_distilled": True}))
    return folder


def write_z_image(folder: Path, short: bool = False) -> Path:
    """Z-Image-Turbo, 21 GB, or a short one."""
    less = SHORT["z_image"] if short else {}
    write_qwen3(folder, less.get("text_encoder", {}))
    for name, kind in (("transformer", ZImageTransformer2DModel), ("vae", AutoencoderKL)):
        with torch.device("meta"):
            module = kind.from_config({**Z_IMAGE_PARTS[name].published, **less.get(name, {})})
        write_sparse_component(folder / name, module)
    FlowMatchEulerDiscreteScheduler(shift=TURBO_SHIFT).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(Z_IMAGE_INDEX))
    return folder


class _HollowFile:
    """``safetensors.safe_open`` of a sparse file: the tensors have shapes, number formats and addresses, no data."""

    def __init__(self, card: FakeCard, path: Path) -> None:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            self.entries = json.loads(file.read(length))
        self.card, self.start = card, 8 + length
        self.metadata_ = self.entries.pop("__metadata__", {"format": "pt"})
        self.address = card.reserve_addresses(path.stat().st_size)

    def __enter__(self) -> _HollowFile:
        return self

    def __exit__(self, *error: object) -> None: ...

    def keys(self) -> list[str]:
        return list(self.entries)

    def metadata(self) -> dict[str, str]:
        return self.metadata_  # type: ignore[no-any-return]

    def get_tensor(self, name: str) -> torch.Tensor:
        entry = self.entries[name]
        tensor = self.card.hollow(entry["shape"], NAMES[entry["dtype"]])
        self.card.place_in_file(tensor, self.address + self.start + entry["data_offsets"][0])
        return tensor

    def get_slice(self, name: str) -> _HollowSlice:
        return _HollowSlice(self, name)


class _HollowSlice:
    def __init__(self, file: _HollowFile, name: str) -> None:
        self.file, self.name = file, name

    def get_shape(self) -> list[int]:
        return list(self.file.entries[self.name]["shape"])

    def get_dtype(self) -> str:
        return str(self.file.entries[self.name]["dtype"])

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.file.get_tensor(self.name)[index]


@contextmanager
def hollow_files(card: FakeCard) -> Iterator[None]:
    """Inside, sparse files are opened as what they are, and nobody reads their holes ahead."""
    importlib.import_module("modules.app.wiring")  # all that reads models
    real_open, real_read = safetensors.safe_open, backend.checkpoints.page_cache.read_ahead

    def opened(path: Any, *args: Any, **options: Any) -> Any:
        return _HollowFile(card, Path(path)) if is_sparse(Path(path)) else real_open(path, *args, **options)

    def read_ahead(files: Any) -> int:
        return real_read([file for file in files if not is_sparse(file)])

    with ExitStack() as stack:
        for name, real, stub in (("safe_open", real_open, opened), ("read_ahead", real_read, read_ahead)):
            for module in list(sys.modules.values()):
                if vars(module).get(name) is real:
                    stack.enter_context(patch.object(module, name, stub))
        # the readers of transformers are threads of their own, which a mode of torch does not follow into
        stack.enter_context(patch.dict(os.environ, HF_DEACTIVATE_ASYNC_LOAD="1"))
        yield


def is_sparse(path: Path) -> bool:
    status = path.stat()
    return status.st_blocks * 512 < status.st_size // 2
