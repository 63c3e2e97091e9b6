"""The errors that a user sees. Their text is one line that names the field or file and says what to do.

The text reaches the clients of the server word for word, so it never holds a path of the machine that a client did not
name itself, nor the content of a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A problem that the person who called can solve; shown without a stack trace."""


class InputError(UserError):
    """An input of a prediction that cannot be honoured."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class SettingsError(UserError):
    """``config_optimized.json`` or an environment variable that overrides it holds something that is not understood."""


class WeightsError(UserError):
    """A weight file is missing, damaged, or not what its name says."""


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)", or nothing when no known name is close."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
