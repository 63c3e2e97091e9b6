"""One adapter gives one picture, in whatever layout its file is, and the one that diffusers draws where diffusers reads
the file. Taking it off gives the picture that there was before."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, FluxPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from support import lora_layouts
from support.lora_files import Pair, Tensors, lora_file, named, random_pairs, underscored
from support.lora_layouts import in_xlabs
from support.model_pictures import SIDE, found_model, service_of
from support.slow import sampled
from support.small_flux import write_small_flux
from torch import nn

from backend.core.settings import ROOT
from backend.core.timeline import Timeline
from bench.speed.stable_diffusion import write
from modules.diffusion.base import DiffusionService
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor
from modules.lora.deltas import layer_shape
from modules.lora.files.lora_file import LoraError

PROMPT, STEPS, GUIDANCE, SEED = "a woman with a hat", 2, 3.5, 1
LAYERS = 1
"""Of a block of the small UNets."""
PEERS: Mapping[str, Any] = {
    "flux": FluxPipeline,
    "small flux": FluxPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sd15": StableDiffusionPipeline,
}
LAYOUTS: Mapping[str, Mapping[str, Callable[[Mapping[str, Pair]], Tensors]]] = {
    "flux": lora_layouts.FLUX,
    "small flux": lora_layouts.FLUX,
    "sdxl": lora_layouts.unet(LAYERS),
    "sd15": lora_layouts.unet(LAYERS),
}
READ_BY_DIFFUSERS = {
    "flux": ("diffusers", "old diffusers", "kohya", "ComfyUI", "XLabs"),
    "small flux": (),
    "sdxl": ("diffusers", "old diffusers", "kohya", "first code"),
    "sd15": ("diffusers", "old diffusers", "kohya"),
}


@dataclass
class Model:
    """A small model of a family, ours and diffusers', and a random adapter for its denoiser."""

    family: str
    service: DiffusionService
    folder: Path
    pairs: Mapping[str, Pair]

    @cached_property
    def plain(self) -> np.ndarray:
        """The picture without an adapter, drawn before any is put on."""
        return self.drawn()

    @cached_property
    def peer(self) -> Any:
        """The pipeline of diffusers."""
        pipeline = PEERS[self.family].from_pretrained(
            self.folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
        pipeline.set_progress_bar_config(disable=True)
        if self.family != "flux":
            pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        return pipeline

    def drawn(self, *loras: tuple[Any, float]) -> np.ndarray:
        request = DenoiseRequest((PROMPT,), (SEED,), SIDE, SIDE, STEPS, GUIDANCE, loras=loras)
        return np.asarray(self.service.generate(request, Monitor(Timeline()))[0]).astype(int)

    def by_diffusers(self, file: Path, scale: float = 1.0) -> np.ndarray:
        peer = self.peer
        more = {"max_sequence_length": self.service.profile.tokens} if self.family == "flux" else {}
        peer.load_lora_weights(str(file), adapter_name="x")
        peer.set_adapters("x", scale)
        generator = torch.Generator("cpu").manual_seed(SEED)
        picture = peer(
            PROMPT,
            width=SIDE,
            height=SIDE,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=generator,
            **more,
        )
        peer.unload_lora_weights()
        return np.asarray(picture.images[0]).astype(int)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def model(family: str) -> Model:
        folder = ROOT / "weights/embedded/flux"
        if family != "flux":
            folder = tmp_path_factory.mktemp("models") / f"small-{family}"
            write_small_flux(folder, "dev") if family == "small flux" else write(folder, family)
        service = service_of(found_model(folder))
        denoiser = service.models.module(service.profile.denoiser)
        layers = {
            name: layer_shape(one) for name, one in denoiser.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)
        }
        return Model(family, service, folder, random_pairs(layers))

    return model


