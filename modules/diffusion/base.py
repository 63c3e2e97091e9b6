"""What all diffusion services have in common: encode the prompt, denoise, decode, each with only the models it needs.

A family adds how its prompts are embedded and how noise is added to its latents. The denoising loop is diffusers' own
pipeline, with prompt embeddings in and latents out. Image-to-image and inpainting are the same loop, started at a lower
noise level and, with a mask, blended after every step. The pictures are those of diffusers' own pipelines for them,
without the autoencoder on the device meanwhile.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch.nn import functional

from backend.core.cancellation import Check, never_canceled
from backend.offload.oom_fallback import OomFallback, Step, Strategy
from modules.compat import set_execution_device
from modules.diffusion.block_cache import block_cache
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.latent_mask import editable, latent_mask
from modules.diffusion.latent_preview import FinishedEstimate
from modules.diffusion.monitor import Monitor, StepReport
from modules.diffusion.picture_coding import SIZE_INPUTS, PictureCoding
from modules.diffusion.picture_latents import ConditionedDenoiser, PictureLatents
from modules.diffusion.profile import ModelProfile
from modules.diffusion.prompt_cache import PromptCache, PromptEmbeddings
from modules.diffusion.prompt_text import split_at_limit
from modules.diffusion.sampler_names import EULER
from modules.diffusion.samplers import SeededSDE
from modules.diffusion.tile_batches import InBatches, agreeing, blend, cut
from modules.diffusion.tiles import TileGrid
from modules.lora.adapters import Adapted, Adapters, Loras
from modules.lora.names import LoraNames

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from backend.model_cache_optimizer import ModelCache

StepCallback = Callable[[Any, int, torch.Tensor, dict[str, Any]], dict[str, Any]]
"""diffusers' ``callback_on_step_end``: pipeline, index of the step, timestep and its tensors to the changed tensors."""

GIVING_UP: Strategy[torch.Tensor | None] = Strategy("tiles", lambda: None)
"""What follows the last way to draw a picture whole, where it can be drawn in tiles."""


