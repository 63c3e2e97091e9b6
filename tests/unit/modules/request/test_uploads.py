"""The files of a request: only those that were sent are opened, and none stays."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from backend.core.errors import InputError
from modules.request.uploads import Uploads


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    folder = tmp_path / "uploads"
    folder.mkdir()
    return Uploads(folder)


def sent(uploads: Uploads, name: str) -> Path:
    file = uploads.folder / name
    file.write_bytes(name.encode())
    return file


def test_what_cog_writes_lies_in_the_folder(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    uploads.receive_from_cog()
    with tempfile.NamedTemporaryFile() as file:  # as cog does with a data: URL
        assert Path(file.name).parent == uploads.folder


def test_a_file_that_was_sent_is_taken_and_one_of_the_machine_is_not(uploads: Uploads, tmp_path: Path) -> None:
    inputs = {"prompt": "x", "image": sent(uploads, "a.png")}
    assert uploads.only_received(inputs) is inputs
    (tmp_path / "secret.png").write_bytes(b"secret")
    for path in (tmp_path / "secret.png", uploads.folder, uploads.folder / "none.png"):
        with pytest.raises(InputError) as error:
            uploads.only_received({"prompt": "x", "mask": path})
        assert str(error.value) == "mask: must be sent as a data: URL, or be the http(s) address of a picture"


def test_a_file_that_the_user_names_is_copied(uploads: Uploads, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"photo")
    inputs = {"prompt": "x", "image": tmp_path / "photo.png", "mask": None}
    copied = uploads.copy_in(inputs)
    assert copied == {"prompt": "x", "image": uploads.folder / "image.png", "mask": None}
    assert copied["image"].read_bytes() == b"photo" and inputs["image"] == tmp_path / "photo.png"
    with pytest.raises(InputError, match="^image: cannot read '.*none.png': No such file or directory$"):
        uploads.copy_in({"image": tmp_path / "none.png"})


def test_the_files_of_a_request_are_deleted_and_no_others(uploads: Uploads, tmp_path: Path) -> None:
    own, waiting, elsewhere = sent(uploads, "own.png"), sent(uploads, "waiting.png"), tmp_path / "elsewhere.png"
    elsewhere.touch()
    uploads.delete({"prompt": "x", "image": own, "mask": elsewhere})
    assert list(uploads.folder.iterdir()) == [waiting] and elsewhere.exists()
    uploads.delete({"image": own, "mask": None})
