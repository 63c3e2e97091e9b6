"""The classes of a detector, and what a unit may ask of them."""

from __future__ import annotations

import pytest
from support.requests_data import EMBEDDED, INPUTS

from backend.core.errors import InputError
from modules.detection.classes import TEXT_MODEL, ClassSet
from modules.request.parser import build_request

WORLD = ClassSet(("face", "hand", "hat"), world=True)


def refusal(arguments: str, detectors: dict[str, ClassSet]) -> str:
    with pytest.raises(InputError) as caught:
        build_request({**INPUTS, "adetailer_args": arguments}, EMBEDDED, detectors)
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            '{"ad_model": "face_yolov8n"}',
            "adetailer_args: ad_model 'face_yolov8n' is not installed (did you mean 'face_yolov8n.pt'?); leave it out, or "
            "use ",
        ),
        (
            '{"ad_model": "zebra.pt"}',
            "adetailer_args: ad_model 'zebra.pt' is not installed; leave it out, or use face_yolov8n.pt, yolov8x-worldv2.pt",
        ),
        (
            '{"ad_model": "mediapipe_face_full"}',
            "adetailer_args: ad_model 'mediapipe_face_full' is not installed (",
        ),
        (
            '{"ad_model_classes": "hand"}',
            "adetailer_args: ad_model_classes of face_yolov8n.pt: 'hand' is none of its classes: face",
        ),
        (
            '{"ad_model": "yolov8x-worldv2.pt", "ad_model_classes": "hat, cat"}',
            "adetailer_args: ad_model_classes of yolov8x-worldv2.pt: 'cat' is none of its classes (did you mean "
            "'hat'?): face, hand, hat; "
            f"for other words put openai/{TEXT_MODEL} under weights/{TEXT_MODEL}",
        ),
    ],
)
def test_what_is_not_installed_is_refused_with_the_names_of_what_is(arguments: str, message: str) -> None:
    assert refusal(arguments, {"face_yolov8n.pt": ClassSet(("face",)), "yolov8x-worldv2.pt": WORLD}).startswith(message)


def test_classes_of_the_detector_can_be_chosen() -> None:
    assert [ClassSet(("face",)).problem(text) for text in ("", " , ", "face")] == ["", "", ""]
    assert WORLD.parse("hat, face ,hat") == ("hat", "face") and WORLD.problem("hat, face") == ""
    assert ClassSet(("face",), world=True, open_vocabulary=True).problem("a red bicycle") == ""


def test_the_number_of_names_has_a_limit() -> None:
    many = ", ".join(f"thing {number}" for number in range(201))
    assert ClassSet(("face",), world=True, open_vocabulary=True).problem(many).startswith("201 names are too many")
    assert ClassSet(("face",), world=True, open_vocabulary=True).problem("a, b") == ""
