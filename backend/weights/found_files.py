"""Files that were looked for: those that can be used, and why others cannot. Pure, without torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from backend.core.errors import WeightsError
from backend.core.settings import Settings
from backend.weights.resolver import is_vouched_for

logger = logging.getLogger(__name__)


class FoundFiles(dict[str, Path]):
    """Files by the name that inputs give them, the default one first.

    ``left_out`` has the reason of every file that lies there, that no setting names, and that cannot be used. It stops
    nothing until somebody asks for it by its name.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.left_out = kind, dict[str, str]()

    def add(self, name: str, path: Path, settings: Settings, check: Callable[[Path], object]) -> None:
        """Adds a file that no setting names, if ``check`` does not raise :class:`WeightsError`.

        Raises it for a file that ships with the package or that was installed, and is damaged.
        """
        if name in self or name in self.left_out:
            return
        try:
            check(path)
        except (WeightsError, OSError) as problem:
            if is_vouched_for(path, settings):
                raise
            self.left_out[name] = str(problem)
            logger.warning("%s left out: %s", self.kind, problem)
        else:
            self[name] = path
