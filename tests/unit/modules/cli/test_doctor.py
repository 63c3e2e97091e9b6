"""``scripts/doctor`` and the table of optional packages: what is said is so, and nothing is said that should not be."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from backend.core.settings import ROOT
from backend.devices import optional_packages as acceleration
from backend.devices.optional_packages import PACKAGES, Package, acceleration_rows, acceleration_table
from modules.cli.doctor import malloc_library, network
from modules.flux_memory_optimizer import ATTENTION_BACKENDS

NAMED = (
    "flash-attn",
    "xformers",
    "torchao",
    "bitsandbytes",
    "sageattention",
    "apex",
    "nvidia-dali",
    "cupy",
    "numba",
    "tensorrt",
    "optimum",
)
SECRET = "hf_notToBeSeen"


def test_every_package_that_the_documents_name_has_a_use_or_a_reason() -> None:
    assert [word for word in NAMED if not any(word in package.name for package in PACKAGES)] == []
    assert all(bool(package.used_for) != bool(package.remark) for package in PACKAGES)
    (better_transformer,) = [package for package in PACKAGES if "BetterTransformer" in package.remark]
    assert "scaled_dot_product_attention" in better_transformer.remark


def test_what_is_said_to_be_used_for_attention_is_among_the_kernels_that_are_tried() -> None:
    used = {package.name for package in PACKAGES if package.used_for.startswith("attention")}
    assert used == {"flash-attn-3", "xformers"}
    assert {"_flash_3", "xformers"} <= set(ATTENTION_BACKENDS)


def test_a_package_that_is_there_is_shown_with_its_version() -> None:
    rows = acceleration_rows(lambda name: "1.2" if name == "xformers" else "")
    assert ("xformers", "1.2") in [row[:2] for row in rows] and ("numba", "absent") in [row[:2] for row in rows]
    assert (
        acceleration.installed_version("torch") == version("torch")
        and acceleration.installed_version("no-such-package") == ""
    )
    assert len(acceleration_table().splitlines()) == len(PACKAGES)
    assert {field.name for field in fields(Package)} == {"name", "used_for", "remark"}


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
    assert set(report) == {"versions", "allocators", "network", "device", "weights", "stages", "plan", "packages"}
    assert report["versions"]["torch"] == version("torch")
    assert (
        report["weights"].startswith("embedded") and "transformer" in report["plan"] and "threads" in report["device"]
    )
    assert report["stages"] == "generate, prompt_upsampler, adetailer, upscale, hires off"
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
