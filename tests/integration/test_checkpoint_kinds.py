"""Checkpoints as people have them, family by family and form by form: each gives the picture of the same weights in
diffusers' folder, or one line that says what it is. Small models stand for the large ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from support import original_names
from support.model_pictures import SIDE, drawn, found_model, service_of
from support.original_flux import original_layout
from support.slow import sampled

from backend.core.errors import WeightsError
from backend.core.settings import ROOT
from bench.support.tiny_models import write_tiny_model
from modules.diffusion.denoise_request import DenoiseRequest
from modules.families.flux1.published import DEV, SCHNELL

Tensors = Mapping[str, torch.Tensor]
EMBEDDED = ROOT / "weights" / "embedded" / "flux"
UNET = "model.diffusion_model."
F32, F16, BF16, E4M3, E5M2 = torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2
ROUNDING = {F32: 0.5, F16: 0.5, BF16: 3.0, E4M3: 12.0, E5M2: 16.0}
"""Of 255, on average, by what the transformer is rounded to."""
FAMILIES = ("flux", "sdxl", "sd15")


@dataclass(frozen=True)
class Form:
    """A file's layout: ``prefixes`` by component, those left out are not in the file; ``names`` "original" or
    "diffusers" by component; ``scattered`` files lie beside it, by their paths."""

    prefixes: Mapping[str, str]
    diffusers: frozenset[str] = frozenset()
    dtype: torch.dtype = F16
    file: str = "mine.safetensors"
    scattered: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    base: str = "folder"
    model: str = ""
    families: tuple[str, ...] = ("flux",)


ALONE, COMFY = {"denoiser": ""}, {"denoiser": UNET}
ALL_IN_ONE = {
    **COMFY,
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.t5xxl.transformer.",
    "vae": "vae.",
}
FORGE = {
    **COMFY,
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "t5xxl.transformer.",
    "vae": "first_stage_model.",
}
SD15 = {**COMFY, "text_encoder": "cond_stage_model.transformer.", "vae": "first_stage_model."}
WHOLE = {
    **SD15,
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}
ALL = frozenset(("denoiser", "text_encoder", "text_encoder_2", "vae"))
TREE = {
    "text_encoders/clip_l.safetensors": ("text_encoder", "text_model."),
    "text_encoders/t5xxl_fp16.safetensors": ("text_encoder_2", ""),
    "vae/ae.safetensors": ("vae", ""),
}
FLAT = {path.rpartition("/")[2]: part for path, part in TREE.items()}
OLD_TREE = {path.replace("text_encoders", "clip"): part for path, part in TREE.items()}
UPPER_TREE = {
    path.replace("text_encoders", "text_encoder").replace("vae/", "VAE/"): part for path, part in TREE.items()
}
without_vae = {name: prefix for name, prefix in ALL_IN_ONE.items() if name != "vae"}
FORMS = {
    "transformer alone": Form(ALONE),
    "transformer alone, fp32": Form(ALONE, dtype=F32),
    "transformer alone, bf16": Form(ALONE, dtype=BF16),
    "transformer alone, fp8 e4m3": Form(ALONE, dtype=E4M3),
    "transformer alone, fp8 e5m2": Form(ALONE, dtype=E5M2),
    "transformer alone, .sft": Form(ALONE, file="mine.sft"),
    "transformer with ComfyUI's prefix": Form(COMFY),
    "transformer with the prefix of trainers": Form({"denoiser": "diffusion_model."}),
    "transformer in diffusers' names": Form(ALONE, ALL),
    "diffusers' names under ComfyUI's prefix": Form(COMFY, ALL),
    "diffusers' names under a component's": Form({"denoiser": "transformer."}, ALL),
    "all in one, fp8": Form(ALL_IN_ONE, dtype=E4M3),
    "all in one, fp16": Form(ALL_IN_ONE),
    "all in one, autoencoder in diffusers' names": Form(ALL_IN_ONE, frozenset(("vae",))),
    "all in one, everything in diffusers' names": Form(ALL_IN_ONE, ALL),
    "all in one, as SD-Forge has it": Form(FORGE, dtype=E4M3),
    "all in one but the autoencoder": Form(without_vae),
    "all in one, transformer without a prefix": Form({**ALL_IN_ONE, "denoiser": ""}),
    "ComfyUI's folders": Form(ALONE, file="diffusion_models/flux1-dev.safetensors", scattered=TREE, model="."),
    "ComfyUI's older folders": Form(COMFY, file="unet/flux1-dev.safetensors", scattered=OLD_TREE, model="."),
    "Forge's folders": Form(ALONE, file="unet/flux1-dev.safetensors", scattered=UPPER_TREE, model="."),
    "separate files in one folder": Form(ALONE, scattered=FLAT, model=".", dtype=E4M3),
    "a file among separate files": Form(ALONE, scattered=FLAT, base="described"),
    "a file, and the folders as base": Form(ALONE, file="a/mine.safetensors", scattered=TREE, base="described"),
    "whole checkpoint": Form(WHOLE, families=("sdxl",)),
    "whole checkpoint, autoencoder in diffusers' names": Form(WHOLE, frozenset(("vae",)), families=("sdxl",)),
    "checkpoint without its autoencoder": Form(
        {name: WHOLE[name] for name in WHOLE if name != "vae"}, families=("sdxl",)
    ),
    "whole checkpoint of SD 1.5": Form(SD15, families=("sd15",)),
    "SD 1.5 without its autoencoder": Form({name: SD15[name] for name in SD15 if name != "vae"}, families=("sd15",)),
    "SD 1.5 with a text encoder of old merges": Form({**SD15, "text_encoder": "cond_stage_model."}, families=("sd15",)),
    "UNet alone": Form(COMFY, families=("sdxl", "sd15")),
    "UNet alone, without a prefix": Form(ALONE, families=("sdxl", "sd15")),
    "UNet alone, in diffusers' names": Form(ALONE, ALL, families=("sdxl", "sd15")),
    "UNet alone, fp8": Form(COMFY, dtype=E4M3, families=("sdxl", "sd15")),
}
CASES = [(family, name) for name, form in FORMS.items() for family in form.families]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {"flux": EMBEDDED}
    for family in ("sdxl", "sd15"):
        folders[family] = tmp_path_factory.mktemp("folders") / family
        write_tiny_model(folders[family], family)
    return folders


@pytest.fixture(scope="module")
def pictures(folders: dict[str, Path]) -> dict[str, np.ndarray]:
    return {family: drawn(found_model(folder)) for family, folder in folders.items()}


def component(folder: Path, name: str) -> Path:
    """Its folder: the denoiser's is called differently in each family."""
    inner = next(one for one in ("transformer", "unet") if (folder / one).is_dir()) if name == "denoiser" else name
    return folder / inner


