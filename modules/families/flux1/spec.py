"""What FLUX.1 weighs and costs: from a model's files, and of the published ones without files. Without torch, but for
single files in the original layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from backend.checkpoints.header import Header, Shape, parameters
from backend.planning.checkpoint_sizes import component
from backend.planning.model_specs import BYTES_PER_PARAMETER, Component, Cost, Curve, ModelSpec, PicturesRead
from modules.diffusion.canvas import Canvas
from modules.diffusion.profile import ModelProfile
from modules.families.autoencoder import autoencoder_header
from modules.families.autoencoder_costs import (
    PUBLISHED_AUTOENCODER,
    autoencoder_costs,
    autoencoder_dtype,
    autoencoder_work,
)
from modules.families.flux1.parts import PARTS
from modules.families.flux1.published import KONTEXT_SIZES
from modules.families.parts import Part
from modules.families.source import Source

FEED_FORWARD_VECTORS = 6
"""How many vectors of its inner width T5's feed-forward layer holds for a token."""
SCORE_COPIES = 6
"""And its attention of all scores of a token, in float32 for the softmax."""
TRANSFORMER_VECTORS, TRANSFORMER_VECTORS_16_BIT = 16.25, 18
"""Vectors of the transformer's width for a token. In 16 bits there are more, because positions are rotated in float32;
without data 17.2 are counted on the real class."""
T5_FLOAT32 = ".wo"
"""The layers of T5 that transformers leaves in float32 where it computes in fp16, which they overflow."""
LABELS = MappingProxyType({"text_encoder_2": "T5"})
"""What tables call a component."""
COSTS_SOURCE = (
    "computed from the layers, as measured on the emulated device (python -m bench.memory.activations), and for "
    "FLUX.1-dev within 1% of the peaks that this project measured on an H200 (bench/results/gpu.md)"
)
# Published peaks are in line too: diffusers' pull request 11682 has 22.64 GiB with one component at a time, and 2.41
# GiB with one layer at a time. What the allocator reserves can be twice as much (5.1 GB in the diffusers team's post),
# but it gives that back when needed.


def flux_spec(source: Source, profile: ModelProfile, dtype: str) -> ModelSpec:
    """The spec of a model with this profile whose components compute in ``dtype``."""
    parts = {name: source.part(name, PARTS) for name in PARTS}
    headers = {name: part.header for name, part in parts.items()} | {"vae": autoencoder_header(parts["vae"])}
    shapes = _transformer_shapes(parts["transformer"])
    sizes = {**{name: header.shapes for name, header in headers.items()}, "transformer": shapes}
    vae, t5 = parts["vae"].config, parts["text_encoder_2"].config
    dtypes = {**dict.fromkeys(headers, dtype), "vae": autoencoder_dtype(vae, dtype)}
    float32 = {"text_encoder_2": T5_FLOAT32} if dtype == "fp16" else {}
    components = {
        name: component(
            _without_copies(sizes[name]),
            dtypes[name],
            header.precision,
            packed=_packed(name, header, dtype),
            float32=float32.get(name, ""),
        )
        for name, header in headers.items()
    }
    channels = vae["block_out_channels"]
    costs = {
        "encode": encode_cost(
            int(t5["d_ff"]), int(t5["num_heads"]) * profile.tokens, components["text_encoder_2"].parameters, dtype
        ),
        "denoise": denoise_cost(
            shapes["x_embedder.weight"][0],
            len(components["transformer"].blocks),
            token_parameters(shapes),
            dtype,
            added=shapes["x_embedder.weight"][1] - shapes["proj_out.weight"][0],
        ),
        **autoencoder_costs(channels, autoencoder_work(headers["vae"].shapes, channels), dtypes["vae"]),
    }
    return ModelSpec(
        profile.name,
        profile.native,
        profile.steps,
        components,
        costs,
        COSTS_SOURCE,
        token_pixels=2 * profile.latent_factor,
        text_tokens=profile.tokens,
        prompt_bytes=prompt_bytes(profile.tokens, int(t5["d_model"]), parts["text_encoder"].config, dtype),
        vae_tile=profile.native // 2,
        labels=LABELS,
        pictures=_pictures_read(profile),
    )


def _pictures_read(profile: ModelProfile) -> PicturesRead:
    """A reference picture is read as tokens; what Fill fills, and a control image, as channels."""
    inputs = profile.inputs
    if inputs.references[1]:
        return PicturesRead(*inputs.references, reference_tokens(profile.canvas))
    channels = int(inputs.fills) + int(inputs.control)
    return PicturesRead(channels, channels)


