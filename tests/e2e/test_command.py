"""``scripts/predict``: what a person at a terminal gets."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.detections import WEIGHTS
from support.pictures import PICTURE
from support.processes import START_SECONDS, Drawn, Server

from backend.core.errors import InputError
from backend.core.settings import ROOT
from backend.core.timeline import Timeline
from modules.app import service as startup
from modules.cli import predict as command
from modules.detection.yolo import Detector, load_detector_network

Report = Callable[[str, float], None]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """``scripts/predict`` with the inputs of ``PICTURE``, a timeline, debug images and JSON, from a folder of its
    own."""
    folder, temporary = tmp_path_factory.mktemp("command"), tmp_path_factory.mktemp("tmp")
    inputs = [option for name, value in PICTURE.items() for option in ("-i", f"{name}={value}")]
    begin = time.monotonic()
    process = subprocess.run(
        [
            ROOT / "scripts" / "predict",
            *inputs,
            "-o",
            "pictures",
            "--timeline",
            "timeline.png",
            "--debug-images",
            "found",
            "--json",
        ],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(temporary), "FLUX_DTYPE": "float32"},
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    return Drawn(process, folder, temporary, time.monotonic() - begin)


def test_a_good_request_writes_the_files_and_nothing_else(drawn: Drawn) -> None:
    assert drawn.process.returncode == 0, drawn.process.stderr
    assert sorted(str(path.relative_to(drawn.folder)) for path in drawn.folder.rglob("*")) == [
        "found",
        "found/before-0.png",
        "found/found-0-unit-1.png",
        "pictures",
        "pictures/out-0.png",
        "timeline.png",
    ]
    assert list(drawn.temporary.rglob("*")) == []
    printed = json.loads(drawn.process.stdout)
    assert printed["files"] == ["pictures/out-0.png"]
    assert all(printed["metrics"][f"{stage}.seconds"] > 0 for stage in ("generate", "adetailer", "upscale", "outputs"))
    lines = drawn.process.stderr.splitlines()
    assert any("100%|" in line for line in lines)
    others = [line for line in lines if "%|" not in line]
    assert len(others) < 12 and any(line.startswith("seed") for line in others)
    assert any(line.startswith("adetailer: unit 1 found 1, repainted 1, skipped 0") for line in others)
    with Image.open(drawn.folder / "timeline.png") as chart:
        chart.verify()


def test_it_shows_what_was_found(drawn: Drawn) -> None:
    with (
        Image.open(drawn.folder / "found" / "found-0-unit-1.png") as shown,
        Image.open(drawn.folder / "pictures" / "out-0.png") as upscaled,
    ):
        picture = upscaled.convert("RGB").resize(shown.size)
        (face,) = Detector(load_detector_network(WEIGHTS)).detect([picture], 0.3)
        differs = np.abs(np.asarray(shown.convert("RGB")).astype(int) - np.asarray(picture)).max(axis=2) > 16
    x1, y1, x2, y2 = face.boxes[0].astype(int)
    tinted, elsewhere = (
        differs[y1:y2, x1:x2].mean(),
        (differs.sum() - differs[y1:y2, x1:x2].sum()) / (differs.size - (y2 - y1) * (x2 - x1)),
    )
    assert tinted > 0.8, "the mask is drawn over the face"
    assert elsewhere < 0.4, "and elsewhere only frames and words"


def test_it_counts_from_process_start(drawn: Drawn) -> None:
    """Its phases and the prediction fill the whole time: nothing of the start is hidden. One picture does not wait
    for a warm-up, nor for a language model that it does not ask for."""
    printed = json.loads(drawn.process.stdout)
    phases = {
        name: printed["set_up"][f"{name}.seconds"]
        for name in ("environment", "torch", "imports", "plan", "stages", "models")
    }
    assert phases["environment"] > 0 and phases["torch"] > 0
    assert "models.transformer.seconds" in printed["set_up"]
    assert not {"warm_up.seconds", "models.prompt_upsampler.seconds"} & set(printed["set_up"])
    assert 0.8 * drawn.seconds < sum(phases.values()) + sum(
        value for name, value in printed["metrics"].items() if name.count(".") == 1 and "seconds" in name
    )


def test_the_same_seed_gives_the_same_picture_over_http(drawn: Drawn, server: Server) -> None:
    (url,) = server.predict(PICTURE).json()["output"]
    with (
        Image.open(drawn.folder / "pictures" / "out-0.png") as ours,
        Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as theirs,
    ):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-i", "prompt=x", "-i", "promt=y"], "promt: is not known (did you mean 'prompt'?)"),
        (["x", "scale=9"], "scale: must be from 1 to 8, not 9.0"),
        (["x", "-i", "prompt=y"], "prompt: is given twice"),
        (["--from", "nothing.png"], "--from: cannot read 'nothing.png': No such file or directory"),
        (["-i", "prompt=x", "-i", "image=@missing.png"], "image: cannot read 'missing.png': No such file or directory"),
        (["-i", "prompt=x", "-o", "/dev/null/x"], "-o: cannot write to '/dev/null/x': Not a directory"),
        (["x", "image=@/dev/zero"], "image: is a file of more than 128 MiB; save it smaller"),
        (["x", "--timeline", "t.txt"], "--timeline: 't.txt' must end in .png or .json"),
        (["x", "--emulate-vram", "foo"], "--emulate-vram: 'foo' is not an amount such as 24GB or 23.5GiB"),
        (["--inputs"], "unrecognized arguments: --inputs"),
        ([], "prompt: is missing"),
    ],
)
def test_a_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    process = subprocess.run(
        [ROOT / "scripts" / "predict", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (process.returncode, process.stdout, process.stderr) == (2, "", f"error: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_input_is_answered_before_anything_heavy_is_imported() -> None:
    code = (
        "import sys; from modules.cli.predict import main; print(main(['-i', 'prompt=']), 'torch' in sys.modules, "
        "'PIL' in sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert process.stdout == "2 False False\n"


class FakeService:
    """In place of the models: writes two files, or raises what it is told to."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
        self.inputs: Mapping[str, Any] = {}

    def new_timeline(self) -> Timeline:
        return Timeline()

    def predict(self, inputs: Mapping[str, Any], report: Report, timeline: Timeline, debug_sink: object) -> list[Path]:
        self.inputs = {**inputs, "bytes": inputs["image"].read_bytes() if inputs["image"] else b""}
        folder = Path(tempfile.mkdtemp())
        files = [folder / "out-0.webp", folder / "out-1.webp"]
        for file in files:
            file.write_bytes(b"picture")
        if self.error:
            raise self.error
        return files


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeService]:
    fake = FakeService(None)
    monkeypatch.setattr(startup, "start", lambda settings, timeline, schema: fake)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    yield fake
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_file_reaches_the_service_as_a_temporary_copy(
    service: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photo.png").write_bytes(b"photo")
    assert command.main(["-i", "prompt=x", "-i", f"image=@{tmp_path / 'photo.png'}", "-o", str(tmp_path / "out")]) == 0
    assert service.inputs["bytes"] == b"photo"
    assert service.inputs["image"].is_relative_to(tmp_path / "tmp")
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "out" / f"out-{index}.webp") for index in (0, 1)]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("width", "must be a multiple of 16"), 2, "error: width: must be a multiple of 16"),
        (KeyboardInterrupt(), 130, "interrupted; no file was written"),
    ],
)
def test_what_goes_wrong_later_leaves_no_file(
    service: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    service.error = error
    assert command.main(["-i", "prompt=x", "-o", str(tmp_path / "out")]) == code
    assert capsys.readouterr().err.splitlines()[-1] == line
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_no_part(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[Path] = []

    def copy(source: Path, target: Path) -> None:
        copies.append(target)
        target.write_bytes(b"half")
        if len(copies) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(command.shutil, "copyfile", copy)
    with pytest.raises(SystemExit, match="error: cannot write the files: No space left on device"):
        command.main(["-i", "prompt=x", "-o", str(tmp_path / "out")])
    assert len(copies) == 2
    assert list((tmp_path / "out").iterdir()) == []
