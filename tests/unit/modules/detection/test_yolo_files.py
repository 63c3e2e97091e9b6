"""The files of a detector: every form is read, everything else is refused before its code runs, and all stays local."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file
from support.detections import WEIGHTS, assert_equal
from support.detector_files import Payload, unfused

from backend.core.errors import WeightsError
from backend.core.settings import ROOT
from modules.detection.yolo import Detector, load_detector_network, offline_ultralytics
from training.data.detector_samples import draw_faces
from training.models.detector import ARCHITECTURE


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    offline_ultralytics(tmp_path_factory.mktemp("ultralytics"))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The detector's two files in a folder where a test may damage them."""
    for suffix in (".safetensors", ".yaml"):
        (tmp_path / f"face{suffix}").write_bytes(WEIGHTS.with_suffix(suffix).read_bytes())
    return tmp_path / "face.safetensors"


def test_a_checkpoint_and_our_own_form_give_the_same(tmp_path: Path) -> None:
    rng = Random(4711)
    pictures, detector = [draw_faces(rng).image for _ in range(24)], Detector(load_detector_network(WEIGHTS))
    torch.save({"model": unfused(WEIGHTS), "train_args": {"imgsz": detector.size[0]}}, tmp_path / "face_yolov8n.pt")
    network: Any = load_detector_network(tmp_path / "face_yolov8n.pt")
    network.args["containment"] = 0.8  # which only our own form can say
    from_checkpoint = Detector(network)
    assert from_checkpoint.size == detector.size
    for ours, theirs in zip(detector.detect(pictures, 0.3), from_checkpoint.detect(pictures, 0.3)):
        assert_equal(ours, theirs)


@pytest.mark.parametrize("name", ["yolov5s.pt", "it's mine .pt", "face.PT", "face.pth"])
def test_a_checkpoint_is_opened_whatever_its_name(tmp_path: Path, name: str) -> None:
    """ultralytics changes such names, misses the file, and asks GitHub for it."""
    torch.save({"model": unfused(WEIGHTS)}, tmp_path / name)
    assert Detector(load_detector_network(tmp_path / name)).size == (640, 640), (
        "a checkpoint that does not say has ultralytics' default"
    )


@pytest.mark.parametrize("name", ["face.pt", "face.pth", "face.safetensors", "face.SAFETENSORS", "face"])
@pytest.mark.parametrize("form", ["pickle", "checkpoint", "old checkpoint", "inside of a network"])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path, name: str, form: str) -> None:
    file, planted = tmp_path / name, tmp_path / "planted"
    (tmp_path / "face.yaml").write_bytes(WEIGHTS.with_suffix(".yaml").read_bytes())
    if form == "pickle":
        file.write_bytes(pickle.dumps(Payload(planted), protocol=2))
    elif form == "inside of a network":
        network = unfused(WEIGHTS)
        network.model[0].extra = Payload(planted)
        torch.save({"model": network}, file)
    else:
        torch.save({"model": Payload(planted)}, file, _use_new_zipfile_serialization=form == "checkpoint")
    with pytest.raises(WeightsError, match=f"^{name}: "):
        load_detector_network(file)
    assert not planted.exists()


def refusal(file: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_detector_network(file)
    text = str(caught.value)
    assert file.stem in text and str(file.parent) not in text and "\n" not in text, text
    return text


@pytest.mark.parametrize("name", ["face.safetensors", "face.pt"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path / name).startswith(f"{name}: this file of the detector is missing")


def test_a_missing_description_is_named(copied: Path) -> None:
    copied.with_suffix(".yaml").unlink()
    assert refusal(copied).startswith("face.yaml: this file of the detector is missing")


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.01, 0.5, 0.999999])
def test_a_truncated_file_is_refused(copied: Path, share: float) -> None:
    content = copied.read_bytes()
    copied.write_bytes(content[: int(share * len(content))])
    assert "is damaged" in refusal(copied)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999999])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, share: float) -> None:
    torch.save({"model": unfused(WEIGHTS)}, tmp_path / "face.pt")
    content = (tmp_path / "face.pt").read_bytes()
    (tmp_path / "face.pt").write_bytes(content[: int(share * len(content))])
    assert "is damaged" in refusal(tmp_path / "face.pt")