class DiffusionService(PictureCoding):
    """Generates with the models of one family, borrowed from a :class:`ModelCache` for as long as a step needs them.

    ``pipeline`` is diffusers' own, made without any model; it holds the denoiser for as long as that is borrowed.
    """

    lora_names: ClassVar[LoraNames] = LoraNames()
    """How LoRA files of the family name the layers of its models."""

    def __init__(
        self,
        models: ModelCache,
        profile: ModelProfile,
        pipeline: Any,
        dtype: torch.dtype,
        fallback: OomFallback,
        prompt_cache_entries: int = 32,
    ) -> None:
        self.models = models
        self.fallback = fallback
        self.profile = profile
        self.dtype = dtype
        components = (*profile.encoders, profile.denoiser)
        adapted = Adapted(profile.name, profile.inputs.label, components, self.lora_names)
        self.adapters = Adapters(models, adapted, dtype)
        self._prompt_cache = PromptCache(prompt_cache_entries)
        self._processor = VaeImageProcessor(vae_scale_factor=profile.latent_factor * 2)
        self._pipeline = pipeline
        set_execution_device(pipeline, models.device)
        self._pipeline.vae_scale_factor = profile.latent_factor  # read from the autoencoder, which it does not have
        self._pipeline.set_progress_bar_config(disable=True)

    @abstractmethod
    def embed(self, prompt: str, encoders: tuple[Any, ...]) -> PromptEmbeddings:
        """The embeddings of one prompt by the family's text encoders, without a negative prompt."""

    @abstractmethod
    def prepare_steps(self, request: DenoiseRequest, tokens: int) -> dict[str, Any]:
        """Sets the pipeline's scheduler for a request with so many tokens (or rows) of latents, and returns the
        pipeline's arguments that name the steps."""

    def levels(self, request: DenoiseRequest, tokens: int) -> Sequence[float] | None:
        """The noise levels at the beginnings of the request's steps, 1 to 0, where the family can skip blocks."""
        return None

    @abstractmethod
    def conditions(self, embeddings: PromptEmbeddings) -> dict[str, Any]:
        """The pipeline's arguments for these embeddings."""

    def chunk_count(self, prompt: str) -> int:
        """How many times the length of the text encoder's input the embeddings of a prompt have."""
        return 1

    def prompt_notes(self, name: str, prompt: str) -> list[str]:
        """What of a prompt is not read, or not as its writer may expect, a line each that begins with ``name``, its
        input."""
        return []

    def null_embedding(self, embeddings: PromptEmbeddings) -> PromptEmbeddings | None:
        """What replaces the embeddings of an empty negative prompt, where the model was trained with something else."""
        return None

    def generate(self, request: DenoiseRequest, monitor: Monitor) -> list[Image.Image]:
        """Generates the batch.

        Where the device's memory is too small the pictures are denoised one at a time and the autoencoder works in
        tiles. Raises :class:`backend.offload.oom_fallback.OutOfMemory` when that is not enough.
        """
        images = self.generate_if_it_fits(request, monitor, gives_up=False)
        assert images is not None
        return images

    @torch.inference_mode()
    def generate_if_it_fits(
        self, request: DenoiseRequest, monitor: Monitor, gives_up: bool = True
    ) -> list[Image.Image] | None:
        """:meth:`generate`, but None where the device's memory does not hold one picture while the denoiser is placed
        as planned."""
        if request.images and request.strength <= 0:
            return list(request.images)
        lengths = {self.chunk_count(prompt) for prompt in request.prompts}
        if len(lengths) > 1 and not request.tiles:  # no batch has prompts of two lengths
            count = len(request.seeds)
            alone = [
                self.generate_if_it_fits(request.only(index), monitor.part(index, count), gives_up)
                for index in range(count)
            ]
            return None if None in alone else [image for images in alone if images for image in images]
        size, timeline, check = (request.width, request.height), monitor.timeline, monitor.check

        def after_step(done: int, total: int, latents: Callable[[], torch.Tensor] | None) -> None:
            if monitor.progress:
                monitor.progress(done, total)
            if monitor.latent_sink and latents:
                monitor.latent_sink(lambda: self._whole(self.unpack(latents(), *size), request))
            check()

        with timeline.span("encode"):
            embeddings = self._encode_with_retry(request, check)
        given = PictureLatents()
        if request.reads_pictures:
            largest = request.images[0].size if request.images else size
            with timeline.span("encode_image"):
                given = self._with_or_without_tiles(
                    "encode_image", largest, len(request.seeds), lambda: self.encode_given(request, check)
                )
        with timeline.span("denoise"):
            name = "denoise_tiles" if request.tiles else "denoise"
            shown = 0 if given.tokens is None else given.tokens.shape[1]
            step = Step(name, (self.profile.denoiser,), (*size, len(request.seeds), shown), SIZE_INPUTS)
            ways = self._ways_to_denoise(request, embeddings, given, after_step)
            latents = self.fallback.run(step, [*ways, GIVING_UP] if gives_up else ways)
        if latents is None:
            return None
        with timeline.span("decode"):
            count = len(request.seeds)
            return self._with_or_without_tiles("decode", size, count, lambda: self.decode(latents, *size, check))

    def _encode_with_retry(self, request: DenoiseRequest, check: Check) -> PromptEmbeddings:
        has = self.profile.inputs
        negative = request.negative if has.negative_prompt and request.guidance > has.negative_above else None
        following = "vae" if request.reads_pictures else self.profile.denoiser
        strategies = [
            Strategy(way, lambda: self.encode(request.prompts, negative, check, request.loras, following), exact=True)
            for way in ("all encoders", "once more after clearing")
        ]
        return self.fallback.run(Step("encode", self.profile.encoders, (), "prompt"), strategies)

    def encode_given(self, request: DenoiseRequest, check: Check) -> PictureLatents:
        """The pictures of the request: here its images, at the request's size. A family adds what its denoiser reads
        beside them."""
        if not request.images:
            return PictureLatents()
        source = request.tiles and request.tiles.source
        latents = self.encode_images((source,) if source else request.images, check)
        tiles, factor = request.tiles, self.profile.latent_factor
        if request.latent_resize:
            size = tuple(side // factor for side in (tiles.grid.size if tiles else (request.width, request.height)))
            latents = functional.interpolate(latents, size[::-1], mode=request.latent_resize)
        if tiles:
            latents = (
                cut(latents, tiles.grid, factor) if request.latent_resize else agreeing(latents, tiles.grid, factor)
            )
        return PictureLatents(latents)

    def _ways_to_denoise(
        self, request: DenoiseRequest, embeddings: PromptEmbeddings, given: PictureLatents, report: StepReport
    ) -> list[Strategy[torch.Tensor | None]]:
        if tiles := request.tiles:
            single = replace(request, tiles=replace(tiles, batch=1))
            return [
                Strategy(f"{tiles.batch} tiles at a time", lambda: self.denoise(request, embeddings, given, report)),
                Strategy("one tile at a time", lambda: self.denoise(single, embeddings, given, report)),
            ]
        return [
            Strategy("all pictures together", lambda: self.denoise(request, embeddings, given, report)),
            Strategy("one picture at a time", lambda: self.denoise_one_by_one(request, embeddings, given, report)),
        ]

    def denoise_one_by_one(
        self,
        request: DenoiseRequest,
        embeddings: PromptEmbeddings,
        given: PictureLatents,
        report: StepReport | None,
    ) -> torch.Tensor:
        """:meth:`denoise`, one picture at a time. The noise depends on the seed only, so the pictures are the same."""
        count = len(request.seeds)
        latents = []
        for index in range(count):

            def report_of_all(
                done: int, total: int, latents: Callable[[], torch.Tensor] | None, index: int = index
            ) -> None:
                if report:
                    report(index * total + done, count * total, latents)

            latents.append(self.denoise(request.only(index), embeddings.only(index), given.only(index), report_of_all))
        return torch.cat(latents)

    def encode(
        self,
        prompts: Sequence[str],
        negative: str | None = None,
        check: Check = never_canceled,
        loras: Loras = (),
        following: str = "",
    ) -> PromptEmbeddings:
        """The embeddings of all prompts, in order, each with those of ``negative`` where it is given, by text encoders
        that ``loras`` change. ``check`` is called before each; ``following`` names the model that is borrowed next.

        The text encoders are borrowed only for prompts that are not in the cache.
        """
        wanted = list(dict.fromkeys(prompts if negative is None else (*prompts, negative)))
        counts = {prompt: self.chunk_count(prompt) for prompt in wanted}
        if len(set(counts.values())) > 1:  # a shorter one gets chunks without words
            wanted.append("")
        changes = self.adapters.key(self.profile.encoders, loras)
        found = {prompt: known for prompt in wanted if (known := self._prompt_cache.get((prompt, changes)))}
        missing = [prompt for prompt in wanted if prompt not in found]
        if missing:
            with self.adapters.on_device(self.profile.encoders, loras) as encoders:
                if following:
                    self.models.prefetch(following)
                for prompt in missing:  # one by one: the same embeddings whatever is in the batch
                    check()
                    found[prompt] = self.embed(prompt, encoders)
                    self._prompt_cache.put((prompt, changes), found[prompt])
        longest = max(counts.values())
        short = {name: longest - count for name, count in counts.items() if count < longest}
        found |= {name: found[name].extended(lacking, found[""]) for name, lacking in short.items()}
        if negative is not None:
            avoid = found[negative]
            null = None if negative else self.null_embedding(avoid)
            found = {prompt: replace(found[prompt], negative=null or avoid) for prompt in prompts}
        return PromptEmbeddings.concatenate([found[prompt] for prompt in prompts])

    def token_ids(self, tokenizer: PreTrainedTokenizerBase, prompt: str, length: int) -> torch.Tensor:
        """The prompt's token ids on the device, 1 x length; a longer prompt is cut off, most of it before it is
        tokenized."""
        part, _ = split_at_limit(tokenizer, prompt, length)
        ids = tokenizer(part, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        return ids.to(self.models.device)  # type: ignore[no-any-return]

    def denoise(
        self,
        request: DenoiseRequest,
        embeddings: PromptEmbeddings,
        given: PictureLatents,
        report: StepReport | None,
    ) -> torch.Tensor:
        """From noise, or from given latents with noise added, to packed latents."""
        noise, generators = self._noise(request)
        arguments = self.prepare_steps(request, noise.shape[1])
        if isinstance(self._pipeline.scheduler, SeededSDE):
            self._pipeline.scheduler.generators = generators
        original = None if given.start is None else self.pack(given.start)
        latents = noise
        if original is not None and request.steps_run() < request.steps:
            level = self._pipeline.scheduler.sigmas[0].to(noise)
            latents = self.scale_initial_noise(self.add_noise(original, noise, level))
        parts = _in_batches(request, report)
        after_step = self._after_step(request, original, noise, parts.after_step if parts else report)
        denoiser = self.profile.denoiser
        levels = self.levels(request, noise.shape[1]) if request.go_fast else None
        with self.adapters.on_device((denoiser,), request.loras) as (whole,), block_cache(whole, levels):
            network = parts.begin(whole, request.steps_run()) if parts else whole
            setattr(self._pipeline, denoiser, ConditionedDenoiser(network, given) if given.conditions else network)
            try:
                result = self._pipeline(
                    **self.conditions(embeddings),
                    **arguments,
                    latents=self.to_pipeline(latents, request),
                    width=request.width,
                    height=request.height,
                    guidance_scale=request.guidance,
                    callback_on_step_end=after_step,
                    output_type="latent",
                    return_dict=False,
                )[0]
                return self.from_pipeline(result)
            finally:
                setattr(self._pipeline, denoiser, None)  # it is no longer borrowed

    def _noise(self, request: DenoiseRequest) -> tuple[torch.Tensor, list[torch.Generator]]:
        """Packed noise, and what drew it: on the CPU, so that a seed gives the same noise on every machine. The noise
        of tiles is that of their picture."""
        tiles, factor = request.tiles, self.profile.latent_factor
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in request.seeds[: 1 if tiles else None]]
        width, height = tiles.grid.size if tiles else (request.width, request.height)
        shape = (len(generators), self.profile.latent_channels, height // factor, width // factor)
        noise = self.draw_noise(shape, generators)
        return self.pack(cut(noise, tiles.grid, factor) if tiles else noise), generators

    def _latent_size(self, request: DenoiseRequest) -> tuple[int, int]:
        """Rows and columns of the request's latents."""
        return request.height // self.profile.latent_factor, request.width // self.profile.latent_factor

    def _after_step(
        self, request: DenoiseRequest, original: torch.Tensor | None, noise: torch.Tensor, report: StepReport | None
    ) -> StepCallback:
        """The callback of the pipeline. It restores the original, with the noise of that step, outside of the mask,
        prefetches the autoencoder after the last step and calls ``report``."""
        total = request.steps_run()
        finished = FinishedEstimate(straight=request.sampler_used == EULER)
        blends = request.masks and (request.differential or not self.profile.inputs.fills)
        mask = self._packed_mask(request).to(noise.dtype) if blends else None

        def after_step(pipeline: Any, index: int, timestep: torch.Tensor, state: dict[str, Any]) -> dict[str, Any]:
            done = index + 1
            sigmas = pipeline.scheduler.sigmas if pipeline.scheduler else None
            known = finished.after_step(state["latents"], sigmas, done)
            if mask is not None and original is not None and sigmas is not None:
                kept = self.add_noise(original, noise, sigmas[done].to(noise))
                weight = editable(mask, done, total) if request.differential else mask
                state["latents"] = torch.lerp(kept, state["latents"], weight)
            if request.tiles:
                state["latents"] = self._agreeing(state["latents"], request, request.tiles.grid)
            if done == total:
                self.models.prefetch("vae")
            if report:
                report(done, total, known)
            finished.before = state["latents"]
            return state

        return after_step

    def _agreeing(self, latents: torch.Tensor, request: DenoiseRequest, grid: TileGrid) -> torch.Tensor:
        """Packed latents of tiles, made the same where they overlap."""
        maps = self.unpack(latents, request.width, request.height)
        return self.pack(agreeing(maps, grid, self.profile.latent_factor))

    def _whole(self, maps: torch.Tensor, request: DenoiseRequest) -> torch.Tensor:
        """Latents of tiles as those of their picture."""
        return blend(maps, request.tiles.grid, self.profile.latent_factor) if request.tiles else maps

    def _packed_mask(self, request: DenoiseRequest) -> torch.Tensor:
        """The request's masks as packed latents in 0..1 on the device."""
        plane = latent_mask(request.masks, *self._latent_size(request), request.differential)
        channels = plane.expand(-1, self.profile.latent_channels, -1, -1).contiguous()
        return self.pack(channels).to(self.models.device, self.dtype)


def _in_batches(request: DenoiseRequest, report: StepReport | None) -> InBatches | None:
    """What lets the denoiser take a few tiles at a time; None for a request without tiles."""
    tiles = request.tiles
    return InBatches(len(tiles.grid), tiles.batch, report or (lambda done, total, latents: None)) if tiles else None
