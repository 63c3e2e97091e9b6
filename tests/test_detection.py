"""Detection with the real ultralytics and our trained face detector: what is found, what is refused, and that all stays local."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from PIL import Image
from safetensors.torch import load_file, save_file

from backend.errors import WeightsError
from modules.adetailer.detection import Detector, load_detector_network, offline_ultralytics
from modules.adetailer.masks import Detections, bounding_box, rectangle_masks
from training.detector import ARCHITECTURE, draw_sample, export, score, soften
from training.drawing import Box, draw_scene
from training.scene import sample_scene

Samples = tuple[list[Image.Image], list[list[Box]]]
"""Pictures, and the face boxes of each."""

ROOT = Path(__file__).parent.parent
PLACES = (ROOT / "weights" / "embedded", ROOT / "build" / "detector")
SEGMENTER = {**ARCHITECTURE, "head": [*ARCHITECTURE["head"][:-1], [[10, 13], 1, "Segment", ["nc", 32, 256]]]}  # type: ignore[index]


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    offline_ultralytics(tmp_path_factory.mktemp("ultralytics"))


@pytest.fixture(scope="module")
def weights() -> Path:
    for folder in PLACES:
        if (folder / "face_detector.safetensors").is_file():
            return folder / "face_detector.safetensors"
    pytest.fail("weights/embedded/face_detector.safetensors is missing; make it: python -m training.detector --out weights/embedded")


@pytest.fixture(scope="module")
def detector(weights: Path) -> Detector:
    return Detector(load_detector_network(weights))


@pytest.fixture
def copied(weights: Path, tmp_path: Path) -> Path:
    """The detector's two files in a folder where a test may damage them."""
    for suffix in (".safetensors", ".yaml"):
        (tmp_path / f"face{suffix}").write_bytes(weights.with_suffix(suffix).read_bytes())
    return tmp_path / "face.safetensors"


