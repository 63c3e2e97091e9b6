"""The sizes of models from the headers and configurations of their files. Pure, without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from backend.core.errors import WeightsError
from backend.planning.model_specs import (
    BYTES_PER_PARAMETER,
    COMPONENTS,
    Component,
    Cost,
    Curve,
    ModelSizes,
    in_precision,
)

GFPGAN = Cost(Curve(linear=0.58e9), Curve(linear=0.396e12))
"""Of one face of 512 x 512 in float32: measured on the emulated device, and counted on the real class."""

REPEATED = re.compile(
    r"^((?:single_)?transformer_blocks|encoder\.block)\.\d+\."
    r"|^(down_blocks|up_blocks)\.\d+\.(resnets|attentions|downsamplers|upsamplers)\.\d+\."
    r"|^mid_block\.(resnets|attentions)\.\d+\."
)
"""The blocks that ``backend/offload/placements.py`` streams, by the beginnings of their tensors' names."""


def embedded_sizes(folder: Path, dtype: str = "fp32", upscaler: str = "fp32") -> ModelSizes:
    """The family whose files lie in ``folder`` (``flux/`` in diffusers' layout, ``*_detector.`` and
    ``upscaler.safetensors``).

    ``dtype`` is what those compute in that draw, ``upscaler`` what the upscaler does. Only headers and configurations
    are read. Memory costs are so many vectors of a model's width, as ``bench/memory/activations.py`` measures them.
    Raises WeightsError that names what is missing or damaged.
    """
    tensors = {name: _tensors(folder, name) for name in COMPONENTS}
    transformer, vae, encoder = (
        _json(folder / "flux" / name / "config.json") for name in ("transformer", "vae", "text_encoder_2")
    )
    own = _json(folder / "flux" / "family.json")
    precisions = {"detectors": "fp32", "upscaler": upscaler}
    components = {name: _component(shapes, precisions.get(name, dtype)) for name, shapes in tensors.items()}
    width = int(transformer["num_attention_heads"]) * int(transformer["attention_head_dim"])
    words, channels = int(encoder["d_model"]), vae["block_out_channels"]
    token_pixels, item, per_token = (
        2 ** len(channels),
        BYTES_PER_PARAMETER[dtype],
        2 * components["transformer"].parameters,
    )
    features = next(shape[0] for shape in tensors["upscaler"].values() if len(shape) == 4 and shape[1] == 3)
    vae_work = (
        2 * components["vae"].parameters / 4
    )  # the convolutions run at four sizes, each a quarter of the one above
    text = components["text_encoder_2"].parameters
    costs = {
        "encode": Cost(Curve(linear=16 * words * item), Curve(linear=2 * text)),
        "denoise": Cost(
            Curve(linear=16.25 * width * item),
            Curve(linear=per_token, square=4 * width * len(components["transformer"].blocks)),
        ),
        "encode_image": Cost(Curve(linear=4.2 * channels[0] * item), Curve(linear=vae_work / 2)),
        "decode": Cost(Curve(linear=3.01 * channels[min(1, len(channels) - 1)] * item), Curve(linear=vae_work)),
        "detect": Cost(Curve(linear=2.36e6), Curve(linear=0.3e9)),
        "upscale": Cost(
            Curve(linear=36.4 * features * BYTES_PER_PARAMETER[upscaler]),
            Curve(linear=2 * components["upscaler"].parameters),
        ),
    }
    native = int(own["native"])
    source = "measured on the emulated device (python -m bench.memory.activations)"
    return ModelSizes("embedded", native, 28, components, costs, source, token_pixels, int(own["tokens"]), native // 2)


def unet_sizes(folder: Path, known: ModelSizes, dtype: str = "fp32", upscaler: str = "fp32") -> ModelSizes:
    """The Stable Diffusion model of a folder in diffusers' layout, of the family ``known`` (one of ``FAMILIES``), from
    whose costs its own are scaled.

    ``dtype`` is what those compute in that draw, ``upscaler`` what the upscaler does. Detectors and upscaler are those
    of ``known``. Raises WeightsError that names what is missing or damaged.
    """
    known = in_precision(known, dtype, upscaler)
    own = [name for name in known.components if any((folder / name).glob("*.safetensors"))]  # none beside a single file
    unet, vae = _json(folder / "unet" / "config.json"), _json(folder / "vae" / "config.json")
    readers = [_json(folder / name / "config.json") for name in known.encoders]
    components = {
        **known.components,
        **{name: replace(_component(_folder_shapes(folder / name), dtype), rounds=name != "unet") for name in own},
    }
    item, channels = BYTES_PER_PARAMETER[dtype], vae["block_out_channels"]
    share = components["unet"].parameters / known.components["unet"].parameters
    kept = max(max(16, 14 + int(reader["num_hidden_layers"])) * int(reader["hidden_size"]) for reader in readers)
    per_token, work = known.costs["denoise"].memory.linear, known.costs["denoise"].work
    vae_share = components["vae"].parameters / known.components["vae"].parameters
    costs = {
        **known.costs,
        "encode": Cost(
            Curve(linear=kept * item), Curve(linear=4 * sum(components[name].parameters for name in known.encoders))
        ),
        "denoise": Cost(
            Curve(linear=per_token / 320 * unet["block_out_channels"][0]),
            Curve(0, work.linear * share, work.square * share),
        ),
        "encode_image": Cost(
            Curve(linear=5 * channels[0] * item), Curve(linear=known.costs["encode_image"].work.linear * vae_share)
        ),
        "decode": Cost(
            Curve(linear=3 * channels[min(1, len(channels) - 1)] * item),
            Curve(linear=known.costs["decode"].work.linear * vae_share),
        ),
    }
    factor = 2 ** (len(channels) - 1)
    native = int(unet["sample_size"]) * factor
    return replace(known, native=native, components=components, costs=costs, token_pixels=factor, vae_tile=native // 2)


def with_prompt_upsampler(models: ModelSizes, folder: Path, dtype: str) -> ModelSizes:
    """The family with a language model beside it, whose folder is in transformers' layout; it computes in ``dtype``.

    Its cost "write" is that of one token (x: tokens of prompt and answer, whose keys and values are kept). It stays
    whole and exact: it may be swapped, but neither rounded nor streamed. Raises WeightsError that names what is missing
    or damaged.
    """
    config = _json(folder / "config.json")
    config = config.get("text_config", config)
    shapes = _shapes(sorted(folder.glob("*.safetensors")))
    if not shapes:
        raise WeightsError(
            f"{folder.name} holds no .safetensors file; restore it, or change 'prompt_upsampler' in "
            "config_optimized.json"
        )
    parameters, item = _component(shapes, dtype).parameters, BYTES_PER_PARAMETER[dtype]
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    kept = 2 * int(config["num_hidden_layers"]) * width * int(config.get("num_key_value_heads") or heads) / heads
    # beside keys and values: a few vectors of the widest layer for a token, and a row of the vocabulary, widened to
    # draw from it
    memory = Curve(
        fixed=2 * 4 * int(config["vocab_size"]), linear=(kept + 4 * width + 2 * int(config["intermediate_size"])) * item
    )
    costs = {**models.costs, "write": Cost(memory, Curve(fixed=2 * parameters))}
    return replace(
        models, components={"prompt_upsampler": Component(parameters, dtype), **models.components}, costs=costs
    )


def with_face_restorer(models: ModelSizes, parameters: int) -> ModelSizes:
    """The family with a network beside it that restores faces, in float32; its cost "restore" (x: faces at a time) is
    that of GFPGAN.

    It is neither rounded nor streamed.
    """
    costs = {**models.costs, "restore": GFPGAN}
    return replace(
        models,
        components={**models.components, "face_restorer": Component(parameters, "fp32", rounds=False)},
        costs=costs,
    )


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
        if not single.exists():
            return _folder_shapes(folder / "flux" / name)
        found = _shapes([single])
    if not found:
        raise WeightsError(f"{name}: no .safetensors file of it is in {folder.name}; restore the model folder")
    return found


def _folder_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Those of a component; of the same one in two precisions only the first."""
    found = _shapes(sorted(folder.glob("*.safetensors")))
    if not found:
        raise WeightsError(
            f"{folder.name}: no .safetensors file of it is in {folder.parent.name}; restore the model folder"
        )
    return found


def _shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > 100_000_000:  # the format's own limit
                raise WeightsError(
                    f"{file.name} is damaged (its header claims {length} bytes); restore the model folder"
                )
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
