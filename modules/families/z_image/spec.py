"""What Z-Image weighs and costs: from a model's files, and of the published ones without files. Without torch, but for
single files in the original layout."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from backend.checkpoints.header import Header, Shape, parameters
from backend.planning.checkpoint_sizes import component
from backend.planning.model_specs import BYTES_PER_PARAMETER, Component, Cost, Curve, ModelSpec
from modules.diffusion.profile import ModelProfile
from modules.families.autoencoder import autoencoder_header
from modules.families.autoencoder_costs import (
    PUBLISHED_AUTOENCODER,
    autoencoder_costs,
    autoencoder_dtype,
    autoencoder_work,
)
from modules.families.parts import Part
from modules.families.qwen3 import encode_cost, encoder_component, layer_count
from modules.families.source import Source
from modules.families.z_image.parts import PARTS, PATCH

TRANSFORMER_VECTORS, TRANSFORMER_VECTORS_16_BIT = 16.0, 16.4
"""Vectors of the transformer's width for a token. In 16 bits there are more, because positions are rotated in
float32."""
ROTATION_BYTES = 8
"""And for each number of a head the token's position, as half a complex number, twice."""
COSTS_SOURCE = (
    "computed from the layers, as measured on the emulated device (python -m bench.memory.activations); not yet "
    "measured on a GPU by this project"
)


def z_image_spec(source: Source, profile: ModelProfile, dtype: str) -> ModelSpec:
    """The spec of a model with this profile whose components compute in ``dtype``."""
    parts = {name: source.part(name, PARTS) for name in PARTS}
    vae, text = parts["vae"].config, parts["text_encoder"].config
    transformer, autoencoder = _transformer_header(parts["transformer"]), autoencoder_header(parts["vae"])
    vae_dtype = autoencoder_dtype(vae, dtype)
    encoder = encoder_component(parts["text_encoder"], layer_count(text) - 1, dtype)
    packed = parts["transformer"].header.packed_bytes(BYTES_PER_PARAMETER[dtype])
    components = {
        "text_encoder": encoder,
        "transformer": component(transformer.shapes, dtype, transformer.precision, packed=packed),
        "vae": component(autoencoder.shapes, vae_dtype, autoencoder.precision),
    }
    channels = vae["block_out_channels"]
    costs = {
        "encode": encode_cost(text, encoder, 1, profile.tokens, dtype),
        "denoise": denoise_cost(transformer.shapes, profile, dtype),
        **autoencoder_costs(channels, autoencoder_work(autoencoder.shapes, channels), vae_dtype),
    }
    return ModelSpec(
        profile.name,
        profile.native,
        profile.steps,
        components,
        costs,
        COSTS_SOURCE,
        token_pixels=PATCH * profile.latent_factor,
        text_tokens=profile.tokens,
        prompt_bytes=prompt_bytes(profile.tokens, int(text["hidden_size"]), dtype),
        vae_tile=profile.native // 2,
        encoders=profile.encoders,
    )


def _transformer_header(part: Part) -> Header:
    """In diffusers' layout."""
    if part.folder:
        return part.header
    from modules.families.part_loading import renamed_header
    from modules.families.z_image.single_file import transformer_names

    return renamed_header(part.header, transformer_names, part.config, part.label)


def prompt_bytes(tokens: int, width: int, dtype: str) -> int:
    """Bytes of one prompt's embeddings, of the longest prompt."""
    return int(tokens * width * BYTES_PER_PARAMETER[dtype])


def denoise_cost(shapes: Mapping[str, Shape], profile: ModelProfile, dtype: str) -> Cost:
    """The transformer (x: text and image tokens). With a negative prompt both forwards run as one batch. Beside the
    linear layers each block attends from every token to every token; the refiners see text and image alone."""
    passes = 2 if profile.inputs.negative_prompt else 1
    width, (head,) = shapes["x_pad_token"][1], shapes["layers.0.attention.norm_q.weight"]
    vectors = TRANSFORMER_VECTORS if dtype == "fp32" else TRANSFORMER_VECTORS_16_BIT
    linear = sum(_share(name) * parameters(shape) for name, shape in shapes.items() if name.endswith(".weight"))
    blocks = sum(_share(name) ** 2 for name in shapes if name.endswith(".attention.to_q.weight"))
    return Cost(
        Curve(linear=passes * (vectors * width * BYTES_PER_PARAMETER[dtype] + ROTATION_BYTES * head)),
        Curve(linear=passes * 2 * linear, square=passes * 4 * width * blocks),
    )


def _share(name: str) -> float:
    """Of a token's way through this layer: nothing where it runs once a picture, and about a ninth of the tokens are
    text."""
    if "adaLN" in name or not name.startswith(("noise_refiner.", "context_refiner.", "layers.")):
        return 0
    return {"noise_refiner": 8 / 9, "context_refiner": 1 / 9}.get(name.partition(".")[0], 1)


Z_IMAGE_TURBO = ModelSpec(
    name="z-image-turbo",
    native=1024,
    steps=8,
    components=MappingProxyType(
        {  # counted on the real classes, diffusers 0.42.1 and transformers 5
            "text_encoder": Component(3_921_534_720, "bf16", (100_930_816,) * 35, 386, 388_956_160),
            "transformer": Component(
                6_154_908_736,
                "bf16",
                (180_910_336,) * 2 + (176_962_816,) * 2 + (180_910_336,) * 30,
                482,
                39_321_600,
                modulations=126_320_640,
            ),
            "vae": Component(83_819_683),
        }
    ),
    costs=MappingProxyType(
        {
            "encode": Cost(Curve(linear=79.9e3), Curve(linear=7.065e9, square=573_440)),
            "denoise": Cost(Curve(linear=127e3), Curve(linear=11.326e9, square=485_452)),
            **PUBLISHED_AUTOENCODER,
        }
    ),
    costs_source=COSTS_SOURCE,
    prompt_bytes=prompt_bytes(512, 2560, "bf16"),
    encoders=("text_encoder",),
)
KNOWN_MODELS: Mapping[str, ModelSpec] = MappingProxyType({Z_IMAGE_TURBO.name: Z_IMAGE_TURBO})