def reference_tokens(canvas: Canvas) -> int:
    """Of a reference picture, at most."""
    sizes = (canvas.reference_size(*size) for size in canvas.preferred)
    return max((width // canvas.multiple * (height // canvas.multiple) for width, height in sizes), default=0)


def _transformer_shapes(part: Part) -> Mapping[str, Shape]:
    """In diffusers' layout."""
    if part.folder:
        return part.header.shapes
    from modules.families.flux1.single_file import transformer_shapes

    return transformer_shapes(part.header.shapes)


def _packed(name: str, header: Header, dtype: str) -> float:
    """Bytes that a parameter takes as the file has it, where the component is large enough to keep it so. Layers of T5
    stay in float32 beside float16, so its file is dequantized then."""
    keeps = name == "transformer" or (name == "text_encoder_2" and dtype != "fp16")
    return header.packed_bytes(BYTES_PER_PARAMETER[dtype]) if keeps else 0


def _without_copies(shapes: Mapping[str, Shape]) -> Mapping[str, Shape]:
    """Without the second name of T5's table of words."""
    copy = "encoder.embed_tokens.weight" if "shared.weight" in shapes else ""
    return {name: shape for name, shape in shapes.items() if name != copy}


def encode_cost(inner_width: int, scores: int, count: int, dtype: str) -> Cost:
    """T5 (x: text tokens), the larger of the two text encoders: ``scores`` are those of a token in all heads, ``count``
    its parameters."""
    held = max(FEED_FORWARD_VECTORS * inner_width, SCORE_COPIES * scores)
    return Cost(Curve(linear=held * BYTES_PER_PARAMETER[dtype]), Curve(linear=2 * count))


def prompt_bytes(tokens: int, width: int, clip: Mapping[str, Any], dtype: str) -> int:
    """Bytes of one prompt's embeddings: T5's of ``width`` for every token, and CLIP's for the whole."""
    return int((tokens * width + int(clip["hidden_size"])) * BYTES_PER_PARAMETER[dtype])


def denoise_cost(width: int, blocks: int, count: float, dtype: str, added: int = 0) -> Cost:
    """The transformer (x: text and image tokens); ``count`` is :func:`token_parameters`, ``added`` the channels of
    pictures beside the latents', which are there twice: alone, and behind the latents. Beside the linear layers each
    block attends from every token to every token."""
    vectors = TRANSFORMER_VECTORS if dtype == "fp32" else TRANSFORMER_VECTORS_16_BIT
    return Cost(
        Curve(linear=(vectors * width + 2 * added) * BYTES_PER_PARAMETER[dtype]),
        Curve(linear=2 * count, square=4 * width * blocks),
    )


def token_parameters(shapes: Mapping[str, Shape]) -> float:
    """How many parameters a token passes. In a double block text and image have a half each, and modulations are
    computed once for all tokens."""
    count = 0.0
    for name, shape in shapes.items():
        modulation = ".norm1" in name or ".norm.linear." in name
        if "transformer_blocks." in name and not modulation:
            count += parameters(shape) / (1 if name.startswith("single_") else 2)
    return count


FLUX_DEV = ModelSpec(
    name="flux-dev",
    native=1024,
    steps=28,
    components=MappingProxyType(
        {  # counted on the real classes, diffusers 0.42.1 and transformers 5
            "text_encoder": Component(123_060_480),
            "text_encoder_2": Component(4_762_310_656, "bf16", (192_948_224, *(192_946_176,) * 23), 219, 131_596_288),
            "transformer": Component(
                11_901_408_320,
                "bf16",
                (339_831_296,) * 19 + (141_591_808,) * 38,
                656,
                56_641_536,
                modulations=3_228_567_552,
            ),
            "vae": Component(83_819_683),
        }
    ),
    costs=MappingProxyType(
        {
            "encode": Cost(Curve(linear=0.4e6), Curve(linear=4.84e12 / 512)),
            # 59.51 of the 74.38 TFLOP for 4608 tokens are linear layers, 14.87 attention (FlopCounterMode on the real
            # class)
            "denoise": Cost(Curve(linear=110e3), Curve(linear=59.51e12 / 4608, square=14.87e12 / 4608**2)),
            **PUBLISHED_AUTOENCODER,
        }
    ),
    costs_source=COSTS_SOURCE,
    prompt_bytes=prompt_bytes(512, 4096, {"hidden_size": 768}, "bf16"),
    labels=LABELS,
)
TRANSFORMER_WIDTH, FILL_CHANNELS = 3072, 64 + 256
"""Of FLUX.1-dev's transformer; and what Fill's first layer reads of a token beside the latents."""
FLUX_FILL = replace(
    FLUX_DEV,
    name="flux-fill-dev",
    components=MappingProxyType(
        {
            **FLUX_DEV.components,
            "transformer": replace(
                FLUX_DEV.components["transformer"],
                parameters=FLUX_DEV.components["transformer"].parameters + TRANSFORMER_WIDTH * FILL_CHANNELS,
            ),
        }
    ),
    pictures=PicturesRead(1, 1),
)
FLUX_KONTEXT = replace(
    FLUX_DEV,
    name="flux-kontext-dev",
    pictures=PicturesRead(1, 1, reference_tokens(Canvas(1024, 16, preferred=KONTEXT_SIZES))),
)
KNOWN_MODELS: Mapping[str, ModelSpec] = MappingProxyType(
    {spec.name: spec for spec in (FLUX_DEV, replace(FLUX_DEV, name="flux-schnell", steps=4), FLUX_FILL, FLUX_KONTEXT)}
)
"""Canny and Depth are as Fill, but for half a million parameters."""
