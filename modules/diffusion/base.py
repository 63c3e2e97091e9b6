"""What every family that draws has in common: encode the prompt, denoise, decode, each with only the models that it
needs.

A family adds how its prompts are embedded and how its latents are noised. The denoise loop is diffusers' own pipeline
with prompt embeddings in and latents out. Image-to-image and inpainting are the same loop, begun at a lower noise level
and, with a mask, blended after every step; the pictures are those of diffusers' own pipelines for them, but the
autoencoder need not be on the device meanwhile.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch.nn import functional

from backend.core.errors import WeightsError
from backend.core.timeline import Timeline
from backend.offload.oom_fallback import OomFallback, Strategy
from modules.diffusion.samplers import EULER, SIMPLE, SeededSDE
from modules.families.family import Family
from modules.flux_memory_optimizer import first_block_cache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from backend.model_cache_optimizer import ModelCache

StepReport = Callable[[int, int], None]
Result = TypeVar("Result")


@dataclass(frozen=True)
class PromptEmbeddings:
    """A prompt on the device: words as N x tokens x width, the whole as N x width (SD 1.5 has none), and what is to
    be avoided, if anything."""

    sequence: torch.Tensor
    pooled: torch.Tensor | None
    negative: PromptEmbeddings | None = None

    @classmethod
    def joined(cls, parts: Sequence[PromptEmbeddings]) -> PromptEmbeddings:
        """Several as one batch. All have a pooled embedding, or none has, and likewise a negative."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        negative = [part.negative for part in parts if part.negative]
        return cls(
            torch.cat([part.sequence for part in parts]),
            torch.cat(pooled) if pooled else None,
            cls.joined(negative) if negative else None,
        )

    def only(self, index: int) -> PromptEmbeddings:
        """Those of one picture of the batch."""
        chosen = slice(index, index + 1)
        return PromptEmbeddings(
            self.sequence[chosen],
            None if self.pooled is None else self.pooled[chosen],
            self.negative.only(index) if self.negative else None,
        )


@dataclass(frozen=True)
class DenoiseRequest:
    """A batch to draw: one prompt and one seed a picture, all of one size.

    With ``images`` (of exactly that size) they are redrawn at ``strength`` (0 to 1); with ``masks`` (L, white is
    repainted) only there. With ``differential`` masks grey is repainted too, in so many of the last steps as it is
    bright. ``sampler`` and ``schedule`` are names of ``modules/diffusion/samplers.py``; with ``images`` the sampler is
    always Euler. ``go_fast`` skips steps that change little. With ``latent_resize`` (a mode of
    ``torch.nn.functional.interpolate``) the images may have another size: their latents are uploads_dir to this one.
    ``negative`` is what no picture shall show, for families that can be told so.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    width: int
    height: int
    steps: int
    guidance: float
    images: tuple[Image.Image, ...] = ()
    masks: tuple[Image.Image, ...] = ()
    strength: float = 1.0
    differential: bool = False
    sampler: str = EULER
    schedule: str = SIMPLE
    go_fast: bool = False
    latent_resize: str = ""
    negative: str = ""

    def only(self, index: int) -> DenoiseRequest:
        """The batch with one of its pictures."""
        chosen = slice(index, index + 1)
        return replace(
            self,
            prompts=self.prompts[chosen],
            seeds=self.seeds[chosen],
            images=self.images[chosen],
            masks=self.masks[chosen],
        )

    @property
    def sampler_used(self) -> str:
        """Samplers other than Euler cannot begin from a noised picture."""
        return EULER if self.images else self.sampler

    def steps_run(self) -> int:
        """Steps that are really run: all, or with images the share that ``strength`` asks for."""
        return steps_run(self.steps, self.strength) if self.images else self.steps


def steps_run(steps: int, strength: float) -> int:
    """How many of a drawing's steps a picture is redrawn with: the share of ``strength`` (0 to 1), at least one."""
    return max(1, min(steps, int(steps * strength)))


