"""One check on many cases: some of them run always, all of them in CI."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def sampled(cases: Iterable[Any], every: int) -> list[Any]:
    """The cases of a parametrized test, in their order: each ``every``-th as it is, beginning with the first, and the
    others marked slow. A tuple has the values of several arguments."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow if number % every else ())
        for number, case in enumerate(cases)
    ]
