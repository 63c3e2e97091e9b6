"""The CUDA allocator's options: checked before torch is there, and read back from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from backend.core.errors import SettingsError
from backend.core.settings import ROOT, Settings
from backend.devices.cuda_allocator import (
    AUTO,
    OLD_VARIABLE,
    OPTIONS,
    VARIABLE,
    apply_allocator_conf,
    parse_allocator_conf,
)

DOCUMENTS = "backend:cudaMallocAsync,expandable_segments:True,max_split_size_mb:4096,garbage_collection_threshold:0.9,roundup_power2_divisions:8"
"""What the documents of the measured system recommend for a 24 GB card, all at once."""


GOOD = [
    AUTO,
    "max_split_size_mb:4096",
    "backend:cudaMallocAsync",
    "backend:cudaMallocAsync,expandable_segments:False",
    "backend:native,max_split_size_mb:4096,roundup_power2_divisions:[256:1,512:2,1024:4,>:8]",
    "garbage_collection_threshold:0.9,per_process_memory_fraction:0.87",
    "roundup_power2_divisions:8, expandable_segments:True",
    "pinned_use_cuda_host_register:True,pinned_num_register_threads:8",
]


@pytest.mark.parametrize("conf", GOOD)
def test_what_torch_takes_is_accepted(conf: str) -> None:
    assert set(parse_allocator_conf(conf)) <= set(OPTIONS)


@pytest.mark.parametrize("backend", ["native", "cudaMallocAsync"])
def test_torch_takes_what_is_accepted(backend: str) -> None:
    """Its parser runs without a GPU. A CUDA build chooses the backend when it is loaded, so each backend has a process
    of its own."""
    accepted = [conf for conf in GOOD if parse_allocator_conf(conf).get("backend", "native") == backend]
    judge = "import sys, torch\nfor conf in sys.argv[1:]: torch._C._accelerator_setAllocatorSettings(conf)"
    environment = {name: value for name, value in os.environ.items() if name != OLD_VARIABLE}
    process = subprocess.run(
        [sys.executable, "-c", judge, *accepted],
        env={**environment, VARIABLE: f"backend:{backend}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert accepted
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        (
            DOCUMENTS,
            "cudaMallocAsync leaves memory to the CUDA driver and ignores expandable_segments, max_split_size_mb, "
            "garbage_collection_threshold, roundup",
        ),
        ("expandable_segments:True,max_split_size_mb:4096", "max_split_size_mb would do nothing"),
        ("garbage_collection_threshold:0.9", "does nothing without it"),
        ("max_split_size_mb:19", "max_split_size_mb must be a whole number of megabytes, at least 20, not '19'"),
        ("garbage_collection_threshold:1.5,per_process_memory_fraction:1", "must be between 0 and 1"),
        ("roundup_power2_divisions:3", "must be a power of two"),
        ("roundup_power2_divisions:[256:3]", "must be a power of two"),
        ("expandable_segments:true", "must be True or False, not 'true'"),
        ("backend:cudamallocasync", "must be native or cudaMallocAsync"),
        ("expandable_segment:True", "unknown option 'expandable_segment' (did you mean 'expandable_segments'?)"),
        ("expandable_segments:True,expandable_segments:False", "is given twice"),
        ("expandable_segments", "is not of the form name:value"),
        ("max_split_size_mb:4096,", "'' is not of the form name:value"),
    ],
)
def test_what_is_wrong_or_would_do_nothing_is_refused_with_the_reason(conf: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_allocator_conf(conf)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_setting_reaches_the_environment_which_goes_first() -> None:
    environment: dict[str, str] = {}
    assert apply_allocator_conf(Settings().allocator_conf, environment) == AUTO and environment == {VARIABLE: AUTO}
    for name in (VARIABLE, OLD_VARIABLE):
        environment = {name: "max_split_size_mb:512"}
        assert apply_allocator_conf("auto", environment) == "max_split_size_mb:512" and environment == {
            name: "max_split_size_mb:512"
        }
    environment = {}
    assert apply_allocator_conf("", environment) == "" and environment == {}


@pytest.mark.parametrize(
    "environment", [{VARIABLE: "backend:native", OLD_VARIABLE: AUTO}, {VARIABLE: "nonsense"}, {OLD_VARIABLE: DOCUMENTS}]
)
def test_an_environment_that_contradicts_itself_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError):
        apply_allocator_conf("auto", dict(environment))


def test_both_names_with_one_value_are_no_contradiction() -> None:
    assert apply_allocator_conf("auto", {VARIABLE: AUTO, OLD_VARIABLE: AUTO}) == AUTO


def test_start_up_sets_it_before_torch_is_imported_and_torch_has_read_it() -> None:
    """Read back from torch's own allocator settings, in a process that starts as the server does."""
    code = """
import json, os, sys
from dataclasses import replace
from contextlib import suppress
from backend.core.errors import UserError
from backend.core.settings import Settings
from modules.app.service import start
before = "torch" in sys.modules
with suppress(UserError):  # where there is no card it ends once torch is there
    start(replace(Settings(), model="embedded", device="cuda", warm_up=False, allocator_conf=sys.argv[1]))
import torch
print(json.dumps([before, os.environ["PYTORCH_ALLOC_CONF"], torch._C._accelerator_getAllocatorSettings()]))
"""
    conf = "roundup_power2_divisions:8"
    environment = {name: value for name, value in os.environ.items() if name not in (VARIABLE, OLD_VARIABLE)}
    process = subprocess.run(
        [sys.executable, "-c", code, conf],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == [False, conf, conf]
