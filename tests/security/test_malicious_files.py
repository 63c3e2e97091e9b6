"""Files that want to do harm, named after the incidents in which they did: refused before any code of theirs runs,
with an error of a line."""

from __future__ import annotations

import importlib.metadata
import json
import pickle
import re
import shutil
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from support.damaged_files import DAMAGES
from support.detections import WEIGHTS
from support.detector_files import Payload, unfused
from support.local_hub import sha256
from support.refusals import refusal

from backend.checkpoints.file_type import is_pickle, is_safetensors
from backend.checkpoints.loader import load_diffusers_module
from backend.core.errors import UserError, WeightsError
from backend.core.settings import ROOT, Settings
from backend.weights.lockfile import LockedFile, write_lock
from backend.weights.resolver import check_file, resolve_file
from modules.app.model_files import find_files
from modules.app.service import start
from modules.cli.convert_weights import convert
from modules.detection.yolo import load_detector_network, offline_ultralytics
from modules.upscaling.tiled import load_upscaler_network
from training.models.detector import ARCHITECTURE

EMBEDDED = ROOT / "weights" / "embedded"


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    offline_ultralytics(tmp_path_factory.mktemp("ultralytics"))


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """What a malicious file would make."""
    return tmp_path / "planted"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    shutil.copytree(EMBEDDED, tmp_path / "weights" / "embedded", ignore=shutil.ignore_patterns("*.webp"))
    return replace(Settings(), weights_dir=str(tmp_path / "weights"))


def trusted(settings: Settings, name: str, write: Callable[[Path], object]) -> Path:
    """A file under weights/ whose checksum somebody has pinned."""
    path = settings.weights_path / name
    write(path)
    write_lock(settings.weights_path, {name: LockedFile(path.stat().st_size, sha256(path.read_bytes()))})
    return path


# Pickles


@pytest.mark.parametrize("suffix", [".safetensors", ".SafeTensors", ".SAFETENSORS", ".pth", ".pt", ".ckpt", ""])
@pytest.mark.parametrize("form", ["pickle", "archive", "old archive", "in the tensors"])
def test_invokeai_cve_2024_12029_a_pickle_under_any_name_does_not_run(
    tmp_path: Path, planted: Path, suffix: str, form: str
) -> None:
    file = tmp_path / f"evil{suffix}"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Payload(planted), protocol=2))
    elif form == "in the tensors":
        torch.save({**load_file(EMBEDDED / "upscaler.safetensors"), "conv_last.bias": Payload(planted)}, file)
    else:
        torch.save({"params_ema": Payload(planted)}, file, _use_new_zipfile_serialization=form == "archive")
    for load in (load_upscaler_network, load_detector_network):
        assert refusal(lambda load=load: load(file)).startswith("evil")  # type: ignore[misc]
    assert not planted.exists()


def test_torch_weights_only_bypasses_a_torch_that_has_none(tmp_path: Path) -> None:
    """CVE-2025-32434 (before 2.6) and CVE-2026-24747 (before 2.10)."""
    version = importlib.metadata.version("torch").partition("+")[0]
    assert tuple(int(number) for number in version.split(".")[:2]) >= (2, 10)
    assert f"torch=={version}" in (ROOT / "requirements.txt").read_text().splitlines()


def test_torch_weights_only_bypasses_no_detector_without_a_pinned_checksum(settings: Settings) -> None:
    """A detector's pickle holds a network. An upscaler's holds tensors, and whatever else is in it is refused."""
    for name in ("face_yolov8n.pt", "ESRGAN_4x.pth"):
        torch.save(load_file(EMBEDDED / "upscaler.safetensors"), settings.weights_path / name)
    found = find_files(settings)
    assert "checksum is not in the lock" in found.left_out["face_yolov8n.pt"]
    assert next(iter(found.upscalers)) == "ESRGAN_4x"
    asked = replace(settings, face_detector="face_yolov8n.pt")
    assert "checksum is not in the lock" in refusal(lambda: find_files(asked))


