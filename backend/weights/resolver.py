"""Where the weight files are: under ``weights/``, else in the hub's cache. A file that is missing or wrong is an error
that names it.

Nothing is downloaded here. Where the setting ``allow_downloads`` is on, ``python -m backend.weights`` downloads a
missing model in a process of its own, which checks every file before it installs it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from backend.checkpoints.file_type import check_content, digest, is_pickle
from backend.checkpoints.folder_files import PIPELINE_FILE, is_pipeline
from backend.checkpoints.foreign_files import foreign_content
from backend.core.errors import WeightsError, nearest
from backend.core.settings import ROOT, Settings
from backend.weights.catalog import Model, WeightFile, find_model, read_manifest
from backend.weights.lockfile import LockedFile, read_lock

EMBEDDED = "embedded"

PLAIN_TEXTS = frozenset((".json", ".md", ".txt", ".yaml", ".model", ".jinja"))
"""How the names of files end that are no weights."""
READ_WHOLE = 2**28
"""Files up to this size (bytes) are hashed at every start; of larger ones only size and header are checked.
``scripts/fetch-weights --check`` hashes all."""
ONLINE: Mapping[str, str] = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_VERBOSITY": "error"}
"""Environment in which the hub's library may go online; it reads it when it is imported."""


def resolve_model(settings: Settings) -> Path:
    """The diffusers folder or single-file checkpoint that the setting ``model`` asks for, checked.

    "auto" is the first under ``weights/`` of those that the manifest has for it, "embedded" the small one of our own,
    anything else a name under ``weights/``, a path, or a model of the manifest. Raises :class:`WeightsError` when it
    is not there or not what was installed.
    """
    weights = settings.weights_path
    embedded = weights / EMBEDDED / "flux"
    if settings.model == EMBEDDED:
        return embedded
    if settings.model == "auto":
        preferred = (weights / model.name for model in read_manifest().values() if model.auto)
        found = next((folder for folder in preferred if is_pipeline(folder)), None)
        return checked_folder(found, settings) if found else embedded
    return _resolve_place("model", settings.model, settings)


def resolve_base(settings: Settings) -> Path:
    """Where the setting ``base_model`` points, checked: as ``model``, and also a folder in which every part is a file
    of its own."""
    if settings.base_model in ("auto", EMBEDDED):
        return resolve_model(replace(settings, model=settings.base_model))
    return _resolve_place("base_model", settings.base_model, settings)


def _resolve_place(key: str, wanted: str, settings: Settings) -> Path:
    places = (settings.weights_path / wanted, ROOT / wanted, Path(wanted).expanduser())
    for path in places:
        if is_pipeline(path):
            return checked_folder(path, settings)
        if path.is_file():
            return checked_model_file(path, key, settings)
    if find_model(wanted):
        return resolve(wanted, settings)
    if cached := _pipeline_in_cache(wanted):
        return cached
    folder = next(filter(Path.is_dir, places), None)
    if folder and wanted:
        return folder
    raise WeightsError(
        f"{key} '{wanted}' in config_optimized.json is neither a file nor a folder nor a pipeline in the hub's cache; "
        "give 'auto', 'embedded', a name under weights/, a path, or the id of a repository that was downloaded before "
        "(hf download ID)"
    )


def checked_model_file(path: Path, key: str, settings: Settings) -> Path:
    """A file for the setting ``key``, which has to hold tensors and nothing that could run code. Raises
    :class:`WeightsError`, which says what it is instead."""
    if what := foreign_content(path):
        raise WeightsError(f"{path.name}: is {what}; '{key}' takes a folder, or a file of safetensors or GGUF")
    if is_pickle(path):
        raise WeightsError(
            f"{path.name}: is a pickle of torch, as .ckpt, .pt and .pth files are, and '{key}' takes none; get the "
            "same model as .safetensors"
        )
    return checked_file(path, settings)