@pytest.mark.parametrize("form", ["safetensors", "yaml", "pt"])
def test_a_file_with_changed_bytes_loads_or_is_refused_by_name(copied: Path, form: str) -> None:
    """A changed weight cannot be seen here (the manifest's checksum sees it); whatever else is changed has one kind
    of error."""
    if form == "pt":
        torch.save({"model": unfused(copied)}, copied.with_suffix(".pt"))
    file, rng = copied.with_suffix(f".{form}"), Random(3)
    content = file.read_bytes()
    for _ in range(12):
        changed = bytearray(content)
        changed[rng.randrange(min(len(content), 60_000))] = rng.randrange(256)  # the structure comes before the weights
        file.write_bytes(changed)
        try:
            load_detector_network(copied if form == "yaml" else file)
        except WeightsError as error:
            assert str(error).startswith("face."), error


def test_weights_that_are_not_numbers_are_refused(copied: Path) -> None:
    tensors = load_file(copied)
    tensors["model.0.conv.weight"][0, 0, 0, 0] = float("nan")
    save_file(tensors, copied)
    assert "not numbers" in refusal(copied)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("width_multiple", 0.25),
        ("backbone", []),
        ("head", [[-1, 1, "Nonsense", []]]),
        ("task", "classify"),
        ("names", ["face", "hand"]),
        ("names", 7),
        ("imgsz", "large"),
        ("head", [[[10, 13], 1, "Detect", ["1x"]]]),
        pytest.param("activation", "__import__('pathlib').Path('planted').touch()", id="code is not run"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    copied: Path, key: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied.parent)
    file = copied.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), key: value}))
    assert refusal(copied).startswith(("face.yaml: ", "face.yaml is damaged", "face.safetensors: is damaged"))
    assert not Path("planted").exists()


@pytest.mark.parametrize("text", ["", "- a list", "a: [b", "!!python/object/apply:os.mkdir ['planted']"])
def test_a_description_that_is_none_is_refused(copied: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied.parent)
    copied.with_suffix(".yaml").write_text(text)
    assert refusal(copied).startswith("face.yaml: ")
    assert not Path("planted").exists()


def test_a_checkpoint_for_another_task_is_refused(tmp_path: Path) -> None:
    from ultralytics.nn.tasks import PoseModel

    head = [*ARCHITECTURE["head"][:-1], [[10, 13], 1, "Pose", ["nc", "kpt_shape"]]]  # type: ignore[index]
    torch.save(
        {"model": PoseModel({**ARCHITECTURE, "head": head, "kpt_shape": [5, 3]}, verbose=False)}, tmp_path / "pose.pt"
    )
    assert "choose a YOLO that was trained to detect or to segment" in refusal(tmp_path / "pose.pt")


# A process of its own: what is imported when, what is said, who is called

SCRIPT = """
import sys
import torch  # first, because its CUDA build runs ldconfig to find its libraries
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system"):
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(refuse)
from pathlib import Path
from PIL import Image
import modules.inpainting.crops, modules.detection.yolo as detection
assert "cv2" not in sys.modules and "ultralytics" not in sys.modules, "imported before anybody wanted a detector"
weights, folder = Path(sys.argv[1]), Path(sys.argv[2])
if sys.argv[3] != "prepared":
    import ultralytics.utils
    for too_late in (False, True):
        try:
            if too_late:
                detection.offline_ultralytics(folder / "settings")
            detection.load_detector_network(weights)
        except RuntimeError as error:
            assert "offline_ultralytics" in str(error)
        else:
            raise SystemExit("loaded without the restricted unpickler")
    raise SystemExit(0)
opens = Image.open
detection.offline_ultralytics(folder / "settings")
detector = detection.Detector(detection.load_detector_network(weights))
detector.detect([Image.new("RGB", (64, 64))], 0.3)
assert (folder / "settings").is_dir()
assert Image.open is opens, "ultralytics replaced Pillow's reader of files"
"""


@pytest.mark.parametrize("order", ["prepared", "not at all, and too late"])
def test_detection_is_quiet_offline_and_careful(tmp_path: Path, order: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    if order != "prepared":
        environment |= {
            "YOLO_OFFLINE": "1",
            "YOLO_CONFIG_DIR": str(tmp_path),
        }  # else the import alone asks for a server's address
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, WEIGHTS, tmp_path, order],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    if order == "prepared":
        assert process.stdout + process.stderr == ""
        assert list(home.iterdir()) == [], "something was left in the home folder"
