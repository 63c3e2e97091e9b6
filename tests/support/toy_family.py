"""A toy model family: three letters of a prompt are a colour, and a convolution takes it out of noise."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import nn

from backend.planning.checkpoint_sizes import component
from backend.planning.model_specs import Cost, Curve, ModelSpec
from modules.diffusion.base import DiffusionService
from modules.diffusion.profile import FamilyInputs, ModelProfile
from modules.diffusion.prompt_cache import PromptEmbeddings
from modules.families.descriptor import FamilyDescriptor, Match, NoMatch
from modules.families.source import Source

MODULES: dict[str, Any] = {
    "text_encoder": lambda: nn.Embedding(128, 4),
    "denoiser": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "vae": lambda: AutoencoderKL(block_out_channels=(32,), scaling_factor=1.0),
}


class ToyPipeline:
    scheduler, denoiser = None, nn.Identity()

    def set_progress_bar_config(self, disable: bool) -> None: ...

    def __call__(self, words: torch.Tensor, steps: int, latents: Any, callback_on_step_end: Any, **rest: Any) -> Any:
        for index in range(steps):
            latents = latents + (words[..., None, None] - self.denoiser(latents)) / steps
            latents = callback_on_step_end(self, index, latents, {"latents": latents})["latents"]
        return (latents,)


class ToyService(DiffusionService):
    def embed(self, prompt: str, encoders: tuple[Any, ...]) -> PromptEmbeddings:
        letters = torch.tensor([ord(letter) % 128 for letter in prompt[: self.profile.tokens]])
        return PromptEmbeddings(encoders[0](letters).mean(0, keepdim=True), None)

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return original + level * noise

    def prepare_steps(self, request: Any, tokens: int) -> dict[str, Any]:
        return {"steps": request.steps_run()}

    def conditions(self, embeddings: PromptEmbeddings) -> dict[str, Any]:
        return {"words": embeddings.sequence}


class Toy(FamilyDescriptor):
    name, inputs = "toy", FamilyInputs(label="Toy", guidance=None, image=False, mask=False, samplers=("Euler",))

    def detect(self, source: Source) -> Match | NoMatch:
        return Match() if source.pipeline_class == "ToyPipeline" else NoMatch()

    def profile(self, source: Source) -> ModelProfile:
        return ModelProfile(source.name, 64, 3, 1, 4, 2, 1.0, self.inputs, ("text_encoder",), "denoiser")

    def spec(self, source: Source, dtype: str) -> ModelSpec:
        parts = {name: component(source.folder_header(name).shapes, dtype) for name in MODULES}
        costs = dict.fromkeys(
            ("encode", "denoise", "encode_image", "decode"), Cost(Curve(linear=2e3), Curve(linear=1e4))
        )
        names = {"encoders": ("text_encoder",), "denoiser": "denoiser"}
        return ModelSpec("toy", 64, 2, parts, costs, "made up", token_pixels=1, text_tokens=3, vae_tile=32, **names)

    def load(self, source: Source, component: str, dtype: torch.dtype) -> nn.Module:
        module: nn.Module = MODULES[component]().to(dtype)
        module.load_state_dict(load_file(source.path / component / "model.safetensors"))
        return module

    def service(self, source: Source, models: Any, dtype: torch.dtype, fallback: Any, prompt_cache_entries: int) -> Any:
        return ToyService(models, self.profile(source), ToyPipeline(), dtype, fallback, prompt_cache_entries)
