"""What the page asks of whatever draws: the service in this process, or a server by HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from backend.api.input_schema import InputSchema
from modules.input_checks import InputChecks


class Watch(Protocol):
    """Who looks on while a prediction runs. All are called by the thread that runs it."""

    def check(self) -> None:
        """Raises when the prediction is canceled."""

    def progress(self, stage: str, done: int, total: int) -> None: ...

    def wants_preview(self) -> bool:
        """Whether it is time for another one, which costs something to make."""

    def preview(self, pictures: list[Image.Image], /) -> None: ...


@dataclass(frozen=True)
class Drawn:
    """The files of a prediction, those of the pictures before the detail pass (none where nobody knows), and its
    metrics by name."""

    pictures: list[Path]
    before: list[Path]
    metrics: Mapping[str, Any]


class Client(Protocol):
    """Draws, and says what can be asked for."""

    schema: InputSchema
    model: str
    plan: str
    """The memory plan in words."""

    @property
    def checks(self) -> InputChecks | None:
        """What the model honours; None where it cannot be known before it is asked."""

    def predict(self, inputs: Mapping[str, Any], folder: Path, watch: Watch) -> Drawn:
        """Writes the pictures into ``folder``. Raises :class:`backend.core.errors.UserError`, and
        :class:`backend.core.cancellation.Canceled` where ``watch`` says so."""

    def close(self) -> None: ...


Start = Callable[[], Client]
