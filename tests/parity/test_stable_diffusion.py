"""SDXL and SD 1.5 go through every stage like Flux; what they draw is what diffusers draws with the same weights,
here small random ones."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from support import original_names
from support.flux_pictures import picture, pixels
from support.pictures import PROMPT
from support.requests_data import DETECTORS, INPUTS

from backend.core.cancellation import Canceled
from backend.core.errors import InputError, WeightsError
from backend.core.settings import Settings
from backend.core.timeline import Timeline
from backend.offload.placements import block_modules
from bench.speed.stable_diffusion import write
from modules.app.model_files import find_files
from modules.app.service import Service, start
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor
from modules.extension_optimizer import optional_features
from modules.families.stable_diffusion.service import StableDiffusionService
from modules.output.image_writer import read_parameters
from modules.pipeline.base import no_progress
from modules.pipeline.generate import GenerateStage
from modules.request.parser import build_request
from training.data.drawing import draw_scene
from training.data.scene import sample_scene

PEERS: dict[str, tuple[Any, Any, Any]] = {
    "sdxl": (StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline),
    "sd15": (StableDiffusionPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline),
}
STEPS = 4
SMALL = {"width": 128, "height": 128}


@pytest.fixture(scope="module", params=PEERS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / f"small-{family}"
    write(folder, family)
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Service:
    return started(str(folder))


def started(model: str, **settings: Any) -> Service:
    return start(replace(Settings(), model=model, dtype="float32", log_level="WARNING", warm_up=False, **settings))


@pytest.fixture(scope="module")
def ours(service: Service) -> StableDiffusionService:
    stage = service.pipeline.stages[0]
    assert isinstance(stage, GenerateStage) and isinstance(stage.service, StableDiffusionService)
    return stage.service


@pytest.fixture(scope="module")
def bare(family: str, folder: Path) -> Any:
    pipeline = PEERS[family][0].from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.vae, pipeline.unet):
        module.to(memory_format=torch.channels_last)  # as ours, so that convolutions add in the same order
    return pipeline


@pytest.fixture
def euler(bare: Any) -> Iterator[Any]:
    own = bare.scheduler
    bare.scheduler = EulerDiscreteScheduler.from_config(own.config)
    yield bare
    bare.scheduler = own


def denoise_request(**changes: Any) -> DenoiseRequest:
    values: dict[str, Any] = {
        "prompts": (PROMPT,),
        "seeds": (3,),
        **SMALL,
        "steps": STEPS,
        "guidance": 5.0,
    }
    return DenoiseRequest(**{**values, **changes})


def scene() -> Image.Image:
    return picture().resize((128, 128))


def theirs(pipeline: Any, **changes: Any) -> np.ndarray:
    given = {
        "prompt": PROMPT,
        "num_inference_steps": STEPS,
        "guidance_scale": 5.0,
        "generator": torch.Generator("cpu").manual_seed(3),
    }
    return pixels(pipeline(**{**given, **changes}).images[0])


@pytest.mark.parametrize("words", ["", "a hat"])
def test_text_to_image_is_that_of_bare_diffusers(ours: StableDiffusionService, euler: Any, words: str) -> None:
    drawn = pixels(ours.generate(denoise_request(negative=words), Monitor(Timeline()))[0])
    assert np.array_equal(drawn, theirs(euler, negative_prompt=words or None, **SMALL))


def test_without_guidance_nothing_is_avoided(ours: StableDiffusionService, euler: Any) -> None:
    drawn = pixels(ours.generate(denoise_request(negative="a hat", guidance=1.0), Monitor(Timeline()))[0])
    assert np.array_equal(drawn, theirs(euler, guidance_scale=1.0, **SMALL))


@pytest.mark.parametrize(("sampler", "algorithm"), [("DPM++ 2M", "dpmsolver++"), ("DPM++ 2M SDE", "sde-dpmsolver++")])
def test_dpm_with_karras_steps_is_that_of_bare_diffusers(
    ours: StableDiffusionService, bare: Any, sampler: str, algorithm: str
) -> None:
    own = bare.scheduler
    bare.scheduler = DPMSolverMultistepScheduler.from_config(
        own.config, use_karras_sigmas=True, algorithm_type=algorithm
    )
    expected = theirs(bare, **SMALL)
    bare.scheduler = own
    assert np.array_equal(
        pixels(ours.generate(denoise_request(sampler=sampler, schedule="Karras"), Monitor(Timeline()))[0]),
        expected,
    )


@pytest.mark.parametrize("schedule", ["Karras", "Exponential", "Beta", "Normal", "SGM Uniform"])
def test_schedules_are_true_to_their_names(ours: StableDiffusionService, schedule: str) -> None:
    """Held against the noise levels of diffusers' own implementations, where it has one."""
    levels = np.array(ours.prepare_steps(denoise_request(schedule=schedule, steps=10), 4)["sigmas"])
    assert len(levels) == 11 and levels[-1] == 0 and (np.diff(levels) < 0).all()
    named = {f"use_{schedule.lower()}_sigmas": True} if schedule in ("Karras", "Exponential") else {}
    peer = EulerDiscreteScheduler.from_config(ours._scheduler, timestep_spacing="linspace", **named)
    peer.set_timesteps(10)
    assert levels[0] == pytest.approx(float(peer.sigmas.max()), rel=1e-3)
    if schedule in (
        "Karras",
        "Exponential",
        "Normal",
    ):  # the least level is the WebUI's, a tenth of a time above theirs
        assert levels == pytest.approx(peer.sigmas.numpy(), rel=0.04)


