"""``scripts/convert-weights``: converts pickles to safetensors once, so that no server unpickles them again.

It reads with the restricted loaders, writes beside the pickle, and keeps the result only when it loads to exactly the
same weights.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]

from backend.checkpoints.file_type import digest, is_pickle
from backend.core.errors import UserError, WeightsError
from backend.core.files import write_atomic
from backend.core.settings import Settings, load_settings
from backend.weights.catalog import find_model, read_manifest
from backend.weights.lockfile import LockedFile, exclusive, read_lock, write_lock
from backend.weights.resolver import checked_file
from modules.cli.command import BAD_INPUT, FAILED, CommandParser, exit_with

if TYPE_CHECKING:  # --help needs no torch
    import torch

logger = logging.getLogger(__name__)

Files = Mapping[str, bytes]
"""The files of a conversion by suffix."""


def convert(path: Path, settings: Settings) -> list[Path]:
    """Writes ``NAME.safetensors`` (and a detector's ``NAME.yaml``) beside a pickle under ``weights/`` and adds them to
    the lock.

    Raises :class:`WeightsError` for a file that is not as it was installed, or that cannot be written as safetensors.
    """
    if path.parent != settings.weights_path:
        raise WeightsError(
            f"{path.name}: is not in the folder of the weights; put it there, so that the result is found"
        )
    checked_file(path, settings)
    if not is_pickle(path):
        raise WeightsError(f"{path.name}: is not a pickle; there is nothing to convert")
    files = convert_detector(path) if is_detector(path) else convert_upscaler(path)
    targets = [path.with_suffix(suffix) for suffix in files]
    with exclusive(settings.weights_path):
        _install(path, targets, list(files.values()), settings)
    return targets


def _install(path: Path, targets: Sequence[Path], contents: Sequence[bytes], settings: Settings) -> None:
    """Writes the files beside the pickle, once they have loaded to the same weights."""
    lock = read_lock(settings.weights_path)
    if foreign := [target.name for target in targets if target.exists() and target.name not in lock]:
        raise WeightsError(f"{foreign[0]}: exists already and is not a conversion; move it away and run this again")
    original = digest(path)
    with tempfile.TemporaryDirectory(dir=settings.weights_path, prefix=".convert-") as folder:
        trial = [Path(folder, target.name) for target in targets]
        for file, content in zip(trial, contents):
            file.write_bytes(content)
        require_equal(path, trial[0])
        entries = {file.name: LockedFile(file.stat().st_size, digest(file), made_from=original) for file in trial}
    write_lock(settings.weights_path, {**lock, **entries})
    for target, content in reversed(
        list(zip(targets, contents))
    ):  # the description first: weights never appear without it
        write_atomic(target, content)


def is_detector(path: Path) -> bool:
    """By the manifest, else by content: the pickle of an upscaler holds only tensors, that of a detector a network."""
    from modules.upscaling.tiled import load_upscaler_network

    model = find_model(path.name)
    if model:
        return model.detector is not None
    try:
        load_upscaler_network(path)
    except WeightsError:
        return True
    return False


def convert_upscaler(path: Path) -> Files:
    from safetensors.torch import save

    from modules.upscaling.tiled import load_upscaler_network

    return {".safetensors": save(halved_where_exact(load_upscaler_network(path).network.state_dict()))}


class _WithoutReferences(yaml.SafeDumper):  # type: ignore[misc]  # yaml is untyped
    """Writes out what stands in two places: no reference is read back."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def convert_detector(path: Path) -> Files:
    from safetensors.torch import save

    from modules.detection.yolo import load_detector_network, read_checkpoint

    load_detector_network(path)  # raises for anything but a detector
    network = read_checkpoint(path)
    names = network.names if isinstance(network.names, Mapping) else dict(enumerate(network.names))
    size = network.args["imgsz"]
    if type(network).__name__ not in ("DetectionModel", "SegmentationModel") or not isinstance(size, int):
        raise WeightsError(
            f"{path.name}: a {type(network).__name__} cannot be written as safetensors; it stays a pickle, pinned by "
            "its checksum"
        )
    task = "segment" if type(network).__name__ == "SegmentationModel" else "detect"
    description = {**network.yaml, "task": task, "names": [str(names[index]) for index in sorted(names)], "imgsz": size}
    text = yaml.dump(
        {key: value for key, value in description.items() if key != "yaml_file"},
        Dumper=_WithoutReferences,
        sort_keys=False,
        default_flow_style=None,
        width=160,
    )
    return {".safetensors": save(halved_where_exact(network.state_dict())), ".yaml": text.encode()}


def halved_where_exact(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In half precision where that changes no value: what was saved in half precision and is computed in float32."""
    import torch

    halves = {name: tensor.half() for name, tensor in tensors.items() if tensor.is_floating_point()}
    return {
        name: (halves[name] if name in halves and torch.equal(halves[name].float(), tensor) else tensor).contiguous()
        for name, tensor in tensors.items()
    }


def require_equal(pickled: Path, converted: Path) -> None:
    """Raises :class:`WeightsError` when the files do not load to the same weights."""
    import torch

    from modules.detection.yolo import load_detector_network
    from modules.upscaling.tiled import load_upscaler_network

    load: Any = load_detector_network if converted.with_suffix(".yaml").is_file() else load_upscaler_network
    ours, theirs = load(converted).state_dict(), load(pickled).state_dict()
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
        raise WeightsError(
            f"{pickled.name}: would not load to the same weights; it stays a pickle, pinned by its checksum"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts the named pickles, or those of the manifest that are installed; returns the exit status."""
    parser = CommandParser("scripts/convert-weights", "Converts pickles under weights/ to safetensors, beside them.")
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="a pickle under weights/; without any: those of the manifest that are there",
    )
    options = parser.parse_args(arguments)
    from modules.detection.yolo import offline_ultralytics

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    failed = 0
    try:
        settings = load_settings()
        known = [settings.weights_path / file.local for model in read_manifest().values() for file in model.files]
        chosen = options.files or [path for path in known if path.is_file() and is_pickle(path)]
        with tempfile.TemporaryDirectory() as scratch:
            offline_ultralytics(Path(scratch))
            for path in chosen:
                try:
                    logger.info(
                        "ok %s", ", ".join(file.name for file in convert(settings.weights_path / path, settings))
                    )
                except WeightsError as error:
                    failed += 1
                    logger.info("kept %s", error)
    except UserError as error:
        logger.error("error: %s", error)
        return BAD_INPUT
    return FAILED if failed and options.files else 0


if __name__ == "__main__":
    exit_with(main)