def test_a_torchscript_program_is_not_loaded(tmp_path: Path) -> None:
    for name in ("program.pth", "program.pt"):
        torch.jit.save(torch.jit.script(torch.nn.Conv2d(3, 3, 1)), tmp_path / name)
        assert "is damaged" in refusal(lambda name=name: load_upscaler_network(tmp_path / name))  # type: ignore[misc]
        assert "is damaged" in refusal(lambda name=name: load_detector_network(tmp_path / name))  # type: ignore[misc]


def test_ultralytics_8_3_41_versions_that_carried_a_miner_are_not_installed() -> None:
    installed = importlib.metadata.version("ultralytics-opencv-headless")
    assert installed not in ("8.3.41", "8.3.42", "8.3.45", "8.3.46")
    assert f"ultralytics-opencv-headless=={installed}" in (ROOT / "requirements.txt").read_text().splitlines()


def test_ultralytics_8_3_41_a_byte_changed_in_a_pinned_file_is_refused(settings: Settings) -> None:
    path = trusted(settings, "face_yolov8n.pt", lambda path: torch.save({"model": unfused(WEIGHTS)}, path))
    assert resolve_file("face_detector", "auto", ("face_yolov8n.pt",), settings) == path
    content = path.read_bytes()
    for place in (0, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert refusal(lambda: find_files(settings)).startswith("face_yolov8n.pt: ")


def test_even_a_pinned_pickle_runs_no_code(settings: Settings, planted: Path) -> None:
    path = trusted(settings, "ESRGAN_4x.pth", lambda path: torch.save({"params": Payload(planted)}, path))
    assert refusal(lambda: load_upscaler_network(next(iter(find_files(settings).upscalers.values())))).startswith(
        "ESRGAN_4x.pth: is damaged"
    )
    assert "is damaged" in refusal(lambda: convert(path, settings))
    assert not planted.exists()


# What is not what its name says


def pose_network() -> torch.nn.Module:
    from ultralytics.nn.tasks import PoseModel

    head = [*ARCHITECTURE["head"][:-1], [[10, 13], 1, "Pose", ["nc", "kpt_shape"]]]  # type: ignore[index]
    network: torch.nn.Module = PoseModel({**ARCHITECTURE, "head": head, "kpt_shape": [5, 3]}, verbose=False)
    return network


@pytest.mark.parametrize("kind", ["pose", "face", "upscaler"])
def test_another_network_under_a_hand_detectors_name_is_refused(settings: Settings, kind: str) -> None:
    """A peer's image, in which face and hand files were downloads of other models."""
    networks: Mapping[str, Callable[[], Any]] = {
        "pose": lambda: {"model": pose_network()},
        "face": lambda: {"model": unfused(WEIGHTS)},
        "upscaler": lambda: load_file(EMBEDDED / "upscaler.safetensors"),
    }
    path = trusted(settings, "hand_yolov8n.pt", lambda path: torch.save(networks[kind](), path))
    says = {
        "pose": "is a PoseModel",
        "face": "is a network to detect face, and its name stands for one to detect hand",
        "upscaler": "is damaged or not",
    }
    trusting = replace(settings, face_detector=path.name, model="embedded", warm_up=False)
    assert says[kind] in refusal(lambda: start(trusting))


def test_a_detector_under_an_upscalers_name_is_refused(settings: Settings) -> None:
    path = trusted(settings, "ESRGAN_4x.pth", lambda path: torch.save({"model": unfused(WEIGHTS)}, path))
    assert re.search(
        "^ESRGAN_4x.pth: (is damaged, or not what its name says|holds no upscaler)",
        refusal(lambda: load_upscaler_network(path)),
    )


def like_a_pickle(tensors: dict[str, torch.Tensor]) -> bytes:
    """The tensors as safetensors whose header is so long that they begin with a pickle's byte, as one file in 32
    does."""
    return next(data for size in range(300) if (data := save(tensors, {"note": "x" * size}))[0] == 0x80)


def test_safetensors_that_begin_with_a_pickles_byte_are_read_as_what_they_are(
    settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "upscaler.safetensors"
    file.write_bytes(like_a_pickle(load_file(EMBEDDED / "upscaler.safetensors")))
    assert not is_pickle(file) and load_upscaler_network(file).factor == 4
    check_file("upscalers/mine.safetensors", file, {})


def test_a_pickle_that_begins_as_safetensors_do_runs_no_code(tmp_path: Path, planted: Path) -> None:
    """The length of a header that fits, and "{", within a number that a pickle throws away before it does what it is
    for."""
    program = pickle.dumps(Payload(planted), protocol=2)
    file = tmp_path / "upscaler.pth"
    file.write_bytes(b"\x80\x02G" + b"\x00\x00\x00\x00\x00{\x00\x00" + b"0" + program[2:] + bytes(5_000_000))
    assert is_safetensors(file)
    for load in (load_upscaler_network, load_detector_network):
        with pytest.raises(WeightsError):
            load(file)
    assert not planted.exists()


def test_safetensors_under_a_pickles_name_are_read_as_what_they_are(tmp_path: Path) -> None:
    shutil.copy(EMBEDDED / "upscaler.safetensors", tmp_path / "upscaler.bin")
    assert load_upscaler_network(tmp_path / "upscaler.bin").factor == 4
    for suffix in (".safetensors", ".yaml"):
        shutil.copy(WEIGHTS.with_suffix(suffix), tmp_path / ("face.pt" if suffix == ".safetensors" else "face.yaml"))
    assert load_detector_network(tmp_path / "face.pt") is not None


# safetensors


def with_header(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start: int, stop: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [stop - start] if shape is None else shape, "data_offsets": [start, stop]}


HEADERS = {
    "longer than the file": with_header({"a": tensor(0, 4)}, bytes(4), length=10_000),
    "over 100 MB": with_header({}, b" " * 200, length=100_000_001),
    "of all the bytes there are": with_header({}, length=2**63),
    "no JSON": struct.pack("<Q", 8) + b"{'a': 1}",
    "a list": with_header([1, 2]),
    "very deep": struct.pack("<Q", 60_000) + b'{"a":' * 10_000 + b"}" * 10_000,
    "overlapping tensors": with_header({"a": tensor(0, 4), "b": tensor(2, 6)}, bytes(6)),
    "a hole": with_header({"a": tensor(0, 2), "b": tensor(4, 6)}, bytes(6)),
    "beyond the end": with_header({"a": tensor(0, 400)}, bytes(4)),
    "wrong shape": with_header({"a": tensor(0, 4, [2, 3])}, bytes(4)),
    "huge shape": with_header({"a": tensor(0, 4, [2**62, 2**62])}, bytes(4)),
    "unknown type": with_header({"a": tensor(0, 4, dtype="OBJECT")}, bytes(4)),
    "backwards": with_header({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 0]}}, bytes(4)),
    "more bytes than tensors": with_header({"a": tensor(0, 4)}, bytes(40)),
    "cut off": save({"a": torch.zeros(100)})[:-1],
    "empty": b"",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_safetensors_header_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "vae").mkdir()
    shutil.copy(EMBEDDED / "flux" / "vae" / "config.json", tmp_path / "vae")
    for name in ("upscaler.safetensors", "face.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        (tmp_path / name).write_bytes(HEADERS[kind])
    shutil.copy(WEIGHTS.with_suffix(".yaml"), tmp_path / "face.yaml")
    from diffusers import AutoencoderKL

    assert refusal(lambda: load_upscaler_network(tmp_path / "upscaler.safetensors")).startswith(
        "upscaler.safetensors: "
    )
    assert refusal(lambda: load_detector_network(tmp_path / "face.safetensors")).startswith("face.safetensors: ")
    assert refusal(lambda: load_diffusers_module(AutoencoderKL, tmp_path / "vae", torch.float32)).startswith("vae/")


@pytest.mark.parametrize("change", ["shape", "missing", "surplus"])
def test_safetensors_of_another_architecture_are_refused(tmp_path: Path, change: str) -> None:
    from diffusers import AutoencoderKL

    shutil.copytree(EMBEDDED / "flux" / "vae", tmp_path / "vae")
    file = next((tmp_path / "vae").glob("*.safetensors"))
    tensors = load_file(file)
    name = next(iter(tensors))
    if change == "shape":
        tensors[name] = torch.zeros(3)
    elif change == "missing":
        del tensors[name]
    else:
        tensors["encoder.backdoor.weight"] = torch.zeros(3)
    save_file(tensors, file)
    assert refusal(lambda: load_diffusers_module(AutoencoderKL, tmp_path / "vae", torch.float32)).startswith(
        "vae does not fit its config.json"
    )


# Whole families


def test_diffusers_cve_2026_44513_a_planted_pipeline_is_not_imported(
    settings: Settings, planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also CVE-2026-45804 and -44827: code that lies in a model's folder, or is named in its files."""
    folder = settings.weights_path / "embedded" / "flux"
    code = (
        f"import pathlib; pathlib.Path({str(planted)!r}).touch()\nclass FluxPipeline: pass\nclass AutoencoderKL: pass\n"
    )
    for name in (
        "pipeline.py",
        "vae/autoencoder_kl.py",
        "transformer/modeling.py",
        "text_encoder/modeling_clip.py",
        "tokenizer/tokenization.py",
    ):
        (folder / name).write_text(code)
    changes: Mapping[str, Mapping[str, object]] = {
        "model_index.json": {"_class_name": ["pipeline", "FluxPipeline"], "custom_pipeline": "pipeline.py"},
        "vae/config.json": {"auto_map": {"AutoModel": "autoencoder_kl.AutoencoderKL"}},
        "text_encoder/config.json": {"auto_map": {"AutoModel": "modeling_clip.AutoencoderKL"}},
    }
    for name, values in changes.items():
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **values}))
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        start(replace(settings, model="embedded", warm_up=False))
    except UserError as error:
        assert "\n" not in str(error)
    assert not planted.exists()


