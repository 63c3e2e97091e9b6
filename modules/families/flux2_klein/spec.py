"""What FLUX.2 klein weighs and costs: from a model's files, and of the published ones without files. Without torch, but
for single files in the original layout."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from backend.checkpoints.header import Header, Shape, parameters
from backend.planning.checkpoint_sizes import component
from backend.planning.model_specs import BYTES_PER_PARAMETER, Component, Cost, Curve, ModelSpec, PicturesRead
from modules.diffusion.profile import ModelProfile
from modules.families.autoencoder_costs import (
    PUBLISHED_AUTOENCODER,
    autoencoder_costs,
    autoencoder_dtype,
    autoencoder_work,
)
from modules.families.flux2_klein.parts import MOST_REFERENCES, PARTS, PATCH, TEXT_LAYERS
from modules.families.parts import Part
from modules.families.qwen3 import encode_cost, encoder_component
from modules.families.source import Source

TRANSFORMER_VECTORS = 21.1
"""Vectors of the transformer's width for a token, in a block that has attention and feed-forward side by side."""
ROTATION_BYTES = 16
"""And for each number of a head, sine and cosine of the token's position in float32, twice."""
LATENT_BYTES = 16
"""And for each channel of the latents, the sampler's float32, four times."""
COSTS_SOURCE = (
    "computed from the layers, as measured on the emulated device (python -m bench.memory.activations); not yet "
    "measured on a GPU by this project"
)


def klein_spec(source: Source, profile: ModelProfile, dtype: str) -> ModelSpec:
    """The spec of a model with this profile whose components compute in ``dtype``."""
    parts = {name: source.part(name, PARTS) for name in PARTS}
    vae = parts["vae"].config
    transformer, autoencoder = parts["transformer"].header, _autoencoder_header(parts["vae"])
    shapes = _transformer_shapes(parts["transformer"])
    vae_dtype = autoencoder_dtype(vae, dtype)
    encoder = encoder_component(parts["text_encoder"], max(TEXT_LAYERS), dtype)
    components = {
        "text_encoder": encoder,
        "transformer": component(
            shapes, dtype, transformer.precision, packed=transformer.packed_bytes(BYTES_PER_PARAMETER[dtype])
        ),
        "vae": component(autoencoder.shapes, vae_dtype, autoencoder.precision),
    }
    channels = vae["block_out_channels"]
    work = autoencoder_work(autoencoder.shapes, channels)
    text, side = parts["text_encoder"].config, PATCH * profile.latent_factor
    costs = {
        "encode": encode_cost(text, encoder, len(TEXT_LAYERS), profile.tokens, dtype),
        "denoise": denoise_cost(shapes, len(components["transformer"].blocks), passes(profile), dtype),
        **autoencoder_costs(channels, work, vae_dtype),
    }
    return ModelSpec(
        profile.name,
        profile.native,
        profile.steps,
        components,
        costs,
        COSTS_SOURCE,
        token_pixels=side,
        text_tokens=profile.tokens,
        prompt_bytes=prompt_bytes(profile.tokens, int(text["hidden_size"]), dtype),
        vae_tile=profile.native // 2,
        pictures=PicturesRead(*profile.inputs.references, native_tokens(profile.native, side), repainted=True),
        encoders=profile.encoders,
    )


def _transformer_shapes(part: Part) -> Mapping[str, Shape]:
    """In diffusers' layout."""
    if part.folder:
        return part.header.shapes
    from modules.families.flux2_klein.single_file import transformer_shapes

    return transformer_shapes(part)


def _autoencoder_header(part: Part) -> Header:
    """In diffusers' layout, without the statistics."""
    header = part.header
    if not part.folder:
        from modules.families.flux2_klein.single_file import autoencoder_names
        from modules.families.part_loading import renamed_header

        header = renamed_header(header, autoencoder_names, part.config, part.label)
    shapes = {name: shape for name, shape in header.shapes.items() if not name.startswith("bn.")}
    return Header(shapes, {name: header.formats[name] for name in shapes}, header.metadata)


def native_tokens(native: int, side: int) -> int:
    """Of a picture of the native area, with tokens of ``side`` pixels: a reference picture has no more."""
    tokens: int = (native // side) ** 2
    return tokens


def passes(profile: ModelProfile) -> int:
    """Forwards of a step: with a negative prompt one for what is wanted, and one for what is to be avoided."""
    return 2 if profile.inputs.negative_prompt else 1


def prompt_bytes(tokens: int, width: int, dtype: str) -> int:
    """Bytes of one prompt's embeddings: the outputs of all text layers side by side, for every token."""
    return int(tokens * len(TEXT_LAYERS) * width * BYTES_PER_PARAMETER[dtype])


def denoise_cost(shapes: Mapping[str, Shape], blocks: int, passes: int, dtype: str) -> Cost:
    """The transformer (x: text and image tokens). Its forwards follow each other, so they share memory. Beside the
    linear layers each block attends from every token to every token."""
    (width, channels), (head,) = shapes["x_embedder.weight"], shapes["transformer_blocks.0.attn.norm_q.weight"]
    return Cost(
        Curve(
            linear=TRANSFORMER_VECTORS * width * BYTES_PER_PARAMETER[dtype]
            + ROTATION_BYTES * head
            + LATENT_BYTES * channels
        ),
        Curve(linear=passes * 2 * token_parameters(shapes), square=passes * 4 * width * blocks),
    )


def token_parameters(shapes: Mapping[str, Shape]) -> float:
    """How many parameters a token passes: in a double block text and image have a half each."""
    return sum(
        parameters(shape) / (1 if name.startswith("single_") else 2)
        for name, shape in shapes.items()
        if "transformer_blocks." in name
    )


KLEIN_4B = ModelSpec(
    name="flux2-klein",
    native=1024,
    steps=4,
    components=MappingProxyType(
        {  # counted on the real classes, diffusers 0.42.1 and transformers 5
            "text_encoder": Component(3_114_088_192, "bf16", (100_930_816,) * 27, 298, 388_956_160),
            "transformer": Component(3_875_544_576, "bf16", (245_367_296,) * 5 + (122_683_648,) * 20, 169, 84_934_656),
            "vae": Component(84_046_115),
        }
    ),
    costs=MappingProxyType(
        {
            "encode": Cost(Curve(linear=90.1e3), Curve(linear=5.45e9, square=442_368)),
            "denoise": Cost(Curve(linear=134e3), Curve(linear=6.134e9, square=307_200)),
            **PUBLISHED_AUTOENCODER,
        }
    ),
    costs_source=COSTS_SOURCE,
    prompt_bytes=prompt_bytes(512, 2560, "bf16"),
    pictures=PicturesRead(0, MOST_REFERENCES, native_tokens(1024, 16), repainted=True),
    encoders=("text_encoder",),
)
KNOWN_MODELS: Mapping[str, ModelSpec] = MappingProxyType({KLEIN_4B.name: KLEIN_4B})
