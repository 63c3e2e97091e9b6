"""Pieces of work side by side: all of them, in order, on as many cores as there are, which are all free again afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from conftest import torch_threads

from backend.cores import side_by_side

THREADS = 4


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    with torch_threads(THREADS):
        yield


class Watched:
    """A piece of work that says which threads it ran on and waits for those that shall run beside it."""

    def __init__(self, beside: int) -> None:
        self.meeting = threading.Barrier(beside)
        self.seen: list[tuple[str, int, bool]] = []

    def __call__(self, piece: int) -> int:
        thread = threading.current_thread()
        if thread is not threading.main_thread():
            self.meeting.wait(30)
        self.seen.append((thread.name, torch.get_num_threads(), torch.is_inference_mode_enabled()))
        return piece * piece


@pytest.mark.parametrize(
    ("pieces", "together", "beside", "left"),
    [(4, 8, 4, 0), (8, 4, 4, 0), (4, 2, 2, 0), (3, 4, 2, 1), (5, 4, 4, 1), (7, 3, 2, 1), (1, 8, 1, 1), (6, 1, 1, 6), (0, 4, 1, 0)],
)
def test_as_many_at_once_as_divide_the_threads_and_the_rest_on_all(pieces: int, together: int, beside: int, left: int) -> None:
    work = Watched(beside)
    assert list(side_by_side(work, range(pieces), together)) == [piece * piece for piece in range(pieces)]
    main = threading.main_thread().name
    assert sum(name == main for name, _, _ in work.seen) == left
    assert {cores for name, cores, _ in work.seen if name != main} <= {THREADS // beside}
    assert all(inferred for _, _, inferred in work.seen)
    assert torch.get_num_threads() == THREADS


def test_an_error_comes_through_and_leaves_all_threads() -> None:
    def fails(piece: int) -> int:
        if piece == 2:
            raise MemoryError("the third")
        return piece

    results = side_by_side(fails, range(8), 4)
    with pytest.raises(MemoryError, match="the third"):
        list(results)
    assert torch.get_num_threads() == THREADS


def test_who_stops_reading_leaves_all_threads() -> None:
    results = side_by_side(Watched(4), range(8), 4)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert torch.get_num_threads() == THREADS