@pytest.mark.parametrize("strength", [0.34, 0.67])
def test_image_to_image_is_that_of_bare_diffusers(
    ours: StableDiffusionService, euler: Any, family: str, strength: float
) -> None:
    drawn = pixels(ours.generate(denoise_request(images=(scene(),), strength=strength), Monitor(Timeline()))[0])
    # latents, because the peer would sample them with the generator; and in its own way of counting steps
    expected = theirs(
        PEERS[family][1].from_pipe(euler), image=ours.encode_images([scene()]), strength=int(STEPS * strength) / STEPS
    )
    assert np.abs(drawn - expected).max() <= 1


def test_inpainting_is_that_of_bare_diffusers(ours: StableDiffusionService, euler: Any, family: str) -> None:
    mask = Image.new("L", (128, 128))
    mask.paste(255, (32, 32, 96, 80))
    drawn = pixels(
        ours.generate(denoise_request(images=(scene(),), masks=(mask,), strength=0.5), Monitor(Timeline()))[0]
    )
    latents = ours.encode_images([scene()])
    given = {"image": latents, "mask_image": mask, "masked_image_latents": latents, **SMALL}
    expected = theirs(PEERS[family][2].from_pipe(euler), strength=0.5, **given)
    assert np.abs(drawn - expected).max() <= 1


def test_prompts_of_different_lengths_are_one_run_that_can_be_ended_between_steps(ours: StableDiffusionService) -> None:
    request = denoise_request(prompts=(PROMPT, "a fox, " * 40), seeds=(3, 4))
    told: list[tuple[int, int]] = []
    ours.generate(request, Monitor(Timeline(), lambda done, total: told.append((done, total))))
    assert told == [(done, 2 * STEPS) for done in range(1, 2 * STEPS + 1)]

    def end() -> None:
        if len(told) == STEPS + 1:
            raise Canceled

    told.clear()
    with pytest.raises(Canceled):
        ours.generate(request, Monitor(Timeline(), lambda done, total: told.append((done, total)), end))
    assert told[-1] == (STEPS + 1, 2 * STEPS)


def test_a_picture_of_a_batch_is_the_picture_drawn_alone(ours: StableDiffusionService) -> None:
    together = ours.generate(denoise_request(prompts=(PROMPT, "a fox"), seeds=(3, 4)), Monitor(Timeline()))
    alone = ours.generate(denoise_request(prompts=("a fox",), seeds=(4,)), Monitor(Timeline()))[0]
    assert np.abs(pixels(together[1]) - pixels(alone)).max() <= 1


def face() -> Image.Image:
    """A drawing with one face, as a user's picture would have one."""
    rng = random.Random(5)
    scenes = (sample_scene(rng, (256, 256)) for _ in range(60))
    return draw_scene(next(scene for scene in scenes if scene.framing == "portrait" and len(scene.people) == 1))


