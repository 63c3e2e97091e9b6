"""Code in a model's files is not run, wherever it lies, and nothing asks the terminal whether it may be."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from backend.core.errors import UserError
from backend.core.settings import ROOT
from backend.llm.language_model import Budget, open_with_transformers
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from bench.support.planted_code import PLACES
from modules.detection.text_encoder import ClassNameEncoder
from modules.detection.yolo import load_detector_network, offline_ultralytics
from modules.face_restoration.network import load_face_restorer
from modules.families.registry import FAMILIES, identify
from modules.families.source import Source
from modules.prompting.prompt_upsampler import PromptUpsampler
from modules.upscaling.tiled import load_upscaler_network

EMBEDDED = ROOT / "weights" / "embedded"


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    offline_ultralytics(tmp_path_factory.mktemp("ultralytics"))


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A user who says yes to everything, in the folder of the models. Nobody may have asked."""
    answers = io.StringIO("yes\n" * 1000)
    monkeypatch.setattr(sys, "stdin", answers)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "models")
    yield
    assert answers.tell() == 0, "the terminal was asked"


def read_language_model(folder: Path) -> Iterator[Callable[[], object]]:
    yield lambda: PromptUpsampler(ModelCache(torch.device("cpu")), folder, 40, OomFallback()).asked("a fox")
    yield lambda: open_with_transformers(folder, Budget())


def is_as_before(folder: Path) -> bool:
    """Whether nothing was planted here: the files are those of the embedded model."""
    own = EMBEDDED / "flux" / folder.name
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == {
        path.name: path.read_bytes() for path in own.iterdir()
    }


def read_flux(folder: Path) -> Iterator[Callable[[], object]]:
    source, (family, *_) = Source(folder), FAMILIES
    models = ModelCache(torch.device("cpu"))
    yield lambda: identify(source).spec("fp32")
    yield lambda: family.service(source, models, torch.float32, OomFallback(), 1)
    for component in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        if not is_as_before(folder / component):
            yield lambda component=component: family.load(source, component, torch.float32)  # type: ignore[misc]


def read_files(*loaders: Callable[[Path], object]) -> Callable[[Path], Iterator[Callable[[], object]]]:
    """Every file of the folder, by each loader."""

    def read(folder: Path) -> Iterator[Callable[[], object]]:
        for path in sorted(path for path in folder.iterdir() if path.suffix != ".yaml"):
            for load in loaders:
                yield lambda load=load, path=path: load(path)  # type: ignore[misc]

    return read


def read_class_names(folder: Path) -> Iterator[Callable[[], object]]:
    yield lambda: ClassNameEncoder(folder / "tokenizer").encode(("cat",))


READERS: Mapping[str, tuple[tuple[str, ...], Callable[[Path], Iterator[Callable[[], object]]]]] = {
    "prompt_upsampler": (("prompt_upsampler",), read_language_model),
    "flux": (("flux",), read_flux),
    "detector": (("face_detector.safetensors", "face_detector.yaml"), read_files(load_detector_network)),
    "upscaler": (("upscaler.safetensors",), read_files(load_upscaler_network, load_face_restorer)),
    "class names": (("flux",), read_class_names),
}
"""By part: the embedded files that are copied, and what reads them."""


@pytest.mark.parametrize("place", PLACES)
def test_planted_code_is_not_run(place: str, tmp_path: Path) -> None:
    part, plant = PLACES[place]
    files, read = READERS[part]
    folder, marker = tmp_path / "models", tmp_path / "planted"
    for name in files:
        if (EMBEDDED / name).is_dir():
            shutil.copytree(EMBEDDED / name, folder, dirs_exist_ok=True)
        else:
            shutil.copy(EMBEDDED / name, folder)
    plant(folder, marker)
    for load in read(folder):
        try:
            load()
        except UserError as error:
            assert "\n" not in str(error) and str(tmp_path) not in str(error), error
        assert not marker.exists()


def test_there_are_places_of_every_part() -> None:
    assert len(PLACES) >= 40 and {place.part for place in PLACES.values()} == READERS.keys()


def test_the_planted_code_would_run(tmp_path: Path) -> None:
    """The control: with trust a tokenizer's module is imported, so that the places are real."""
    from transformers import AutoTokenizer

    shutil.copytree(EMBEDDED / "prompt_upsampler", tmp_path / "folder")
    marker = tmp_path / "planted"
    PLACES["auto_map and class of a tokenizer"].plant(tmp_path / "folder", marker)
    with pytest.raises(AttributeError):
        AutoTokenizer.from_pretrained(tmp_path / "folder", trust_remote_code=True)
    assert marker.exists()


def test_readers_take_what_is_not_planted(tmp_path: Path) -> None:
    for part, (files, read) in READERS.items():
        folder = tmp_path / "models" / part.replace(" ", "_")
        folder.mkdir()
        for name in files:
            if (EMBEDDED / name).is_dir():
                shutil.copytree(EMBEDDED / name, folder, dirs_exist_ok=True)
            else:
                shutil.copy(EMBEDDED / name, folder)
        if part in ("prompt_upsampler", "flux", "detector"):
            for load in read(folder):
                load()
