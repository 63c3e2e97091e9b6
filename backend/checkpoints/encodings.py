"""Weights that take more than one tensor in a file: fp8 and int8 with scales, and the 4 bits of bitsandbytes.

Such a file is told by the names of its tensors. Here they become one weight again, with the shape that the model knows;
``backend/checkpoints/stored_weights.py`` computes its values. Pure, without torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from backend.checkpoints.entries import MAX_SIDE, Entry, Shape, UnsupportedError, parameters
from backend.core.data_files import DataError

Text = Callable[[str], Mapping[str, Any]]
"""Reads a tensor that is a JSON text, by its name."""

SCALES = ("scale_weight", "weight_scale", "weight_scale_inv")
"""What the scale of a layer's weight is called: by ComfyUI first, by ComfyUI and llm-compressor, by DeepSeek. All of
them are multiplied with the weight."""
INPUT_SCALES = ("scale_input", "input_scale")
"""Scales of a layer's input, for products in fp8. Weights do not need them."""
MARKERS = ("scaled_fp8", "comfy_quant", "weight_format")
"""Tensors that only say how others are stored."""
COMFY_FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
"""Those that ``comfy_quant`` names, as far as they are read."""
COMFY_METADATA = "_quantization_metadata"
QUANT_STATE = re.compile(r"(?P<weight>.+)\.quant_state\.bitsandbytes__(?P<format>nf4|fp4)")
BNB_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
FOREIGN: Mapping[str, str] = MappingProxyType(
    {
        "wscales": "nunchaku (SVDQuant)",
        "proj_down": "nunchaku (SVDQuant)",
        "qzeros": "GPTQ or AWQ",
        "g_idx": "GPTQ",
        "weight_packed": "compressed-tensors",
        "weight._data": "quanto",
        "weight_scale_2": "NVFP4",
        "weight_s_channel": "W4A8",
        "weight_quantizer._scale": "modelopt",
    }
)
"""What other libraries call the parts of their weights."""
LARGEST_BLOCK = 2**16


@dataclass(frozen=True)
class Encoding:
    """How a weight is stored. ``parts`` are the names of its tensors by what they are ("weight", "scale", "absmax").

    A scale or absmax is for so many neighbouring weights (``block``; 0 where their number follows from the shapes).
    With a ``nested_block`` the absmax are themselves bytes with scales, and ``nested_offset`` is added to them.
    """

    format: str
    shape: Shape
    parts: Mapping[str, str]
    block: int = 0
    nested_block: int = 0
    nested_offset: float = 0.0


def find_encodings(
    entries: Mapping[str, Entry], metadata: Mapping[str, str], text: Text
) -> tuple[dict[str, Encoding], frozenset[str]]:
    """The weights that are stored in several tensors, by name, and the names of all tensors that are none of a model's
    own. Raises :class:`DataError` for what is damaged and for formats that are not read."""
    _refuse_foreign(entries)
    _check_comfy(entries, metadata, text)
    encodings: dict[str, Encoding] = {}
    for name in entries:
        stem, _, last = name.rpartition(".")
        weight = f"{stem}.weight"
        if found := QUANT_STATE.fullmatch(name):
            encodings[found["weight"]] = _four_bits(entries, found["weight"], found["format"], name, text(name))
        elif last in SCALES and weight in entries:
            encodings[weight] = _scaled(entries, weight, name)
        elif last == "SCB" and weight in entries:
            encodings[weight] = _int8(entries, weight, name)
    extra = {part for encoding in encodings.values() for part in encoding.parts.values()} - set(encodings)
    extra |= {
        name for name in entries if name.rpartition(".")[2] in (*MARKERS, *INPUT_SCALES) or QUANT_STATE.match(name)
    }
    for name, entry in entries.items():
        plain = name not in encodings and name not in extra
        if plain and name.endswith("weight") and entry.format in ("I8", "U8", "I32") and len(entry.shape) > 1:
            raise UnsupportedError(f"stores '{name[:60]}' as whole numbers without a scale that is known")
    return encodings, frozenset(extra)


def _refuse_foreign(entries: Mapping[str, Entry]) -> None:
    for name in entries:
        for end, library in FOREIGN.items():
            if name.endswith(f".{end}"):
                raise UnsupportedError(f"is quantized in a form of {library}")