def predict(service: Service, **inputs: Any) -> tuple[Image.Image, str, dict[str, Any], dict[str, float]]:
    metrics: dict[str, float] = {}
    wanted = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 3, "output_format": "png", **inputs}
    (file,) = service.predict(wanted, metrics.__setitem__, progress=no_progress)
    return Image.open(file).copy(), *read_parameters(file), metrics


def test_it_goes_through_every_stage(service: Service, tmp_path: Path) -> None:
    face().save(tmp_path / "face.png")
    unit = {"ad_confidence": 0.5, "ad_negative_prompt": "a beard", "ad_denoising_strength": 0.9}
    asked = {
        "image": tmp_path / "face.png",
        "prompt_strength": 0.0,
        "negative_prompt": "a hat",
        "enable_hr": True,
        "denoising_strength": 0.0,
        "hr_upscaler": "Lanczos",
    }
    drawn, text, record, metrics = predict(service, **asked, hr_scale=1, adetailer_args=json.dumps(unit), scale=2.0)
    assert drawn.size == (512, 512)
    assert {"generate", "hires", "adetailer", "upscale"} <= {name.partition(".")[0] for name in metrics}
    ((left, top, right, bottom),) = record["parameters"]["_adetailer_regions"]
    plain = predict(service, **asked, hr_scale=1, adetailer=False, scale=2.0)[0]
    changed = np.abs(pixels(drawn) - pixels(plain)).max(axis=2) > 8
    near = np.zeros_like(changed)
    near[max(0, 2 * top - 80) : 2 * bottom + 80, max(0, 2 * left - 80) : 2 * right + 80] = (
        True  # the upscaler looks around itself
    )
    assert changed[near].mean() > 0.1 and not changed[~near].any()  # the face is painted over, here with noise
    assert "Negative prompt: a hat\n" in text and "CFG scale: 5" in text.replace("7.5", "5") and "Distilled" not in text
    assert "ADetailer negative prompt: a beard" in text


def test_hires_and_text_to_image(service: Service) -> None:
    asked = {"enable_hr": True, "hr_scale": 1.25, "sampler": "DPM++ 2M", "scheduler": "Karras"}
    drawn, text, _, metrics = predict(service, **asked, denoising_strength=0.6, scale=1.0, adetailer=False)
    assert drawn.size == (320, 320) and metrics["hires.denoise.seconds"] > 0
    assert "Sampler: DPM++ 2M, Schedule type: Karras" in text and "Hires sampler: Euler" in text


def test_go_fast_is_refused(service: Service) -> None:
    with pytest.raises(InputError, match="^go_fast: is not for SD"):
        predict(service, go_fast=True)


def test_steps_and_guidance_are_the_families_own(service: Service, family: str) -> None:
    asked = build_request(INPUTS, service.profile, DETECTORS)
    assert (asked.num_inference_steps, asked.guidance_scale) == (30, 5.0 if family == "sdxl" else 7.5)


def test_the_blocks_that_the_plan_counts_are_those_that_are_streamed(
    ours: StableDiffusionService, folder: Path, family: str
) -> None:
    sizes = find_files(replace(Settings(), model=str(folder))).spec()
    with ours.models.on_device("unet") as (unet,):
        streamed = sorted(sum(p.numel() for p in block.parameters()) for block in block_modules(unet))
        assert streamed == sorted(sizes.components["unet"].blocks)
        assert sum(p.numel() for p in unet.parameters()) == sizes.components["unet"].parameters


def test_the_convolutions_lie_as_the_report_of_the_set_up_says(ours: StableDiffusionService) -> None:
    """ "channels last: unet" in the list of optimizations."""
    with ours.models.on_device("unet") as (unet,):
        convolutions = [
            module.weight
            for module in unet.modules()
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3)
        ]
        assert convolutions and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)


def test_a_model_for_inpainting_only_is_refused(folder: Path, family: str, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "mine")
    config = tmp_path / "mine" / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 9}))
    name = {"sdxl": "SDXL", "sd15": "SD 1.5"}[family]
    with pytest.raises(
        WeightsError,
        match=f"^mine is an {name} inpainting model whose UNet takes 9 channels in place of 4; 'model' takes",
    ):
        find_files(replace(Settings(), model=str(tmp_path / "mine")))