@pytest.fixture(scope="module")
def segmenter() -> Any:
    """A segmentation network of two classes that nobody has trained, eager to find things."""
    from ultralytics.nn.tasks import SegmentationModel

    torch.manual_seed(0)
    network: Any = SegmentationModel(deepcopy(SEGMENTER), nc=2, verbose=False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # one pass makes the norms fit, so that signals reach the head
    network.train()(torch.rand(4, 3, 160, 160))
    for scores in network.model[-1].cv3:
        torch.nn.init.normal_(scores[-1].weight, std=0.5)
        torch.nn.init.zeros_(scores[-1].bias)
    return network.eval()


@pytest.fixture(scope="module")
def samples() -> Samples:
    rng = Random(4711)
    drawn = [draw_sample(rng) for _ in range(24)]
    return [image for image, _ in drawn], [boxes for _, boxes in drawn]


def unfused(weights: Path) -> Any:
    """The network as a training leaves it, for writing checkpoints."""
    from ultralytics.nn.tasks import DetectionModel

    network = DetectionModel(yaml.safe_load(weights.with_suffix(".yaml").read_text()), verbose=False)
    network.load_state_dict(load_file(weights))
    network.names = {0: "face"}
    return network.eval()


def assert_equal(ours: Detections, theirs: Detections, tolerance: float = 0.0) -> None:
    assert len(ours) == len(theirs)
    assert np.abs(ours.boxes - theirs.boxes).max(initial=0) <= tolerance
    assert np.abs(ours.confidences - theirs.confidences).max(initial=0) <= tolerance
    assert np.count_nonzero(ours.masks != theirs.masks) <= (1e-3 * ours.masks.size if tolerance else 0)


# What is found


def test_faces_are_found_where_they_were_drawn(detector: Detector, samples: Samples) -> None:
    images, truth = samples
    figures = score(detector.detect(images, 0.3), truth)
    assert figures["recall"] >= 0.9 and figures["precision"] >= 0.9 and figures["median_confidence"] > 0.5, figures


def test_faces_are_found_in_soft_and_noisy_pictures(detector: Detector, samples: Samples) -> None:
    rng = Random(1)
    figures = score(detector.detect([soften(image, rng) for image in samples[0]], 0.3), samples[1])
    assert figures["recall"] >= 0.8 and figures["precision"] >= 0.8, figures


def test_a_large_picture_gives_large_boxes(detector: Detector) -> None:
    scene = sample_scene(Random(5), (256, 256))
    (small,), (large,) = detector.detect([draw_scene(scene)], 0.5), detector.detect([draw_scene(scene, scale=4)], 0.5)
    assert len(small) == len(large) == len(scene.people)
    assert np.abs(large.boxes / 4 - small.boxes).max() < 6
    assert large.masks.shape[1:] == (1024, 1024)


def test_every_result_keeps_the_promises_of_detections(detector: Detector, samples: Samples) -> None:
    for image, found in zip(samples[0], detector.detect(samples[0], 0.1)):
        assert found.masks.shape == (len(found), image.height, image.width) and found.masks.dtype == np.uint8
        assert (found.boxes >= 0).all() and (found.boxes <= [*image.size, *image.size]).all()
        assert (found.confidences > 0.1).all() and (np.diff(found.confidences) <= 0).all()
        assert np.array_equal(found.masks, rectangle_masks(found.boxes, image.size))


def test_nothing_is_found_in_an_empty_picture(detector: Detector) -> None:
    (found,) = detector.detect([Image.new("RGB", (160, 120), "teal")], 0.3)
    assert len(found) == 0
    assert found.masks.shape == (0, 120, 160)


def test_no_pictures_no_results(detector: Detector) -> None:
    assert detector.detect([], 0.3) == []


def test_a_picture_gives_the_same_alone_and_in_any_batch(detector: Detector, samples: Samples) -> None:
    for image, together in zip(samples[0], detector.detect(samples[0], 0.3)):
        assert_equal(together, detector.detect([image], 0.3)[0], tolerance=1e-2)


# Against ultralytics' own predictor


def predicted(network: torch.nn.Module, image: Image.Image, imgsz: int, confidence: float, monkeypatch: pytest.MonkeyPatch) -> Detections:
    from ultralytics.models.yolo.detect import DetectionPredictor
    from ultralytics.models.yolo.segment import SegmentationPredictor

    segments = type(network).__name__ == "SegmentationModel"
    predictor = (SegmentationPredictor if segments else DetectionPredictor)(
        overrides={"conf": confidence, "imgsz": imgsz, "retina_masks": True, "rect": True, "device": "cpu", "save": False, "verbose": False}
    )
    monkeypatch.setattr("torchvision.extension._has_ops", lambda: True)  # else it refuses operators that are defined in Python
    (result,) = predictor(image, network)
    boxes = result.boxes.xyxy.numpy().astype(np.float64)
    if not segments or result.masks is None:
        return Detections(boxes, rectangle_masks(boxes, image.size), result.boxes.conf.numpy().astype(np.float64))
    return Detections(boxes, result.masks.data.numpy().astype(np.uint8) * np.uint8(255), result.boxes.conf.numpy().astype(np.float64))


@pytest.mark.parametrize("size", [(256, 256), (384, 160), (160, 384), (333, 217)])
def test_boxes_are_those_of_ultralytics(detector: Detector, weights: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = load_detector_network(weights), draw_scene(sample_scene(Random(8), size))
    theirs = predicted(network, image, max(detector.size), 0.05, monkeypatch)
    assert len(theirs) > 0
    assert_equal(detector.detect([image], 0.05)[0], theirs, tolerance=1e-3)


@pytest.mark.parametrize("size", [(320, 200), (150, 290)])
def test_masks_are_those_of_ultralytics_with_retina_masks(
    segmenter: torch.nn.Module, tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    export(segmenter, tmp_path / "persons.safetensors", SEGMENTER, "segment", ["person", "dog"], 160)
    network, image = load_detector_network(tmp_path / "persons.safetensors"), draw_scene(sample_scene(Random(8), size))
    confidence = float(np.sort(Detector(network).detect([image], 0.0)[0].confidences)[-20:][0])
    theirs = predicted(network, image, 160, confidence, monkeypatch)
    assert 0 < len(theirs) < 30
    assert_equal(Detector(network).detect([image], confidence)[0], theirs, tolerance=1e-3)


class Says(torch.nn.Module):
    """A network that always says the same of a picture fitted into 160 pixels."""

    def __init__(self, output: Any, classes: int = 1, end2end: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.args, self.stride, self.model, self.end2end = {"imgsz": 160}, torch.tensor([8.0, 16.0]), [SimpleNamespace(nc=classes)], end2end
        self.output = output

    def forward(self, pixels: torch.Tensor) -> Any:
        assert pixels.shape == (1, 3, 64, 160)
        return self.output, {}


def test_a_mask_is_not_stretched_by_the_letterbox() -> None:
    """A picture of 320 x 100 is fitted into 160 x 50 and gets bars of 7 pixels above and below.

    ADetailer resizes the mask with its bars: what lies at 20..80 came out at 27..73 here, and up to 36 pixels off elsewhere.
    """
    prototype = torch.full((1, 1, 16, 40), -1.0)
    prototype[..., 17 // 4 : 47 // 4 + 1, 50 // 4 : 90 // 4 + 1] = 1.0
    object_and_coefficient = torch.tensor([[70.0, 32, 40, 30, 0.9, 1.0]]).T[None]
    (found,) = Detector(Says((object_and_coefficient, prototype))).detect([Image.new("RGB", (320, 100))], 0.3)
    assert found.boxes.tolist() == [[100, 20, 180, 80]]
    assert np.abs(np.subtract(bounding_box(found.masks[0]) or (), (100, 20, 180, 80))).max() <= 1


def test_a_box_hides_only_those_of_its_own_class() -> None:
    sees = torch.tensor([[70.0, 32, 40, 30, 0.1, 0.8], [70, 32, 40, 30, 0.9, 0.2], [71, 32, 40, 30, 0.7, 0.1], [100, 32, 40, 30, 0.6, 0.1]])
    (found,) = Detector(Says(sees.T[None], classes=2)).detect([Image.new("RGB", (320, 100))], 0.3)
    assert found.confidences.tolist() == pytest.approx([0.9, 0.8, 0.6])


def test_a_network_that_suppresses_by_itself_is_believed() -> None:
    sees = torch.tensor([[50.0, 17, 90, 47, 0.9, 0], [50, 17, 91, 47, 0.8, 0], [0, 7, 9, 9, 0.2, 0]])
    (found,) = Detector(Says(sees[None], end2end=True)).detect([Image.new("RGB", (320, 100))], 0.3)
    assert found.boxes.tolist() == [[100, 20, 180, 80], [100, 20, 182, 80]]


def test_torchvision_may_have_been_imported(detector: Detector) -> None:
    """ultralytics' own suppression then calls torchvision's wrapper, which refuses to run beside a CPU build of torch."""
    import torchvision  # type: ignore[import-untyped]  # noqa: F401

    assert len(detector.detect([draw_scene(sample_scene(Random(5), (256, 256)))], 0.5)[0]) > 0


# The network belongs to a model cache


@pytest.mark.parametrize(("imgsz", "size"), [(160, (160, 160)), (250, (256, 256)), ([96, 100], (96, 128))])
def test_a_network_is_used_at_the_size_of_its_training(weights: Path, imgsz: int | list[int], size: tuple[int, int]) -> None:
    network = load_detector_network(weights)
    network.args = {"imgsz": imgsz}  # type: ignore[assignment]
    assert Detector(network).size == size


def test_a_detector_follows_its_network(weights: Path) -> None:
    """Parameters may be moved one by one, as a cache does that keeps host copies; nothing else may stay behind."""
    network: Any = load_detector_network(weights)
    detector, image = Detector(network), draw_scene(sample_scene(Random(5), (256, 256)))
    (before,) = detector.detect([image], 0.3)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.double()
    network.model[-1].anchors = network.model[-1].anchors.to("meta")  # what ultralytics keeps of a call is now elsewhere
    (after,) = detector.detect([image], 0.3)
    assert_equal(after, before, tolerance=1e-2)


# Files


def test_a_checkpoint_and_our_own_form_give_the_same(detector: Detector, weights: Path, tmp_path: Path, samples: Samples) -> None:
    torch.save({"model": unfused(weights), "train_args": {"imgsz": detector.size[0]}}, tmp_path / "face_yolov8n.pt")
    from_checkpoint = Detector(load_detector_network(tmp_path / "face_yolov8n.pt"))
    assert from_checkpoint.size == detector.size
    for ours, theirs in zip(detector.detect(samples[0], 0.3), from_checkpoint.detect(samples[0], 0.3)):
        assert_equal(ours, theirs)


@pytest.mark.parametrize("name", ["yolov5s.pt", "it's mine .pt", "face.PT", "face.pth"])
def test_a_checkpoint_is_opened_whatever_its_name(weights: Path, tmp_path: Path, name: str) -> None:
    """ultralytics changes such names, misses the file, and asks GitHub for it."""
    torch.save({"model": unfused(weights)}, tmp_path / name)
    assert Detector(load_detector_network(tmp_path / name)).size == (640, 640), "a checkpoint that does not say has ultralytics' default"


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["face.pt", "face.pth", "face.safetensors", "face.SAFETENSORS", "face"])
@pytest.mark.parametrize("form", ["pickle", "checkpoint", "old checkpoint", "inside of a network"])
def test_a_malicious_pickle_is_refused_and_does_not_run(weights: Path, tmp_path: Path, name: str, form: str) -> None:
    file, planted = tmp_path / name, tmp_path / "planted"
    (tmp_path / "face.yaml").write_bytes(weights.with_suffix(".yaml").read_bytes())
    if form == "pickle":
        file.write_bytes(pickle.dumps(Payload(planted), protocol=2))
    elif form == "inside of a network":
        network = unfused(weights)
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
def test_a_truncated_checkpoint_is_refused(weights: Path, tmp_path: Path, share: float) -> None:
    torch.save({"model": unfused(weights)}, tmp_path / "face.pt")
    content = (tmp_path / "face.pt").read_bytes()
    (tmp_path / "face.pt").write_bytes(content[: int(share * len(content))])
    assert "is damaged" in refusal(tmp_path / "face.pt")


@pytest.mark.parametrize("form", ["safetensors", "yaml", "pt"])
def test_a_file_with_changed_bytes_loads_or_is_refused_by_name(copied: Path, form: str) -> None:
    """A changed weight cannot be seen here (the manifest's checksum sees it); whatever else is changed has one kind of error."""
    if form == "pt":
        torch.save({"model": unfused(copied)}, copied.with_suffix(".pt"))
    file, rng = copied.with_suffix(f".{form}"), Random(3)
    content = file.read_bytes()
    for _ in range(20):
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
def test_a_description_that_does_not_fit_is_refused(copied: Path, key: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied.parent)
    file = copied.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), key: value}))
    assert "is damaged" in refusal(copied)
    assert not Path("planted").exists()


