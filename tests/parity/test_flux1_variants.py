"""FLUX.1 Fill, Kontext, Canny and Depth draw what diffusers' own pipelines for them draw, with small random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FluxControlPipeline,
    FluxFillPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from support.flux_pictures import picture, pixels
from support.gguf_files import write_gguf
from support.model_pictures import found_model, service_of
from support.original_flux import original_layout
from support.pictures import PROMPT
from support.small_flux import write_small_flux

from backend.core.timeline import Timeline
from modules.compat import pack_latents
from modules.diffusion.base import DiffusionService
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor
from modules.families.flux1.pictures import edges_of

PEERS: dict[str, Any] = {
    "fill": FluxFillPipeline,
    "kontext": FluxKontextPipeline,
    "canny": FluxControlPipeline,
    "depth": FluxControlPipeline,
}
SIZE = (192, 128)
"""Width and height: off square."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By variant; with "-1024" behind its name the model has the published native size."""

    @cache
    def folder(name: str) -> Path:
        variant, _, native = name.partition("-")
        return write_small_flux(tmp_path_factory.mktemp("models") / name, variant, int(native or 256))

    return folder


@pytest.fixture(scope="module")
def ours(folders: Callable[[str], Path]) -> Callable[[str], DiffusionService]:
    return cache(lambda variant: service_of(found_model(folders(variant))))


@pytest.fixture(scope="module")
def peers(folders: Callable[[str], Path]) -> Callable[[str], Any]:
    @cache
    def peer(variant: str) -> Any:
        pipeline = PEERS[variant.partition("-")[0]].from_pretrained(
            folders(variant), dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return peer


def denoise_request(**changes: Any) -> DenoiseRequest:
    values: dict[str, Any] = {
        "prompts": (PROMPT,),
        "seeds": (3,),
        "width": SIZE[0],
        "height": SIZE[1],
        "steps": 3,
        "guidance": 30.0,
    }
    return DenoiseRequest(**{**values, **changes})


def theirs(pipeline: Any, request: DenoiseRequest, **changes: Any) -> list[np.ndarray]:
    given = {
        "prompt": list(request.prompts),
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "max_sequence_length": 40,
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in request.seeds],
    }
    with torch.inference_mode():
        return [pixels(image) for image in pipeline(**{**given, **changes}).images]


def noise(seeds: tuple[int, ...]) -> torch.Tensor:
    """The packed noise of these seeds, for pipelines that draw from the generator before it."""
    shape = (1, 16, SIZE[1] // 8, SIZE[0] // 8)
    return torch.cat(
        [pack_latents(torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))) for seed in seeds]
    )


def drawn(service: DiffusionService, request: DenoiseRequest) -> list[np.ndarray]:
    return [pixels(image) for image in service.generate(request, Monitor(Timeline()))]


