"""``scripts/doctor``: what it says is so, and it says nothing that it should not."""

from __future__ import annotations

import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from backend.core.settings import ROOT
from backend.core.version import version as package_version
from modules.cli.doctor import malloc_library, network
from modules.extension_optimizer import optional_features

SECRET = "hf_notToBeSeen"


def test_the_host_allocator_is_found_where_it_is_mapped(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    for line, found in (
        ("7f00 r-xp 00 08:01 1 /usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4.5.16", "libtcmalloc_minimal.so"),
        ("7f00 r-xp 00 08:01 1 /usr/lib/x86_64-linux-gnu/libjemalloc.so.2", "libjemalloc.so"),
        ("7f00 r-xp 00 08:01 1 /usr/lib/x86_64-linux-gnu/libabsl_malloc_internal.so.2022", "the C library's own"),
    ):
        maps.write_text(f"5500 r-xp 00 08:01 1 /usr/bin/python3\n{line}\n")
        assert malloc_library(maps) == found


def test_of_secrets_it_is_only_said_that_they_are_set() -> None:
    assert network({"HF_TOKEN": SECRET, "HF_HUB_OFFLINE": "1"}) == {"HF_HUB_OFFLINE": "1", "HF_TOKEN": "set"}


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    environment = {**os.environ, "HF_TOKEN": SECRET, "FLUX_MODEL": "embedded", "FLUX_DISABLED_EXTENSIONS": "hires"}
    process = subprocess.run(
        [ROOT / "scripts" / "doctor", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert SECRET not in process.stdout and str(ROOT) not in process.stdout
    found: dict[str, Any] = json.loads(process.stdout)
    return found


def test_the_doctor_tells_what_an_issue_needs(report: dict[str, Any]) -> None:
    sections = {"versions", "allocators", "network", "device", "compilation", "weights", "stages", "plan", "packages"}
    assert set(report) == sections
    assert report["compilation"].startswith("off")
    assert report["versions"]["torch"] == version("torch")
    assert report["versions"]["cog-flux-adetailer"] == package_version()
    assert (
        report["weights"].startswith("embedded") and "transformer" in report["plan"] and "threads" in report["device"]
    )
    enabled = [name for name in optional_features() if name != "hires"]
    assert report["stages"] == ", ".join(["generate", *enabled, "hires off"])
    assert report["allocators"]["cuda"] == "expandable_segments:True"


def test_what_is_wrong_is_in_its_place_and_the_rest_is_told_all_the_same() -> None:
    process = subprocess.run(
        [ROOT / "scripts" / "doctor"],
        env={**os.environ, "FLUX_MODEL": "no-such-model"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 1
    assert (
        "error: model 'no-such-model'" in process.stdout
        and "optional packages" in process.stdout
        and "Traceback" not in process.stderr
    )
    process = subprocess.run(
        [ROOT / "scripts" / "doctor"],
        env={**os.environ, "FLUX_WEIGHT_PRECISION": "x"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (process.returncode, process.stdout) == (2, "") and process.stderr.startswith(
        "error: environment variable FLUX_WEIGHT_PRECISION must be one of"
    )