def resolve_file(
    key: str, wanted: str, preferred: Sequence[str], settings: Settings, *, tensors_only: bool = False
) -> Path:
    """The file for a setting such as ``upscaler``, checked by :func:`checked_file`: "auto" takes the first of
    ``preferred`` that lies under ``weights/``."""
    names = preferred if wanted == "auto" else (wanted,)
    for name in names:
        for path in (settings.weights_path / name, settings.weights_path / EMBEDDED / name, Path(name).expanduser()):
            if path.is_file():
                return checked_file(path, settings, tensors_only=tensors_only)
    if wanted != "auto" and find_model(wanted):
        return resolve(wanted, settings)
    raise WeightsError(
        f"{key}: {' or '.join(names)} is not under weights/; put the file there or change '{key}' in "
        "config_optimized.json"
    )


def resolve(name: str, settings: Settings) -> Path:
    """A model of the manifest by its name, or by that of its file: its one file, or the folder of a pipeline, checked.

    Looks under ``weights/``, then in the hub's cache; then downloads where ``settings.allow_downloads`` says so. Raises
    :class:`WeightsError`, which names what is missing, where it was looked for, and the command that downloads it.
    """
    model = find_model(name)
    if model is None:
        raise WeightsError(f"{name}: is no model of weights/manifest.json{nearest(name, read_manifest())}")
    missing = _missing(model, settings)
    if missing:
        cached = _in_cache(model, settings)
        if cached:
            return cached
        if settings.allow_downloads:
            _download(model, settings.weights_path)
            missing = _missing(model, settings)
    if missing:
        more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
        raise WeightsError(
            f"{missing[0].local}{more}: neither under weights/ nor in the hub's cache; scripts/fetch-weights --only "
            f"{model.name} downloads it"
        )
    lock = read_lock(settings.weights_path)
    for file in model.files:
        check_file(file.local, settings.weights_path / file.local, lock, tensors_only=not model.detector)
    return settings.weights_path / (model.files[0].local if len(model.files) == 1 else model.name)


def _pipeline_in_cache(repository: str) -> Path | None:
    """A pipeline that the hub's library downloaded before, by its repository's id. It is in no lock, so its files are
    checked as they are read."""
    if repository.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, PIPELINE_FILE)
    except HFValidationError:  # a path with one slash
        return None
    return Path(found).parent if isinstance(found, str) else None


def _missing(model: Model, settings: Settings) -> list[WeightFile]:
    return [file for file in model.files if not (settings.weights_path / file.local).is_file()]


def _in_cache(model: Model, settings: Settings) -> Path | None:
    """The model in the hub's cache, if all of it is there."""
    from huggingface_hub import try_to_load_from_cache

    lock = read_lock(settings.weights_path)
    found: dict[WeightFile, Path] = {}
    for file in model.files:
        revision = lock[file.local].revision if file.local in lock else file.revision
        path = try_to_load_from_cache(file.repository, file.path, revision=revision)
        if not isinstance(path, str):
            return None
        found[file] = Path(path)
    for file, path in found.items():
        check_file(file.local, path, lock)
    first = model.files[0]
    return found[first] if len(found) == 1 else found[first].parents[first.path.count("/")]


def _download(model: Model, folder: Path) -> None:
    """In a process of its own: this one never talks to a hub. What goes wrong is on standard error and in what is
    missing afterwards."""
    command = [sys.executable, "-P", "-m", "backend.weights", model.name, str(folder)]
    environment = {**os.environ, **ONLINE, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=False)


def checked_folder(folder: Path, settings: Settings) -> Path:
    """A pipeline's folder, after those of its files that are in the lock have been compared with it. Raises
    :class:`WeightsError`."""
    lock = read_lock(settings.weights_path)
    for local in lock:
        if local.startswith(f"{folder.name}/") and folder.parent == settings.weights_path:
            if not (settings.weights_path / local).is_file():
                raise WeightsError(f"{local}: is missing; {remedy(local)}")
            check_file(local, settings.weights_path / local, lock)
    return folder


