"""Model families as data: what their parts weigh, and what a step of them costs in memory and work. Pure, without
torch.

GB are 10^9 bytes. A family is a :class:`ModelSizes`; ``backend/planning/checkpoint_sizes.py`` reads one from the files
of a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

COMPONENTS = ("text_encoder", "text_encoder_2", "transformer", "vae", "detectors", "upscaler")
"""Flux's: CLIP-L, T5-XXL, the transformer, the autoencoder, all detectors of the detail pass together, ESRGAN."""

BYTES_PER_PARAMETER: Mapping[str, float] = MappingProxyType(
    {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "fp8_compute": 1, "nf4": 0.5625}
)
"""nf4: half a byte, and one float32 scale for every 64 weights, as bitsandbytes stores it without double quantization.

fp8 and nf4 count on every matrix of the blocks being rounded. The list of layers that diffusers' own casting skips
("norm") would leave Flux' modulations in bf16, 3.2 of 11.9 billion parameters: 15.1 GB in place of 12.0.
"""

SLOWDOWN: Mapping[str, float] = MappingProxyType({"fp8": 13 / 12, "nf4": 1.1, "fp8_compute": 0.65})
"""Time of a forward against bf16. Layerwise fp8: FLUX.1-dev on an H100 took 13 s against 12 (the diffusers team's
"Exploring Quantization Backends"). nf4: assumed, from 10 bytes of traffic a weight beside the matrix product
(bitsandbytes' fused kernels took no longer than bf16). fp8 matmuls: 2.43 to 3.03 s against 4.4 (facts page)."""


@dataclass(frozen=True)
class Component:
    """One model: how many parameters, and how they are spread. Counts are parameters unless they say otherwise.

    ``dtype`` is that of its checkpoint, which it computes in or (fp8) is stored in. ``blocks`` are the parts that run
    one after the other; what lies outside of them is never rounded, and stays whole while the component is streamed
    block by block. ``rounds`` tells whether the blocks may be rounded: those of a UNet, half of them convolutions, are
    not.
    """

    parameters: int
    dtype: str = "bf16"
    blocks: tuple[int, ...] = ()
    layers: int = 0
    largest_layer: int = 0
    rounds: bool = True

    @property
    def outside_blocks(self) -> int:
        return self.parameters - sum(self.blocks) if self.blocks else 0

    def size(self, dtype: str | None = None) -> int:
        """Bytes of the whole component in ``dtype`` (or as its checkpoint has it)."""
        return self.bytes_of(self.parameters - self.outside_blocks, dtype) + self.bytes_of(self.outside_blocks)

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

    def wider(self, factor: float) -> Cost:
        """The same with activations of ``factor`` times the bytes."""
        memory = Curve(self.memory.fixed * factor, self.memory.linear * factor, self.memory.square * factor)
        return replace(self, memory=memory)


@dataclass(frozen=True)
class ModelSizes:
    """A family as the plan sees it.

    ``costs`` has "encode" (x: text tokens), "denoise" (x: text and image tokens of one picture; with the second forward
    that a negative prompt takes), "encode_image" and "decode" (x: pixels), "detect" (x: pictures) and "upscale" (x:
    pixels of a tile, its context included); ``costs_source`` tells where they come from, in words for the plan.
    ``encoders`` read the prompt together, ``denoiser`` is the component that runs in every step. ``token_pixels`` is
    the side of the square that one image token (of a
    UNet: one latent) stands for, ``vae_tile`` that of the autoencoder's tiles where it works in tiles.
    """

    name: str
    native: int
    steps: int
    components: Mapping[str, Component]
    costs: Mapping[str, Cost]
    costs_source: str
    token_pixels: int = 16
    text_tokens: int = 512
    vae_tile: int = 512
    upscale_factor: int = 4
    encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    denoiser: str = "transformer"


CLIP_L = Component(123_060_480)
AFTERWARDS = {"detectors": Component(1_600_000, dtype="fp32"), "upscaler": Component(16_697_987, dtype="fp16")}
"""What repairs and enlarges, whatever drew the picture: one YOLO, ESRGAN."""

AUTOENCODER = {
    "encode_image": Cost(Curve(linear=1300), Curve(linear=4.88e12 / 1024**2)),
    "decode": Cost(Curve(linear=2600), Curve(linear=10.47e12 / 1024**2)),
}
"""Of AutoencoderKL with 128, 256, 512 and 512 channels in bf16, which all these families have: five of the widest
map."""
AFTER_COSTS = {
    "detect": Cost(Curve(linear=0.1e9), Curve(linear=8.7e9)),
    "upscale": Cost(Curve(linear=6.75e3), Curve(linear=35.9e6)),
}

