"""What SDXL and SD 1.5 weigh and cost, from a model's files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from backend.checkpoints.header import Header, Shape, parameters
from backend.planning.checkpoint_sizes import component
from backend.planning.model_specs import BYTES_PER_PARAMETER, Cost, Curve, ModelSpec
from modules.diffusion.profile import ModelProfile
from modules.families.autoencoder import autoencoder_header
from modules.families.autoencoder_costs import autoencoder_costs, autoencoder_dtype, autoencoder_work
from modules.families.parts import Part, PartKind
from modules.families.source import Source

COSTS_SOURCE = (
    "counted on the real classes without data (python -m bench.speed.stable_diffusion); not yet measured on a GPU by "
    "this project"
)
LABELS = MappingProxyType({"unet": "UNet"})
PASSES = 2
"""Forwards of a step: with what is wanted, and with what is to be avoided."""
VECTORS, VECTORS_WITH_ATTENTION = 15.7, 25.8
"""Vectors of a UNet's first width for a latent: its skip connections, and what the largest layer holds. Where the first
size has attention that is a feed-forward layer of eight times the width."""
ENCODER_VECTORS, QUICK_GELU_VECTORS = 8, 16
"""Vectors of CLIP's width for a token while a layer runs; its own GELU holds more."""

PLACE = re.compile(r"(down|up)_blocks\.(\d+)\.(\w+)\.|mid_block\.")


def unet_spec(source: Source, profile: ModelProfile, kinds: Mapping[str, PartKind], dtype: str) -> ModelSpec:
    """The spec of a model with this profile and these parts whose components compute in ``dtype``."""
    parts = {name: source.part(name, kinds) for name in (*profile.encoders, "unet", "vae")}
    headers = {name: _header(name, part) for name, part in parts.items()}
    vae_dtype = autoencoder_dtype(parts["vae"].config, dtype)
    components = {
        name: component(header.shapes, vae_dtype if name == "vae" else dtype, header.precision, rounds=name != "unet")
        for name, header in headers.items()
    }
    unet, channels = parts["unet"].config, parts["vae"].config["block_out_channels"]
    configs = [parts[name].config for name in profile.encoders]
    costs = {
        "encode": encode_cost(configs, sum(components[name].parameters for name in profile.encoders), dtype),
        "denoise": denoise_cost(unet, unet_work(headers["unet"].shapes, unet, profile.tokens), profile.tokens, dtype),
        **autoencoder_costs(channels, autoencoder_work(headers["vae"].shapes, channels), vae_dtype),
    }
    return ModelSpec(
        profile.name,
        profile.native,
        profile.steps,
        components,
        costs,
        COSTS_SOURCE,
        token_pixels=profile.latent_factor,
        text_tokens=profile.tokens,
        prompt_bytes=prompt_bytes([int(config["hidden_size"]) for config in configs], profile.tokens, dtype),
        vae_tile=profile.native // 2,
        encoders=profile.encoders,
        denoiser=profile.denoiser,
        labels=LABELS,
    )


def _header(name: str, part: Part) -> Header:
    """The tensors of a component in diffusers' layout."""
    if name == "vae":
        return autoencoder_header(part)
    if part.folder or name != "unet":
        return part.header
    from modules.families.part_loading import renamed_header
    from modules.families.stable_diffusion.single_file import unet_names

    return renamed_header(part.header, unet_names, part.config, part.label)


def encode_cost(configs: Sequence[Mapping[str, Any]], count: int, dtype: str) -> Cost:
    """CLIP, once for what is wanted and once for what is to be avoided (x: text tokens). Of two text encoders the
    results of every layer are kept, because the one before the last is asked for."""
    kept = sum((int(c["num_hidden_layers"]) + 1) * int(c["hidden_size"]) for c in configs) if len(configs) > 1 else 0
    working = max(
        int(c["hidden_size"])
        * (QUICK_GELU_VECTORS if c.get("hidden_act", "quick_gelu") == "quick_gelu" else ENCODER_VECTORS)
        for c in configs
    )
    return Cost(Curve(linear=(kept + working) * BYTES_PER_PARAMETER[dtype]), Curve(linear=2 * PASSES * count))


def prompt_bytes(widths: Sequence[int], tokens: int, dtype: str) -> int:
    """Bytes of the embeddings of one prompt of a single chunk: those of all encoders side by side for every token, and
    of two encoders the last one's for the whole."""
    whole = widths[-1] if len(widths) > 1 else 0
    return int((tokens * sum(widths) + whole) * BYTES_PER_PARAMETER[dtype])


def denoise_cost(config: Mapping[str, Any], work: Curve, text_tokens: int, dtype: str) -> Cost:
    """The UNet (x: text tokens and latents), both forwards; ``work`` is :func:`unet_work`."""
    attends = str((config.get("down_block_types") or ["CrossAttn"])[0]).startswith("CrossAttn")
    vectors = PASSES * (VECTORS_WITH_ATTENTION if attends else VECTORS) * int(config["block_out_channels"][0])
    fixed = work.fixed - work.linear * text_tokens + work.square * text_tokens**2
    linear = work.linear - 2 * work.square * text_tokens
    return Cost(
        Curve(linear=vectors * BYTES_PER_PARAMETER[dtype]),
        Curve(PASSES * fixed, PASSES * linear, PASSES * work.square),
    )


def unet_work(shapes: Mapping[str, Shape], config: Mapping[str, Any], text_tokens: int) -> Curve:
    """Operations of one forward (x: latents): every layer by the size at which it runs, or by what passes it."""
    smallest = len(config["block_out_channels"]) - 1
    fixed = linear = square = 0.0
    for name, shape in shapes.items():
        if "time_emb" in name or "add_embedding" in name:
            fixed += 2 * parameters(shape)
            continue
        if re.search(r"attn2\.to_[kv]\.", name):
            fixed += 2 * parameters(shape) * text_tokens
            continue
        shrunk = 4 ** _level(name, smallest)  # latents of the whole picture for one here
        linear += 2 * parameters(shape) / shrunk
        if name.endswith("attn1.to_q.weight"):
            square += 4 * shape[0] / shrunk**2
        if name.endswith("attn2.to_q.weight"):
            linear += 4 * shape[0] * text_tokens / shrunk
    return Curve(fixed, linear, square)


def _level(name: str, smallest: int) -> int:
    """How often the picture is halved where this tensor is used."""
    found = PLACE.match(name)
    if not found:
        return 0
    if not found[1]:
        return smallest
    level = int(found[2]) if found[1] == "down" else smallest - int(found[2])
    return level + (found[3] == "downsamplers") - (found[3] == "upsamplers")
