"""``config_optimized.json`` and the environment -> one frozen, typed object.

Every key can be overridden by an environment variable: ``FLUX_`` and the key in capitals (``FLUX_MODEL=embedded``);
names of a list are parted by commas. ``docs/configuration.md`` explains each key.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from backend.core.errors import SettingsError, nearest

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
CONFIG_FILE = ROOT / "config_optimized.json"
PREFIX = "FLUX_"

CHOICES: Mapping[str, tuple[str, ...]] = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "device": ("auto", "cpu", "cuda"),
    "weight_precision": ("exact", "fp8", "nf4"),
    "compile": ("auto", "on", "off"),
    "log_level": ("DEBUG", "INFO", "WARNING", "ERROR"),
}
MINIMUM: Mapping[str, int] = {"cpu_threads": 0, "upscale_tile_size": 32, "prompt_cache_entries": 0}


RENAMED: Mapping[str, str] = {
    "quality": "weight_precision",
    "tile_size": "upscale_tile_size",
    "model_parts": "base_model",
}
"""Settings by their old names, which are still read, with a notice."""


@dataclass(frozen=True)
class Settings:
    """All settings of the package. Paths are relative to the project's root unless absolute."""

    model: str = "auto"
    base_model: str = ""
    dtype: str = "auto"
    device: str = "auto"
    weight_precision: str = "exact"
    compile: str = "auto"
    compile_cache: str = ".compile_cache"
    emulate_vram: str = ""
    cpu_threads: int = 0
    weights_dir: str = "weights"
    allow_downloads: bool = False
    upscaler: str = "auto"
    face_restorer: str = "auto"
    face_detector: str = "auto"
    prompt_upsampler: str = "auto"
    upscale_tile_size: int = 192
    prompt_cache_entries: int = 32
    warm_up: bool = True
    disabled_extensions: tuple[str, ...] = ()
    disabled_scripts: tuple[str, ...] = ()
    allocator_conf: str = "auto"
    log_level: str = "INFO"

    @property
    def weights_path(self) -> Path:
        return ROOT / self.weights_dir


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str) -> int:
    """Bytes from "24GB", "23.5 GiB", "48MB" or a plain number; "/s" at the end is allowed. Raises
    :class:`SettingsError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]i?)?b?(?:/s)?", text.strip().lower())
    if not found or float(found[1]) == 0:
        raise SettingsError(f"'{text}' is not an amount such as 24GB or 23.5GiB")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def _checked(name: str, value: Any, kind: type, origin: str) -> Any:
    where = f"{origin}: {name}"
    if (
        kind is bool
        and not isinstance(value, bool)
        or kind is int
        and (not isinstance(value, int) or isinstance(value, bool))
    ):
        raise SettingsError(f"{where} must be {'true or false' if kind is bool else 'a whole number'}, not {value!r}")
    if kind is str and not isinstance(value, str):
        raise SettingsError(f"{where} must be text, not {value!r}")
    if kind is tuple:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise SettingsError(f"{where} must be a list of names, not {value!r}")
        return tuple(value)
    if name in CHOICES and value not in CHOICES[name]:
        raise SettingsError(f"{where} must be one of {', '.join(CHOICES[name])}, not {value!r}")
    if name in MINIMUM and value < MINIMUM[name]:
        raise SettingsError(f"{where} must be at least {MINIMUM[name]}, not {value}")
    return value


def _from_environment(kind: type, text: str, name: str) -> Any:
    if kind is bool:
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.strip().lower() not in words:
            raise SettingsError(f"environment variable {name} must be true or false, not {text!r}")
        return words[text.strip().lower()]
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise SettingsError(f"environment variable {name} must be a whole number, not {text!r}") from None
    if kind is tuple:
        return [name.strip() for name in text.split(",") if name.strip()]
    return text


def _current_name(key: str, origin: str) -> str:
    if key in RENAMED:
        logger.warning(
            "%s: '%s' is now called '%s'; the old name is read for one more release", origin, key, RENAMED[key]
        )
    return RENAMED.get(key, key)


def load_settings(path: Path = CONFIG_FILE, environment: Mapping[str, str] = os.environ) -> Settings:
    """Reads the file, then the environment over it.

    Raises :class:`SettingsError` for a file that is not JSON, an unknown key (with the nearest known one), or a value
    of the wrong type or range.
    """
    kinds: dict[str, type] = {field.name: type(field.default) for field in fields(Settings)}
    values: dict[str, Any] = {}
    if path.exists():
        try:
            data = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise SettingsError(f"{path.name}: not valid JSON in line {error.lineno}: {error.msg}") from None
        if not isinstance(data, dict):
            raise SettingsError(f"{path.name}: must hold one JSON object")
        for key, value in data.items():
            key = _current_name(key, path.name)
            if key not in kinds:
                raise SettingsError(f"{path.name}: unknown key '{key}'{nearest(key, kinds)}")
            values[key] = _checked(key, value, kinds[key], path.name)
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        key = variable.removeprefix(PREFIX).lower()
        key = _current_name(key, "environment")
        if key not in kinds:
            raise SettingsError(f"environment variable {variable}: unknown setting{nearest(key, kinds)}")
        values[key] = _checked(key, _from_environment(kinds[key], text, variable), kinds[key], "environment")
    return Settings(**values)