def _check_comfy(entries: Mapping[str, Entry], metadata: Mapping[str, str], text: Text) -> None:
    """What ComfyUI's newer files say of their layers: in a tensor beside each, or for all of them in the header."""
    import json

    layers: list[Any] = [text(name) for name in entries if name.endswith(".comfy_quant")]
    if COMFY_METADATA in metadata:
        try:
            layers += list(json.loads(metadata[COMFY_METADATA])["layers"].values())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise DataError(f"is damaged ({COMFY_METADATA} in its header)") from None
    for layer in layers:
        format = layer.get("format") if isinstance(layer, Mapping) else layer
        rotated = isinstance(layer, Mapping) and layer.get("convrot")
        if format not in COMFY_FORMATS or rotated:
            raise UnsupportedError(f"stores layers as {str(format)[:40]}{' with rotated weights' if rotated else ''}")


def _four_bits(
    entries: Mapping[str, Entry], weight: str, format: str, state_name: str, state: Mapping[str, Any]
) -> Encoding:
    """A weight of bitsandbytes: two values in a byte, in the order of the flat weight."""
    parts = {part: f"{weight}.{part}" for part in BNB_PARTS if f"{weight}.{part}" in entries} | {"weight": weight}
    nested = "nested_absmax" in parts
    numbers = [state.get("blocksize"), state.get("nested_blocksize") if nested else 1]
    shape, offset = state.get("shape"), state.get("nested_offset", 0.0)
    problem = f"is damaged ({state_name[:80]} does not fit its weight)"
    if not isinstance(shape, list) or not all(type(side) is int and 0 < side <= MAX_SIDE for side in shape):
        raise DataError(problem)
    if not all(type(number) is int and 0 < number <= LARGEST_BLOCK for number in numbers):
        raise DataError(problem)
    block, nested_block = (int(number or 0) for number in numbers)
    count = parameters(tuple(shape))
    wanted = {"weight": -(-count // 2), "absmax": -(-count // block), "quant_map": 16}
    if nested:
        wanted |= {"nested_absmax": -(-wanted["absmax"] // nested_block), "nested_quant_map": 256}
    found = {part: parameters(entries[name].shape) for part, name in parts.items() if name in entries}
    formats = {part: entries[name].format for part, name in parts.items() if name in entries}
    right = {"weight": "U8", "absmax": "U8" if nested else "F32", "quant_map": "F32"}
    if nested:
        right |= {"nested_absmax": "F32", "nested_quant_map": "F32"}
    if found != wanted or formats != right or type(offset) not in (int, float):
        raise DataError(problem)
    return Encoding(format.upper(), tuple(shape), parts, block, nested_block if nested else 0, float(offset))


def _scaled(entries: Mapping[str, Entry], weight: str, scale: str) -> Encoding:
    """fp8 or int8 with one scale for all, one for a row, or one for a rectangle of weights."""
    stored, shape = entries[weight], entries[scale].shape
    if not entries[scale].format.startswith(("F", "BF")) or entries[scale].format.startswith("F8"):
        raise UnsupportedError(f"has scales in {entries[scale].format}")
    if not stored.format.startswith(("F", "BF", "I8")):
        raise UnsupportedError(f"stores scaled weights as {stored.format}")
    rows = stored.shape[0] if stored.shape else 1
    rectangles = len(shape) == len(stored.shape) == 2 and all(0 < few <= many for few, many in zip(shape, stored.shape))
    if parameters(shape) not in (1, rows) and not rectangles:
        raise DataError(f"is damaged (the scale of '{weight[:60]}' does not fit it)")
    return Encoding(stored.format, stored.shape, {"weight": weight, "scale": scale})


def _int8(entries: Mapping[str, Entry], weight: str, scale: str) -> Encoding:
    """bitsandbytes' 8 bits: the largest value of each row, which 127 stands for."""
    stored = entries[weight]
    fits = stored.format == "I8" and len(stored.shape) == 2
    if not fits or parameters(entries[scale].shape) != stored.shape[0] or entries[scale].format != "F32":
        raise DataError(f"is damaged ({scale[:80]} does not fit its weight)")
    return Encoding("I8", stored.shape, {"weight": weight, "absmax": scale})
