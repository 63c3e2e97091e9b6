"""Model families as data: what their parts weigh, and what a step of them costs in memory and work. Pure, without torch.

GB are 10^9 bytes. A family is a :class:`ModelSizes`; :func:`embedded` reads one from the files of a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from backend.errors import WeightsError

COMPONENTS = ("text_encoder", "text_encoder_2", "transformer", "vae", "detectors", "upscaler")
"""CLIP-L, T5-XXL, the Flux transformer, its autoencoder, all detectors of the detail pass together, ESRGAN; in all families the same."""

BYTES_PER_PARAMETER: Mapping[str, float] = MappingProxyType({"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "fp8_compute": 1, "nf4": 0.5625})
"""nf4: half a byte, and one float32 scale for every 64 weights, as bitsandbytes stores it without double quantization.

fp8 and nf4 count on every matrix of the blocks being rounded. The list of layers that diffusers' own casting skips ("norm") would
leave Flux' modulations in bf16, 3.2 of 11.9 billion parameters: 15.1 GB in place of 12.0.
"""

SLOWDOWN: Mapping[str, float] = MappingProxyType({"fp8": 13 / 12, "nf4": 1.1, "fp8_compute": 0.65})
"""Time of a forward against bf16. Layerwise fp8: FLUX.1-dev on an H100 took 13 s against 12 (the diffusers team's "Exploring
Quantization Backends"). nf4: assumed, from 10 bytes of traffic a weight beside the matrix product (bitsandbytes' fused kernels
took no longer than bf16). fp8 matmuls: 2.43 to 3.03 s against 4.4 (facts page)."""

REPEATED = re.compile(r"^((?:single_)?transformer_blocks|encoder\.block)\.\d+\.")


@dataclass(frozen=True)
class Component:
    """One model: how many parameters, and how they are spread. Counts are parameters unless they say otherwise.

    ``dtype`` is that of its checkpoint, which it computes in or (fp8) is stored in. ``blocks`` are the parts that run one after
    the other; what lies outside of them is never rounded, and stays whole while the component is streamed block by block.
    """

    parameters: int
    dtype: str = "bf16"
    blocks: tuple[int, ...] = ()
    layers: int = 0
    largest_layer: int = 0

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


@dataclass(frozen=True)
class ModelSizes:
    """A family as the plan sees it.

    ``costs`` has "encode" (x: text tokens), "denoise" (x: text and image tokens of one picture), "encode_image" and "decode"
    (x: pixels), "detect" (x: pictures) and "upscale" (x: pixels of a tile, its context included). ``token_pixels`` is the side
    of the square that one image token stands for, ``vae_tile`` that of the autoencoder's tiles where it works in tiles, and
    ``costs_source`` tells where the costs come from, in words for the plan.
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


FLUX_DEV = ModelSizes(
    name="flux-dev",
    native=1024,
    steps=28,
    components=MappingProxyType(
        {  # counted on the real classes, diffusers 0.42.1 and transformers 5
            "text_encoder": Component(123_060_480),
            "text_encoder_2": Component(4_762_310_656, "bf16", (192_948_224, *(192_946_176,) * 23), 219, 131_596_288),
            "transformer": Component(11_901_408_320, "bf16", (339_831_296,) * 19 + (141_591_808,) * 38, 656, 56_641_536),
            "vae": Component(83_819_683),
            "detectors": Component(1_600_000, dtype="fp32"),
            "upscaler": Component(16_697_987, dtype="fp32"),
        }
    ),
    costs=MappingProxyType(
        {
            "encode": Cost(Curve(linear=0.4e6), Curve(linear=4.84e12 / 512)),
            # 59.51 of the 74.38 TFLOP for 4608 tokens are linear layers, 14.87 attention (FlopCounterMode on the real class)
            "denoise": Cost(Curve(linear=110e3), Curve(linear=59.51e12 / 4608, square=14.87e12 / 4608**2)),
            "encode_image": Cost(Curve(linear=1300), Curve(linear=4.88e12 / 1024**2)),
            "decode": Cost(Curve(linear=2600), Curve(linear=10.47e12 / 1024**2)),
            "detect": Cost(Curve(linear=0.1e9), Curve(linear=8.7e9)),
            "upscale": Cost(Curve(linear=13.5e3), Curve(linear=35.9e6)),
        }
    ),
    # Denoise and decode were counted by hand from the layers (18 vectors of the model's width a token; five of the widest map)
    # and agree with diffusers' pull request 11682: 22.64 GiB with one component at a time, and 2.41 GiB with one layer at a time.
    # What the allocator reserves can be twice as much (5.1 GB in the diffusers team's post), but it gives that back when needed.
    costs_source="an estimate from the layers, in line with peaks that the diffusers project published; not yet measured on a GPU by this project",
)

FLUX_SCHNELL = replace(FLUX_DEV, name="flux-schnell", steps=4)

FAMILIES: Mapping[str, ModelSizes] = MappingProxyType({family.name: family for family in (FLUX_DEV, FLUX_SCHNELL)})
"""The families whose sizes are known without their files. "embedded" is read from its folder by :func:`embedded`."""


