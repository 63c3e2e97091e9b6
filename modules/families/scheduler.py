"""How the scheduler of a diffusers folder is read, whichever family it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backend.checkpoints.config import Config, read_config
from backend.checkpoints.untrusted import untrusted


def scheduler_config(folder: Path) -> Config:
    """The configuration in ``folder``. Raises :class:`backend.core.errors.WeightsError`."""
    return read_config(folder / "scheduler_config.json")


def load_scheduler(kind: Any, folder: Path, **trial: Any) -> Any:
    """A scheduler of diffusers' class ``kind`` with the configuration in ``folder``.

    Raises :class:`backend.core.errors.WeightsError` for one that cannot place the steps of ``trial``, the arguments of
    its ``set_timesteps``.
    """
    config = scheduler_config(folder)
    with untrusted(config.name):
        kind.from_config(dict(config)).set_timesteps(**trial)
        return kind.from_config(dict(config))
