"""One process at a time writes into a folder of weights."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from backend.core.errors import StorageError
from backend.weights.lockfile import exclusive


def test_a_second_one_waits_for_the_first(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with exclusive(tmp_path):
            order.append("second")

    other = threading.Thread(target=second)
    with exclusive(tmp_path):
        other.start()
        other.join(0.2)
        order.append("first")
    other.join()
    assert order == ["first", "second"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.write_text("a file")
    with (
        pytest.raises(StorageError, match=r"^cannot write to the folder of the weights: Not a directory; "),
        exclusive(folder),
    ):
        pass
