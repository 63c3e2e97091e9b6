"""Locks between processes that end with their process, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

NO_LOCKS = frozenset({errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""What a file system without such locks answers: some network disks, and for folders most of them."""


def open_locked(path: Path, operation: int, flags: int = os.O_RDONLY) -> int:
    """Opens a file or folder with a lock (``flock``) and returns the descriptor; closing it gives the lock up.

    ``operation`` is ``LOCK_SH`` or ``LOCK_EX``, with ``LOCK_NB`` in order not to wait. What is opened is what the path
    names, also when it was replaced meanwhile. Raises BlockingIOError when another process has the lock, and OSError
    when the path cannot be opened or its file system has no locks.
    """
    while True:
        descriptor = os.open(path, flags)
        try:
            fcntl.flock(descriptor, operation)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
