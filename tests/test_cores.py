"""Pieces of work side by side: all of them, in order, on as many cores as there are, which are all free again afterwards."""

from __future__ import annotations

import threading
import time
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
    assert side_by_side(work, range(pieces), together) == [piece * piece for piece in range(pieces)]
    main = threading.main_thread().name
    assert sum(name == main for name, _, _ in work.seen) == left
    assert {cores for name, cores, _ in work.seen if name != main} <= {THREADS // beside}
    assert all(inferred for _, _, inferred in work.seen)
    assert torch.get_num_threads() == THREADS


def test_an_error_comes_through_when_no_piece_is_worked_on_any_more_and_leaves_all_threads() -> None:
    started: list[int] = []
    finished: list[int] = []

    def fails(piece: int) -> None:
        started.append(piece)
        if piece == 1:
            raise MemoryError("the second")
        time.sleep(0.2)
        finished.append(piece)

    with pytest.raises(MemoryError, match="the second"):
        side_by_side(fails, range(100), 4)
    assert {*started} == {*finished, 1} and len(started) < 100
    assert torch.get_num_threads() == THREADS
