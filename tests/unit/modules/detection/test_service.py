"""The detectors by name: which are installed, and that those of every published architecture load and detect."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.detections import WEIGHTS, assert_equal, predicted

from backend.core.errors import WeightsError
from backend.core.settings import ROOT, Settings
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from modules.cli.fetch_weights import trust
from modules.detection.classes import TEXT_MODEL
from modules.detection.registry import OWN, PUBLISHED, detector_parameters, find_detectors
from modules.detection.service import DetectionService
from modules.detection.text_encoder import ClassNameEncoder
from modules.detection.yolo import Detector, load_detector_network, offline_ultralytics
from training.data.detector_samples import KINDS, labelled
from training.data.drawing import draw_scene
from training.data.figures import sample_figures
from training.data.scene import sample_scene

ARCHITECTURES = {
    "face_yolov8n.pt": ("yolov8n.yaml", ["face"]),
    "face_yolov8s.pt": ("yolov8s.yaml", ["face"]),
    "hand_yolov8n.pt": ("yolov8n.yaml", ["hand"]),
    "person_yolov8n-seg.pt": ("yolov8n-seg.yaml", ["person"]),
    "person_yolov8s-seg.pt": ("yolov8s-seg.yaml", ["person"]),
    "yolov8x-worldv2.pt": ("yolov8s-worldv2.yaml", ["face", "hand", "hat"]),
}
"""The published one of the last is wider and deeper, and takes seconds to build."""
IMGSZ = 160


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    offline_ultralytics(tmp_path_factory.mktemp("ultralytics"))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return draw_scene(sample_scene(Random(8), (320, 200)))


def eager(architecture: str, names: list[str]) -> Any:
    """A network that nobody has made to see much in everything: one pass over a drawing fits its norms, and its
    scores are spread."""
    from ultralytics.nn.tasks import DetectionModel, SegmentationModel, WorldModel

    kind = WorldModel if "world" in architecture else SegmentationModel if "seg" in architecture else DetectionModel
    torch.manual_seed(0)
    network: Any = kind(architecture, nc=len(names), verbose=False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum, module.eps = 1.0, 0.1  # or what hardly varies would be blown up
    if kind is WorldModel:
        network.txt_feats = torch.nn.functional.normalize(torch.randn(1, len(names), 512), dim=-1)
    drawing = np.array(draw_scene(sample_scene(Random(8), (320, 200))).resize((160, 96)))
    pixels = torch.from_numpy(drawing).permute(2, 0, 1)[None] / 255
    network.train()(torch.cat([pixels, pixels.flip(3)]))
    for scores, contrast in zip(network.model[-1].cv3, getattr(network.model[-1], "cv4", [None] * 3)):
        if kind is WorldModel:
            torch.nn.init.constant_(contrast.bias, 0.0)
            torch.nn.init.constant_(contrast.logit_scale, -1.0)
        else:
            torch.nn.init.normal_(scores[-1].weight, std=0.02)  # small, or scores are 1 and equal
            torch.nn.init.zeros_(scores[-1].bias)
    network.names = dict(enumerate(names))
    return network.eval()


def save(network: Any, path: Path) -> None:
    """As ultralytics saves a checkpoint: the network in half precision."""
    torch.save({"model": deepcopy(network).half(), "train_args": {"imgsz": IMGSZ}}, path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights with our own detectors, all six that ADetailer offers, and one more."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "embedded").mkdir()
    for name in OWN:
        for suffix in (".safetensors", ".yaml"):
            (folder / "embedded" / name).with_suffix(suffix).symlink_to((WEIGHTS.parent / name).with_suffix(suffix))
    for name, (architecture, names) in ARCHITECTURES.items():
        save(eager(architecture, names), folder / name)
        trust(folder / name, folder)
    (folder / "adetailer").mkdir()
    save(eager("yolov8n.yaml", ["cat"]), folder / "adetailer" / "my cats.pt")
    trust(folder / "adetailer" / "my cats.pt", folder)
    return folder


def cached(settings: Settings, *only: str) -> tuple[DetectionService, ModelCache]:
    files = find_detectors(settings)
    models = ModelCache(torch.device("cpu"))
    detectors = DetectionService(
        {name: path for name, path in files.items() if not only or name in only},
        settings,
        models,
        OomFallback(models),
    )
    for name in models.names():
        models.load(name)
    return detectors, models


# What is there


def test_the_package_alone_has_its_own(tmp_path: Path) -> None:
    assert (
        list(find_detectors(Settings())) == [Path(name).stem for name in OWN] and OWN[0] == "face_detector.safetensors"
    )
    with pytest.raises(WeightsError, match="^face_detector: .* is not under weights/"):
        find_detectors(Settings(weights_dir=str(tmp_path)))


def test_every_file_that_is_there_has_a_name(weights: Path) -> None:
    found = find_detectors(Settings(weights_dir=str(weights)))
    assert set(found) == {*PUBLISHED, *(Path(name).stem for name in OWN), "my cats.pt"}
    assert next(iter(found)) == "face_yolov8n.pt", "the published one for faces is preferred"
    assert (
        next(iter(find_detectors(Settings(weights_dir=str(weights), face_detector="face_yolov8s.pt"))))
        == "face_yolov8s.pt"
    )


def test_the_plan_counts_every_detector(weights: Path) -> None:
    assert detector_parameters(WEIGHTS) == sum(tensor.numel() for tensor in load_file(WEIGHTS).values())
    network = load_detector_network(weights / "yolov8x-worldv2.pt")
    counted = detector_parameters(weights / "yolov8x-worldv2.pt")
    assert (
        sum(tensor.numel() for tensor in network.parameters())
        < counted
        < 1.2 * sum(tensor.numel() for tensor in network.parameters())
    )


# The six names


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_file_of_each_published_architecture_detects_as_in_ultralytics(
    weights: Path, name: str, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = load_detector_network(find_detectors(Settings(weights_dir=str(weights)))[name])
    detector = Detector(network)
    assert detector.size == (IMGSZ, IMGSZ)
    confidences = np.sort(detector.detect([picture], 0.0)[0].confidences)
    confidence = float(confidences[-min(len(confidences), 20)])
    theirs = predicted(network, picture, IMGSZ, confidence, monkeypatch)
    (ours,) = detector.detect([picture], confidence)
    assert 0 < len(ours) < 40
    assert_equal(ours, theirs, tolerance=2e-3)


def test_each_is_read_once_and_lent(weights: Path, picture: Image.Image) -> None:
    """ADetailer builds its detector anew at every call."""
    detectors, models = cached(Settings(weights_dir=str(weights)), "face_detector", "hand_yolov8n.pt")
    with models.on_device(*models.names()) as first:
        for name in ("face_detector", "hand_yolov8n.pt", "face_detector"):
            detectors.detect([picture], 0.3, name)
    with models.on_device(*models.names()) as networks:
        assert networks == first
    assert detectors.class_sets["hand_yolov8n.pt"].classes == ("hand",)


def test_our_own_three_find_what_they_are_for() -> None:
    detectors, _ = cached(Settings(weights_dir="weights"), "face_detector", "hand_detector", "person_detector")
    sample = KINDS["person"].draw(Random(7))
    counts = {
        name: len(detectors.detect([sample.image], 0.3, name)[0]) for name in ("", "hand_detector", "person_detector")
    }
    assert counts["person_detector"] == len(sample.boxes) and counts["hand_detector"] > 0


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    (tmp_path / "embedded").mkdir()
    save(eager("yolov8n.yaml", ["face"]), tmp_path / "hand_yolov8n.pt")
    trust(tmp_path / "hand_yolov8n.pt", tmp_path)
    models = ModelCache(torch.device("cpu"))
    DetectionService(
        {"hand_yolov8n.pt": tmp_path / "hand_yolov8n.pt"},
        Settings(weights_dir=str(tmp_path)),
        models,
        OomFallback(models),
    )
    with pytest.raises(
        WeightsError, match="^hand_yolov8n.pt: is a network to detect face, and its name stands for one to detect hand"
    ):
        models.load("hand_yolov8n.pt")


def test_a_world_model_looks_for_the_chosen_classes_only(weights: Path, picture: Image.Image) -> None:
    detectors, _ = cached(Settings(weights_dir=str(weights)), "yolov8x-worldv2.pt")
    both, hats = (detectors.detect([picture], 0.0, classes=classes)[0] for classes in ("hat, face", "hat"))
    assert 0 < len(hats) < len(both)


# Other classes by name, with the text model


@pytest.fixture
def with_text_model(weights: Path) -> Any:
    """The folder of weights with a text model of the right form, small and untrained, beside the detectors."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(
        ROOT / "weights" / "embedded" / "flux" / "tokenizer",
        local_files_only=True,
        trust_remote_code=False,
    )
    torch.manual_seed(1)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPTextConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, projection_dim=512, **small)
    CLIPTextModelWithProjection(config).save_pretrained(weights / TEXT_MODEL)
    tokenizer.save_pretrained(weights / TEXT_MODEL)
    return weights


