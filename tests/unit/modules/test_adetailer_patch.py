"""Whoever asks for a detector by name gets the local file: held with the real libraries, in processes without a
network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.detector_files import unfused
from support.local_hub import sha256

from backend.core.settings import ROOT
from backend.weights.lockfile import LockedFile, write_lock

FACE, HAND = "face_yolov8n.pt", "hand_yolov8n.pt"

SCRIPT = """
import json, sys
import torch  # first, because its CUDA build runs ldconfig to find its libraries
asked = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen"):
        asked.append(f"{event} {arguments}")
        raise RuntimeError("no network here")  # an OSError would be tried again and again
sys.addaudithook(watch)
from dataclasses import replace
from pathlib import Path
from backend.core.errors import WeightsError
from backend.core.settings import Settings
from modules.detection.yolo import offline_ultralytics
from modules.adetailer_patch import redirect_detectors
folder = Path(sys.argv[1])
settings = replace(Settings(), weights_dir=str(folder / "weights"))
offline_ultralytics(folder / "settings")
from huggingface_hub import hf_hub_download  # imported by name before, as ADetailer does
import huggingface_hub
from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint
report = {}
def tell(name, ask):
    before = len(asked)
    try:
        result = ask()
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    report[name] = [str(result), len(asked) - before]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose weights have a face detector in ultralytics' own form, and no hand detector."""
    folder = tmp_path_factory.mktemp("patch")
    weights = folder / "weights"
    weights.mkdir()
    torch.save(
        {"model": unfused(ROOT / "weights" / "embedded" / "face_detector.safetensors"), "train_args": {"imgsz": 160}},
        weights / FACE,
    )
    write_lock(weights, {FACE: LockedFile((weights / FACE).stat().st_size, sha256((weights / FACE).read_bytes()))})
    return folder


def run(folder: Path, work: Path, code: str) -> dict[str, Any]:
    """What a process of its own reports, which starts in ``work``."""
    program = SCRIPT + code + "\nprint('REPORT' + json.dumps(report))"
    environment = {
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin:/bin",
        "HOME": str(work),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "0",
    }
    process = subprocess.run(
        [sys.executable, "-P", "-c", program, str(folder)],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    report: dict[str, Any] = json.loads(process.stdout.rpartition("REPORT")[2])
    return report


def test_every_way_of_asking_gives_the_local_file_and_none_asks_the_network(installed: Path, tmp_path: Path) -> None:
    (tmp_path / FACE).write_bytes(b"planted in the working folder")
    report = run(
        installed,
        tmp_path,
        """
redirection = redirect_detectors(settings)
tell("name", lambda: YOLO("face_yolov8n.pt").ckpt_path)
tell("path", lambda: YOLO("models/adetailer/face_yolov8n.pt").ckpt_path)
tell("address", lambda: YOLO("https://huggingface.co/Bingsu/adetailer/resolve/main/face_yolov8n.pt").ckpt_path)
tell("checkpoint", lambda: load_checkpoint("face_yolov8n.pt")[0].pt_path)
tell("hub", lambda: hf_hub_download("Bingsu/adetailer", "face_yolov8n.pt"))
tell("hub by keyword", lambda: huggingface_hub.hf_hub_download(repo_id="Bingsu/adetailer", filename="face_yolov8n.pt", local_dir="models"))
tell("file", lambda: YOLO(str(folder / "weights" / "face_yolov8n.pt")).ckpt_path)
tell("detects", lambda: len(YOLO("face_yolov8n.pt").names))
report["spared"] = dict(redirection.spared)
""",
    )
    local = str(installed / "weights" / FACE)
    ways = ("name", "path", "address", "checkpoint", "hub", "hub by keyword", "file")
    assert {way: report[way] for way in ways} == {way: [local, 0] for way in ways}
    assert report["detects"] == ["1", 0]
    assert report["spared"]["face_yolov8n"] >= len(ways) - 1


def test_a_missing_one_is_an_error_that_names_the_file(installed: Path, tmp_path: Path) -> None:
    report = run(
        installed,
        tmp_path,
        """
redirect_detectors(settings)
tell("yolo", lambda: YOLO("hand_yolov8n.pt"))
tell("hub", lambda: hf_hub_download("Bingsu/adetailer", "hand_yolov8n.pt"))
""",
    )
    for text, asked in report.values():
        assert text.startswith(
            f"WeightsError: {HAND}: neither under weights/ nor in the hub's cache; scripts/fetch-weights --only "
            "hand_yolov8n"
        )
        assert asked == 0


def test_other_names_are_left_alone_and_all_of_it_can_be_undone(installed: Path, tmp_path: Path) -> None:
    report = run(
        installed,
        tmp_path,
        """
from ultralytics.utils import checks, downloads
originals = hf_hub_download, downloads.attempt_download_asset, checks.check_file
redirection = redirect_detectors(settings)
tell("another file", lambda: hf_hub_download("Bingsu/adetailer", "face_yolov9c.pt", etag_timeout=1))
again = redirect_detectors(settings)
tell("twice", lambda: YOLO("face_yolov8n.pt").ckpt_path)
again.undo()
report["undone"] = (hf_hub_download, downloads.attempt_download_asset, checks.check_file) == originals
report["everywhere"] = huggingface_hub.hf_hub_download is originals[0]
""",
    )
    assert report["another file"][1] > 0, "the hub would have been asked, as without the redirection"
    assert report["twice"] == [str(installed / "weights" / FACE), 0]
    assert report["undone"] and report["everywhere"]