def checked_file(path: Path, settings: Settings, *, tensors_only: bool = False) -> Path:
    """One file, checked by :func:`check_file`."""
    check_file(_local(path, settings), path, read_lock(settings.weights_path), tensors_only=tensors_only)
    return path


def _local(path: Path, settings: Settings) -> str:
    """What the lock calls a file."""
    inside = path.is_relative_to(settings.weights_path)
    return path.relative_to(settings.weights_path).as_posix() if inside else path.name


def is_vouched_for(path: Path, settings: Settings) -> bool:
    """Whether the file is part of the package, or somebody installed it with a checksum."""
    local = _local(path, settings)
    return local.startswith(f"{EMBEDDED}/") or local in read_lock(settings.weights_path)


def check_file(
    local: str, path: Path, lock: Mapping[str, LockedFile], *, whole: bool = False, tensors_only: bool = False
) -> None:
    """Compares a file with its suffix and the lock. A pickle must be in the lock, unless it is read by a loader that
    takes ``tensors_only``, and no code.

    Raises :class:`WeightsError`, which names the file.
    """
    if path.is_file() and (what := foreign_content(path)) and path.suffix.lower() not in PLAIN_TEXTS | {".onnx"}:
        raise WeightsError(f"{local}: is {what}")
    check_content(path, local)
    locked = lock.get(local)
    if locked:
        if path.stat().st_size != locked.bytes:
            raise WeightsError(
                f"{local}: has {path.stat().st_size:,} bytes in place of {locked.bytes:,}; {remedy(local)}"
            )
        if (whole or locked.bytes <= READ_WHOLE) and digest(path) != locked.sha256:
            raise WeightsError(f"{local}: has the right size and other content than was installed; {remedy(local)}")
    elif not tensors_only and is_pickle(path) and not is_trusted(digest(path), lock.values()):
        raise WeightsError(
            f"{local}: is a pickle whose checksum is not in the lock; if you know where it is from, "
            "scripts/fetch-weights --trust FILE adds it; "
            "safetensors need none"
        )


def is_trusted(sha256: str, files: Iterable[LockedFile]) -> bool:
    return any(file.sha256 == sha256 for file in files)


def remedy(local: str) -> str:
    """What to do about a file that is not right."""
    model = next(
        (model for model in read_manifest().values() if any(file.local == local for file in model.files)), None
    )
    return (
        f"delete it and run scripts/fetch-weights --only {model.name}"
        if model
        else "restore it, or scripts/fetch-weights --trust it anew"
    )


def safe_form(path: Path, settings: Settings) -> Path:
    """The file that ``scripts/convert-weights`` made of a pickle, where it exists and was made of these bytes; else the
    pickle itself."""
    lock, converted = read_lock(settings.weights_path), path.with_suffix(".safetensors")
    entry, original = lock.get(converted.name), lock.get(path.name)
    if (
        path.parent != settings.weights_path
        or not entry
        or not original
        or entry.made_from != original.sha256
        or not converted.is_file()
    ):
        return path
    if converted.with_suffix(".yaml").name in lock:
        checked_file(converted.with_suffix(".yaml"), settings)
    return checked_file(converted, settings)


def require_detector(name: str, task: str, classes: Iterable[str]) -> None:
    """Refuses a detector that is not what the manifest says of its file's name; an unknown name is accepted.

    Raises:
        WeightsError: A hand detector's file holds one of faces, say, or one that outlines where boxes are expected.
    """
    model = next(
        (model for model in read_manifest().values() if model.detector and model.name == Path(name).stem), None
    )
    if model is None or model.detector is None:
        return
    finds, wanted = set(classes), model.detector
    if task != wanted.task or (wanted.classes and finds != set(wanted.classes)):
        raise WeightsError(
            f"{name}: is a network to {task} {', '.join(sorted(finds)[:5]) or 'nothing'}, and its name stands for one "
            f"to {wanted.task} {', '.join(wanted.classes) or 'anything'}; "
            f"scripts/fetch-weights --only {model.name} downloads the right one"
        )