def assert_same(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    assert len(one) == len(other)
    for ours, theirs in zip(one, other, strict=True):
        assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 1


def scene() -> Image.Image:
    return picture().resize(SIZE)


def box_mask() -> Image.Image:
    mask = Image.new("L", SIZE)
    mask.paste(255, (50, 30, 131, 90))  # its edges lie inside of latents
    return mask


@pytest.mark.parametrize("guidance", [30.0, 2.0])
def test_fill_is_that_of_diffusers(ours: Any, peers: Any, guidance: float) -> None:
    request = denoise_request(images=(scene(),), masks=(box_mask(),), guidance=guidance)
    peer = theirs(peers("fill"), request, image=scene(), mask_image=box_mask(), latents=noise((3,)))
    assert_same(drawn(ours("fill"), request), peer)


def test_fill_takes_two_pictures_with_masks_of_their_own_at_once(ours: Any, peers: Any) -> None:
    images, masks = (scene(), scene().transpose(Image.Transpose.ROTATE_180)), (box_mask(), Image.new("L", SIZE, 255))
    request = denoise_request(prompts=(PROMPT, "a fox"), seeds=(3, 8), images=images, masks=masks)
    peer = theirs(peers("fill"), request, image=list(images), mask_image=list(masks), latents=noise((3, 8)))
    assert_same(drawn(ours("fill"), request), peer)


def test_fill_repaints_what_is_there_as_far_as_the_strength_says(ours: Any, peers: Any) -> None:
    class Mean(FluxFillPipeline):
        """Begins from the mean of the encoded picture, so that the generator draws nothing before the noise."""

        def _encode_vae_image(self, image: torch.Tensor, generator: Any) -> torch.Tensor:
            config = self.vae.config
            return (self.vae.encode(image).latent_dist.mode() - config.shift_factor) * config.scaling_factor

    peer = Mean.from_pipe(peers("fill"))
    peer.set_progress_bar_config(disable=True)
    request = denoise_request(images=(scene(),), masks=(box_mask(),), strength=0.5, steps=4)
    expected = theirs(peer, request, image=scene(), mask_image=box_mask(), strength=0.5)
    assert_same(drawn(ours("fill"), request), expected)


def test_kontext_is_that_of_diffusers(ours: Any, peers: Any) -> None:
    given = picture().resize((300, 200))  # read at 1248 x 832
    request = denoise_request(references=((given,),), guidance=2.5, steps=1)
    peer = theirs(peers("kontext-1024"), request, image=given, max_area=SIZE[0] * SIZE[1])
    assert_same(drawn(ours("kontext-1024"), request), peer)


def test_kontext_makes_several_pictures_of_one(ours: Any, peers: Any) -> None:
    given = picture()
    prompts, seeds = (PROMPT, "a fox"), (3, 8)
    request = denoise_request(prompts=prompts, seeds=seeds, references=((given,),) * 2, guidance=2.5, steps=2)
    peer = theirs(peers("kontext"), request, image=given, max_area=SIZE[0] * SIZE[1], _auto_resize=False)
    assert_same(drawn(ours("kontext"), request), peer)


def test_kontext_repaints_a_part_as_the_inpainting_pipeline_of_diffusers(ours: Any, peers: Any) -> None:
    mask = Image.new("L", SIZE)
    mask.paste(255, (48, 32, 128, 96))
    given = picture()
    request = denoise_request(
        images=(scene(),), masks=(mask,), references=((given,),), strength=0.5, guidance=2.5, steps=4
    )
    peer = FluxKontextInpaintPipeline.from_pipe(peers("kontext"))
    peer.set_progress_bar_config(disable=True)
    expected = theirs(
        peer,
        request,
        image=scene(),
        mask_image=mask,
        image_reference=given,
        strength=0.5,
        max_area=SIZE[0] * SIZE[1],
        _auto_resize=False,
    )
    assert_same(drawn(ours("kontext"), request), expected)


def test_depth_is_that_of_diffusers(ours: Any, peers: Any) -> None:
    request = denoise_request(controls=(scene(),), guidance=10.0)
    peer = theirs(peers("depth"), request, control_image=scene(), latents=noise((3,)))
    assert_same(drawn(ours("depth"), request), peer)


def test_canny_reads_the_edges_of_its_control_image(ours: Any, peers: Any) -> None:
    given = Image.new("RGB", SIZE, "grey")
    given.paste("orange", (50, 30, 131, 90))
    edges = edges_of(given)
    request = denoise_request(controls=(given,))
    expected = theirs(peers("canny"), request, control_image=edges, latents=noise((3,)))
    assert_same(drawn(ours("canny"), request), expected)
    assert_same(drawn(ours("canny"), denoise_request(controls=(edges,))), expected)  # ready-made edges


def test_go_fast_skips_steps_of_a_model_that_reads_pictures(ours: Any) -> None:
    request = denoise_request(steps=20, references=((picture(),),), go_fast=True)
    fast, slow = (drawn(ours("kontext"), replace(request, go_fast=go_fast))[0] for go_fast in (True, False))
    assert 0 < np.abs(fast - slow).max() < 128


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("variant", ["fill", "kontext"])
def test_a_single_file_draws_what_the_folder_draws(
    ours: Any, folders: Any, tmp_path: Path, variant: str, prefix: str
) -> None:
    """In the names of Black Forest Labs, and with ComfyUI's prefix."""
    tensors = load_file(folders(variant) / "transformer" / "diffusion_pytorch_model.safetensors")
    named = {prefix + name: tensor for name, tensor in original_layout(tensors).items()}
    save_file(named, tmp_path / f"flux1-{variant}-dev.safetensors")
    one = service_of(found_model(tmp_path / f"flux1-{variant}-dev.safetensors", folders(variant)))
    given = {"references": ((scene(),),)} if variant == "kontext" else {"images": (scene(),), "masks": (box_mask(),)}
    request = denoise_request(steps=1, **given)
    assert_same(drawn(one, request), drawn(ours(variant), request))


def test_a_gguf_file_and_one_in_fp8_draw_nearly_the_same(ours: Any, folders: Any, tmp_path: Path) -> None:
    tensors = original_layout(load_file(folders("fill") / "transformer" / "diffusion_pytorch_model.safetensors"))
    matrices = {name for name, tensor in tensors.items() if tensor.ndim == 2 and tensor.shape[1] % 32 == 0}
    kinds = {name: "Q8_0" if name in matrices else "F32" for name in tensors}
    write_gguf(tmp_path / "fill.gguf", {name: (tensor, kinds[name]) for name, tensor in tensors.items()})
    save_file(
        {name: tensor.to(torch.float8_e4m3fn) if name in matrices else tensor for name, tensor in tensors.items()},
        tmp_path / "fill.safetensors",
    )
    request = denoise_request(steps=1, images=(scene(),), masks=(box_mask(),))
    exact = drawn(ours("fill"), request)[0]
    for name in ("fill.gguf", "fill.safetensors"):
        rounded = drawn(service_of(found_model(tmp_path / name, folders("fill"))), request)[0]
        assert np.abs(rounded - exact).mean() < 6, name