@pytest.fixture(scope="module")
def single(folder: Path, family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as people pass them on: one file, in the names of the first code, with what training left in
    it."""

    def weights(name: str) -> dict[str, torch.Tensor]:
        return load_file(next((folder / name).glob("*.safetensors")))

    first = "cond_stage_model.transformer." if family == "sd15" else "conditioner.embedders.0.transformer."
    tensors = {**original_names.unet(weights("unet"), layers=1), **original_names.vae(weights("vae"), blocks=4)}
    tensors |= {f"{first}{name}": tensor for name, tensor in weights("text_encoder").items()} | {
        "alphas_cumprod": torch.zeros(1000)
    }
    if family == "sdxl":
        tensors |= original_names.open_clip(weights("text_encoder_2"))
    file = tmp_path_factory.mktemp("single") / "mine.safetensors"
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, file)
    return file


def test_a_single_file_draws_what_its_folder_draws(
    service: Service, folder: Path, single: Path, tmp_path: Path
) -> None:
    """The folder beside it only has to say how the parts look: its own weights are not read, and need not be there."""
    shutil.copytree(folder, tmp_path / "parts", ignore=shutil.ignore_patterns("*.safetensors"))
    alone = started(str(single), base_model=str(tmp_path / "parts"), disabled_extensions=tuple(optional_features()))
    asked = {"adetailer": False, "num_inference_steps": 2, "scale": 1.0}
    drawn, text, _, _ = predict(alone, **asked)
    assert (
        np.abs(pixels(drawn) - pixels(predict(service, **asked)[0])).mean() < 1
    )  # its weights have half the precision
    assert ", Model: mine," in text


def test_a_single_file_of_another_family_or_without_its_parts_is_refused(
    folder: Path, family: str, single: Path, tmp_path: Path
) -> None:
    other = "sd15" if family == "sdxl" else "sdxl"
    write(tmp_path / "other", other)
    with pytest.raises(
        WeightsError,
        match=f"^mine.safetensors holds a model of the family {family}, but 'base_model' names one of {other}",
    ):
        find_files(replace(Settings(), model=str(single), base_model=str(tmp_path / "other"))).spec()
    with pytest.raises(WeightsError, match=f"holds a model of the family {family}, but 'base_model' names one of flux"):
        find_files(replace(Settings(), model=str(single), base_model="embedded")).spec()
    with pytest.raises(
        WeightsError,
        match="^mine.safetensors holds the text encoder CLIP-L of a size .*; name a folder of its own model there",
    ):
        find_files(replace(Settings(), model=str(single)))


def test_a_single_file_that_lacks_a_tensor_is_refused(folder: Path, single: Path, tmp_path: Path) -> None:
    tensors = load_file(single)
    for name in ("model.diffusion_model.out.2.bias", next(name for name in tensors if name.endswith("fc1.weight"))):
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, tmp_path / "less.safetensors")
        files = find_files(replace(Settings(), model=str(tmp_path / "less.safetensors"), base_model=str(folder)))
        with pytest.raises(WeightsError, match=r"of less.safetensors does not fit its config.json \(1 tensors differ"):
            for loader in files.loaders(torch.float32, torch.float32, 0).values():
                loader()


def test_a_repository_is_found_in_the_hubs_cache_also_in_half_precision(
    folder: Path, family: str, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--somebody--their-model" / "snapshots" / "abc"
    shutil.copytree(folder, snapshot)
    (tmp_path / "models--somebody--their-model" / "refs").mkdir()
    (tmp_path / "models--somebody--their-model" / "refs" / "main").write_text("abc")
    for file in list(snapshot.glob("*/*.safetensors")):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    again = started("somebody/their-model", disabled_extensions=tuple(optional_features()))
    asked = {"adetailer": False, "num_inference_steps": 2, "scale": 1.0}
    assert np.array_equal(pixels(predict(again, **asked)[0]), pixels(predict(service, **asked)[0]))


def test_an_unknown_repository_is_named_with_the_ways_out() -> None:
    with pytest.raises(
        WeightsError, match="^model 'somebody/else' .* nor a pipeline in the hub's cache; .*hf download ID"
    ):
        find_files(replace(Settings(), model="somebody/else"))