@pytest.mark.parametrize("text", ["", "- a list", "a: [b", "!!python/object/apply:os.mkdir ['planted']"])
def test_a_description_that_is_none_is_refused(copied: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied.parent)
    copied.with_suffix(".yaml").write_text(text)
    assert "is damaged" in refusal(copied)
    assert not Path("planted").exists()


def test_a_checkpoint_for_another_task_is_refused(tmp_path: Path) -> None:
    from ultralytics.nn.tasks import PoseModel

    head = [*ARCHITECTURE["head"][:-1], [[10, 13], 1, "Pose", ["nc", "kpt_shape"]]]  # type: ignore[index]
    torch.save({"model": PoseModel({**ARCHITECTURE, "head": head, "kpt_shape": [5, 3]}, verbose=False)}, tmp_path / "pose.pt")
    assert "choose a YOLO that was trained to detect or to segment" in refusal(tmp_path / "pose.pt")


# A process of its own: what is imported when, what is said, who is called

SCRIPT = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system"):
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(refuse)
from pathlib import Path
from PIL import Image
import modules.adetailer.crops, modules.adetailer.detection as detection
assert "cv2" not in sys.modules and "ultralytics" not in sys.modules, "imported before anybody wanted a detector"
weights, folder = Path(sys.argv[1]), Path(sys.argv[2])
if sys.argv[3] == "unprepared":
    import ultralytics.utils
    try:
        detection.load_detector_network(weights)
    except RuntimeError as error:
        raise SystemExit(0 if "offline_ultralytics" in str(error) else 1)
    raise SystemExit("loaded without the restricted unpickler")
opens = Image.open
detection.offline_ultralytics(folder / "settings")
detector = detection.Detector(detection.load_detector_network(weights))
detector.detect([Image.new("RGB", (64, 64))], 0.3)
assert (folder / "settings").is_dir()
assert Image.open is opens, "ultralytics replaced Pillow's reader of files"
"""


@pytest.mark.parametrize("order", ["prepared", "unprepared"])
def test_detection_is_quiet_offline_and_careful(weights: Path, tmp_path: Path, order: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    if order == "unprepared":
        environment |= {"YOLO_OFFLINE": "1", "YOLO_CONFIG_DIR": str(tmp_path)}  # else the import alone asks for a server's address
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, weights, tmp_path, order], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == 0, process.stderr
    if order == "prepared":
        assert process.stdout + process.stderr == ""
        assert list(home.iterdir()) == [], "something was left in the home folder"
