"""A prediction can be canceled between any two pieces of its work, and the next one does not notice."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.pictures import PROMPT
from support.services import flux_of

from backend.core.cancellation import Canceled, Cancellation
from backend.core.timeline import Timeline
from modules.app.service import Service

COMMON = {"prompt": PROMPT, "num_inference_steps": 4, "seed": 3, "output_format": "png"}
DETAILS = {**COMMON, "scale": 1}
PASSES = {
    **COMMON,
    "prompt_upsampling": True,
    "megapixels": "0.25",
    "enable_hr": True,
    "denoising_strength": 0.8,
    "adetailer": False,
    "scale": 1.5,
}
"""Together they run every stage."""
PIECES = {
    "details": (
        "generate.denoise",
        "adetailer.detect",
        "adetailer.encode_image",
        "adetailer.denoise",
        "adetailer.decode",
    ),
    "passes": (
        *("prompt_upsampling", "generate.denoise", "generate.decode"),
        *("hires.upscale", "hires.encode_image", "hires.denoise", "hires.decode", "upscale"),
    ),
}


class Asked:
    """Notes in which span of the timeline it was asked whether to go on; cancels when it is asked for the ``last``
    time."""

    def __init__(self, last: int = 0) -> None:
        self.timeline, self.last = Timeline(), last
        self.spans: list[str] = []

    def __call__(self) -> None:
        self.spans.append(self.timeline.spans[-1].path)
        if len(self.spans) == self.last:
            raise Canceled


@dataclass(frozen=True)
class Whole:
    """A prediction that was not canceled."""

    name: str
    inputs: Mapping[str, Any]
    picture: np.ndarray
    spans: list[str]


def drawn(service: Service, inputs: Mapping[str, Any], folder: Path, asked: Asked) -> np.ndarray:
    folder.mkdir()
    (file,) = service.predict_into(
        folder, inputs, lambda name, value: None, lambda *step: None, asked.timeline, check=asked
    )
    return np.asarray(Image.open(file))


@pytest.fixture(scope="module", params=["details", "passes"])
def whole(request: pytest.FixtureRequest, service: Service, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    inputs, asked = DETAILS if request.param == "details" else PASSES, Asked()
    picture = drawn(service, inputs, tmp_path_factory.mktemp("whole") / "own", asked)
    return Whole(request.param, inputs, picture, asked.spans)


def test_every_piece_of_the_work_can_be_canceled(whole: Whole) -> None:
    assert [piece for piece in PIECES[whole.name] if piece not in whole.spans] == []
    assert whole.spans.count("generate.denoise") >= COMMON["num_inference_steps"]
    if whole.name == "passes":
        assert whole.spans.count("prompt_upsampling") > 5, "between two tokens"


def test_before_a_prompt_is_encoded(service: Service) -> None:
    canceled = Cancellation()
    canceled.cancel()
    with pytest.raises(Canceled):
        flux_of(service).encode(["a prompt that is in no cache"], check=canceled.check)


def test_the_next_prediction_is_the_same_whenever_others_were_canceled(
    service: Service, whole: Whole, tmp_path: Path
) -> None:
    """At the first moment, at some between, and at the last."""
    last = len([span for span in whole.spans if not span.endswith(".encode")])  # prompts are encoded once
    for moment in (1, *random.Random(4).sample(range(2, last), 3), last):
        folder = tmp_path / str(moment)
        with pytest.raises(Canceled):
            drawn(service, whole.inputs, folder, Asked(moment))
        assert not folder.exists()
    assert np.array_equal(drawn(service, whole.inputs, tmp_path / "next", Asked()), whole.picture)
