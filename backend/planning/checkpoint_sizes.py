"""The size of a component from the headers of its safetensors files. Pure, without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from backend.checkpoints.folder_files import shard_files
from backend.checkpoints.header import Header, Shape, parameters, read_headers
from backend.core.errors import WeightsError
from backend.planning.model_specs import Component

BLOCK_LISTS = (
    "transformer_blocks", "single_transformer_blocks", "encoder.block", "noise_refiner", "context_refiner", "layers"
)  # fmt: skip
"""Where models have their repeated blocks: the two kinds of Flux, that of T5, the three of Z-Image, of which Qwen3 has
the last. They run in this order."""
UNET_BLOCKS = ("down_blocks", "mid_block", "up_blocks")
"""Where a UNet has its blocks, in order. One block of SDXL is 2.4 GB, so a block's parts are streamed instead."""
REPEATED = re.compile(
    r"(?P<list>(?:single_)?transformer_blocks|encoder\.block|(?:noise|context)_refiner|layers)\.(?P<index>\d+)\."
    r"|(?P<block>down_blocks|up_blocks|mid_block)\.(?:(?P<of>\d+)\.)?"
    r"(?P<part>resnets|attentions|downsamplers|upsamplers)\.(?P<number>\d+)\."
)
"""The blocks that ``backend/offload/placements.py`` streams, by the beginnings of their tensors' names."""
RUN_ORDER = (*BLOCK_LISTS, *UNET_BLOCKS)


def _run_order(name: str) -> tuple[int, ...]:
    """Sorts blocks as they run: in a UNet resnets and attentions in turn, then what resamples."""
    found = REPEATED.match(name)
    assert found
    if found["list"]:
        return RUN_ORDER.index(found["list"]), int(found["index"])
    resamples = found["part"].endswith("samplers")
    return (
        RUN_ORDER.index(found["block"]),
        int(found["of"] or 0),
        resamples,
        int(found["number"]),
        found["part"] != "resnets",
    )


MODULATION = re.compile(r"(^|\.)norm\w*\.|modulation|adaln", re.IGNORECASE)
"""The layers of a block that compute scales and shifts from the timestep, by their names in diffusers. They run on one
vector a picture, so a product in fp8 saves nothing, and every token gets their error."""


def component(
    shapes: Mapping[str, Shape],
    dtype: str,
    on_disk: str = "",
    rounds: bool = True,
    packed: float = 0,
    float32: str = "",
) -> Component:
    """The component with these tensors, named as diffusers and transformers name them, loaded in ``dtype``. ``packed``
    is :meth:`Header.packed_bytes` of its files; the layers whose names end with ``float32`` stay in that."""
    layers: dict[str, int] = {}
    blocks: dict[str, int] = {}
    for name, shape in shapes.items():
        count = parameters(shape)
        layer = name.rpartition(".")[0]
        layers[layer] = layers.get(layer, 0) + count
        if repeated := REPEATED.match(name):
            blocks[repeated[0]] = blocks.get(repeated[0], 0) + count
    largest = max(layers.values(), default=0)
    ordered = tuple(blocks[name] for name in sorted(blocks, key=_run_order))
    modulations = sum(count for layer, count in layers.items() if REPEATED.match(layer) and MODULATION.search(layer))
    kept = sum(count for layer, count in layers.items() if float32 and layer.endswith(float32))
    return Component(
        sum(layers.values()),
        dtype,
        ordered,
        len(layers),
        largest,
        rounds,
        on_disk,
        modulations,
        packed,
        kept,
    )


def folder_header(folder: Path) -> Header:
    """The tensors of a component's folder. Raises :class:`WeightsError` when there are none."""
    header = read_headers(shard_files(folder))
    if not header.shapes:
        raise WeightsError(f"{folder.name}: the files in it hold no weights; restore the model folder")
    return header