FLUX_DEV = ModelSizes(
    name="flux-dev",
    native=1024,
    steps=28,
    components=MappingProxyType(
        {  # counted on the real classes, diffusers 0.42.1 and transformers 5
            "text_encoder": CLIP_L,
            "text_encoder_2": Component(4_762_310_656, "bf16", (192_948_224, *(192_946_176,) * 23), 219, 131_596_288),
            "transformer": Component(
                11_901_408_320, "bf16", (339_831_296,) * 19 + (141_591_808,) * 38, 656, 56_641_536
            ),
            "vae": Component(83_819_683),
            **AFTERWARDS,
        }
    ),
    costs=MappingProxyType(
        {
            "encode": Cost(Curve(linear=0.4e6), Curve(linear=4.84e12 / 512)),
            # 59.51 of the 74.38 TFLOP for 4608 tokens are linear layers, 14.87 attention (FlopCounterMode on the real
            # class)
            "denoise": Cost(Curve(linear=110e3), Curve(linear=59.51e12 / 4608, square=14.87e12 / 4608**2)),
            **AUTOENCODER,
            **AFTER_COSTS,
        }
    ),
    # Denoise and decode were counted by hand from the layers (18 vectors of the model's width a token; five of the
    # widest map)
    # and agree with diffusers' pull request 11682: 22.64 GiB with one component at a time, and 2.41 GiB with one layer
    # at a time.
    # What the allocator reserves can be twice as much (5.1 GB in the diffusers team's post), but it gives that back
    # when needed.
    costs_source=(
        "an estimate from the layers, in line with peaks that the diffusers project published; not yet measured on a "
        "GPU by this project"
    ),
)

FLUX_SCHNELL = replace(FLUX_DEV, name="flux-schnell", steps=4)

SDXL_BLOCKS = (
    *(
        2255040,
        2255040,
        921920,
        6558080,
        8196480,
        20832000,
        20832000,
        3687040,
        24584960,
        31138560,
        350840320,
        350840320,
        31138560,
        31138560,
        350840320,
    ),
    *(
        49164800,
        49164800,
        40971520,
        350840320,
        350840320,
        350840320,
        14746880,
        16801280,
        12704000,
        10655360,
        20832000,
        20832000,
        20832000,
        3687040,
    ),
    *(4407040, 3382400, 3382400),
)
SD15_BLOCKS = (
    *(
        2255040,
        2255040,
        2546240,
        2546240,
        921920,
        6558080,
        8196480,
        9188480,
        9188480,
        3687040,
        24584960,
        31138560,
        34760960,
        34760960,
        14746880,
    ),
    *(
        31138560,
        31138560,
        31138560,
        31138560,
        34760960,
        49164800,
        49164800,
        49164800,
        14746880,
        49164800,
        49164800,
        40971520,
        34760960,
        34760960,
    ),
    *(
        34760960,
        14746880,
        16801280,
        12704000,
        10655360,
        9188480,
        9188480,
        9188480,
        3687040,
        4407040,
        3382400,
        3382400,
        2546240,
        2546240,
        2546240,
    ),
)
"""The parts of a UNet's blocks that ``backend/offload/placements.py`` streams, in no particular order."""

UNET_SOURCE = (
    "counted on the real classes without data (python -m bench.speed.stable_diffusion); not yet measured on a GPU by "
    "this project"
)

SDXL = ModelSizes(
    name="sdxl",
    native=1024,
    steps=30,
    components=MappingProxyType(
        {
            "text_encoder": CLIP_L,
            "text_encoder_2": Component(694_659_840),
            "unet": Component(2_567_463_684, "bf16", SDXL_BLOCKS, 1050, 29_492_480, rounds=False),
            "vae": Component(83_653_863),
            **AFTERWARDS,
        }
    ),
    costs=MappingProxyType(
        {
            "encode": Cost(Curve(linear=125e3), Curve(linear=2 * 2 * 817_720_320)),
            "denoise": Cost(Curve(linear=20.1e3), Curve(linear=741e6, square=4889)),
            **AUTOENCODER,
            **AFTER_COSTS,
        }
    ),
    costs_source=UNET_SOURCE,
    token_pixels=8,
    text_tokens=77,
    denoiser="unet",
)

SD15 = replace(
    SDXL,
    name="sd15",
    native=512,
    components=MappingProxyType(
        {
            "text_encoder": CLIP_L,
            "unet": Component(859_520_964, "bf16", SD15_BLOCKS, 391, 29_492_480, rounds=False),
            "vae": Component(83_653_863),
            **AFTERWARDS,
        }
    ),
    costs=MappingProxyType(
        {
            **SDXL.costs,
            "encode": Cost(Curve(linear=25e3), Curve(linear=2 * 2 * 123_060_480)),
            "denoise": Cost(Curve(linear=33e3), Curve(linear=322.9e6, square=14_885)),
        }
    ),
    encoders=("text_encoder",),
)

FAMILIES: Mapping[str, ModelSizes] = MappingProxyType(
    {family.name: family for family in (FLUX_DEV, FLUX_SCHNELL, SDXL, SD15)}
)
"""The families whose sizes are known without their files."""


def in_precision(family: ModelSizes, dtype: str, upscaler: str) -> ModelSizes:
    """One of ``FAMILIES``, which are counted in 16 bits, with what draws in ``dtype`` and its upscaler in
    ``upscaler``. Detectors stay in fp32."""
    precisions = {name: {"upscaler": upscaler, "detectors": "fp32"}.get(name, dtype) for name in family.components}
    components = {name: replace(component, dtype=precisions[name]) for name, component in family.components.items()}
    bytes_per_value = {"upscale": BYTES_PER_PARAMETER[upscaler], "detect": 2}  # a detector's cost is that in fp32
    costs = {
        name: cost.wider(bytes_per_value.get(name, BYTES_PER_PARAMETER[dtype]) / 2)
        for name, cost in family.costs.items()
    }
    return replace(family, components=components, costs=costs)
