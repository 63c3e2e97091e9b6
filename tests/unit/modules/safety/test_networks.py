"""Safety checkers: NudeNet and OpenNSFW with the real weights of their packages on real photographs, and the classes of
transformers and diffusers with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.photographs import one_man, photograph

from backend.core.errors import WeightsError
from backend.core.settings import Settings
from modules.detection.yolo import offline_ultralytics
from modules.safety.discovery import NUDENET_CLASSES, CheckerSource, find_safety_checker
from modules.safety.networks import SafetyNetwork, load_safety_checker

PHOTOGRAPHS = (photograph("zidane.jpg"), photograph("bus.jpg"), one_man())


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    offline_ultralytics(tmp_path_factory.mktemp("ultralytics"))


def found(settings: Settings) -> CheckerSource:
    source = find_safety_checker(settings, needed=False)
    assert source is not None
    return source


def checker(name: str, *classes: str) -> SafetyNetwork:
    return load_safety_checker(found(replace(Settings(), safety_checker=name)), classes)


def objections(network: SafetyNetwork, *images: Image.Image, threshold: float = 0.5) -> list[dict[str, float]]:
    return network.scores(images, network.objectionable, threshold)


def image_classifier(folder: Path, labels: list[str]) -> Path:
    """A small ViT with random weights in a folder, as Falconsai's is published."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(1)
    size: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(
        **size, intermediate_size=16, image_size=32, patch_size=16, id2label=dict(enumerate(labels)), num_labels=2
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def compvis_checker(folder: Path) -> Path:
    """The checker of Stable Diffusion, small and with random weights, in a folder as CompVis published it."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    torch.manual_seed(1)
    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = {**layers, "image_size": 32, "patch_size": 16}
    network = StableDiffusionSafetyChecker(CLIPConfig(projection_dim=8, vision_config=vision, text_config=layers))
    network.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


def test_nudenet_passes_photographs_of_dressed_people() -> None:
    network = checker("nudenet")
    assert network.objectionable == NUDENET_CLASSES
    assert objections(network, *PHOTOGRAPHS) == [{}, {}, {}]


def test_nudenet_flags_what_is_put_on_the_list_with_its_score() -> None:
    flagged = objections(checker("nudenet", "face_male", "FEET_COVERED"), *PHOTOGRAPHS)
    assert list(flagged[2]) == ["FACE_MALE"] and 0.5 <= flagged[2]["FACE_MALE"] <= 1


def test_a_lower_threshold_flags_more() -> None:
    network = checker("nudenet", "FACE_MALE", "FACE_FEMALE")
    counts = [len(objections(network, one_man(), threshold=least)[0]) for least in (0.9, 0.5, 0.2)]
    assert counts == [0, 1, 2]


def test_opennsfw_rates_photographs_low_and_flags_them_below_their_score() -> None:
    network = checker("opennsfw")
    assert objections(network, *PHOTOGRAPHS) == [{}, {}, {}]
    rated = objections(network, *PHOTOGRAPHS, threshold=0.0)
    assert all(0 < one["nsfw"] < 0.5 for one in rated)


def test_any_detector_can_be_the_checker() -> None:
    network = checker("embedded/face_detector.safetensors", "face")
    assert objections(network, Image.new("RGB", (64, 64))) == [{}]
    assert network.known == ("face",)


def test_a_classifier_of_transformers_objects_to_its_unsafe_label(tmp_path: Path) -> None:
    network = checker(str(image_classifier(tmp_path / "falcon", ["normal", "nsfw"])))
    assert network.objectionable == ("nsfw",)
    (shares,) = network.scores([one_man()], network.known, 0.0)
    assert set(shares) == {"normal", "nsfw"} and sum(shares.values()) == pytest.approx(1)
    assert objections(network, one_man(), threshold=shares["nsfw"] - 1e-6) == [{"nsfw": shares["nsfw"]}]
    assert objections(network, one_man(), threshold=shares["nsfw"] + 1e-6) == [{}]


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["T5EncoderModel"]}')
    with pytest.raises(WeightsError, match="holds no image classifier of transformers"):
        checker(str(tmp_path))


def test_a_classifier_whose_labels_say_nothing_needs_safety_classes(tmp_path: Path) -> None:
    folder = str(image_classifier(tmp_path / "animals", ["cat", "dog"]))
    with pytest.raises(WeightsError, match="animals knows cat, dog; say in 'safety_classes'"):
        checker(folder)
    assert checker(folder, "Dog").objectionable == ("dog",)


@pytest.mark.parametrize(("threshold", "expected"), [(2.0, {}), (-2.0, {"nsfw": 1.0})])
def test_the_checker_of_stable_diffusion_has_its_own_thresholds(
    tmp_path: Path, threshold: float, expected: dict[str, float]
) -> None:
    network: Any = checker(str(compvis_checker(tmp_path / "compvis")))
    for weights in (network.network.concept_embeds_weights, network.network.special_care_embeds_weights):
        weights.fill_(threshold)
    picture = one_man()
    before = picture.tobytes()
    assert objections(network, picture, picture) == [expected, expected]
    assert picture.tobytes() == before


def test_an_unknown_class_is_refused_with_the_known_ones() -> None:
    with pytest.raises(WeightsError, match="safety_classes: nudenet does not know 'CAT'; it knows FEMALE_GENITALIA_CO"):
        checker("nudenet", "CAT")
