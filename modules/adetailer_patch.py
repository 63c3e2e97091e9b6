"""Other people's code that asks for a detector by name, in this process, gets the local file instead of a download.

This package finds its detectors by path and needs nothing of this. But a node or an extension that was written for
ADetailer says ``hf_hub_download("Bingsu/adetailer", "face_yolov8n.pt")`` or ``YOLO("face_yolov8n.pt")``, and would ask
the network for a file that is here already, or fail where there is no network. Neither library can be told where its
files are, so three of their functions are replaced: the set-up calls :func:`redirect_detectors` once, and ``undo()`` of
what it returns puts the originals back. Nothing is replaced when this module is imported.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable
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
    """Replaces the functions from :meth:`apply` to :meth:`undo`. ``avoided`` counts the look-ups by detector that would
    have asked the network."""

    def __init__(self, settings: Settings) -> None:
        self.avoided: Counter[str] = Counter()
        self._settings = settings
        self._replaced: list[tuple[Function, Function]] = []

    def apply(self) -> None:
        """Needs ultralytics' variables to be set (``offline_ultralytics``), since it imports it."""
        from huggingface_hub import file_download
        from ultralytics.utils import checks, downloads

        _replace(
            [
                self._redirect(file_download.hf_hub_download, self._hub_download),
                self._redirect(downloads.attempt_download_asset, self._asset),
                self._redirect(checks.check_file, self._checked_file),
            ]
        )

    def undo(self) -> None:
        """Puts the originals back, wherever they had been imported to. What others have replaced since stays theirs."""
        while self._replaced:
            replacement, original = self._replaced.pop()
            _replace([(replacement, original)])

    def _redirect(self, current: Function, redirected: Callable[..., Any]) -> tuple[Function, Function]:
        """The function that is there now, and what takes its place."""
        # a second set-up starts from the original again, not from what the first one put in its place
        original = getattr(current, "__redirected_from__", current)

        @wraps(original)
        def replacement(*arguments: Any, **options: Any) -> Any:
            return redirected(original, *arguments, **options)

        replacement.__redirected_from__ = original  # type: ignore[attr-defined]
        self._replaced.append((replacement, original))
        return current, replacement

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
        self.avoided[model.name] += 1
        logger.debug("%s: the local file instead of a look-up", model.name)
        return found


def redirect_detectors(settings: Settings) -> Redirection:
    """Redirects every look-up of a detector to its local file, until ``undo()`` of what it returns is called. Call it
    after ``offline_ultralytics``."""
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


def _replace(changes: Iterable[tuple[Function, Function]]) -> None:
    """Replaces the first function of every pair by the second, in every module that has imported it by name."""
    by_identity = {id(current): replacement for current, replacement in changes}
    for module in [module for module in sys.modules.values() if hasattr(module, "__dict__")]:
        if by_identity.keys().isdisjoint(map(id, vars(module).values())):
            continue
        for name, value in list(vars(module).items()):
            if id(value) in by_identity:
                setattr(module, name, by_identity[id(value)])
