"""scripts/convert-weights: a pickle becomes safetensors of the same network, or stays what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.detections import WEIGHTS
from support.detector_files import unfused
from support.local_hub import sha256

from backend.core.errors import WeightsError
from backend.core.settings import ROOT, Settings
from backend.weights.lockfile import LockedFile, read_lock, write_lock
from backend.weights.resolver import check_file, safe_form
from modules.cli.convert_weights import convert, narrowed
from modules.detection.yolo import load_detector_network, offline_ultralytics
from modules.upscaling.tiled import load_upscaler_network
from training.models.detector import ARCHITECTURE

UPSCALER = ROOT / "weights" / "embedded" / "upscaler.safetensors"


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    offline_ultralytics(tmp_path_factory.mktemp("ultralytics"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return replace(Settings(), weights_dir=str(tmp_path))


def installed(settings: Settings, name: str, content: Any) -> Path:
    path = settings.weights_path / name
    torch.save(content, path)
    write_lock(
        settings.weights_path,
        {**read_lock(settings.weights_path), name: LockedFile(path.stat().st_size, sha256(path.read_bytes()))},
    )
    return path


def segmenter() -> Any:
    from ultralytics.nn.tasks import SegmentationModel

    head = [*ARCHITECTURE["head"][:-1], [[10, 13], 1, "Segment", ["nc", 8, 16]]]  # type: ignore[index]
    network = SegmentationModel({**ARCHITECTURE, "head": head}, verbose=False)
    network.names = {0: "person"}
    return network.half().eval()


@pytest.mark.parametrize(("name", "task"), [("face_yolov8n", "detect"), ("person_yolov8n-seg", "segment")])
def test_a_detector_becomes_the_same_network(settings: Settings, name: str, task: str) -> None:
    network = unfused(WEIGHTS).half() if task == "detect" else segmenter()
    path = installed(settings, f"{name}.pt", {"model": network, "train_args": {"imgsz": 160}})
    assert {file.name for file in convert(path, settings)} == {f"{name}.safetensors", f"{name}.yaml"}
    converted = safe_form(path, settings)
    assert converted.name == f"{name}.safetensors"
    ours, theirs = load_detector_network(converted), load_detector_network(path)
    picture = torch.rand(1, 3, 160, 160)
    torch.testing.assert_close(ours(picture)[0], theirs(picture)[0], rtol=0, atol=0)
    assert (ours.names, ours.args["imgsz"]) == (theirs.names, 160)
    assert converted.stat().st_size < path.stat().st_size, "half precision stays half precision"


def test_an_upscaler_becomes_the_same_network(settings: Settings) -> None:
    path = installed(settings, "ESRGAN_4x.pth", {"params_ema": load_file(UPSCALER)})
    (converted,) = convert(path, settings)
    assert safe_form(path, settings) == converted
    picture = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(
        load_upscaler_network(converted)(picture), load_upscaler_network(path)(picture), rtol=0, atol=0
    )


def test_what_was_made_is_in_the_lock_with_its_origin(settings: Settings) -> None:
    path = installed(settings, "ESRGAN_4x.pth", load_file(UPSCALER))
    (converted,) = convert(path, settings)
    assert convert(path, settings) == [converted], "again, over what it made itself"
    lock = read_lock(settings.weights_path)
    assert lock[converted.name].made_from == lock[path.name].sha256
    check_file(converted.name, converted, lock, whole=True)
    assert sorted(file.name for file in settings.weights_path.iterdir()) == [
        ".partial",
        "ESRGAN_4x.pth",
        "ESRGAN_4x.safetensors",
        "lock.json",
    ]


def test_a_file_of_somebody_elses_is_not_replaced(settings: Settings) -> None:
    path = installed(settings, "ESRGAN_4x.pth", load_file(UPSCALER))
    path.with_suffix(".safetensors").write_bytes(b"mine")
    with pytest.raises(WeightsError, match="is there already and not of our making"):
        convert(path, settings)
    assert path.with_suffix(".safetensors").read_bytes() == b"mine"


def test_a_network_in_words_stays_a_pickle(settings: Settings) -> None:
    from ultralytics.nn.tasks import WorldModel

    network = WorldModel("yolov8s-worldv2.yaml", nc=2, verbose=False)
    network.names = {0: "cat", 1: "dog"}
    path = installed(settings, "yolov8x-worldv2.pt", {"model": network, "train_args": {"imgsz": 640}})
    with pytest.raises(WeightsError, match="cannot be said in safetensors; it stays a pickle, pinned by its checksum"):
        convert(path, settings)
    assert safe_form(path, settings) == path


def test_values_that_half_precision_would_change_stay_as_they_are() -> None:
    exact, rounded = torch.tensor([0.5, 1.0]), torch.tensor([0.1, 1.0])
    found = narrowed({"exact": exact, "rounded": rounded, "whole": torch.tensor([70000])})
    assert (found["exact"].dtype, found["rounded"].dtype, found["whole"].dtype) == (
        torch.float16,
        torch.float32,
        torch.int64,
    )
    assert torch.equal(found["rounded"], rounded)
