"""What stands in the YAML file beside a detector is limited before anything is built from it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import yaml
from support.damaged_files import DAMAGES
from support.detections import WEIGHTS
from support.refusals import refusal

from modules.detection.description import MAX_CLASSES, read_description
from modules.detection.yolo import load_detector_network, offline_ultralytics


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    offline_ultralytics(tmp_path_factory.mktemp("ultralytics"))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for suffix in (".safetensors", ".yaml"):
        shutil.copy(WEIGHTS.with_suffix(suffix), tmp_path / f"face{suffix}")
    return tmp_path / "face.safetensors"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_description_is_named(copied: Path, damage: str) -> None:
    DAMAGES[damage](copied.with_suffix(".yaml"))
    assert refusal(lambda: load_detector_network(copied)).startswith("face.yaml")


LAUGHS = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "holds a reference"),
        ("a: &a [*a]", "holds a reference"),
        ("a: &a {x: 1}\nb:\n  <<: *a", "holds a reference"),
        ("[" * 20_000, "is nested more than"),
        ("a: " + "{a: " * 5_000, "is nested more than"),
        ("- " * 5_000 + "a", "is nested more than"),
        ("? " * 5_000, "is nested more than"),
        ("task: detect\nimgsz: 256\nnames: [face" + ", face" * 50_000 + "]", "is larger than"),
        ("task: detect\nimgsz: 256\nnames: [" + "a," * MAX_CLASSES + "b]", f"names {MAX_CLASSES + 1} classes"),
        ("task: detect\nimgsz: 256\nnames: []", "names 0 classes"),
        ("task: detect\nimgsz: 256\nnames: {0: face}", "names no classes"),
        ("task: detect\nimgsz: 256\nnames: [[face]]", "names no classes"),
        ("task: detect\nimgsz: 1000000\nnames: [face]", "imgsz must be from 32 to 4096 pixels"),
        ("task: detect\nimgsz: -1\nnames: [face]", "imgsz must be from 32 to 4096 pixels"),
        ("task: detect\nimgsz: .nan\nnames: [face]", "imgsz must be from 32 to 4096 pixels"),
        ("task: pose\nimgsz: 256\nnames: [face]", "does not say what the detector does"),
        ("task: [detect]\nimgsz: 256\nnames: [face]", "does not say what the detector does"),
        ("? [a]\n: b", "is damaged"),
        ("a: !!int x", "is damaged"),
        ("a: !!timestamp 9999-99-99", "is damaged"),
        ("a: \x00", "is damaged"),
    ],
)
def test_what_is_no_description_is_refused_at_once(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "face.yaml").write_text(text)
    begin = time.process_time()
    said = refusal(lambda: read_description(tmp_path / "face.yaml"))
    assert said.startswith("face.yaml: ") and message in said
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("depth_multiple", 10**6),
        ("depth_multiple", float("nan")),
        ("depth_multiple", "deep"),
        ("width_multiple", 10**6),
        ("width_multiple", 40),
        ("reg_max", 10**6),
        ("backbone", [[-1, 10**8, "Conv", [64, 3, 2]]]),
        ("backbone", [[-1, 1, "Conv", [10**9, 3, 2]]]),
        ("backbone", [[-1, 1, "Conv", [64, 10**5, 2]]]),
        ("backbone", [[-1, 1, "nn.Module", []]] * 3000),
        ("head", [[-1, 1, "C2f", [10**9]]]),
        ("scales", {"n": [10**6, 10**6, 10**9]}),
    ],
)
def test_a_network_that_is_larger_than_its_weights_is_not_built(copied: Path, key: str, value: object) -> None:
    file = copied.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), key: value}))
    begin = time.process_time()
    assert refusal(lambda: load_detector_network(copied)).startswith(("face.yaml", "face.safetensors"))
    assert time.process_time() - begin < 5
