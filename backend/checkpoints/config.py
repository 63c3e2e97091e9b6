"""The configurations in a model's folder, read without trust: what they declare is held against plausible ranges before
anything is built from it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from backend.core.data_files import DataError, read_json, require_regular
from backend.core.errors import WeightsError

RESTORE = "restore the model folder, or choose another 'model' in config_optimized.json"
MAX_TABLE = 2**26
"""Bytes of a tokenizer's tables and of an index of weights. The largest published ones take 33 MB."""
LARGEST = 2**24
"""Of any whole number: no side of a tensor and no context is longer."""

_COUNTS, _SIDES = (0, 1000), (1, LARGEST)
RANGES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "layers_per_block", "num_decoder_layers", "num_hidden_layers", "num_layers", "num_single_layers",
                "transformer_layers_per_block",
            ),
            _COUNTS,
        ),
        **dict.fromkeys(
            (
                "addition_time_embed_dim", "attention_head_dim", "axes_dims_rope", "block_out_channels",
                "cross_attention_dim", "d_ff", "d_kv", "d_model", "head_dim", "hidden_size", "in_channels",
                "intermediate_size", "joint_attention_dim", "latent_channels", "max_position_embeddings",
                "norm_num_groups", "num_attention_heads", "num_heads", "num_key_value_heads", "out_channels",
                "patch_size", "pooled_projection_dim", "projection_class_embeddings_input_dim",
                "relative_attention_num_buckets", "vocab_size",
            ),
            _SIDES,
        ),
        "base_image_seq_len": (1, 2**20),
        "max_image_seq_len": (1, 2**20),
        "native": (32, 2**13),
        "num_labels": (0, 10**5),
        "num_train_timesteps": (1, 10**5),
        "sample_size": (1, 2**14),
        "tokens": (1, 2**12),
    }
)  # fmt: skip
"""Whole numbers, alone or in lists, by their names in any configuration."""
SINGLE = frozenset(
    (
        "base_image_seq_len", "latent_channels", "max_image_seq_len", "max_position_embeddings", "native", "num_labels",
        "num_train_timesteps", "tokens", "vocab_size",
    )
)  # fmt: skip
"""Those of them that are never a list."""
LONGEST_LIST = 256
SPANS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "base_shift": (-100, 100),
        "beta_end": (0, 1),
        "beta_start": (0, 1),
        "max_shift": (-100, 100),
        "scaling_factor": (1e-6, 1e6),
        "shift": (1e-3, 1e3),
        "shift_factor": (-1e6, 1e6),
    }
)
"""Other numbers."""
TABLES = ("tokenizer.json", "vocab.json", ".index.json", ".txt", ".model", ".jinja")
CONFIGURATIONS = ("config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json")
"""How the names of files end that libraries look for in a model's folder. Others, such as a training's state, are not
read."""
NAME_CODE = ("attn_implementation", "_attn_implementation", "experts_implementation")
"""Entries by which a configuration can ask transformers for a kernel of a repository."""


class Config(dict[str, Any]):
    """A configuration by key. An entry that is asked for and is not there is a :class:`WeightsError` with the file's
    name."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.name = name

    def __missing__(self, key: str) -> Any:
        raise WeightsError(f"{self.name} lacks '{key}'; {RESTORE}")


def read_config(path: Path) -> Config:
    """A configuration from a model's folder. Raises :class:`WeightsError` that names the file when it is missing,
    damaged, or declares what no model has."""
    name = f"{path.parent.name}/{path.name}"
    try:
        config = Config(name, read_json(path))
    except FileNotFoundError:
        raise WeightsError(f"{name} is missing; {RESTORE}") from None
    except DataError as problem:
        raise WeightsError(f"{name} {problem}; {RESTORE}") from None
    for key, value in _entries(config):
        if wrong := _problem(key, value):
            raise WeightsError(f"{name}: {key} {wrong}; {RESTORE}")
    return config


def read_optional_config(path: Path) -> Config:
    """A configuration that not every folder has; an empty one where it is missing. Raises as :func:`read_config`."""
    # a link that leads nowhere is not missing
    return read_config(path) if os.path.lexists(path) else Config(path.name, {})


def check_model_folder(folder: Path) -> None:
    """Looks at every file in which a library will look for configurations, before it does. Raises
    :class:`WeightsError` for one that is no file, too large, damaged, or asks for code."""
    for path in sorted(folder.iterdir()):
        if path.name.endswith(TABLES):
            name = f"{folder.name}/{path.name}"
            try:
                size = require_regular(path)
            except (DataError, FileNotFoundError) as problem:  # a link that leads nowhere
                raise WeightsError(f"{name} {_told(problem)}; {RESTORE}") from None
            if size > MAX_TABLE:
                raise WeightsError(f"{name} is larger than {MAX_TABLE // 2**20} MiB; {RESTORE}")
        elif path.name.endswith(CONFIGURATIONS):
            config = read_config(path)
            for key, value in _entries(config):
                if key in NAME_CODE and isinstance(value, str) and "/" in value:
                    raise WeightsError(f"{config.name}: {key} names code of a repository, which is not run; remove it")


def _told(problem: Exception) -> str:
    return "is missing" if isinstance(problem, FileNotFoundError) else str(problem)


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All keys with their values, also those of configurations inside of this one."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from _entries(value)


def _problem(key: str, value: object) -> str:
    """What is wrong with an entry, "" when nothing is."""
    numbers = list(_flat(value))
    if key in RANGES:
        least, most = RANGES[key]
        if isinstance(value, dict) or len(numbers) > (1 if key in SINGLE else LONGEST_LIST):
            return "must be a whole number"
        wrong = [one for one in numbers if type(one) is not int or not least <= one <= most]
        return f"must be a whole number from {least} to {most}, not {str(wrong[0])[:40]}" if wrong else ""
    if key in SPANS:
        low, high = SPANS[key]
        right = value is None or (type(value) in (int, float) and low <= value <= high)  # type: ignore[operator]
        return "" if right else f"must be a number from {low:g} to {high:g}, not {str(value)[:40]}"
    if any(isinstance(one, float) and math.isnan(one) for one in numbers):
        return "is not a number"
    free = "theta" in key or key in ("model_max_length", "seed", "total_size")
    too_large = [one for one in numbers if isinstance(one, int) and abs(one) > LARGEST]
    return f"is {str(too_large[0])[:40]}, more than any model has" if too_large and not free else ""


def _flat(value: object) -> Iterator[Any]:
    """A value, or those in a list; nothing for null and for an object."""
    if isinstance(value, list):
        for one in value:
            yield from _flat(one)
    elif value is not None and not isinstance(value, dict):
        yield value
