"""Models as the memory plan sees them: what their components weigh, and what a step costs in memory and work. Pure,
without torch.

GB are 10^9 bytes. A model family makes a :class:`ModelSpec` from its files (``modules/families``);
``backend/planning/companions.py`` adds the models that work beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

BYTES_PER_PARAMETER: Mapping[str, float] = MappingProxyType(
    {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "fp8_compute": 1, "nf4": 0.5625}
)
"""nf4: half a byte, and one float32 scale for every 64 weights, as bitsandbytes stores it without double quantization.

fp8 and nf4 count on every matrix of the blocks being rounded. The list of layers that diffusers' own casting skips
("norm") would leave Flux' modulations in bf16, 3.2 of 11.9 billion parameters: 15.1 GB in place of 12.0.
"""

PACKED = "packed"
"""The precision of weights that stay in the few bits that their file has them in."""

SLOWDOWN: Mapping[str, float] = MappingProxyType({"fp8": 13 / 12, "nf4": 1.1, "fp8_compute": 0.75, PACKED: 1.2})
"""Time of a forward against bf16. Layerwise fp8: FLUX.1-dev on an H100 took 13 s against 12 (the diffusers team's
"Exploring Quantization Backends"). nf4: assumed, from 10 bytes of traffic a weight beside the matrix product
(bitsandbytes' fused kernels took no longer than bf16). packed: assumed, from 20 bytes of
traffic. Products in fp8: 2.78 s against 3.71 on an H200, compiled, measured by this project (bench/results/gpu.md)."""


@dataclass(frozen=True)
class Component:
    """One model: how many parameters, and how they are spread. Counts are parameters unless they say otherwise.

    ``dtype`` is the precision that it is loaded in, ``on_disk`` that of its file ("" = not known). ``blocks`` are the
    parts that run one after the other; what lies outside of them is never rounded, and stays whole while the component
    is streamed block by block. ``rounds`` tells whether the blocks may be rounded: those of a UNet, half of them
    convolutions, are not. ``modulations`` are those of the blocks that "fp8_compute" leaves as they are. ``packed`` is
    how many bytes a parameter of the blocks takes as the file has it, 0 where the file has quantized none.
    ``kept_in_fp32`` are those of the blocks that stay in float32 although the component is loaded in fp16.
    """

    parameters: int
    dtype: str = "bf16"
    blocks: tuple[int, ...] = ()
    layers: int = 0
    largest_layer: int = 0
    rounds: bool = True
    on_disk: str = ""
    modulations: int = 0
    packed: float = 0
    kept_in_fp32: int = 0

    @cached_property
    def outside_blocks(self) -> int:
        return self.parameters - sum(self.blocks) if self.blocks else 0

    def is_mapped(self, dtype: str) -> bool:
        """Whether weights in ``dtype`` are pages of the file, which the system drops and reads again as it likes."""
        return dtype == PACKED or (dtype == self.dtype and self.on_disk in ("", dtype))

    def size(self, dtype: str | None = None) -> int:
        """Bytes of the whole component in ``dtype`` (or as its checkpoint has it)."""
        return self.blocks_bytes(self.parameters - self.outside_blocks, dtype) + self.bytes_of(self.outside_blocks)

    def blocks_bytes(self, parameters: int, dtype: str | None = None) -> int:
        """Bytes of so many parameters of the blocks."""
        if dtype == PACKED:
            return int(parameters * self.packed)
        kept, precision = 0, self.dtype
        if dtype == "fp8_compute":
            kept = self.modulations
        elif dtype in (None, self.dtype):
            kept, precision = self.kept_in_fp32, "fp32"
        kept = parameters * kept // max(1, self.parameters - self.outside_blocks)
        return self.bytes_of(parameters - kept, dtype) + self.bytes_of(kept, precision)

    def bytes_of(self, parameters: int, dtype: str | None = None) -> int:
        return int(parameters * BYTES_PER_PARAMETER[dtype or self.dtype])


@dataclass(frozen=True)
class Curve:
    """``fixed + linear * x + square * x²``; what x counts is said where it is used."""

    fixed: float = 0
    linear: float = 0
    square: float = 0

    def __call__(self, x: float) -> float:
        return self.fixed + self.linear * x + self.square * x * x


@dataclass(frozen=True)
class Cost:
    """Of one forward: bytes of activations on the device, weights not counted, and floating point operations."""

    memory: Curve
    work: Curve


@dataclass(frozen=True)
class PicturesRead:
    """What the denoiser reads of pictures, in every step beside the latents that it denoises.

    Attributes:
        needed: How many pictures every request gives.
        most: How many a request may give.
        tokens: Of one of them at most, which stand behind those of the latents; 0 where a picture is further channels
            of the latents' own tokens.
        repainted: Whether a picture of which a mask is repainted is one more of them.
    """

    needed: int = 0
    most: int = 0
    tokens: int = 0
    repainted: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """A model as the plan sees it.

    Attributes:
        native: Side in pixels of the square that it was trained on.
        steps: Denoising steps of a request that names none.
        components: By name, in the order in which a prediction needs them.
        costs: "encode" (x: text tokens), "denoise" (x: text and image tokens of one picture; with the second forward
            that a negative prompt takes), "encode_image" and "decode" (x: pixels); of the models beside it "detect"
            (x: pictures), "upscale" (x: pixels of a tile, its context included), "restore" (x: faces) and "write"
            (x: text tokens).
        costs_source: Where the costs come from, in words for the plan.
        token_pixels: Side of the square that one image token (of a UNet: one latent) stands for.
        text_tokens: Length that prompts are padded to.
        prompt_bytes: Of the embeddings of one prompt, which are remembered.
        vae_tile: Side in pixels of the autoencoder's tiles, where it works in tiles.
        upscale_factor: Of one pass of the upscaler.
        encoders: The components that read the prompt together.
        denoiser: The component that runs in every step.
        labels: What tables call a component, where that is not its name.
        pictures: What the denoiser reads of pictures.
        writers: The components that rewrite the prompt together, if the last one is there.
    """

    name: str
    native: int
    steps: int
    components: Mapping[str, Component]
    costs: Mapping[str, Cost]
    costs_source: str
    token_pixels: int = 16
    text_tokens: int = 512
    prompt_bytes: int = 0
    vae_tile: int = 512
    upscale_factor: int = 4
    encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    denoiser: str = "transformer"
    labels: Mapping[str, str] = field(default_factory=dict)
    pictures: PicturesRead = PicturesRead()
    writers: tuple[str, ...] = ("prompt_upsampler",)
