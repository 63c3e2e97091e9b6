"""The plan's seconds beside those that others have published."""

from __future__ import annotations

import pytest

from backend.core.settings import ROOT
from bench.memory.published_speeds import PUBLISHED, Published, markdown


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.card}, {row.how}, {row.source}")
def test_predictions_are_near_published_speeds(row: Published) -> None:
    """A row that the efficiency of its card comes from must be met; the others are predictions."""
    assert row.predicted == pytest.approx(row.seconds, rel=0.05 if row.fitted else 0.2)


def test_most_rows_are_predictions() -> None:
    assert sum(not row.fitted for row in PUBLISHED) > len(PUBLISHED) / 2


def test_the_table_in_the_document_is_current() -> None:
    written = (ROOT / "docs" / "cards.md").read_text().split("<!-- published -->\n")[1].split("\n<!-- end -->")[0]
    assert written == markdown(), "write it again with: python -m bench.memory.published_speeds"
