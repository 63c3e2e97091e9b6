"""Which optional features the service has. What the settings turn off is not imported, nor are its libraries, and its
models are neither planned nor loaded.

Everything here comes from what the features declare (:class:`~modules.pipeline.base.Feature`). ``disabled_extensions``
and ``disabled_scripts`` also accept the names of a WebUI: one that has a counterpart here turns that off, one that has
none is reported as not part of this package. Anything else is refused with the nearest known name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from backend.core.errors import InputError, SettingsError, nearest
from backend.core.settings import Settings
from backend.core.timeline import Timeline
from modules.pipeline.base import Feature, Stage
from modules.pipeline.stages import STAGES
from modules.prompting.prompt_upsampler import PromptUpsampler
from modules.webui_names import FORGE_EXTENSIONS, FORGE_SCRIPTS

EXTENSIONS_KEY, SCRIPTS_KEY = "disabled_extensions", "disabled_scripts"


def optional_features(stages: Iterable[type[Stage]] = STAGES) -> dict[str, type[Feature]]:
    """What can be turned off, by name, in the order in which a prediction passes through it."""
    return {
        PromptUpsampler.name: PromptUpsampler,
        **{stage.name: stage for stage in stages if not stage.required},
    }


EXTENSIONS: Mapping[str, type[Feature]] = MappingProxyType(optional_features())
"""The optional features of this package by name."""


@dataclass(frozen=True)
class Selection:
    """The features of a service.

    Attributes:
        stages: All stages, in order.
        disabled: The features that are turned off, each with the setting that says so.
        foreign: Names in these settings that have no counterpart here.
        missing: Models whose files are not installed.
    """

    stages: tuple[type[Stage], ...]
    disabled: Mapping[str, str]
    foreign: tuple[str, ...] = ()
    missing: frozenset[str] = frozenset()

    @property
    def features(self) -> Mapping[str, type[Feature]]:
        """What can be turned off, by name."""
        return optional_features(self.stages)

    def without(self, missing: Iterable[str]) -> Selection:
        """The selection where the files of these models are missing."""
        return replace(self, missing=frozenset(missing))

    def is_enabled(self, feature: type[Feature]) -> bool:
        """Whether the feature is not turned off and has all of its models."""
        return feature.name not in self.disabled and not self.missing.intersection(feature.models)

    @property
    def enabled(self) -> tuple[str, ...]:
        """The names of the optional features that the service has."""
        return tuple(name for name, feature in self.features.items() if self.is_enabled(feature))

    @property
    def enabled_stages(self) -> tuple[type[Stage], ...]:
        """The stages that the service has, required ones included."""
        return tuple(stage for stage in self.stages if self.is_enabled(stage))

    @property
    def unused_models(self) -> frozenset[str]:
        """The models that no enabled feature borrows."""
        features = self.features.values()
        used = {model for one in features if self.is_enabled(one) for model in (*one.models, *one.optional_models)}
        return frozenset(model for one in features for model in (*one.models, *one.optional_models)) - used

    def unused_settings(self, settings: Settings) -> tuple[str, ...]:
        """The settings that are changed from their default, and that only features read that are turned off."""
        features = self.features
        used = {name for one in features.values() if one.name not in self.disabled for name in one.settings}
        unused = {name for off in self.disabled for name in features[off].settings} - used
        changed = [field.name for field in fields(settings) if getattr(settings, field.name) != field.default]
        return tuple(name for name in changed if name in unused)

    def import_libraries(self, timeline: Timeline, scratch: Path) -> None:
        """Imports the libraries of every enabled feature, each in its own span of the timeline."""
        for name in self.enabled:
            with timeline.span(name):
                self.features[name].import_libraries(scratch)

    def turn_off(self, inputs: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs with every feature switched off that the service does not have.

        A default does not count as asking for a feature. Raises :class:`InputError` for an input that asks for one.
        """
        result = dict(inputs)
        for feature in self.features.values():
            if self.is_enabled(feature) or not feature.inputs:
                continue
            off = {name: defaults[name] for name in feature.inputs}
            switch = feature.inputs[0]
            off[switch] = feature.off
            asking = [name for name in off if inputs[name] not in (off[name], defaults[name])]
            if asking and inputs[switch] != feature.off:
                raise InputError(asking[0], self._refusal(feature))
            result |= off
        return result

    def stage_options(self, inputs: Mapping[str, Any]) -> dict[str, object]:
        """What the request keeps for the enabled stages, by their names."""
        options = {stage.name: stage.options(inputs) for stage in self.enabled_stages}
        return {name: value for name, value in options.items() if value is not None}

    def report(self, import_seconds: Mapping[str, float], load_seconds: Mapping[str, float]) -> str:
        """One line for each feature: whether it is here, and the seconds for importing its libraries and for loading
        its models. A model counts for the first feature that borrows it."""
        lines = [f"{'extension':<28} {'imports s':>9} {'models s':>8}"]
        counted: set[str] = set()
        for name, feature in self.features.items():
            if not self.is_enabled(feature):
                lines.append(f"{name:<28} off: {self._reason(feature)}")
                continue
            models = {*feature.models, *feature.optional_models} - counted
            counted |= models
            seconds = sum(load_seconds.get(model, 0.0) for model in models)
            lines.append(f"{name:<28} {import_seconds.get(name, 0.0):>9.2f} {seconds:>8.2f}")
        return "\n".join([*lines, *(f"{name:<28} not part of this package" for name in self.foreign)])

    def _reason(self, feature: type[Feature]) -> str:
        """Why a feature is off: the setting, or the models that are missing."""
        missing = [model for model in feature.models if model in self.missing]
        return self.disabled.get(feature.name) or f"no {', '.join(missing)} is installed"

    def _refusal(self, feature: type[Feature]) -> str:
        setting = self.disabled.get(feature.name)
        if setting is None:
            return feature.without_models
        return f"needs the stage '{feature.name}', which the setting '{setting}' turns off"


def select(settings: Settings, stages: Iterable[type[Stage]] = STAGES) -> Selection:
    """What the settings leave turned on. Raises :class:`SettingsError` for a name that neither this package nor Forge
    knows."""
    stages = tuple(stages)
    features = optional_features(stages)
    own = {alias: name for name, feature in features.items() for alias in (name, *feature.aliases)}
    disabled: dict[str, str] = {}
    foreign: list[str] = []
    for setting, given, forge in (
        (EXTENSIONS_KEY, settings.disabled_extensions, FORGE_EXTENSIONS),
        (SCRIPTS_KEY, settings.disabled_scripts, FORGE_SCRIPTS),
    ):
        for text in given:
            # scripts may be given as file names, and ADetailer's own name begins with an exclamation mark
            name = text.strip().removesuffix(".py").removeprefix("!")
            if name in own:
                disabled.setdefault(own[name], setting)
            elif name in forge:
                foreign.append(text)
            else:
                hint = nearest(name, [*own, *forge]) or f"; the stages here are {', '.join(features)}"
                raise SettingsError(f"{setting}: unknown name '{text}'{hint}")
    ordered = {name: disabled[name] for name in features if name in disabled}
    return Selection(stages, ordered, tuple(dict.fromkeys(foreign)))