@pytest.mark.parametrize(
    "file", ["upscaler.safetensors", "face_detector.safetensors", "flux/vae/diffusion_pytorch_model.safetensors"]
)
def test_set_up_stops_at_a_bad_file_and_goes_when_it_is_right(settings: Settings, file: str) -> None:
    path = settings.weights_path / "embedded" / file
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert path.name in refusal(lambda: start(replace(settings, model="embedded", warm_up=False)))
    path.write_bytes(content)
    assert start(replace(settings, model="embedded", warm_up=False)).models.names()


# What is no file


@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "an endless device", "a link to itself"])
def test_what_is_no_file_under_weights_stops_nothing_and_is_named(
    settings: Settings, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Opening a named pipe would wait for ever."""
    for folder, name in (("upscalers", "a.pth"), ("upscalers", "b.safetensors")):
        path = settings.weights_path / folder / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        DAMAGES[kind](path)
    assert find_files(settings).upscalers.keys() == {"upscaler"}
    assert "upscalers/a.pth: " in caplog.text and "upscalers/b.safetensors: " in caplog.text
    for name in ("a.pt", "b.onnx", "c.safetensors"):
        path = settings.weights_path / "adetailer" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        DAMAGES[kind](path)
        assert Path(name).stem in " ".join(find_files(settings).left_out)
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "a link to nothing"])
def test_a_damaged_lock_is_named(settings: Settings, damage: str) -> None:
    write_lock(settings.weights_path, {"a": LockedFile(1, "0" * 64)})
    DAMAGES[damage](settings.weights_path / "lock.json")
    assert "lock.json of the weights is damaged" in refusal(lambda: find_files(settings))