@pytest.fixture(scope="module")
def references(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The picture of a model with its adapter in diffusers' layout; of XLabs' layers only, where asked for."""

    @cache
    def reference(family: str, of_xlabs: bool) -> np.ndarray:
        pairs = pairs_for(models(family), of_xlabs)
        file = tmp_path_factory.mktemp("references") / "reference.safetensors"
        drawn: np.ndarray = models(family).drawn((lora_file(LAYOUTS[family]["diffusers"](pairs), file), 1.0))
        return drawn

    return reference


def pairs_for(model: Model, of_xlabs: bool) -> Mapping[str, Pair]:
    return {path: pair for path, pair in model.pairs.items() if not of_xlabs or in_xlabs(path)}


EVERY_LAYOUT = [(family, layout) for family, layouts in LAYOUTS.items() for layout in layouts]


@pytest.mark.parametrize(("family", "layout"), sampled(EVERY_LAYOUT, 4))
def test_every_layout_gives_the_same_picture(
    models: Any, references: Any, family: str, layout: str, tmp_path: Path
) -> None:
    model = models(family)
    plain, expected = model.plain, references(family, layout == "XLabs")
    file = lora_file(LAYOUTS[family][layout](pairs_for(model, layout == "XLabs")), tmp_path / "other.safetensors")
    drawn = model.drawn((file, 1.0))
    assert model.service.adapters.check([file]) == []
    assert np.abs(drawn - expected).max() <= 1 < np.abs(drawn - plain).mean()
    assert np.array_equal(model.drawn(), plain)


@pytest.mark.parametrize(
    ("family", "layout"), sampled([(family, one) for family in PEERS for one in READ_BY_DIFFUSERS[family]], 3)
)
def test_it_is_the_picture_that_diffusers_draws(models: Any, family: str, layout: str, tmp_path: Path) -> None:
    model = models(family)
    # of other layers diffusers drops some in silence, and single blocks in kohya's names must be 3072 wide there
    layers = r"transformer_blocks\..+" if family == "flux" else r".+\.attn\d\..+"
    chosen = in_xlabs if layout == "XLabs" else re.compile(layers).fullmatch
    pairs = {path: pair for path, pair in model.pairs.items() if chosen(path)}
    file = lora_file(LAYOUTS[family][layout](pairs), tmp_path / "lora.safetensors")
    assert np.abs(model.drawn((file, 0.7)) - model.by_diffusers(file.path, 0.7)).max() <= 1


def test_two_at_once_give_what_their_sum_gives(models: Any, tmp_path: Path) -> None:
    model = models("flux")
    files, both = [], {}
    other = random_pairs({path: (len(up), down.shape[1]) for path, (down, up) in model.pairs.items()}, seed=9)
    for number, pairs in enumerate((model.pairs, other)):
        files.append(lora_file(named(pairs, lambda path: f"transformer.{path}"), tmp_path / f"{number}.safetensors"))
    for path, (down, up) in model.pairs.items():
        both[path] = (torch.cat([down, other[path][0]]), torch.cat([0.5 * up, -0.7 * other[path][1]], dim=1))
    summed = lora_file(named(both, lambda path: f"transformer.{path}"), tmp_path / "sum.safetensors")
    drawn, expected = model.drawn((files[0], 0.5), (files[1], -0.7)), model.drawn((summed, 1.0))
    assert np.abs(drawn - expected).max() <= 1
    assert np.abs(drawn - model.drawn((files[0], 0.5))).mean() > 1
    assert np.array_equal(model.drawn((files[0], 0.25), (files[0], 0.25)), model.drawn((files[0], 0.5)))


@pytest.mark.parametrize("family", PEERS)
def test_parts_for_text_encoders_change_the_prompt_and_leave_no_trace(models: Any, family: str, tmp_path: Path) -> None:
    """Under kohya's names and diffusers'; CLIP's layers of diffusers before transformers 5."""
    model = models(family)
    plain = model.plain
    for number, encoder in enumerate(model.service.profile.encoders):
        layers = {
            name: layer_shape(one)
            for name, one in model.service.models.module(encoder).named_modules()
            if isinstance(one, nn.Linear)
        }
        pairs, drawn = random_pairs(layers), []
        kohya = f"lora_te{number + 1 if len(model.service.profile.encoders) > 1 else ''}_"
        for name in (lambda path, to=encoder: f"{to}.{path}", lambda path, to=kohya: underscored(to)(path)):
            file = lora_file(named(pairs, name), tmp_path / f"{encoder}-{len(drawn)}.safetensors")
            assert model.service.adapters.check([file]) == []
            drawn.append(model.drawn((file, 1.0)))
        assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], plain)
    assert np.array_equal(model.drawn(), plain)


def test_a_lora_of_another_family_is_refused_with_both_names(models: Any, tmp_path: Path) -> None:
    flux, sdxl = models("flux"), models("sdxl")
    for_sdxl = lora_file(
        lora_layouts.unet(LAYERS)["kohya"](sdxl.pairs) | {"lora_te2_x.lora_down.weight": torch.ones(1)},
        tmp_path / "xl.safetensors",
    )
    with pytest.raises(LoraError, match="^LoRA 'xl' is for SDXL, and the model is Flux"):
        flux.service.adapters.check([for_sdxl])
    for_flux = lora_file(lora_layouts.FLUX["kohya"](flux.pairs), tmp_path / "flux.safetensors")
    with pytest.raises(LoraError, match="^LoRA 'flux' is for Flux, and the model is SDXL"):
        sdxl.service.adapters.check([for_flux])
