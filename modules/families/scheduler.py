"""How the scheduler of a model is read, whichever family it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.checkpoints.config import Config, read_config
from backend.checkpoints.untrusted import untrusted

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler

SCHEDULER_FILE = "scheduler_config.json"


def scheduler_config(folder: Path) -> Config:
    """The configuration in ``folder``. Raises :class:`backend.core.errors.WeightsError`."""
    return read_config(folder / SCHEDULER_FILE)


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
