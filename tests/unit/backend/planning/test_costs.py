"""The plan's seconds beside those that others have published, and what passes through a device."""

from __future__ import annotations

import pytest
from support.model_specs import KNOWN

from backend.core.settings import ROOT
from backend.planning.costs import Placement, passing_bytes
from bench.memory.published_speeds import PUBLISHED, Published, markdown


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.card}, {row.how}, {row.source}")
def test_predictions_are_near_published_speeds(row: Published) -> None:
    """A row that the efficiency of its card comes from must be met; the others are predictions."""
    assert row.predicted == pytest.approx(row.seconds, rel=0.05 if row.fitted else 0.2)


def test_half_of_the_rows_are_predictions() -> None:
    assert sum(not row.fitted for row in PUBLISHED) >= len(PUBLISHED) / 2


def test_the_table_in_the_document_is_current() -> None:
    written = (ROOT / "docs" / "cards.md").read_text().split("<!-- published -->\n")[1].split("\n<!-- end -->")[0]
    assert written == markdown(), "write it again with: python -m bench.memory.published_speeds"


def test_only_weights_in_blocks_are_dequantized() -> None:
    """The embedding of Qwen3 is larger than any of its blocks, and is not rounded."""
    qwen3 = KNOWN["flux2-klein"].components["text_encoder"]
    assert qwen3.largest_layer > max(qwen3.blocks)
    passing = passing_bytes(Placement("model offload", "fp8"), qwen3)
    assert passing == qwen3.size("fp8") + qwen3.bytes_of(max(qwen3.blocks))
