"""A detector in an ONNX file finds what the network finds that it was exported from."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from support.detections import WEIGHTS, assert_equal

from backend.core.errors import WeightsError
from modules.detection.yolo import Detector, load_detector_network, offline_ultralytics
from training.data.detector_samples import KINDS


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    offline_ultralytics(tmp_path_factory.mktemp("ultralytics"))


def exported(folder: Path, network: Any, **options: Any) -> Path:
    """The network in ONNX, written by ultralytics' own exporter."""
    from ultralytics.engine.exporter import Exporter

    network.pt_path, network.args = str(folder / "exported.pt"), {**network.args, "data": ""}
    network.task = "segment" if type(network).__name__ == "SegmentationModel" else "detect"
    file = Exporter(
        overrides={"format": "onnx", "imgsz": network.args["imgsz"], "simplify": False, "device": "cpu", **options}
    )(model=network)
    return Path(file)


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 2}, {"dynamic": True}], ids=str)
@pytest.mark.parametrize("kind", ["face", "person"])
def test_an_onnx_file_finds_what_the_network_finds(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is optional")
    pytest.importorskip("onnx", reason="onnx writes the file")
    own = WEIGHTS.with_stem(f"{kind}_detector")
    images = [KINDS[kind].draw(Random(seed)).image.resize((KINDS[kind].imgsz,) * 2) for seed in (1, 2, 3)]
    file = exported(tmp_path, load_detector_network(own), **options)
    ours, theirs = (Detector(load_detector_network(path)).detect(images, 0.3) for path in (own, file))
    assert sum(len(found) for found in ours) > 0
    for one, other in zip(ours, theirs):
        assert_equal(one, other, tolerance=1e-2)


def test_a_damaged_onnx_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is optional")
    (tmp_path / "face.onnx").write_bytes(b"\x08\x07nonsense")
    with pytest.raises(WeightsError, match=r"^face.onnx: is damaged or not an ONNX model"):
        load_detector_network(tmp_path / "face.onnx")


def test_without_onnxruntime_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    (tmp_path / "face.onnx").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"^face.onnx: an ONNX detector needs the package onnxruntime; install it"):
        load_detector_network(tmp_path / "face.onnx")
