"""The files of a request: only those that were sent are opened, and none stays."""

from __future__ import annotations

import os
import tempfile
import threading
import time
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
    with uploads.owned(inputs) as received:
        assert received is inputs
    (tmp_path / "secret.png").write_bytes(b"secret")
    for path in (tmp_path / "secret.png", uploads.folder, uploads.folder / "none.png"):
        for wrong in ("mask", "images"):
            image = sent(uploads, "image.png")
            given = {"prompt": "x", "image": image, wrong: [image, path] if wrong == "images" else path}
            with pytest.raises(InputError) as error, uploads.owned(given):
                pass
            assert str(error.value) == f"{wrong}: must be sent as a data: URL, or be the http(s) address of a picture"
            assert not image.exists()
    assert (tmp_path / "secret.png").exists() and uploads.folder.exists()


def test_a_file_that_the_user_names_is_copied(uploads: Uploads, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"photo")
    inputs = {"prompt": "x", "image": tmp_path / "photo.png", "mask": None}
    copied = uploads.copy_in(inputs)
    assert copied == {"prompt": "x", "image": uploads.folder / "image.png", "mask": None}
    assert copied["image"].read_bytes() == b"photo" and inputs["image"] == tmp_path / "photo.png"
    with pytest.raises(InputError, match="^image: cannot read '.*none.png': No such file or directory$"):
        uploads.copy_in({"image": tmp_path / "none.png"})
    (tmp_path / "other.jpg").write_bytes(b"other")
    listed = uploads.copy_in({"images": [tmp_path / "other.jpg", tmp_path / "photo.png"]})["images"]
    assert listed == [uploads.folder / "images-1.jpg", uploads.folder / "images-2.png"]
    assert [file.read_bytes() for file in listed] == [b"other", b"photo"]


def test_a_pipe_is_read_and_a_file_without_end_is_refused(uploads: Uploads, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"photo",))
    writer.start()
    assert uploads.copy_in({"image": pipe})["image"].read_bytes() == b"photo"
    writer.join()
    with pytest.raises(InputError, match="^image: is a file of more than 128 MiB; save it smaller$"):
        uploads.copy_in({"image": Path("/dev/zero")})


def test_the_files_of_a_request_are_deleted_when_it_ends_and_no_others(uploads: Uploads) -> None:
    own, waiting = sent(uploads, "own.png"), sent(uploads, "waiting.png")
    listed = [sent(uploads, "one.png"), sent(uploads, "two.png")]
    with uploads.owned({"prompt": "x", "image": own, "mask": None, "images": listed}):
        assert own.exists() and all(file.exists() for file in listed)
    assert list(uploads.folder.iterdir()) == [waiting]


class TestAbandoned:
    """When a request is canceled while an address is fetched, Cog's server leaves the file, and no request owns it."""

    def test_a_file_that_no_request_owns_at_two_looks_is_deleted(self, uploads: Uploads) -> None:
        abandoned = sent(uploads, "abandoned.png")
        before = uploads.delete_abandoned(set())
        assert abandoned.exists()
        uploads.delete_abandoned(before)
        assert not abandoned.exists()

    def test_that_of_a_request_that_waits_stays(self, uploads: Uploads) -> None:
        own = sent(uploads, "own.png")
        with uploads.owned({"image": own}):
            uploads.delete_abandoned(uploads.delete_abandoned(set()))
            assert own.exists()

    def test_one_that_has_just_arrived_stays(self, uploads: Uploads) -> None:
        before = uploads.delete_abandoned(set())
        new = sent(uploads, "new.png")
        uploads.delete_abandoned(before)
        assert new.exists()

    def test_the_image_stays_while_the_mask_is_fetched(self, uploads: Uploads) -> None:
        image = sent(uploads, "image.png")
        with (uploads.folder / "mask.png").open("wb"):
            uploads.delete_abandoned(uploads.delete_abandoned(set()))
            assert image.exists()

    def test_the_folder_is_looked_through_again_and_again(
        self, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr("modules.request.uploads.SWEEP_SECONDS", 0.01)
        uploads.receive_from_cog()
        abandoned = sent(uploads, "abandoned.png")
        deadline = time.monotonic() + 10
        while abandoned.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
