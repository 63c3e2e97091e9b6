"""What a detector's file says of itself: the description beside our own form, and the limits of all forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from backend.core.data_files import MAX_DEPTH, DataError, read_limited
from backend.core.errors import WeightsError

MAX_DESCRIPTION = 2**17
"""Bytes. With the names of a thousand classes it takes 20,000."""
MAX_CLASSES, MAX_SIDE = 10_000, 4096
"""Classes of a detector, and pixels of a side of the pictures that it was made for."""


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""YAML without tags of Python. libyaml's takes a twentieth of the time, and a build without it has none."""


def _parsed(text: str) -> Any:
    """What plain YAML says, without references and not too deep: what a reference repeats may be endless."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise DataError("holds a reference (*name); write out what it stands for")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise DataError(f"is nested more than {MAX_DEPTH} deep")
    return yaml.load(text, Loader=_LOADER)  # noqa: S506  # both are safe loaders


def read_description(path: Path) -> dict[str, Any]:
    """The YAML file beside a detector's weights. Raises :class:`WeightsError` that names it."""
    try:
        text = read_limited(path, MAX_DESCRIPTION).decode("utf-8-sig")
        data = _parsed(text)
        if not isinstance(data, dict) or data.get("task") not in ("detect", "segment"):
            raise DataError("does not say what the detector does (task: detect or segment)")
        if not isinstance(data.get("names"), list) or not all(isinstance(name, str) for name in data["names"]):
            raise DataError("names no classes (names: [face])")
    except FileNotFoundError:
        raise WeightsError(f"{path.name}: is missing; put it beside the weights, or choose another detector") from None
    except UnicodeDecodeError:
        raise WeightsError(f"{path.name}: is damaged (not UTF-8); get the file again") from None
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        told = problem if isinstance(problem, DataError) else "is damaged (not plain YAML)"
        raise WeightsError(f"{path.name}: {told}; get the file again or choose another detector") from None
    check_sizes(data.get("imgsz"), len(data["names"]), path.name)
    return data


def check_sizes(imgsz: object, classes: int, name: str) -> None:
    """Raises :class:`WeightsError` that names the file: ``imgsz`` must be a side in pixels, or height and width."""
    sides = imgsz if isinstance(imgsz, list | tuple) and len(imgsz) == 2 else [imgsz]
    if not all(type(side) is int and 32 <= side <= MAX_SIDE for side in sides):
        raise WeightsError(f"{name}: imgsz must be from 32 to {MAX_SIDE} pixels, not {str(imgsz)[:40]}")
    if not 1 <= classes <= MAX_CLASSES:
        raise WeightsError(f"{name}: names {classes} classes; a detector has from 1 to {MAX_CLASSES}")
