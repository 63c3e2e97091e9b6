"""Which optional stages the service has. What the settings turn off is never imported, nor are its libraries, and its
models are neither planned nor read.

``disabled_extensions`` and ``disabled_scripts`` also take the names that a WebUI's settings hold: one that has a
counterpart here turns that off, one that has none is listed as not part of this package, and anything else is refused
with the nearest known name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from backend.core.errors import InputError, SettingsError, nearest
from backend.core.settings import Settings
from backend.core.timeline import Timeline

EXTENSIONS_KEY, SCRIPTS_KEY = "disabled_extensions", "disabled_scripts"


@dataclass(frozen=True)
class Extension:
    """A stage that can be left out.

    ``bring`` imports what it needs; it gets a writable folder that lives as long as the process. ``models`` are those
    that it borrows from the cache. ``turned_off`` are the values of its inputs that ask nothing of it; the first input
    is its switch.
    """

    bring: Callable[[Path], None]
    models: tuple[str, ...]
    turned_off: Mapping[str, object]


def _bring_prompt_upsampler(scratch: Path) -> None:
    import backend.llm.language_model  # noqa: F401


def _bring_hires(scratch: Path) -> None:
    import spandrel  # noqa: F401 - so that its time is counted here and not with the models

    import modules.pipeline.hires  # noqa: F401


def _bring_adetailer(scratch: Path) -> None:
    from modules.detection.yolo import offline_ultralytics

    offline_ultralytics(scratch / "ultralytics")
    import ultralytics.nn.tasks  # noqa: F401

    import modules.pipeline.adetailer  # noqa: F401


def _bring_upscale(scratch: Path) -> None:
    import spandrel  # noqa: F401

    import modules.pipeline.upscale  # noqa: F401


EXTENSIONS: Mapping[str, Extension] = MappingProxyType(
    {
        "prompt_upsampler": Extension(_bring_prompt_upsampler, ("prompt_upsampler",), {"prompt_upsampling": False}),
        "hires": Extension(_bring_hires, ("upscaler",), {"enable_hr": False}),
        "adetailer": Extension(
            _bring_adetailer,
            ("detectors", "face_restorer"),
            {
                "adetailer": False,
                **dict.fromkeys(("ad_prompt", "ad_hands_prompt", "adetailer_args", "adetailer_args_hands"), ""),
            },
        ),
        "upscale": Extension(
            _bring_upscale, ("upscaler", "face_restorer"), {"scale": 1.0, "upscaler": "", "face_enhance": False}
        ),
    }
)
"""The optional stages by name, in the order in which a picture passes them."""

COUNTERPARTS: Mapping[str, str] = MappingProxyType({"hires_fix": "hires", "postprocessing_upscale": "upscale"})
"""Other names for them: the one that people use, and that of the WebUI's script."""

FORGE_EXTENSIONS = frozenset(
    """ScuNET SwinIR extra-options-section forge_legacy_preprocessors forge_preprocessor_inpaint
    forge_preprocessor_marigold forge_preprocessor_normalbae forge_preprocessor_recolor
    forge_preprocessor_reference forge_preprocessor_revision forge_preprocessor_tile forge_space_animagine_xl_31
    forge_space_birefnet forge_space_example forge_space_florence_2 forge_space_geowizard forge_space_iclight
    forge_space_idm_vton forge_space_illusion_diffusion forge_space_photo_maker_v2 forge_space_sapiens_normal
    mobile prompt-bracket-checker sd_forge_controlllite sd_forge_controlnet sd_forge_dynamic_thresholding
    sd_forge_fooocus_inpaint sd_forge_freeu sd_forge_ipadapter sd_forge_kohya_hrfix sd_forge_latent_modifier
    sd_forge_lora sd_forge_multidiffusion sd_forge_neveroom sd_forge_perturbed_attention sd_forge_sag
    sd_forge_stylealign soft-inpainting""".split()  # noqa: SIM905
)
"""The extensions that Forge comes with (lllyasviel/stable-diffusion-webui-forge, 2025-06)."""