def embedded(folder: Path, dtype: str = "fp32") -> ModelSizes:
    """The family whose files lie in ``folder`` (``flux/`` in diffusers' layout, ``*_detector.`` and ``upscaler.safetensors``).

    ``dtype`` is what the weights are computed in. Only headers and configurations are read. Memory costs are so many
    vectors of a model's width, as ``bench/activations.py`` measures them. Raises WeightsError that names what is missing or damaged.
    """
    tensors = {name: _tensors(folder, name) for name in COMPONENTS}
    transformer, vae, encoder = (_json(folder / "flux" / name / "config.json") for name in ("transformer", "vae", "text_encoder_2"))
    own = _json(folder / "flux" / "family.json")
    components = {name: _component(shapes, dtype) for name, shapes in tensors.items()}
    width = int(transformer["num_attention_heads"]) * int(transformer["attention_head_dim"])
    words, channels = int(encoder["d_model"]), vae["block_out_channels"]
    token_pixels, item, per_token = 2 ** len(channels), BYTES_PER_PARAMETER[dtype], 2 * components["transformer"].parameters
    features = next(shape[0] for shape in tensors["upscaler"].values() if len(shape) == 4 and shape[1] == 3)
    vae_work = 2 * components["vae"].parameters / 4  # the convolutions run at four sizes, each a quarter of the one above
    text = components["text_encoder_2"].parameters
    costs = {
        "encode": Cost(Curve(linear=16 * words * item), Curve(linear=2 * text)),
        "denoise": Cost(Curve(linear=16.25 * width * item), Curve(linear=per_token, square=4 * width * len(components["transformer"].blocks))),
        "encode_image": Cost(Curve(linear=4.2 * channels[0] * item), Curve(linear=vae_work / 2)),
        "decode": Cost(Curve(linear=3.01 * channels[min(1, len(channels) - 1)] * item), Curve(linear=vae_work)),
        "detect": Cost(Curve(linear=1.33e6), Curve(linear=0.3e9)),
        "upscale": Cost(Curve(linear=36.4 * features * item), Curve(linear=2 * components["upscaler"].parameters)),
    }
    native = int(own["native"])
    source = "measured on the emulated device (python -m bench.activations)"
    return ModelSizes("embedded", native, 28, components, costs, source, token_pixels, int(own["tokens"]), native // 2)


def with_prompt_upsampler(models: ModelSizes, folder: Path, dtype: str) -> ModelSizes:
    """The family with a language model beside it, whose folder is in transformers' layout; it computes in ``dtype``.

    Its cost "write" is that of one token (x: tokens of prompt and answer, whose keys and values are kept). It stays whole and exact: it
    may be swapped, but neither rounded nor streamed. Raises WeightsError that names what is missing or damaged.
    """
    config = _json(folder / "config.json")
    config = config.get("text_config", config)
    shapes = _shapes(sorted(folder.glob("*.safetensors")))
    if not shapes:
        raise WeightsError(f"{folder.name} holds no .safetensors file; restore it, or change 'prompt_upsampler' in config_optimized.json")
    parameters, item = _component(shapes, dtype).parameters, BYTES_PER_PARAMETER[dtype]
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    kept = 2 * int(config["num_hidden_layers"]) * width * int(config.get("num_key_value_heads") or heads) / heads
    # beside keys and values: a few vectors of the widest layer for a token, and a row of the vocabulary, widened to draw from it
    memory = Curve(fixed=2 * 4 * int(config["vocab_size"]), linear=(kept + 4 * width + 2 * int(config["intermediate_size"])) * item)
    costs = {**models.costs, "write": Cost(memory, Curve(fixed=2 * parameters))}
    return replace(models, components={"prompt_upsampler": Component(parameters, dtype), **models.components}, costs=costs)


def _component(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Component:
    layers: dict[str, int] = {}
    blocks: dict[str, int] = {}
    for name, shape in shapes.items():
        count = 1
        for side in shape:
            count *= side
        layer = name.rpartition(".")[0]
        layers[layer] = layers.get(layer, 0) + count
        if repeated := REPEATED.match(name):
            blocks[repeated[0]] = blocks.get(repeated[0], 0) + count
    return Component(sum(layers.values()), dtype, tuple(blocks.values()), len(layers), max(layers.values(), default=0))


def _tensors(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a component's tensors, from the headers of its safetensors files."""
    if name == "detectors":  # of one architecture, so their tensors have the same names
        files = sorted(folder.glob("*_detector.safetensors"))
        found = {f"{file.stem}.{key}": shape for file in files for key, shape in _shapes([file]).items()}
    else:
        single = folder / f"{name}.safetensors"
        found = _shapes([single] if single.exists() else sorted((folder / "flux" / name).glob("*.safetensors")))
    if not found:
        raise WeightsError(f"{name}: no .safetensors file of it is in {folder.name}; restore the model folder")
    return found


def _shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > 100_000_000:  # the format's own limit
                raise WeightsError(f"{file.name} is damaged (its header claims {length} bytes); restore the model folder")
            header = _parsed(opened.read(length), file.name)
        found.update({key: tuple(value["shape"]) for key, value in header.items() if key != "__metadata__"})
    return found


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise WeightsError(f"{path.parent.name}/{path.name} is missing; restore the model folder")
    return _parsed(path.read_bytes(), path.name)


def _parsed(text: bytes, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        raise WeightsError(f"{name} is damaged (not JSON); restore the model folder") from None
