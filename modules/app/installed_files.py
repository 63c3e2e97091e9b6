"""How inputs become a request, known from the headers of the installed files before a model is loaded."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from backend.api.input_schema import InputSchema
from backend.core.settings import Settings
from modules.app.environment import set_environment
from modules.detection.packaged import class_sets
from modules.extension_optimizer import select
from modules.input_checks import InputChecks, Installed
from modules.request.defaults import DEFAULTS


def checks_before_loading(settings: Settings) -> InputChecks:
    """The checks that the service of these settings will make, but for classes that only a detector's weights say.

    Imports torch and reads the headers of files. Raises :class:`backend.core.errors.WeightsError` for what is missing.
    """
    selection = select(settings)
    set_environment(settings, os.environ, sys.modules)  # before torch is imported
    from modules.app.model_files import find_files, lora_sources
    from modules.detection.registry import stated_classes

    files = find_files(settings, selection)
    selection = selection.without(files.missing_models)
    outlines = files.sam2 is not None
    detectors = {name: replace(stated_classes(path), outlines=outlines) for name, path in files.detectors.items()}
    installed = Installed(
        files.profile,
        {**detectors, **class_sets(outlines)} if detectors else {},
        tuple(files.upscalers),
        files.face_restorer is not None,
        selection.disabled,
        selection.missing,
        DEFAULTS[settings.profile],
        files.left_out,
        lora_sources(settings),
    )
    return InputChecks(InputSchema(), selection, installed)
