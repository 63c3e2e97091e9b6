"""What a refusal must look like."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import pytest

from backend.core.errors import UserError


def refusal(refuse: Callable[[], object]) -> str:
    """The message of the error that ``refuse`` raises: one line without the path of a temporary file."""
    with pytest.raises(UserError) as caught:
        refuse()
    text = str(caught.value)
    assert "\n" not in text and str(tempfile.gettempdir()) not in text, text
    return text
