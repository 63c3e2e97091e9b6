"""The folders that Cog's server makes for every prediction and leaves behind."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

from backend.core.cancel_file import FILE as CANCELED
from backend.core.errors import StorageError
from backend.core.locks import open_locked
from modules.gateway.refusal import Unavailable

COG_FOLDER = Path("/tmp/coglet/predictions")
"""Where Cog's server makes them, wherever TMPDIR is."""
OURS = ".gateway"
"""An empty file in each folder of a gateway: one that nobody locks was left by a gateway that was killed."""
RETRY_SECONDS = 10


class PredictionFolders:
    """Makes and deletes the folders of the predictions of this process, and locks them meanwhile.

    They are made before Cog's server needs them, because it loses a slot for good with every one that it cannot make.
    """

    def __init__(self, folder: Path = COG_FOLDER) -> None:
        self._folder = folder
        self._locks: dict[str, int] = {}

    def prepare(self) -> None:
        """Deletes what killed gateways have left. Raises :class:`StorageError` for a folder of another user."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._folder.is_symlink() or self._folder.stat().st_uid != os.getuid():
                raise PermissionError
        except OSError:
            raise StorageError(
                f"Cog's server needs the folder {self._folder}, which cannot be made or belongs to another user; "
                "delete it, or start the server as that user"
            ) from None
        for marker in [*self._folder.glob(f"*/{OURS}"), *self._folder.glob(f"*/{CANCELED}")]:
            with suppress(OSError):  # it is locked
                lock = _lock(marker.parent)
                shutil.rmtree(marker.parent, ignore_errors=True)
                os.close(lock)

    def make(self, prediction: str) -> None:
        """Raises :class:`Unavailable` where the disk is full, or another server computes a prediction of this id."""
        folder = self._folder / prediction
        try:
            for name in ("inputs", "outputs"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            self._locks[prediction] = _lock(folder)
            (folder / OURS).touch()
        except BlockingIOError:
            raise Unavailable(
                409, "Another server on this machine runs a prediction with this id", RETRY_SECONDS
            ) from None
        except OSError as error:
            raise Unavailable(503, f"No temporary files can be written ({error.strerror})", RETRY_SECONDS) from None

    def cancel(self, prediction: str) -> None:
        """Asks the worker to end the prediction. The marker is renamed, for which a full disk has room."""
        folder = self._folder / prediction
        with suppress(FileNotFoundError):  # it is canceled already
            (folder / OURS).rename(folder / CANCELED)

    def delete(self, prediction: str) -> None:
        shutil.rmtree(self._folder / prediction, ignore_errors=True)
        os.close(self._locks.pop(prediction))


def _lock(folder: Path) -> int:
    """A descriptor that locks the folder until it is closed. Raises OSError: BlockingIOError where another has it."""
    return open_locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_DIRECTORY | os.O_NOFOLLOW)
