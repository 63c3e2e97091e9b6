"""What libraries raise for files that nobody vouches for, as one line. Pure, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from backend.checkpoints.config import RESTORE
from backend.core.errors import UserError, WeightsError


@contextmanager
def untrusted(label: str, advice: str = RESTORE, kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Whatever is raised for files that cannot be used becomes a :class:`WeightsError` that begins with ``label``; the
    error itself is its cause. Only a lack of memory stays what it is.

    ``kinds`` are the errors that files can cause. Those of tokenizers, huggingface_hub and their like have no common
    base.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except kinds as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's
            raise
        raise WeightsError(f"{label} {_told(error)}; {advice}") from error


def _told(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"needs the package {error.name}, which is not installed" if error.name else "needs another package"
    if "trust_remote_code" in str(error):
        return "brings code of its own, which is never run"
    return "is damaged or does not fit the files beside it"