def original(family: str, name: str, tensors: dict[str, torch.Tensor]) -> Tensors:
    """The tensors in the names of the first code."""
    if name == "denoiser":
        if family == "flux":
            return original_layout(tensors)
        return {key.removeprefix(UNET): value for key, value in original_names.unet(tensors, layers=1).items()}
    if name == "vae":
        blocks = 1 + max(int(key.split(".")[2]) for key in tensors if key.startswith("encoder.down_blocks."))
        named = original_names.vae(tensors, blocks)
        return {key.removeprefix("first_stage_model."): value for key, value in named.items()}
    if name == "text_encoder_2" and family == "sdxl":
        named = original_names.open_clip(tensors)
        return {key.removeprefix(WHOLE[name]): value for key, value in named.items()}
    if name == "text_encoder":
        return {f"text_model.{key}": value for key, value in tensors.items()}
    return tensors


def stored(folder: Path, family: str, name: str, form: Form, prefix: str) -> dict[str, torch.Tensor]:
    tensors = load_file(next(component(folder, name).glob("*.safetensors")))
    named = tensors if name in form.diffusers else original(family, name, tensors)
    if prefix.endswith(("text_model.", "cond_stage_model.")) or (prefix == "text_model." and name in form.diffusers):
        named = {key.removeprefix("text_model."): value for key, value in named.items()}
    dtype = form.dtype if name in ("denoiser", "text_encoder_2") else F32
    rounded = {key: value.to(dtype) if value.is_floating_point() else value for key, value in named.items()}
    return {f"{prefix}{key}": value.contiguous() for key, value in rounded.items()}


def write(target: Path, folder: Path, family: str, form: Form) -> tuple[Path, Path]:
    """Writes the form into ``target``; the settings ``model`` and ``base_model`` for it."""
    tensors = {"epoch": torch.tensor(3)} if family != "flux" else {}
    for name, prefix in form.prefixes.items():
        tensors |= stored(folder, family, name, form, prefix)
    for path, part in {form.file: None, **form.scattered}.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors if part is None else stored(folder, family, part[0], form, part[1]), target / path)
    if form.base == "described":  # the folder itself says what its parts look like, and has the tokenizers
        for path in folder.rglob("*.json"):
            if path.name != "model_index.json":
                (target / path.relative_to(folder)).parent.mkdir(exist_ok=True)
                shutil.copy(path, target / path.relative_to(folder))
    return target / (form.model or form.file), target if form.base == "described" else folder


@pytest.mark.parametrize(("family", "name"), sampled(CASES, 4))
def test_a_form_gives_the_picture_of_its_weights(
    tmp_path: Path, folders: dict[str, Path], pictures: dict[str, np.ndarray], family: str, name: str
) -> None:
    form = FORMS[name]
    model, base = write(tmp_path, folders[family], family, form)
    assert np.abs(drawn(found_model(model, base)) - pictures[family]).mean() < ROUNDING[form.dtype]


