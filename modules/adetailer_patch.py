"""Whoever asks for a detector of the manifest by name, in this process, gets the local file; nobody asks the network.

The package itself finds its detectors by path. Other people's code says ``YOLO("face_yolov8n.pt")`` or
``hf_hub_download("Bingsu/adetailer", "face_yolov8n.pt")``, and would download what is already here.
:func:`redirect_detectors` is called once in set-up and steers these three functions, wherever they have been imported
to; it can be undone.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from backend.core.settings import Settings
from backend.weights.catalog import Model, find_model, read_manifest
from backend.weights.resolver import resolve

logger = logging.getLogger(__name__)

Function = Callable[..., Any]
REMOTE = ("http:/", "https:/")


class Redirection:
    """The functions that are steered, from :meth:`apply` to :meth:`undo`. ``spared`` counts the look-ups that would
    have asked the network."""

    def __init__(self, settings: Settings) -> None:
        self.spared: Counter[str] = Counter()
        self._settings = settings
        self._steered: list[tuple[Function, Function]] = []

    def apply(self) -> None:
        """Needs ultralytics' variables to be set (``offline_ultralytics``), since it imports it."""
        from huggingface_hub import file_download
        from ultralytics.utils import checks, downloads

        self._steer(file_download.hf_hub_download, self._hub_download)
        self._steer(downloads.attempt_download_asset, self._asset)
        self._steer(checks.check_file, self._checked_file)

    def undo(self) -> None:
        """Puts the functions back. What others have replaced since stays theirs."""
        while self._steered:
            replacement, original = self._steered.pop()
            _replace(replacement, original)

    def _steer(self, current: Function, steered: Callable[..., Any]) -> None:
        original = getattr(
            current, "__steered_from__", current
        )  # a second set-up steers anew, and not what the first one left

        @wraps(original)
        def replacement(*arguments: Any, **options: Any) -> Any:
            return steered(original, *arguments, **options)

        replacement.__steered_from__ = original  # type: ignore[attr-defined]
        _replace(current, replacement)
        self._steered.append((replacement, original))

    def _hub_download(self, original: Function, repo_id: str, filename: str, *arguments: Any, **options: Any) -> Any:
        path = f"{options['subfolder']}/{filename}" if options.get("subfolder") else filename
        models = (model for model in read_manifest().values() if model.detector and model.repository == repo_id)
        model = next((model for model in models if any(file.path == path for file in model.files)), None)
        return self._local(model) if model else original(repo_id, filename, *arguments, **options)

    def _asset(self, original: Function, file: str | Path, *arguments: Any, **options: Any) -> Any:
        model = detector_asked_for(str(file))
        return self._local(model) if model else original(file, *arguments, **options)

    def _checked_file(self, original: Function, file: str | Path, *arguments: Any, **options: Any) -> Any:
        model = detector_asked_for(str(file)) if str(file).lower().startswith(REMOTE) else None
        return self._local(model) if model else original(file, *arguments, **options)

    def _local(self, model: Model) -> str:
        """Raises :class:`~backend.core.errors.WeightsError` when it is missing and may not be downloaded."""
        found = str(resolve(model.name, self._settings))
        self.spared[model.name] += 1
        logger.debug("%s: the local file, in place of a look-up", model.name)
        return found


def redirect_detectors(settings: Settings) -> Redirection:
    """Steers every look-up of a detector to its local file. Call it after ``offline_ultralytics``; ``undo()`` of
    what it returns ends it."""
    redirection = Redirection(settings)
    redirection.apply()
    return redirection


def detector_asked_for(text: str) -> Model | None:
    """The detector of the manifest that a name, a path or an address means. A file that lies where a path with a
    folder says is not looked up."""
    address = text.strip().lower().startswith(REMOTE)
    path = PurePosixPath(unquote(urlsplit(text).path)) if address else PurePosixPath(text.strip())
    if not address and len(path.parts) > 1 and Path(path).is_file():
        return None
    model = find_model(path.name)
    return model if model and model.detector else None


def _replace(current: Function, replacement: Function) -> None:
    """In every module that has imported the function by name."""
    for module in [module for module in sys.modules.values() if hasattr(module, "__dict__")]:
        for name in [name for name, value in list(vars(module).items()) if value is current]:
            setattr(module, name, replacement)
