"""Looks at a checkpoint of torch before its restricted loader does: no more may be built from it than it can hold.
Pure, without torch; nothing of the file is run."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from backend.core.errors import WeightsError

MAX_PICKLE = 2**26
"""Bytes of the list of tensors in an archive. Those of the largest upscalers take 1 MB."""
OLD_PICKLES = 5
"""How many follow each other in the form that torch wrote until 2020; the first is a magic number."""
MAX_NUMBER = 2**20
"""Smaller numbers are no claim of a size, whatever the file's."""
AGAIN = "get the file again, best as .safetensors"
LIBRARIES = {"ultralytics": "a YOLO, which belongs into weights/adetailer", "models.yolo": "a YOLO of an old library"}
"""What a checkpoint is that asks for classes of such a module."""


def check_tensor_pickle(path: Path, role: str) -> None:
    """Raises :class:`WeightsError` for an archive that is compressed, for numbers that the file cannot hold, and for
    a network of another library, which no list of tensors needs. ``role`` is what it should be: "upscaler"."""
    try:
        for pickled in _pickles(path):
            for opcode, argument, _ in pickletools.genops(pickled):
                _check(path, role, opcode.name, argument)
    except (ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RecursionError):
        return  # the loader says what is damaged


def _pickles(path: Path) -> Iterator[IO[bytes] | bytes]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            list(pickletools.genops(file))
            for _ in range(OLD_PICKLES - 1):
                yield file
        return
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise WeightsError(f"{path.name}: is damaged, or a compressed archive, which no checkpoint is; {AGAIN}")
        for info in infos:
            if info.filename.endswith("/data.pkl") and info.file_size <= MAX_PICKLE:
                yield io.BytesIO(archive.read(info))


def _check(path: Path, role: str, opcode: str, argument: object) -> None:
    if isinstance(argument, int) and argument > max(path.stat().st_size, MAX_NUMBER) and "GET" not in opcode:
        raise WeightsError(f"{path.name}: claims {argument} numbers, more than the file can hold; {AGAIN}")
    if isinstance(argument, str) and (
        what := next((LIBRARIES[one] for one in LIBRARIES if argument.startswith(one)), "")
    ):
        raise WeightsError(f"{path.name}: holds no {role}, but {what}")
