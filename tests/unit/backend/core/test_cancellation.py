"""Work is ended between two of its pieces, from another thread."""

from __future__ import annotations

import pytest

from backend.core.cancellation import Canceled, Cancellation, never_canceled


def test_work_goes_on_until_it_is_canceled() -> None:
    cancellation = Cancellation()
    cancellation.check()
    assert not cancellation.canceled
    cancellation.cancel()
    assert cancellation.canceled
    for _ in range(2):
        with pytest.raises(Canceled):
            cancellation.check()


def test_no_handler_of_errors_stops_a_cancel() -> None:
    assert not issubclass(Canceled, Exception)


def test_without_a_cancellation_every_check_passes() -> None:
    never_canceled()
