"""Independent pieces of a CPU's work side by side, each on cores of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def side_by_side(function: Callable[[Piece], Result], pieces: Sequence[Piece], together: int) -> list[Result]:
    """``function`` of every piece, in order, in inference mode; at most ``together`` pieces at a time, which share torch's threads.

    All cores on one convolution wait for the slowest of them at its end; two pictures on one core each do not. As many are taken at
    once as divide the threads evenly, and what is left over is done one by one on all cores. An error comes through when no piece is
    being worked on any more.
    """
    threads = torch.get_num_threads()
    workers = max(count for count in range(1, threads + 1) if threads % count == 0 and count <= max(1, min(together, len(pieces))))
    even = len(pieces) - len(pieces) % workers if workers > 1 else 0

    def inferred(piece: Piece) -> Result:
        with torch.inference_mode():  # every thread has a mode of its own
            return function(piece)

    results: list[Result] = []
    if even:
        torch.set_num_threads(threads // workers)  # threads that begin from here on take this number
        try:
            with ThreadPoolExecutor(workers, "cores") as pool:
                results += pool.map(inferred, pieces[:even])
        finally:
            torch.set_num_threads(threads)
    return results + [inferred(piece) for piece in pieces[even:]]
