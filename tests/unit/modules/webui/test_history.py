"""Runs on the disk: found by the name of their session, whatever a browser sends."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from backend.core.errors import InputError
from modules.webui.history import History, keep_pictures, write_record, write_thumbnail


def finished(history: History, session: str, prompt: str) -> str:
    folder = history.new_run(session)
    Image.new("RGB", (400, 200), "red").save(folder / "out-0.png")
    write_record(folder, {"inputs": {"prompt": prompt}, "pictures": [folder / "out-0.png"], "before": []})
    write_thumbnail(folder / "out-0.png", folder)
    return folder.name


def test_a_session_sees_its_own_runs(tmp_path: Path) -> None:
    history, mine, other = History(tmp_path), History.new_session(), History.new_session()
    names = [finished(history, mine, "a fox"), finished(history, mine, "an owl")]
    finished(history, other, "a hat")
    history.new_run(mine)  # it has not finished
    entries = history.entries(mine)
    assert {entry.name for entry in entries} == set(names)
    assert entries[0].pictures == [entries[0].folder / "out-0.png"]
    with Image.open(entries[0].thumbnail) as image:
        assert image.size == (256, 128)


@pytest.mark.parametrize("session", ["", "..", "../x", "A" * 32, "g" * 32, None, 7, "a" * 33, "a" * 31 + "\n"])
def test_what_is_no_session_leads_nowhere(session: object, tmp_path: Path) -> None:
    assert not History.is_session(session)
    assert History(tmp_path).entry(session, "20260101-000000-aaaaaaaa") is None  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "..", "../20260101-000000-aaaaaaaa", "20260101-000000-aaaaaaaa/..", None, 3])
def test_what_is_no_run_leads_nowhere(name: object, tmp_path: Path) -> None:
    assert History(tmp_path).entry(History.new_session(), name) is None


def test_pictures_of_a_run_stay_when_the_upload_is_gone(tmp_path: Path) -> None:
    upload, folder = tmp_path / "upload.PNG", tmp_path / "run"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(upload)
    kept = keep_pictures({"prompt": "x", "image": upload, "images": [upload]}, folder)
    content = upload.read_bytes()
    upload.unlink()
    assert kept["prompt"] == "x"
    assert kept["image"].read_bytes() == kept["images"][0].read_bytes() == content
    with pytest.raises(InputError, match="image: cannot be read"):
        keep_pictures({"image": upload}, folder)
