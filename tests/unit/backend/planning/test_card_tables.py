"""``docs/cards.md`` holds what ``scripts/plan --cards`` prints."""

from __future__ import annotations

import subprocess

import pytest
from support.model_specs import KNOWN

from backend.core.settings import ROOT
from backend.planning.card_tables import ASKING, SAVING, SIZES_GIB
from backend.planning.gpu_specs import usual_cards

MARKS = ("<!-- cards -->\n", "\n<!-- end -->")


@pytest.fixture(scope="module")
def printed() -> str:
    return subprocess.run(
        ["scripts/plan", "--cards"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    ).stdout.strip()


def test_the_document_is_current(printed: str) -> None:
    written = (ROOT / "docs" / "cards.md").read_text().split(MARKS[0])[1].split(MARKS[1])[0]
    assert written == printed, "write it again with: scripts/plan --cards"


def test_every_family_has_its_plan_and_its_steps_for_every_card(printed: str) -> None:
    sections = printed.split("## ")[1:]
    listed = [spec for spec in KNOWN.values() if not spec.pictures.needed]
    assert [section.partition(",")[0] for section in sections] == [spec.name for spec in listed]
    for section, models in zip(sections, listed, strict=True):
        rows = [line for line in section.splitlines() if line.startswith(tuple(f"| {size} GB (" for size in SIZES_GIB))]
        assert len(rows) == 3 * sum(card.gib in SIZES_GIB for card in usual_cards())
        assert all(column in section for column in ASKING)
        rounds = models.components[models.denoiser].rounds
        assert {column for column in SAVING if column in section} == {
            column for column, change in SAVING.items() if rounds or "weight_precision" not in change
        }
        assert f"{int(1.5 * models.native)} x {int(1.5 * models.native)} |" in section