FORGE_SCRIPTS = frozenset(
    """custom_code img2imgalt loopback outpainting_mk_2 poor_mans_outpainting postprocessing_codeformer
    postprocessing_focal_crop postprocessing_gfpgan postprocessing_upscale prompt_matrix prompts_from_file
    sd_upscale xyz_grid""".split()  # noqa: SIM905
)
"""Its scripts, without ``.py``."""


@dataclass(frozen=True)
class Selection:
    """``disabled`` has the stages that are off, each with the setting that says so; ``foreign`` the names without a
    counterpart here."""

    disabled: Mapping[str, str]
    foreign: tuple[str, ...] = ()

    @property
    def enabled(self) -> tuple[str, ...]:
        return tuple(name for name in EXTENSIONS if name not in self.disabled)

    @property
    def unused_models(self) -> frozenset[str]:
        """The models that only disabled stages would borrow."""
        used = {model for name in self.enabled for model in EXTENSIONS[name].models}
        return frozenset(model for name in self.disabled for model in EXTENSIONS[name].models if model not in used)

    def bring(self, timeline: Timeline, scratch: Path) -> None:
        """Imports the enabled stages with their libraries, each in a span of its own."""
        for name in self.enabled:
            with timeline.span(name):
                EXTENSIONS[name].bring(scratch)

    def turn_off(self, inputs: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs with every disabled stage switched off.

        A default does not count as asking for a stage. Raises :class:`InputError` for an input that does ask for one.
        """
        result = dict(inputs)
        for name, setting in self.disabled.items():
            off = EXTENSIONS[name].turned_off
            switch = next(iter(off))
            for field, nothing in off.items():
                asks = (
                    inputs[switch] != off[switch] or nothing is False
                )  # words alone ask nothing of a stage that is switched off
                if asks and inputs[field] not in (nothing, defaults[field]):
                    raise InputError(
                        field, f"needs the stage '{name}', which '{setting}' in config_optimized.json turns off"
                    )
            result |= off
        return result

    def report(self, seconds: Mapping[str, float], load_seconds: Mapping[str, float]) -> str:
        """One line an extension: whether it is here, the seconds of its imports, and those of reading its models
        (not counted twice)."""
        lines = [f"{'extension':<28} {'imports s':>9} {'models s':>8}"]
        counted: set[str] = set()
        for name, extension in EXTENSIONS.items():
            if name in self.disabled:
                lines.append(f"{name:<28} off: {self.disabled[name]}")
                continue
            models = sum(load_seconds.get(model, 0.0) for model in extension.models if model not in counted)
            counted.update(extension.models)
            lines.append(f"{name:<28} {seconds.get(name, 0.0):>9.2f} {models:>8.2f}")
        return "\n".join([*lines, *(f"{name:<28} not part of this package" for name in self.foreign)])


def select(settings: Settings) -> Selection:
    """What the settings leave on. Raises :class:`SettingsError` for a name that neither this package nor Forge
    knows."""
    disabled: dict[str, str] = {}
    foreign: list[str] = []
    for setting, names, known in (
        (EXTENSIONS_KEY, settings.disabled_extensions, FORGE_EXTENSIONS),
        (SCRIPTS_KEY, settings.disabled_scripts, FORGE_SCRIPTS),
    ):
        for given in names:
            name = _own_name(given)
            if name in EXTENSIONS:
                disabled.setdefault(name, setting)
            elif name in known:
                foreign.append(given)
            else:
                raise SettingsError(f"{setting}: unknown name '{given}'{_suggestion(name, known)}")
    return Selection({name: disabled[name] for name in EXTENSIONS if name in disabled}, tuple(dict.fromkeys(foreign)))


def _own_name(given: str) -> str:
    """As this package calls it; scripts may be given as file names, and ADetailer's own begins with an exclamation
    mark."""
    name = given.strip().removesuffix(".py").removeprefix("!")
    return COUNTERPARTS.get(name, name)


def _suggestion(name: str, known: Iterable[str]) -> str:
    return nearest(name, [*EXTENSIONS, *COUNTERPARTS, *known]) or f"; the stages here are {', '.join(EXTENSIONS)}"
