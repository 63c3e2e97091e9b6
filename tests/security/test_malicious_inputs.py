"""Inputs of a prediction that want to do harm: refused with one line, and the next request is answered."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import cog
import pytest
from PIL import Image
from support.data_urls import data_url, png
from support.detector_files import Payload
from support.pictures import PICTURE
from support.processes import Server
from support.refusals import refusal

from backend.core.errors import InputError
from modules.request.adetailer_args import units_from_json
from modules.request.input_image import read_image
from modules.request.uploads import Uploads


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """What a malicious input would make."""
    return tmp_path / "planted"


def test_comfyui_cve_2026_56671_no_path_that_a_client_names_is_opened(tmp_path: Path) -> None:
    """Also CVE-2026-56673. Cog takes local paths where no schema lies beside it."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    uploads = Uploads(tmp_path / "uploads")
    uploads.folder.mkdir()
    link, sent = uploads.folder / "link.png", uploads.folder / "sent.png"
    link.symlink_to(secret)
    Image.new("RGB", (8, 8)).save(sent)
    outside = (secret, link, Path("/etc/hostname"), uploads.folder, uploads.folder / ".." / "secret.png")
    for path in outside:
        problem = refusal(lambda path=path: uploads.owned({"image": cog.Path(path)}).__enter__())  # type: ignore[misc]
        assert problem.startswith("image: must be sent")
    inputs = {"prompt": "x", "image": cog.Path(sent), "mask": None}
    with uploads.owned(inputs) as received:
        assert received is inputs


@pytest.mark.parametrize("kind", ["a pickle", "PostScript", "FITS", "a zip", "a page", "SVG"])
def test_pillow_cve_2026_40192_only_known_formats_are_decoded(tmp_path: Path, planted: Path, kind: str) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a.png", b"")
    contents = {
        "a pickle": pickle.dumps(Payload(planted)),
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(planted) (w) file\n",
        "FITS": b"SIMPLE  =                    T".ljust(80)
        + b"BITPIX  =                    8".ljust(80)
        + b"END".ljust(2720),
        "a zip": archive.getvalue(),
        "a page": b"<html><img src=x></html>",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/hostname"/></svg>',
    }
    (tmp_path / "image.png").write_bytes(contents[kind])
    assert "is not an image that can be read" in refusal(lambda: read_image(tmp_path / "image.png", "image"))
    assert not planted.exists()


def test_a_file_of_too_many_bytes_is_not_opened(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(129 * 2**20)
    assert "more than 128 MiB" in refusal(lambda: read_image(tmp_path / "large.png", "image"))


BAD_JSON = {
    "deep lists": "[" * 100_000,
    "deep objects": '{"a":' * 3000 + "1" + "}" * 3000,
    "long": '{"ad_prompt": "' + "x" * 10_000_000 + '"}',
    "many units": "[" + "{}," * 9 + "{}]",
    "a number": "1e999",
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_json_that_is_too_deep_or_too_long_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match="^adetailer_args: "):
        units_from_json(BAD_JSON[kind], "adetailer_args")


def test_a_server_refuses_harmful_inputs_and_answers_the_next_request(server: Server, planted: Path) -> None:
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    quick = {**PICTURE, "num_inference_steps": 1, "adetailer": False, "scale": 1}
    harmful: list[dict[str, Any]] = [
        {"image": data_url(pickle.dumps(Payload(planted)))},
        {"image": data_url(bomb.getvalue())},
        {"image": data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n", "application/postscript")},
        {"image": png(Image.new("RGB", (64, 64)))[:-200]},
        {"adetailer": True, "adetailer_args": "[" * 50_000},
        {"adetailer": True, "adetailer_args": '{"ad_model": "../../../etc/passwd"}'},
    ]
    for inputs in harmful:
        answer = server.predict({**quick, **inputs})
        if answer.status_code == 422:  # refused by the gateway
            assert answer.json()["detail"][0]["loc"][-1] in inputs
        else:
            assert (answer.status_code, answer.json()["status"]) == (200, "failed")
            assert re.search("InputError: (image|adetailer_args): ", answer.json()["error"])
        assert "/tmp" not in answer.text
    assert server.predict(quick).json()["status"] == "succeeded"
    assert not planted.exists()
