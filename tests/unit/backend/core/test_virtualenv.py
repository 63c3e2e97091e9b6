"""Which packages of a list an environment lacks."""

from __future__ import annotations

from pathlib import Path

from backend.core.virtualenv import missing


def test_what_another_python_needs_is_not_missing_here(tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    pins.write_text('not-there==1.0; python_version >= "3.99"\nnor-there==2.0; python_version >= "3.11"  # here too\n')
    assert missing(pins) == ["nor-there==2.0"]


def test_the_lists_that_a_list_includes_count(tmp_path: Path) -> None:
    (tmp_path / "base.txt").write_text("pydantic==0.0.1\nnot-there==1.0\n")
    (tmp_path / "more.txt").write_text("-r base.txt\n# a comment\nnor-there==2.0\n")
    assert missing(tmp_path / "more.txt") == ["pydantic==0.0.1", "not-there==1.0", "nor-there==2.0"]
