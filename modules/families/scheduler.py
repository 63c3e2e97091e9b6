"""How the scheduler of a model is read, and what its files say of how it was trained, whichever family it is of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.checkpoints.config import Config, read_config
from backend.checkpoints.untrusted import untrusted
from modules.families.source import Source

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler

SCHEDULER_FILE = "scheduler_config.json"


def scheduler_config(folder: Path) -> Config:
    """The configuration in ``folder``. Raises :class:`backend.core.errors.WeightsError`."""
    return read_config(folder / SCHEDULER_FILE)


def scheduler_of(folder: Path | None, published: Mapping[str, Any]) -> Config:
    """That of the model in ``folder``, or the published one where there is no such folder. Raises as
    :func:`scheduler_config`."""
    return scheduler_config(folder / "scheduler") if folder else Config(SCHEDULER_FILE, published)


def says(source: Source, pattern: str) -> bool:
    """Whether the name or the metadata of a single file has this regular expression, in letters of any size. Files of
    models that were trained otherwise differ in nothing else; folders say it in their configurations."""
    told = "\n".join((source.name, *source.header.metadata.values()))
    return re.search(pattern, told, re.IGNORECASE) is not None


def built_scheduler(kind: Any, config: Config, **trial: Any) -> Any:
    """A scheduler of diffusers' class ``kind`` with this configuration.

    Raises :class:`backend.core.errors.WeightsError` for one that cannot place the steps of ``trial``, the arguments of
    its ``set_timesteps``.
    """
    with untrusted(config.name):
        kind.from_config(dict(config)).set_timesteps(**trial)
        return kind.from_config(dict(config))


def flow_scheduler(config: Config) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of a flow model. Raises :class:`backend.core.errors.WeightsError` for a configuration that places
    no steps."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler: FlowMatchEulerDiscreteScheduler = built_scheduler(
        FlowMatchEulerDiscreteScheduler, config, sigmas=[1.0, 0.5], mu=0.5
    )
    return scheduler
