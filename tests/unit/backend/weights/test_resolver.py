"""What the manifest knows, where a model is looked for, and what is held against the lock at every start."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.local_hub import COMMIT, LocalHub, manifest_files, sha256

from backend.core.errors import WeightsError
from backend.core.settings import ROOT, Settings
from backend.weights import resolver as weights
from backend.weights.catalog import choose_files, find_model, read_manifest
from backend.weights.lockfile import LockedFile, read_lock, write_lock
from backend.weights.resolver import (
    check_file,
    checked_folder,
    require_detector,
    resolve,
    resolve_file,
    resolve_model,
    safe_form,
)
from modules.cli.fetch_weights import main as fetch_command

EMBEDDED = ROOT / "weights" / "embedded"
DETECTORS = (
    "face_yolov8n",
    "face_yolov8s",
    "hand_yolov8n",
    "person_yolov8n-seg",
    "person_yolov8s-seg",
    "yolov8x-worldv2",
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "weights").mkdir()
    return replace(Settings(), weights_dir=str(tmp_path / "weights"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's library."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def install(settings: Settings, local: str, content: bytes) -> Path:
    """As scripts/fetch-weights leaves it."""
    path = settings.weights_path / local
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    write_lock(
        settings.weights_path,
        {
            **read_lock(settings.weights_path),
            local: LockedFile(len(content), sha256(content), "somebody/something", COMMIT),
        },
    )
    return path


def put_into_cache(cache: Path, repository: str, path: str, content: bytes) -> Path:
    """As the hub's library leaves it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    file = folder / "snapshots" / COMMIT / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


PICKLE = b"PK\x03\x04 what torch saves"


# The manifest


def test_the_manifest_says_what_every_model_is() -> None:
    models = read_manifest()
    flux = {f"FLUX.1-{variant}" for variant in ("dev", "schnell", "Fill-dev", "Kontext-dev", "Canny-dev", "Depth-dev")}
    assert {*DETECTORS, *flux, "flux2-klein", "z-image-turbo", "SDXL", "SD-1.5", "ESRGAN_4x", "4x-UltraSharp"} == set(
        models
    )
    for model in models.values():
        assert (
            model.purpose
            and model.licence
            and model.repository.count("/") == 1
            and model.revision
            and model.about_bytes
            and model.files
        )


def test_the_preinstalled_models_are_those_of_the_requirements() -> None:
    assert {name for name, model in read_manifest().items() if model.preinstalled} == {
        *DETECTORS,
        "FLUX.1-dev",
        "ESRGAN_4x",
    }


def test_auto_takes_the_first_that_is_there_in_the_order_that_the_document_has(settings: Settings) -> None:
    order = [name for name, model in read_manifest().items() if model.auto]
    line = next(line for line in (ROOT / "docs" / "models.md").read_text().splitlines() if line.startswith("| `auto`"))
    assert re.findall(r"`weights/([^`]+)`", line) == order
    assert resolve_model(settings) == settings.weights_path / "embedded" / "flux"
    for name in reversed(order):
        install(settings, f"{name}/model_index.json", b"{}")
        assert resolve_model(settings) == settings.weights_path / name


def test_every_detector_says_what_it_must_find() -> None:
    assert {name for name, model in read_manifest().items() if model.detector} == set(DETECTORS)


def test_flux_has_all_parts_and_their_sizes() -> None:
    parts = read_manifest()["FLUX.1-dev"].parts
    assert {"transformer", "text_encoder", "text_encoder_2", "vae"} < set(parts)
    assert sum(part.about_bytes for part in parts.values()) == pytest.approx(33.7e9, rel=0.01)
    folders = {path.name for path in (EMBEDDED / "flux").iterdir() if path.is_dir()}
    assert folders == {
        file.path.partition("/")[0] for part in parts.values() for file in part.files if "/" in file.path
    }


def test_no_two_files_are_put_in_one_place() -> None:
    places = [file.local for model in read_manifest().values() for file in model.files]
    assert len(places) == len(set(places))


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (("face_yolov8n",), ["face_yolov8n.pt"]),
        (("face_yolov8n.pt", "face_yolov8n"), ["face_yolov8n.pt"]),
        (("FLUX.1-dev/vae",), ["FLUX.1-dev/vae/config.json", "FLUX.1-dev/vae/diffusion_pytorch_model.safetensors"]),
        (("*-seg",), ["person_yolov8n-seg.pt", "person_yolov8s-seg.pt"]),
    ],
)
def test_names_stand_for_models_parts_files_and_patterns(names: tuple[str, ...], files: list[str]) -> None:
    assert [file.local for file in choose_files(names)] == files


