"""From inputs to a request, checked against what is installed.

The worker does it before its models run. The gateway (``modules/gateway``) does it before the worker sees a request: it
reads what is installed from a file that the worker writes at the end of its set-up. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from backend.api.input_schema import InputSchema
from modules.detection.classes import ClassSet
from modules.diffusion.profile import ModelProfile
from modules.extension_optimizer import Selection
from modules.lora.files.sources import LoraSources
from modules.pipeline.stages import STAGES
from modules.request.defaults import STUDIO, Defaults
from modules.request.image_request import ImageRequest
from modules.request.infotext import Filled, Targets, filled_in, is_infotext
from modules.request.parser import build_request

INSTALLED_FILE = "installed.json"
"""In the scratch folder of a worker whose set-up has finished."""


@dataclass(frozen=True)
class Installed:
    """What decides which inputs can be honoured, beside their types and ranges.

    Attributes:
        profile: The model, and what its family honours.
        detectors: By name, the default one first.
        upscalers: Their names, the default one first.
        restores_faces: Whether a network for faces is installed.
        disabled: The features that settings turn off, each with the setting that says so.
        missing: Models whose files are not installed.
        defaults: What a request gets that leaves inputs out.
        left_out: Why other files cannot be used, by the names that inputs would give them.
        lora_sources: Where a LoRA may come from.
    """

    profile: ModelProfile
    detectors: Mapping[str, ClassSet]
    upscalers: tuple[str, ...]
    restores_faces: bool
    disabled: Mapping[str, str]
    missing: frozenset[str]
    defaults: Defaults = STUDIO
    left_out: Mapping[str, str] = field(default_factory=dict)
    lora_sources: LoraSources = field(default_factory=LoraSources)

    def to_json(self) -> bytes:
        return _as_json().dump_json(self)

    @classmethod
    def from_json(cls, text: bytes) -> Installed:
        """Raises ``ValueError`` for what :meth:`to_json` has not written."""
        return _as_json().validate_json(text)


@cache
def _as_json() -> TypeAdapter[Installed]:  # only servers write it down
    return TypeAdapter(Installed)


@dataclass(frozen=True)
class InputChecks:
    """Makes requests of inputs, for one set-up."""

    schema: InputSchema
    extensions: Selection
    installed: Installed

    @classmethod
    def of(cls, installed: Installed) -> InputChecks:
        """Those of a service that has the inputs of ``predict.py`` and all stages."""
        return cls(InputSchema(), Selection(STAGES, installed.disabled, (), installed.missing), installed)

    def request(self, inputs: Mapping[str, Any]) -> ImageRequest:
        """The request that the inputs ask for; those left out have their default, files are given as ``Path``.

        Raises :class:`backend.core.errors.InputError` for inputs that cannot be honoured.
        """
        # the server lets 2.0 through for a whole number; here it becomes one
        values = self.schema.validate(inputs)
        notices: list[str] = []
        if is_infotext(str(values["prompt"])):  # the server fills in defaults, so a default counts as left out
            given = {name: value for name, value in values.items() if value != self.schema.defaults.get(name)}
            filled = self.filled_in(str(given.pop("prompt")))
            values, notices = self.schema.validate(filled.under(given)), filled.notices
        wanted = self.extensions.turn_off(values, self.schema.defaults)
        has = self.installed
        request = build_request(
            wanted,
            has.profile,
            has.detectors,
            has.upscalers,
            has.restores_faces,
            has.defaults,
            has.left_out,
            has.lora_sources,
        )
        return replace(
            request, stage_options=self.extensions.stage_options(wanted), notices=(*notices, *request.notices)
        )

    def filled_in(self, infotext: str) -> Filled:
        """The inputs that a WebUI's text of parameters names, as far as they can be honoured here."""
        has = self.installed
        return filled_in(
            infotext, Targets(has.profile, has.detectors, has.upscalers, self.schema.properties, has.lora_sources)
        )
