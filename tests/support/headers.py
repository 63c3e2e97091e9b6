"""Safetensors files that are headers alone: what a model is and weighs can be told from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NO_DATA = [0, 0]


def write_header(
    path: Path, shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str] | None = None, dtype: str = "F16"
) -> Path:
    entries: dict[str, Any] = {
        name: {"dtype": dtype, "shape": list(shape), "data_offsets": NO_DATA} for name, shape in shapes.items()
    }
    header = json.dumps({"__metadata__": dict(metadata or {}), **entries}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def write_config(folder: Path, **config: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


def write_component(folder: Path, module: Any, **config: Any) -> None:
    """A component as large as ``module``, which may be on the meta device; ``config`` is its ``config.json``."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
    write_header(folder / "model.safetensors", shapes, dtype="BF16")
    write_config(folder, **config)
