"""Environment variables that libraries read only once, when they are imported."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping, MutableMapping
from types import MappingProxyType

from backend.core.settings import Settings
from backend.devices.cuda_allocator import VARIABLE, apply_allocator_conf

logger = logging.getLogger(__name__)

SPIN_COUNT = "10000"
"""How often a thread of OpenMP asks for the next piece of work before it sleeps; GNU's own number is 300,000. While it
asks it keeps its core from the thread that it waits for: with a neighbour on one core of two a prediction took seven
times as long, now 2.5 times. Asking less often than this costs time on an idle machine (``python -m
bench.speed.neighbour``)."""

READ_BY: Mapping[str, str] = MappingProxyType(
    {"HF_HUB_OFFLINE": "huggingface_hub", VARIABLE: "torch", "GOMP_SPINCOUNT": "torch"}
)
"""By variable the library that reads it when it is imported."""


def set_environment(
    settings: Settings, environment: MutableMapping[str, str], imported: Container[str]
) -> tuple[str, ...]:
    """Sets the variables that are not set yet: nothing asks a hub, CUDA memory is allocated as the settings say, and
    waiting threads sleep soon.

    Returns the names of those that come too late to have an effect, because ``imported``, the names of the modules that
    are imported, has their library; each is logged as a warning. Raises SettingsError for an allocator_conf that torch
    would not understand.
    """
    before = dict(environment)
    environment.setdefault("HF_HUB_OFFLINE", "1")
    apply_allocator_conf(settings.allocator_conf, environment)
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    late = tuple(
        name for name, library in READ_BY.items() if library in imported and environment.get(name) != before.get(name)
    )
    for name in late:
        logger.warning(
            "%s=%s has no effect: %s was imported before and reads it only then; set it before Python starts",
            name,
            environment[name],
            READ_BY[name],
        )
    return late
