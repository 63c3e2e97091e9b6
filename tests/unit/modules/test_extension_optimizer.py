"""Stages by name: what the settings turn off is not imported, not planned, not read, and asking for it is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from backend.api.input_schema import InputSchema
from backend.core.errors import InputError, SettingsError
from backend.core.settings import ROOT, Settings
from modules.extension_optimizer import EXTENSIONS, Selection, select
from modules.webui_names import FORGE_EXTENSIONS, FORGE_SCRIPTS

IMPORTS = {
    "hires": {"spandrel", "modules.upscaling.service"},
    "adetailer": {"ultralytics", "cv2", "modules.detection.service", "modules.adetailer.detail_pass"},
    "upscale": {"spandrel", "modules.upscaling.service"},
    "face_enhance": {"spandrel", "ultralytics", "modules.detection.service", "modules.face_restoration.service"},
    "safety_check": {"ultralytics", "modules.safety.networks", "modules.safety.service"},
}
"""What is imported for a feature, and for no other reason."""


def selected(*extensions: str, scripts: tuple[str, ...] = ()) -> Selection:
    return select(replace(Settings(), disabled_extensions=extensions, disabled_scripts=scripts))


def test_by_default_every_stage_is_there() -> None:
    assert selected().enabled == tuple(EXTENSIONS)
    assert selected().unused_models == frozenset()


def test_a_stage_is_known_by_its_name_and_by_those_that_webui_users_know() -> None:
    assert set(selected("upscale", "hires_fix").disabled) == {"upscale", "hires"}
    assert set(selected(scripts=("postprocessing_gfpgan.py",)).disabled) == {"face_enhance"}
    assert selected(scripts=("postprocessing_upscale.py", "!adetailer.py")).disabled == {
        "upscale": "disabled_scripts",
        "adetailer": "disabled_scripts",
    }


def test_a_name_of_the_webui_without_a_counterpart_is_listed_and_turns_nothing_off() -> None:
    selection = selected("sd_forge_freeu", "adetailer", scripts=("xyz_grid.py",))
    assert (set(selection.disabled), selection.foreign) == ({"adetailer"}, ("sd_forge_freeu", "xyz_grid.py"))
    report = selection.report({}, {}).splitlines()
    for line in (
        "sd_forge_freeu               not part of this package",
        "adetailer                    off: disabled_extensions",
    ):
        assert line in report


def test_every_name_that_forge_comes_with_turns_off_a_stage_or_is_listed() -> None:
    for name in FORGE_EXTENSIONS:
        selection = selected(name)
        assert (name in selection.foreign) != bool(selection.disabled), name
    for name in FORGE_SCRIPTS:
        selection = selected(scripts=(f"{name}.py",))
        assert (f"{name}.py" in selection.foreign) != bool(selection.disabled), name


@pytest.mark.parametrize(
    ("extensions", "scripts", "message"),
    [
        (("adetailler",), (), "disabled_extensions: unknown name 'adetailler' (did you mean 'adetailer'?)"),
        (("zzz",), (), "disabled_extensions: unknown name 'zzz'; the stages here are"),
        ((), ("sd_forge_sag",), "disabled_scripts: unknown name 'sd_forge_sag'"),
    ],
)
def test_an_unknown_name_is_refused(extensions: tuple[str, ...], scripts: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        selected(*extensions, scripts=scripts)
    assert str(caught.value).startswith(message)


def test_a_model_goes_only_when_no_stage_is_left_that_uses_it() -> None:
    assert selected("hires").unused_models == selected("upscale").unused_models == frozenset()
    assert selected("upscale", "hires").unused_models == {"upscaler"}
    assert selected("face_enhance").unused_models == selected("adetailer").unused_models == frozenset()
    assert selected("face_enhance", "adetailer").unused_models == {"detectors", "face_restorer"}


def test_a_stage_without_one_of_its_models_is_not_there_and_needs_no_other_model() -> None:
    selection = selected("adetailer").without({"face_restorer"})
    assert "face_enhance" not in selection.enabled and "detectors" in selection.unused_models
    assert "face_enhance                 off: no face_restorer is installed" in selection.report({}, {}).splitlines()


def test_a_changed_setting_that_nothing_reads_is_named() -> None:
    settings = replace(Settings(), disabled_extensions=("upscale",), upscaler="mine.pth", face_detector="mine.pt")
    assert select(settings).unused_settings(settings) == ()  # Hires fix reads the upscaler
    settings = replace(settings, disabled_extensions=("upscale", "hires", "adetailer"))
    assert select(settings).unused_settings(settings) == ("upscaler",)


def turned_off(selection: Selection, **changes: Any) -> dict[str, Any]:
    schema = InputSchema()
    return selection.turn_off(schema.validate({"prompt": "a fox", **changes}), schema.defaults)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("hires", {"enable_hr": True}),
        ("adetailer", {"ad_prompt": "a smile"}),
        ("adetailer", {"adetailer_args": '{"ad_confidence": 0.5}'}),
        ("upscale", {"scale": 4.0}),
        ("upscale", {"upscaler": "4x-UltraSharp"}),
        ("face_enhance", {"face_enhance": True}),
        ("prompt_upsampler", {"prompt_upsampling": True}),
    ],
)
def test_asking_for_a_disabled_stage_is_refused_and_names_the_setting(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        turned_off(selected(name), **changes)
    assert (
        str(caught.value)
        == f"{next(iter(changes))}: needs the stage '{name}', which the setting 'disabled_extensions' turns off"
    )
    assert turned_off(selected(), **changes) == InputSchema().validate({"prompt": "a fox", **changes})


def test_a_default_does_not_ask_for_a_disabled_stage() -> None:
    inputs = turned_off(selected(*EXTENSIONS))
    assert (inputs["adetailer"], inputs["scale"], inputs["enable_hr"], inputs["prompt"]) == (False, 1.0, False, "a fox")


def test_asking_for_a_stage_whose_models_are_missing_says_what_to_install() -> None:
    selection = selected().without({"face_restorer"})
    with pytest.raises(
        InputError, match="^face_enhance: no face restorer is installed; leave it out, or put GFPGANv1.4"
    ):
        turned_off(selection, face_enhance=True)
    assert turned_off(selection)["face_enhance"] is False


def test_words_for_a_stage_that_is_switched_off_anyway_are_no_request_for_it() -> None:
    assert turned_off(selected("adetailer"), adetailer=False, ad_prompt="a smile")["ad_prompt"] == ""


PREDICT = """
import json, sys
from dataclasses import replace
from backend.core.settings import Settings
from modules.app.service import start_process
service = start_process(replace(Settings(), model="embedded", disabled_extensions=tuple(sys.argv[1:])), served=False)
metrics = {}
files = service.predict({"prompt": "a portrait of a man", "num_inference_steps": 1, "megapixels": "0.25", "seed": 1}, metrics.__setitem__)
json.dump({
    "modules": [name for name in sys.modules if name.count(".") == 0 or name.startswith("modules.")],
    "models": service.models.names(),
    "detectors": list(service.detectors),
    "planned": list(service.runtime.plan.placements),
    "stages": [stage.name for stage in service.pipeline.stages],
    "spans": [span.path for span in service.timeline.spans],
    "files": len(files),
    "metrics": list(metrics),
}, sys.stdout)
"""


@pytest.mark.parametrize(
    "disabled",
    [
        pytest.param(("adetailer", "safety_check", "prompt_upsampler"), id="stages and language model"),
        pytest.param(("upscale", "hires", "face_enhance"), id="upscaling", marks=pytest.mark.slow),
    ],
)
def test_what_is_disabled_is_neither_imported_nor_planned_nor_read(disabled: tuple[str, ...]) -> None:
    """In a process of its own, which starts and makes a picture with default inputs."""
    process = subprocess.run(
        [sys.executable, "-c", PREDICT, *disabled], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert process.returncode == 0, process.stderr
    seen = json.loads(process.stdout)
    selection = selected(*disabled).without({"face_restorer", "safety_checker"})
    needed = set().union(*(IMPORTS.get(name, set()) for name in selection.enabled))
    assert set(seen["modules"]) & set().union(*IMPORTS.values()) == needed
    assert {*seen["models"], *seen["planned"]} & selection.unused_models == set()
    assert set(seen["models"]) - set(seen["detectors"]) == set(seen["planned"]) - {"detectors"}
    assert not set(disabled) & {*seen["stages"], *(metric.split(".")[0] for metric in seen["metrics"])}
    spans = {path for path in seen["spans"] if path.startswith("stages.")}
    assert spans == {f"stages.{name}" for name in selection.enabled}
    assert seen["files"] == 1
    for name in disabled:
        assert f"{name:<28} off: disabled_extensions" in process.stderr