PEERS = {"sdxl": StableDiffusionXLPipeline, "sd15": StableDiffusionPipeline}
VELOCITY = {"prediction_type": "v_prediction"}
ZERO_SNR = {**VELOCITY, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
MARKED = {
    "v_pred": (("v_pred",), {}, VELOCITY),
    "v_pred and ztsnr": (("v_pred", "ztsnr"), {}, ZERO_SNR),
    "metadata": ((), {"modelspec.predict_key": "v"}, VELOCITY),
    "metadata in other words": ((), {"modelspec.prediction_type": "v_prediction", "ztsnr": "true"}, ZERO_SNR),
    "metadata of epsilon": ((), {"modelspec.predict_key": "epsilon"}, {}),
    "ztsnr alone": (("ztsnr",), {}, {}),
}


def with_markers(file: Path, folder: Path, family: str, marks: tuple[str, ...], metadata: Mapping[str, str]) -> Path:
    form = Form(WHOLE if family == "sdxl" else SD15, dtype=F32)
    tensors = {mark: torch.empty(0) for mark in marks}
    for name, prefix in form.prefixes.items():
        tensors |= stored(folder, family, name, form, prefix)
    save_file(tensors, file, dict(metadata))
    return file


@pytest.fixture(scope="module")
def peers(folders: dict[str, Path]) -> dict[str, Any]:
    """The pipelines of diffusers."""
    made = {}
    for family, pipeline in PEERS.items():
        made[family] = pipeline.from_pretrained(folders[family], local_files_only=True, trust_remote_code=False)
        made[family].set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("family", PEERS)
@pytest.mark.parametrize("name", MARKED)
def test_what_a_unet_predicts_is_as_its_file_says(
    tmp_path: Path, folders: dict[str, Path], peers: dict[str, Any], family: str, name: str
) -> None:
    marks, metadata, changes = MARKED[name]
    file = with_markers(tmp_path / "mine.safetensors", folders[family], family, marks, metadata)
    ours = drawn(found_model(file, folders[family]), steps=2)
    peer = peers[family]
    own = peer.scheduler
    peer.scheduler = EulerDiscreteScheduler.from_config(own.config, **changes)
    asked = {"width": SIDE, "height": SIDE, "num_inference_steps": 2, "guidance_scale": 3.5}
    theirs = peer("a woman", generator=torch.Generator("cpu").manual_seed(1), **asked).images[0]
    peer.scheduler = own
    assert np.abs(ours - np.asarray(theirs).astype(int)).max() <= 1


def test_a_unet_that_predicts_something_else_is_named(tmp_path: Path, folders: dict[str, Path]) -> None:
    file = with_markers(tmp_path / "a.safetensors", folders["sdxl"], "sdxl", (), {"modelspec.predict_key": "sample"})
    with pytest.raises(WeightsError, match="^a.safetensors predicts 'sample', which is not known here"):
        service_of(found_model(file, folders["sdxl"]))


def edited(folder: Path, guided: bool, tokens: int | None) -> Path:
    """A copy of the embedded model that says it is dev or schnell."""
    shutil.copytree(EMBEDDED, folder)
    published = DEV if guided else SCHNELL
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(dict(published.scheduler)))
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "guidance_embeds": guided}))
    (folder / "family.json").write_text(json.dumps({"native": 256, **({"tokens": tokens} if tokens else {})}))
    return folder


@pytest.mark.parametrize("of_parts", [True, False])
@pytest.mark.parametrize("of_file", [True, False])
def test_the_schedule_and_the_prompts_length_follow_the_transformer(
    tmp_path: Path, of_file: bool, of_parts: bool
) -> None:
    base = edited(tmp_path / "parts", guided=of_parts, tokens=40 if of_parts else None)
    tensors = load_file(EMBEDDED / "transformer" / "diffusion_pytorch_model.safetensors")
    kept = {name: tensor for name, tensor in original_layout(tensors).items() if of_file or "guidance" not in name}
    save_file(kept, tmp_path / "mine.safetensors")
    found = found_model(tmp_path / "mine.safetensors", base)
    profile, service = found.profile, service_of(found)
    tokens = {(True, True): 40, (True, False): 512, (False, True): 256, (False, False): 256}[of_file, of_parts]
    assert (profile.steps, profile.tokens) == (28 if of_file else 4, tokens)
    steps = DenoiseRequest(("a",), (1,), 1024, 1024, 4, 3.5)
    asked = service.prepare_steps(steps, 4096)["sigmas"]
    scheduler = service._pipeline.scheduler  # type: ignore[attr-defined]
    scheduler.set_timesteps(sigmas=asked, mu=1.15)
    shifted = [1.0, 0.9046, 0.7595, 0.5128, 0]  # t -> e^1.15 t / (1 + (e^1.15 - 1) t)
    assert scheduler.sigmas.tolist() == pytest.approx(shifted if of_file else [1, 0.75, 0.5, 0.25, 0], abs=1e-3)