def test_other_classes_are_encoded_by_the_text_model(with_text_model: Path, picture: Image.Image) -> None:
    """A YOLO-World that is asked for "cat" and "dog" finds what one finds that was saved with these classes."""
    detectors, models = cached(Settings(weights_dir=str(with_text_model)), "yolov8x-worldv2.pt")
    assert detectors.class_sets["yolov8x-worldv2.pt"].open_vocabulary
    (told,) = detectors.detect([picture], 0.3, classes="cat, dog")
    with models.on_device("yolov8x-worldv2.pt") as (network,):
        features = ClassNameEncoder(with_text_model / TEXT_MODEL).encode(("cat", "dog"))
        assert features.shape == (1, 2, 512) and torch.allclose(features.norm(dim=-1), torch.ones(1, 2))
        baked: Any = deepcopy(network)
    assert baked.model[-1].nc == 3, "the network is as it was"
    baked.txt_feats, baked.model[-1].nc = features.clone(), 2
    assert_equal(told, Detector(baked).detect([picture], 0.3)[0])
    assert len(told) > 0


def test_a_face_detector_sees_faces_of_figures_too() -> None:
    detectors, _ = cached(Settings(weights_dir="weights"), "face_detector")
    drawn = [labelled("face", sample_figures(Random(seed))) for seed in range(5)]
    found = detectors.detect([picture.image for picture in drawn], 0.3)
    assert [len(faces) for faces in found] == [len(picture.boxes) for picture in drawn]
