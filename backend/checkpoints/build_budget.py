"""Networks that are built as a file describes them must not be far larger than the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from backend.checkpoints.config import RESTORE
from backend.checkpoints.untrusted import untrusted
from backend.core.errors import WeightsError

BYTES_OF_A_BYTE, SPARE_BYTES = 32, 2**28
"""What a network may allocate for each byte of its files, and besides. Weights of two bits in a file are first built as
float32 without data, and buffers that no file holds are small."""
TENSORS_OF_A_TENSOR, SPARE_TENSORS = 16, 20_000
"""And how many tensors it may make for each one in its files."""


class BuildBudget(TorchDispatchMode):
    """A context in which a network is built that a file describes. It ends in a :class:`WeightsError` as soon as the
    network grows out of proportion to the file: a configuration may claim a hundred million layers, and the weights
    beside it hold two.

    Also networks on the meta device count, since they cost time. Every tensor is counted before it has memory.
    """

    def __init__(self, label: str, file_bytes: int, tensors: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.label = label
        self.bytes_left = BYTES_OF_A_BYTE * file_bytes + SPARE_BYTES
        self.tensors_left = TENSORS_OF_A_TENSOR * tensors + SPARE_TENSORS

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if "device" in options and not any(isinstance(value, torch.Tensor) for value in args):  # only a shape is given
            shape_alone = {"device": torch.device("meta"), "pin_memory": False, "generator": None}
            with suppress(NotImplementedError):  # a few rare ones are not known on the meta device
                self._count(func(*args, **options | {name: shape_alone[name] for name in shape_alone.keys() & options}))
        return func(*args, **options)

    def _count(self, made: torch.Tensor) -> None:
        self.bytes_left -= made.nbytes
        self.tensors_left -= 1
        if min(self.bytes_left, self.tensors_left) < 0:
            raise WeightsError(f"{self.label} describes a network that is far larger than its weights; {RESTORE}")


@contextmanager
def building(label: str, files: Iterable[Path], tensors: int, advice: str = RESTORE) -> Iterator[None]:
    """Builds a network from these files: with a budget, and whatever a library raises becomes a :class:`WeightsError`
    that begins with ``label``. ``tensors`` is how many the files hold."""
    with untrusted(label, advice), BuildBudget(label, sum(file.stat().st_size for file in files), tensors):
        yield
