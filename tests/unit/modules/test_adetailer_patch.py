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


def test_every_way_of_asking_gives_the_local_file_or_names_the_missing_one_and_none_asks_the_network(
    installed: Path, tmp_path: Path
) -> None:
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
report["avoided"] = dict(redirection.avoided)
tell("missing, yolo", lambda: YOLO("hand_yolov8n.pt"))
tell("missing, hub", lambda: hf_hub_download("Bingsu/adetailer", "hand_yolov8n.pt"))
""",
    )
    local = str(installed / "weights" / FACE)
    ways = ("name", "path", "address", "checkpoint", "hub", "hub by keyword", "file")
    assert {way: report[way] for way in ways} == {way: [local, 0] for way in ways}
    assert report["detects"] == ["1", 0]
    assert report["avoided"]["face_yolov8n"] >= len(ways) - 1
    for text, asked in (report["missing, yolo"], report["missing, hub"]):
        assert text.startswith(
            f"WeightsError: {HAND}: neither under weights/ nor in the hub's cache; scripts/fetch-weights --only "
            "hand_yolov8n"
        )
        assert asked == 0


THEIR_CODE = {
    "from_the_hub": """
from huggingface_hub import hf_hub_download

def model_path():
    return hf_hub_download("Bingsu/adetailer", "face_yolov8n.pt")
""",
    "by_name": """
from ultralytics import YOLO

def model_path():
    return YOLO("face_yolov8n.pt").ckpt_path
""",
}
"""What nodes and extensions do that were written for ADetailer, each in a module of its own."""


def test_other_peoples_modules_get_the_local_file_until_it_is_undone(installed: Path, tmp_path: Path) -> None:
    """Whether they are imported before or after the set-up; afterwards their functions are the originals again. Other
    names are left alone."""
    for name, code in THEIR_CODE.items():
        for when in ("early", "late"):
            (tmp_path / f"{when}_{name}.py").write_text(code)
    report = run(
        installed,
        tmp_path,
        """
sys.path.insert(0, str(Path.cwd()))
from ultralytics.utils import checks, downloads
original = hf_hub_download
originals = hf_hub_download, downloads.attempt_download_asset, checks.check_file
import early_from_the_hub, early_by_name
redirect_detectors(settings)
tell("another file", lambda: hf_hub_download("Bingsu/adetailer", "face_yolov9c.pt", etag_timeout=1))
redirection = redirect_detectors(settings)
tell("twice", lambda: YOLO("face_yolov8n.pt").ckpt_path)
import late_from_the_hub, late_by_name
theirs = (early_from_the_hub, early_by_name, late_from_the_hub, late_by_name)
for module in theirs:
    tell(module.__name__, module.model_path)
redirection.undo()
report["undone"] = (hf_hub_download, downloads.attempt_download_asset, checks.check_file) == originals
report["everywhere"] = huggingface_hub.hf_hub_download is original
report["originals"] = [module.hf_hub_download is original for module in (early_from_the_hub, late_from_the_hub)]
for module in theirs:
    tell(f"{module.__name__}, undone", module.model_path)
""",
    )
    local = [str(installed / "weights" / FACE), 0]
    modules = [f"{when}_{name}" for when in ("early", "late") for name in THEIR_CODE]
    assert {name: report[name] for name in modules} == dict.fromkeys(modules, local)
    assert report["another file"][1] > 0, "the hub would have been asked, as without the redirection"
    assert report["twice"] == local
    assert report["undone"] and report["everywhere"]
    assert report["originals"] == [True, True]
    for name in modules:
        found, asked = report[f"{name}, undone"]
        assert found != local[0] and (asked > 0 or "FileNotFoundError" in found), f"{name} is still redirected"
