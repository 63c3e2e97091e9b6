"""The errors that a user sees. Their text is one line that names the field or file and says what to do.

The server sends this text to its clients unchanged, so it contains no path of the machine that the client did not name
itself, and no content of a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from backend.core.texts import MAX_SHOWN, one_line, shortened


class UserError(Exception):
    """A problem that the user can solve; shown without a stack trace. The text becomes one line, whatever it quotes."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


class InputError(UserError):
    """An input of a prediction that is wrong or not supported."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{shortened(field)}: {problem}")
        self.field = one_line(shortened(field))
        self.problem = one_line(problem)

    def of_item(self, number: int) -> InputError:
        """The same for an input that is a list, of which the file ``number``, from 1, is wrong."""
        return InputError(self.field, f"file {number}: {self.problem}")


class SettingsError(UserError):
    """A setting in ``config_optimized.json`` or the environment is unknown or has a wrong value."""


class WeightsError(UserError):
    """A weight file is missing, damaged, or not what its name says."""


class StorageError(UserError):
    """A disk is full, or a folder cannot be written."""


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)", or nothing when no known name is close."""
    if len(name) > MAX_SHOWN:
        return ""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
