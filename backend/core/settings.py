"""``config_optimized.json`` and the environment -> one frozen, typed object.

Every key can be overridden by an environment variable: ``FLUX_`` and the key in capitals (``FLUX_MODEL=embedded``);
names in a list are separated by commas. ``docs/configuration.md`` explains each key.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass

from backend.core.data_files import DataError, read_json
from backend.core.errors import SettingsError
from backend.core.files import ROOT as ROOT  # where most modules look for it
from backend.core.validation import STRICT, WholeNumber, from_text, validated

logger = logging.getLogger(__name__)

CONFIG_FILE = ROOT / "config_optimized.json"
PREFIX = "FLUX_"

RENAMED: Mapping[str, str] = {
    "quality": "weight_precision",
    "tile_size": "upscale_tile_size",
    "model_parts": "base_model",
}
"""Settings by their old names, which are read for one more release, with a notice."""
RENAMED_VALUES: Mapping[tuple[str, object], str] = {("weight_precision", "exact"): "bf16"}
"""Values of a setting by their old names, likewise."""

Names = Annotated[tuple[str, ...], Field(strict=False)]  # JSON has lists, and no tuples
LoraSource = Literal["local", "huggingface", "civitai", "replicate", "https"]
LoraSourceNames = Annotated[tuple[LoraSource, ...], Field(strict=False)]


@dataclass(frozen=True, config=STRICT)
class Settings:
    """All settings of the package. Paths are relative to the project's root unless absolute."""

    profile: Literal["studio", "hosted"] = "studio"
    model: str = "auto"
    base_model: str = ""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    weight_precision: Literal["auto", "bf16", "fp8", "nf4", "gguf"] = "auto"
    compile: Literal["auto", "on", "off", "whole"] = "auto"
    compile_cache: str = ".compile_cache"
    quantized_cache: str = ".quantized_cache"
    quantized_cache_gb: Annotated[WholeNumber, Field(ge=0)] = 60
    emulate_vram: str = ""
    cpu_threads: Annotated[WholeNumber, Field(ge=0)] = 0
    weights_dir: str = "weights"
    allow_downloads: bool = False
    lora_sources: LoraSourceNames = ("local",)
    lora_memory: str = "auto"
    lora_cache: str = ".lora_cache"
    lora_cache_gb: Annotated[WholeNumber, Field(ge=0)] = 20
    upscaler: str = "auto"
    face_restorer: str = "auto"
    face_detector: str = "auto"
    prompt_upsampler: str = "auto"
    safety_checker: str = "auto"
    safety_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    safety_classes: Names = ()
    upscale_tile_size: Annotated[WholeNumber, Field(ge=32)] = 1024
    prompt_cache_entries: Annotated[WholeNumber, Field(ge=0)] = 32
    warm_up: bool = True
    disabled_extensions: Names = ()
    disabled_scripts: Names = ()
    allocator_conf: str = "auto"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @property
    def weights_path(self) -> Path:
        return ROOT / self.weights_dir


DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in fields(Settings)}


class _Given(NamedTuple):
    """A value, and where it was found, as errors name it."""

    value: object
    origin: str


def load_settings(path: Path = CONFIG_FILE, environment: Mapping[str, str] = os.environ) -> Settings:
    """Reads the file, then the environment over it.

    Raises :class:`SettingsError` for a file that is not JSON, an unknown key (with the nearest known one), or a value
    of the wrong type or range.
    """
    given = {
        name: _renamed(name, one) for name, one in (*_from_file(path).items(), *_from_environment(environment).items())
    }
    return validated(
        Settings,
        {name: one.value for name, one in given.items()},
        lambda name, problem: SettingsError(f"{given[name].origin} {problem}"),
    )


def _renamed(name: str, given: _Given) -> _Given:
    new = RENAMED_VALUES.get((name, given.value)) if isinstance(given.value, str) else None
    if new is None:
        return given
    logger.warning(
        "%s: '%s' is now called '%s'; the old name is read for one more release", given.origin, given.value, new
    )
    return _Given(new, given.origin)


def _from_file(path: Path) -> dict[str, _Given]:
    try:
        data = read_json(path)
    except FileNotFoundError:
        return {}
    except DataError as problem:
        raise SettingsError(f"{path.name} {problem}") from None
    names = _current_names(data, path.name)
    return {name: _Given(data[key], f"{path.name}: {key}") for name, key in names.items()}


def _from_environment(environment: Mapping[str, str]) -> dict[str, _Given]:
    texts = {
        variable.removeprefix(PREFIX).lower(): text
        for variable, text in environment.items()
        if variable.startswith(PREFIX)
    }
    given = {}
    for name, key in _current_names(texts, "environment").items():
        origin = f"environment variable {PREFIX}{key.upper()}"
        try:
            given[name] = _Given(_from_text(texts[key], type(DEFAULTS.get(name, ""))), origin)
        except ValueError as problem:
            raise SettingsError(f"{origin} {problem}") from None
    return given


def _from_text(text: str, kind: type) -> object:
    """Raises ValueError with what the text must be."""
    if kind is tuple:
        return [name.strip() for name in text.split(",") if name.strip()]
    return text if kind is str else from_text(kind, text)


def _current_names(keys: Iterable[str], origin: str) -> dict[str, str]:
    """The keys by the names that settings have now, with a notice for every old one."""
    names: dict[str, str] = {}
    for key in keys:
        name = RENAMED.get(key, key)
        if name in names:
            raise SettingsError(f"{origin}: '{names[name]}' and '{key}' are one setting; keep only '{name}'")
        if key in RENAMED:
            logger.warning("%s: '%s' is now called '%s'; the old name is read for one more release", origin, key, name)
        names[name] = key
    return names
