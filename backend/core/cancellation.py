"""How work that nobody wants any more is ended: whoever computes asks, between two pieces, whether to go on."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

Check = Callable[[], None]
"""Called between two pieces of work, such as steps, tiles and pictures. Raises :class:`Canceled` to end it there."""


class Canceled(BaseException):
    """The work was canceled. Not an ``Exception``, so that no handler of errors takes it for one and goes on."""


class Cancellation:
    """Ends work in another thread: :meth:`cancel` is called there, and the work calls :meth:`check` between its
    pieces."""

    def __init__(self) -> None:
        self._canceled = Event()

    def cancel(self) -> None:
        """Ends the work at its next check. From any thread, any number of times."""
        self._canceled.set()

    @property
    def canceled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._canceled.is_set()

    def check(self) -> None:
        """Raises :class:`Canceled` after :meth:`cancel`."""
        if self._canceled.is_set():
            raise Canceled


def never_canceled() -> None:
    """The :data:`Check` of callers that never cancel."""