# Where a model is looked for


def test_the_folder_of_the_weights_comes_before_the_cache(settings: Settings, cache: Path) -> None:
    ours = install(settings, "face_yolov8n.pt", PICKLE)
    put_into_cache(cache, "Bingsu/adetailer", "face_yolov8n.pt", PICKLE)
    assert resolve("face_yolov8n", settings) == resolve("face_yolov8n.pt", settings) == ours


def test_the_cache_of_the_hub_is_looked_into(settings: Settings, cache: Path) -> None:
    cached = put_into_cache(cache, "uwg/upscaler", "ESRGAN/ESRGAN_4x.pth", PICKLE)
    with pytest.raises(WeightsError, match="whose checksum is not in the lock"):
        resolve("ESRGAN_4x", settings)
    write_lock(
        settings.weights_path, {"ESRGAN_4x.pth": LockedFile(len(PICKLE), sha256(PICKLE), "uwg/upscaler", COMMIT)}
    )
    assert resolve("ESRGAN_4x", settings) == resolve_file("upscaler", "ESRGAN_4x.pth", (), settings) == cached


def test_a_pipeline_is_found_in_the_cache_as_a_folder_if_all_of_it_is_there(settings: Settings, cache: Path) -> None:
    (files,) = manifest_files(("FLUX.1-schnell",), 1000).values()
    for path, content in files.items():
        written = put_into_cache(cache, "black-forest-labs/FLUX.1-schnell", path, content)
    folder = resolve_model(replace(settings, model="FLUX.1-schnell"))
    assert (
        folder == cache / "models--black-forest-labs--FLUX.1-schnell" / "snapshots" / COMMIT
        and written.is_relative_to(folder)
    )
    written.unlink()
    with pytest.raises(
        WeightsError, match=f"^FLUX.1-schnell/model_index.json and {len(files) - 1} more files: neither under"
    ):
        resolve_model(replace(settings, model="FLUX.1-schnell"))


def test_a_missing_model_says_which_file_where_and_what_to_do(settings: Settings, cache: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        resolve("hand_yolov8n.pt", settings)
    assert (
        str(caught.value)
        == "hand_yolov8n.pt: neither under weights/ nor in the hub's cache; scripts/fetch-weights --only hand_yolov8n downloads it"
    )
    with pytest.raises(WeightsError, match=r"is no model of weights/manifest.json \(did you mean 'face_yolov8s'"):
        resolve("face_yolov8", settings)


def test_nothing_is_downloaded_unless_the_settings_say_so(
    settings: Settings, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = LocalHub(manifest_files(("face_yolov8n",), 0))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("FLUX_WEIGHTS_DIR", settings.weights_dir)
    with pytest.raises(WeightsError, match="downloads it"):
        resolve("face_yolov8n", settings)
    assert hub.requests == []
    found = resolve("face_yolov8n", replace(settings, allow_downloads=True))
    assert found.read_bytes() == hub.repositories["Bingsu/adetailer"]["face_yolov8n.pt"]
    hub.repositories.clear()
    with pytest.raises(WeightsError, match="^hand_yolov8n.pt: neither under weights"):
        resolve("hand_yolov8n", replace(settings, allow_downloads=True))
    hub.close()


# What is held against the lock


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: content[:-1], "bytes in place of"),
        (lambda content: content[:-1] + b"?", "has the right size and other content"),
        (lambda content: b"<html>", "is a web page in place of the file"),
    ],
)
def test_a_file_that_is_not_what_was_installed_stops_set_up(settings: Settings, damage: object, says: str) -> None:
    path = install(settings, "ESRGAN_4x.pth", PICKLE)
    assert resolve_file("upscaler", "auto", ("ESRGAN_4x.pth",), settings) == path
    path.write_bytes(damage(PICKLE))  # type: ignore[operator]
    with pytest.raises(WeightsError, match=f"^ESRGAN_4x.pth: .*{says}"):
        resolve_file("upscaler", "auto", ("ESRGAN_4x.pth",), settings)


def test_any_flipped_byte_of_a_locked_family_stops_set_up(settings: Settings) -> None:
    folder = settings.weights_path / "FLUX.1-dev"
    shutil.copytree(EMBEDDED / "flux", folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    lock = {
        path.relative_to(folder.parent).as_posix(): LockedFile(path.stat().st_size, sha256(path.read_bytes()))
        for path in files
    }
    write_lock(settings.weights_path, lock)
    assert resolve_model(settings) == folder
    for path in files:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=path.relative_to(folder.parent).as_posix()):
            checked_folder(folder, settings)
        content[-1] ^= 1
        path.write_bytes(content)
    files[0].unlink()
    with pytest.raises(WeightsError, match="is missing; delete it and run|is missing; restore it"):
        checked_folder(folder, settings)


