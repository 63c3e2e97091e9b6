"""The folders of Cog's server."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.core.cancel_file import FILE as CANCELED
from backend.core.errors import StorageError
from modules.gateway.folders import OURS, PredictionFolders
from modules.gateway.refusal import Unavailable


def test_they_are_there_while_the_prediction_runs(tmp_path: Path) -> None:
    folders = PredictionFolders(tmp_path)
    folders.make("a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"inputs", "outputs", OURS}
    folders.delete("a")
    assert list(tmp_path.iterdir()) == []


def test_the_worker_finds_the_cancel_of_one(tmp_path: Path) -> None:
    folders = PredictionFolders(tmp_path)
    folders.make("a")
    for _ in range(2):
        folders.cancel("a")
        assert (tmp_path / "a" / CANCELED).exists()
    folders.delete("a")


def test_another_server_cannot_have_the_same_one(tmp_path: Path) -> None:
    first, second = PredictionFolders(tmp_path), PredictionFolders(tmp_path)
    first.make("a")
    with pytest.raises(Unavailable, match="with this id"):
        second.make("a")
    first.delete("a")
    second.make("a")
    second.delete("a")


def test_what_a_killed_one_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    living = PredictionFolders(tmp_path)
    living.make("living")
    (tmp_path / "not-ours" / "inputs").mkdir(parents=True)
    (tmp_path / "dead" / "inputs").mkdir(parents=True)
    (tmp_path / "dead" / OURS).touch()
    (tmp_path / "canceled").mkdir()
    (tmp_path / "canceled" / CANCELED).touch()
    PredictionFolders(tmp_path).prepare()
    assert {path.name for path in tmp_path.iterdir()} == {"living", "not-ours"}
    living.delete("living")


def test_a_place_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for place in ("file", "link"):
        with pytest.raises(StorageError, match="belongs to another user"):
            PredictionFolders(tmp_path / place).prepare()
    with pytest.raises(Unavailable, match="temporary files"):
        PredictionFolders(tmp_path / "file").make("a")
