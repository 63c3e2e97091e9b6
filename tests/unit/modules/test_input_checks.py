"""The gateway refuses what the worker would refuse: it checks by what the worker's set-up has written."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from support.pictures import PROMPT

from backend.core.errors import InputError
from backend.core.settings import ROOT
from modules.app.service import Service
from modules.input_checks import InputChecks, Installed


@pytest.fixture(scope="module")
def elsewhere(service: Service) -> InputChecks:
    """The checks of a process that has only read the file."""
    return InputChecks.of(Installed.from_json(service.checks.installed.to_json()))


def test_what_is_installed_survives_the_file(service: Service, elsewhere: InputChecks) -> None:
    assert elsewhere.installed == service.checks.installed
    assert list(elsewhere.installed.detectors) == list(service.detectors)


def test_the_same_inputs_make_the_same_request(service: Service, elsewhere: InputChecks) -> None:
    inputs = {"prompt": PROMPT, "seed": 3, "adetailer_args": '{"ad_mask_k": 1}', "enable_hr": True, "width": None}
    assert elsewhere.request(inputs) == service.checks.request(inputs)


@pytest.mark.parametrize(
    ("field", "inputs"),
    [
        ("prompt", {"prompt": " "}),
        ("promt", {"promt": "a fox"}),
        ("upscaler", {"upscaler": "4x-none"}),
        ("face_enhance", {"face_enhance": True}),
        ("adetailer_args", {"adetailer_args": '{"ad_model": "eyes_yolov8n.pt"}'}),
    ],
)
def test_the_same_inputs_are_refused_in_the_same_words(
    service: Service, elsewhere: InputChecks, field: str, inputs: dict[str, Any]
) -> None:
    said = []
    for checks in (service.checks, elsewhere):
        with pytest.raises(InputError) as refused:
            checks.request({"prompt": PROMPT, **inputs})
        said.append(str(refused.value))
        assert refused.value.field == field
    assert said[0] == said[1]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"profile": 1}'])
def test_a_file_that_is_not_ours_is_an_error(text: bytes) -> None:
    with pytest.raises(ValueError):
        Installed.from_json(text)


def test_the_checks_import_no_torch() -> None:
    code = "import sys, modules.input_checks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