def test_a_large_file_is_read_whole_by_the_check_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """33 GB would take longer to hash than to load."""
    monkeypatch.setattr(weights, "READ_WHOLE", 10)
    file = tmp_path / "spiece.model"
    file.write_bytes(b"a longer content")
    lock = {"spiece.model": LockedFile(16, sha256(b"a better content"))}
    check_file("spiece.model", file, lock)
    with pytest.raises(WeightsError, match="other content"):
        check_file("spiece.model", file, lock, whole=True)


def test_a_pickle_needs_a_pinned_checksum_and_safetensors_do_not(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUX_WEIGHTS_DIR", settings.weights_dir)
    mine = settings.weights_path / "mine.pth"
    mine.write_bytes(PICKLE)
    with pytest.raises(WeightsError, match="scripts/fetch-weights --trust FILE adds it; safetensors need none"):
        resolve_file("upscaler", "mine.pth", (), settings)
    assert fetch_command(["--trust", str(mine)]) == 0
    assert resolve_file("upscaler", "mine.pth", (), settings) == mine
    mine.write_bytes(PICKLE + b"!")
    with pytest.raises(WeightsError, match="bytes in place of"):
        resolve_file("upscaler", "mine.pth", (), settings)
    copied = tmp_path / "elsewhere.pth"
    copied.write_bytes(PICKLE)
    assert resolve_file("upscaler", str(copied), (), settings) == copied, "trusted by its bytes, wherever it lies"
    shutil.copy(EMBEDDED / "upscaler.safetensors", settings.weights_path / "free.safetensors")
    assert resolve_file("upscaler", "free.safetensors", (), settings).name == "free.safetensors"


def test_a_pickle_is_told_by_its_content(settings: Settings) -> None:
    for name in ("a.pth", "a.bin", "a", "a.txt"):
        (settings.weights_path / name).write_bytes(PICKLE)
        with pytest.raises(WeightsError, match="is a pickle"):
            resolve_file("upscaler", name, (), settings)


@pytest.mark.parametrize(
    ("name", "task", "classes", "right"),
    [
        ("hand_yolov8n.pt", "detect", ["hand"], True),
        ("hand_yolov8n.safetensors", "detect", ["face"], False),
        ("face_yolov8s.pt", "segment", ["face"], False),
        ("person_yolov8n-seg.pt", "segment", ["person"], True),
        ("person_yolov8n-seg.pt", "detect", ["person"], False),
        ("yolov8x-worldv2.pt", "detect", ["person", "bicycle"], True),
        ("my_own.pt", "detect", ["cat"], True),
    ],
)
def test_a_detector_is_what_its_name_says(name: str, task: str, classes: list[str], right: bool) -> None:
    if right:
        require_detector(name, task, classes)
    else:
        with pytest.raises(WeightsError, match=f"^{name}: is a network to {task}"):
            require_detector(name, task, classes)


def test_the_converted_form_is_used_only_of_the_same_bytes(settings: Settings) -> None:
    pickled = install(settings, "ESRGAN_4x.pth", PICKLE)
    assert safe_form(pickled, settings) == pickled
    converted = settings.weights_path / "ESRGAN_4x.safetensors"
    shutil.copy(EMBEDDED / "upscaler.safetensors", converted)
    assert safe_form(pickled, settings) == pickled, "one that nobody converted"
    entry = LockedFile(converted.stat().st_size, sha256(converted.read_bytes()), made_from=sha256(PICKLE))
    write_lock(settings.weights_path, {**read_lock(settings.weights_path), converted.name: entry})
    assert safe_form(pickled, settings) == converted
    write_lock(
        settings.weights_path, {**read_lock(settings.weights_path), converted.name: replace(entry, made_from="another")}
    )
    assert safe_form(pickled, settings) == pickled


def test_the_checks_at_start_import_neither_torch_nor_the_hubs_library() -> None:
    code = (
        "import sys; import backend.weights.resolver; print([name for name in ('torch', 'huggingface_hub', 'numpy') "
        "if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "[]"


def test_a_name_of_a_file_finds_its_model() -> None:
    assert find_model("4x-UltraSharp.pth") is find_model("4x-UltraSharp") is not None
    assert find_model("face") is None