class PromptCache:
    """The embeddings of the prompts used last, so that a repeated prompt runs no text encoder."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._kept: OrderedDict[str, PromptEmbeddings] = OrderedDict()

    def get(self, prompt: str) -> PromptEmbeddings | None:
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
        return self._kept.get(prompt)

    def put(self, prompt: str, embeddings: PromptEmbeddings) -> None:
        self._kept[prompt] = embeddings
        while len(self._kept) > self._entries:
            self._kept.popitem(last=False)


class DiffusionService(ABC):
    """Draws with the models of one family, borrowed from a :class:`ModelCache` for as long as a step needs them.

    ``pipeline`` is diffusers' own, made without any model; it gets the denoising one for as long as that is lent.
    """

    def __init__(
        self,
        models: ModelCache,
        family: Family,
        pipeline: Any,
        dtype: torch.dtype,
        fallback: OomFallback,
        prompt_cache_entries: int = 32,
    ) -> None:
        self.models = models
        self.fallback = fallback
        self.family = family
        self.dtype = dtype
        self._prompts = PromptCache(prompt_cache_entries)
        self._processor = VaeImageProcessor(vae_scale_factor=family.latent_factor * 2)
        self._pipeline = pipeline
        self._pipeline.vae_scale_factor = family.latent_factor  # it would ask the autoencoder, which it does not have
        self._pipeline.set_progress_bar_config(disable=True)

    @abstractmethod
    def embed(self, prompt: str, encoders: tuple[Any, ...]) -> PromptEmbeddings:
        """One prompt, without what is to be avoided, by the family's text encoders, which are lent."""

    @abstractmethod
    def add_noise(self, origin: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Packed latents with so much noise in them as the family has at that level."""

    @abstractmethod
    def prepare_steps(self, request: DenoiseRequest, tokens: int) -> dict[str, Any]:
        """Gives the pipeline its scheduler, set to the steps that the drawing runs, and returns the arguments that
        say so to the pipeline."""

    @abstractmethod
    def conditions(self, embeddings: PromptEmbeddings) -> dict[str, Any]:
        """The pipeline's arguments for these embeddings."""

    def scale_initial_noise(self, latents: torch.Tensor) -> torch.Tensor:
        """Noised latents as the pipeline wants those that it begins from."""
        return latents

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        """N x channels x rows x columns as the denoising model takes them; here as they are."""
        return latents

    def unpack(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """The inverse of :meth:`pack` for a picture of so many pixels."""
        return latents

    def null_embedding(self, embeddings: PromptEmbeddings) -> PromptEmbeddings | None:
        """What stands for nothing to avoid, where that is not the empty prompt."""
        return None

    @torch.inference_mode()
    def generate(
        self, request: DenoiseRequest, timeline: Timeline, report: StepReport | None = None
    ) -> list[Image.Image]:
        """Draws the batch. ``report`` is told the steps done and to do after every step.

        Where the device's memory is too small the pictures go one by one and the autoencoder works in tiles; raises
        :class:`backend.offload.oom_fallback.OutOfMemory` when that is not enough.
        """
        if request.images and request.strength <= 0:
            return list(request.images)
        negative = request.negative if self.family.negative_prompts and request.guidance > 1 else None
        with timeline.span("encode"):
            again = Strategy("once more after clearing", lambda: self.encode(request.prompts, negative))
            embeddings = self.fallback.run(
                "encode", [Strategy("all encoders", lambda: self.encode(request.prompts, negative)), again], "prompt"
            )
        start: torch.Tensor | None = None
        if request.images:
            with timeline.span("encode_image"):
                start = self._with_or_without_tiles("encode_image", lambda: self.encode_images(request.images))
                if request.latent_resize:
                    factor = self.family.latent_factor
                    start = functional.interpolate(
                        start, (request.height // factor, request.width // factor), mode=request.latent_resize
                    )
        with timeline.span("denoise"):
            whole = Strategy("all pictures together", lambda: self.denoise(request, embeddings, start, report))
            single = Strategy(
                "one picture at a time", lambda: self.denoise_one_by_one(request, embeddings, start, report)
            )
            # which steps are skipped is decided for a batch, and no picture shall depend on those beside it
            latents = self.fallback.run("denoise", [single] if request.go_fast else [whole, single], "width and height")
        with timeline.span("decode"):
            return self._with_or_without_tiles("decode", lambda: self.decode(latents, request.width, request.height))

    def _with_or_without_tiles(self, step: str, run: Callable[[], Result]) -> Result:
        """The autoencoder at work on whole pictures, or in tiles where memory does not hold them."""

        def tiled() -> Result:
            with self.models.on_device("vae") as loan:
                vae: Any = loan[0]
                before = vae.use_tiling
                vae.tile_sample_min_size, vae.tile_latent_min_size = (
                    self.family.native // 2,
                    self.family.native // 2 // self.family.latent_factor,
                )
                vae.enable_tiling()
                try:
                    return run()
                finally:
                    vae.use_tiling = before

        return self.fallback.run(step, [Strategy("whole pictures", run), Strategy("tiles", tiled)], "width and height")

    def denoise_one_by_one(
        self,
        request: DenoiseRequest,
        embeddings: PromptEmbeddings,
        start: torch.Tensor | None,
        report: StepReport | None,
    ) -> torch.Tensor:
        """:meth:`denoise`, picture by picture. A picture's noise is its seed's, so it is the same picture."""
        count, steps = len(request.seeds), request.steps_run()
        latents = []
        for index in range(count):

            def told(done: int, total: int, before: int = index * steps) -> None:
                if report:
                    report(before + done, count * steps)

            latents.append(
                self.denoise(
                    request.only(index),
                    embeddings.only(index),
                    None if start is None else start[index : index + 1],
                    told,
                )
            )
        return torch.cat(latents)

    def encode(self, prompts: Sequence[str], negative: str | None = None) -> PromptEmbeddings:
        """Embeddings of all prompts, in order, each with those of ``negative`` where it is given.

        The text encoders are borrowed only for prompts not seen lately.
        """
        wanted = dict.fromkeys(prompts if negative is None else (*prompts, negative))
        found = {prompt: known for prompt in wanted if (known := self._prompts.get(prompt))}
        missing = [prompt for prompt in wanted if prompt not in found]
        if missing:
            with self.models.on_device(*self.family.encoders) as encoders:
                self.models.prefetch(self.family.denoiser)
                for prompt in missing:  # one by one: the same embeddings whatever is in the batch
                    found[prompt] = self.embed(prompt, encoders)
                    self._prompts.put(prompt, found[prompt])
        if negative is not None:
            avoided = found[negative]
            null = None if negative else self.null_embedding(avoided)
            found = {prompt: replace(found[prompt], negative=null or avoided) for prompt in prompts}
        return PromptEmbeddings.joined([found[prompt] for prompt in prompts])

    def token_ids(self, tokenizer: PreTrainedTokenizerBase, prompt: str, length: int) -> torch.Tensor:
        """The prompt as 1 x length numbers on the device; what is longer is cut off."""
        ids = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        return ids.to(self.models.device)  # type: ignore[no-any-return]

    def encode_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Pictures of one size to scaled latents, N x channels x height/factor x width/factor. One at a time, which
        needs the least memory."""
        with self.models.on_device("vae") as loan:
            vae: Any = loan[0]
            pixels = [self._processor.preprocess(image).to(self.models.device, vae.dtype) for image in images]
            # the mean of the latent distribution, not a sample: one noise less between the picture and its repainting
            latents = torch.cat([vae.encode(one).latent_dist.mode() for one in pixels])
            return ((latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor).to(self.dtype)  # type: ignore[no-any-return]

    def decode(self, latents: torch.Tensor, width: int, height: int) -> list[Image.Image]:
        """Packed latents to pictures. One at a time, which needs the least memory.

        Raises :class:`WeightsError` when the result is not numbers, which would be saved as a black picture.
        """
        with self.models.on_device("vae") as loan:
            vae: Any = loan[0]
            unpacked = self.unpack(latents, width, height).to(vae.dtype)
            scaled = unpacked / vae.config.scaling_factor + (vae.config.shift_factor or 0)
            pictures: list[Image.Image] = []
            for one in scaled.split(1):
                pixels = vae.decode(one, return_dict=False)[0]
                if not pixels.isfinite().all():
                    raise WeightsError(
                        f"{self.family.name}: draws what is not a number; a file of the model is damaged, or 'dtype' "
                        "is too narrow for it"
                    )
                pictures += self._processor.postprocess(pixels, output_type="pil")
            return pictures

    def denoise(
        self,
        request: DenoiseRequest,
        embeddings: PromptEmbeddings,
        start: torch.Tensor | None,
        report: StepReport | None,
    ) -> torch.Tensor:
        """From noise (or from noised ``start`` latents) to packed latents."""
        device, factor, channels = self.models.device, self.family.latent_factor, self.family.latent_channels
        rows, columns = request.height // factor, request.width // factor
        # drawn on the CPU, so that a seed gives the same noise on every machine
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in request.seeds]
        noise = self.pack(
            randn_tensor(
                (len(generators), channels, rows, columns), generator=generators, device=device, dtype=self.dtype
            )
        )
        total = request.steps_run()
        steps = self.prepare_steps(request, noise.shape[1])
        if isinstance(self._pipeline.scheduler, SeededSDE):
            self._pipeline.scheduler.generators = generators
        origin = self.pack(start) if start is not None else None
        latents = noise
        if origin is not None and total < request.steps:
            latents = self.scale_initial_noise(
                self.add_noise(origin, noise, self._pipeline.scheduler.sigmas[0].to(noise))
            )
        mask = self._latent_mask(request.masks, rows, columns, request.differential) if request.masks else None

        def after_step(pipeline: Any, index: int, timestep: torch.Tensor, state: dict[str, Any]) -> dict[str, Any]:
            if mask is not None and origin is not None:
                kept = self.add_noise(origin, noise, pipeline.scheduler.sigmas[index + 1].to(noise))
                # differential diffusion (Levin and Fried, 2023): the darker a place of a differential mask, the later
                # it is let go
                free = (mask > 1 - (index + 1) / total).to(mask) if request.differential else mask
                state["latents"] = torch.lerp(kept, state["latents"], free)
            if index + 1 == total:
                self.models.prefetch("vae")
            if report:
                report(index + 1, total)
            return state

        denoiser = self.family.denoiser
        with self.models.on_device(denoiser) as (network,), first_block_cache(network, request.go_fast):
            setattr(self._pipeline, denoiser, network)
            try:
                return self._pipeline(  # type: ignore[no-any-return]
                    **self.conditions(embeddings),
                    **steps,
                    latents=latents,
                    width=request.width,
                    height=request.height,
                    guidance_scale=request.guidance,
                    callback_on_step_end=after_step,
                    output_type="latent",
                    return_dict=False,
                )[0]
            finally:
                setattr(self._pipeline, denoiser, None)  # the loan ends here

    def _latent_mask(self, masks: Sequence[Image.Image], rows: int, columns: int, differential: bool) -> torch.Tensor:
        """Masks as packed latents in 0..1. A latent is repainted as far as any of its pixels is white, so that no edge
        stays; with ``differential`` it has the brightness of that pixel, else it is 0 or 1."""
        planes = []
        for mask in masks:
            step_x, step_y = math.ceil(mask.width / columns), math.ceil(mask.height / rows)
            array = np.asarray(mask.convert("L").resize((columns * step_x, rows * step_y)), np.float32) / 255
            planes.append(array.reshape(rows, step_y, columns, step_x).max(axis=(1, 3)))
        plane = torch.from_numpy(np.stack(planes))[:, None].expand(-1, self.family.latent_channels, -1, -1)
        return self.pack((plane if differential else plane.round()).contiguous()).to(self.models.device, self.dtype)
