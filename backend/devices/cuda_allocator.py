"""PyTorch's CUDA allocator: ``PYTORCH_ALLOC_CONF`` is checked and set before torch is imported, because torch reads it
only then.

torch itself takes whatever it does not know for another device's option, warns of contradictions only once CUDA is in
use, and says nothing of options that have no effect. Here all of that is refused, with the reason. Pure, without torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, MutableMapping
from types import MappingProxyType

from backend.core.errors import SettingsError, nearest

VARIABLE = "PYTORCH_ALLOC_CONF"
OLD_VARIABLE = "PYTORCH_CUDA_ALLOC_CONF"
"""Still read by torch 2.13, and before the new name where both are set."""

AUTO = "expandable_segments:True"
"""What "auto" stands for: segments that grow, so that sizes that change from picture to picture leave no holes. Tables
of options for older versions cap the size of blocks that may be split instead, which is for an allocator without
them."""

MINIMUM_SPLIT_MB = 20


def _one_of(*words: str) -> Callable[[str], str]:
    return lambda value: "" if value in words else f"must be {' or '.join(words)}"


def _number(low: float, high: float, words: str) -> Callable[[str], str]:
    def problem(value: str) -> str:
        try:
            return "" if low <= float(value) <= high else f"must be {words}"
        except ValueError:
            return f"must be {words}"

    return problem


def _split_size(value: str) -> str:
    return (
        ""
        if value.isdecimal() and int(value) >= MINIMUM_SPLIT_MB
        else f"must be a whole number of megabytes, at least {MINIMUM_SPLIT_MB}"
    )


def _power_of_two(value: str) -> bool:
    return value.isdecimal() and int(value).bit_count() == 1


def _divisions(value: str) -> str:
    """One power of two, or a list such as ``[256:1,512:2,>:8]`` of sizes in megabytes with theirs."""
    pairs = value[1:-1].split(",") if value.startswith("[") and value.endswith("]") else [f">:{value}"]
    for pair in pairs:
        size, _, parts = pair.partition(":")
        if not (size == ">" or _power_of_two(size)) or not (_power_of_two(parts) or (parts == "0" and len(pairs) > 1)):
            return "must be a power of two, or a list such as [256:1,512:2,>:8] of powers of two"
    return ""


_BOOL = _one_of("True", "False")
OPTIONS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "backend": _one_of("native", "cudaMallocAsync"),
        "expandable_segments": _BOOL,
        "max_split_size_mb": _split_size,
        "max_non_split_rounding_mb": _split_size,
        "garbage_collection_threshold": _number(1e-9, 1 - 1e-9, "between 0 and 1"),
        "roundup_power2_divisions": _divisions,
        "release_lock_on_cudamalloc": _BOOL,
        "per_process_memory_fraction": _number(0, 1, "from 0 to 1"),
        "graph_capture_record_stream_reuse": _BOOL,
        "throw_on_cudamalloc_oom": _BOOL,
        "pinned_use_cuda_host_register": _BOOL,
        "pinned_num_register_threads": lambda value: (
            "" if _power_of_two(value) and int(value) <= 128 else "must be a power of two, at most 128"
        ),
        "pinned_use_background_threads": _BOOL,
        "pinned_reserve_segment_size_mb": _number(0, 2**31, "a number of megabytes"),
        "pinned_max_round_threshold_mb": _number(0, 2**31, "a number of megabytes"),
        "pinned_max_cached_size_mb": _number(0, 2**31, "a number of megabytes"),
    }
)
"""What torch 2.13 understands for CUDA, each with what is wrong with a value ("" when nothing is)."""

NATIVE_ONLY = (
    "expandable_segments",
    "max_split_size_mb",
    "max_non_split_rounding_mb",
    "garbage_collection_threshold",
    "roundup_power2_divisions",
)


def parse_allocator_conf(text: str) -> dict[str, str]:
    """``"name:value,name:value"`` to values by name. Raises :class:`SettingsError` for an unknown name, a wrong
    value or a contradiction."""
    options: dict[str, str] = {}
    for item in re.split(r",(?![^\[]*\])", text.replace(" ", "")):
        name, separator, value = item.partition(":")
        if not separator or not value:
            raise SettingsError(f"allocator_conf: '{item}' is not of the form name:value")
        if name not in OPTIONS:
            raise SettingsError(f"allocator_conf: unknown option '{name}'{nearest(name, OPTIONS)}")
        if name in options:
            raise SettingsError(f"allocator_conf: '{name}' is given twice")
        if problem := OPTIONS[name](value):
            raise SettingsError(f"allocator_conf: {name} {problem}, not '{value}'")
        options[name] = value
    _refuse_contradictions(options)
    return options


def _refuse_contradictions(options: Mapping[str, str]) -> None:
    ignored = [name for name in NATIVE_ONLY if name in options and options[name] != "False"]
    if options.get("backend") == "cudaMallocAsync" and ignored:
        raise SettingsError(
            "allocator_conf: backend:cudaMallocAsync leaves memory to the CUDA driver and ignores "
            f"{', '.join(ignored)}; keep one or the other"
        )
    if options.get("expandable_segments") == "True" and "max_split_size_mb" in options:
        raise SettingsError(
            "allocator_conf: expandable segments are split at any size, so max_split_size_mb would do nothing; keep "
            "one of the two"
        )
    if "garbage_collection_threshold" in options and "per_process_memory_fraction" not in options:
        raise SettingsError(
            "allocator_conf: garbage_collection_threshold is a share of per_process_memory_fraction, and does nothing "
            "without it; give both or none"
        )


def apply_allocator_conf(setting: str, environment: MutableMapping[str, str]) -> str:
    """Puts the setting into the environment, and gives what torch will read there.

    ``setting`` is "auto", "" (torch's own defaults) or options in torch's form. What the environment already holds goes
    first, checked alike. Raises :class:`SettingsError`, also where both of torch's variables are set and differ.
    """
    given, old = environment.get(VARIABLE), environment.get(OLD_VARIABLE)
    if given is not None and old is not None and given != old:
        raise SettingsError(
            f"{VARIABLE} and {OLD_VARIABLE} are both set and differ; torch would take the old one. Unset {OLD_VARIABLE}"
        )
    conf = given if given is not None else old
    if conf is None:
        conf = AUTO if setting == "auto" else setting
        if conf:
            environment[VARIABLE] = conf
    if conf:
        parse_allocator_conf(conf)
    return conf
