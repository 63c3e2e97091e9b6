"""What several test files share: the real package and one real server, each started once."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # every worker its own cores, before torch counts them: threads of two workers on one core wait for each other at
    # every operation
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(
        0, cores[int(worker.removeprefix("gw")) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])] or cores
    )

import pytest
from hypothesis import settings
from support.lora_hub import LoraHub, make_certificate
from support.processes import START_SECONDS, Server, answers, free_port
from xdist.scheduler import LoadFileScheduling

from backend.core.settings import ROOT, Settings
from modules.app.service import Service, start

# the same examples on every machine: whoever changes something else shall not be stopped by a draw. New ones are drawn
# by `python -m pytest --hypothesis-profile=thorough`, forty times as many
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("thorough", deadline=None, max_examples=20 * settings.default.max_examples)
settings.load_profile("repeatable")


SLOW_STARTS = {"server": r"\bserver: Server\b", "compiler": r"\bcompile_cache\b|\btorch\.compile\b"}
"""What takes long to start, by how a file shows that it needs it."""


class OneStart(LoadFileScheduling):
    """A worker takes whole files, and one takes all that need the same of :data:`SLOW_STARTS`, so that it starts in
    only one of them."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return slow_start(ROOT / file) or file


@cache
def slow_start(file: Path) -> str | None:
    text = file.read_text()
    return next((name for name, pattern in SLOW_STARTS.items() if re.search(pattern, text)), None)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneStart | None:
    return OneStart(config, log) if config.getoption("dist", "no") == "loadfile" else None


M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1


def keep_freed_memory() -> None:
    """Pictures take and free the same memory again and again, and to get it from the system takes a sixth of their
    time. Tests that look at what this process holds do it by ``support/held_memory.py``."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # only glibc has it
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module imports diffusers; the process that only hands out the tests needs no torch."""
    if config.getoption("dist", "no") == "no":
        keep_freed_memory()
        gc.disable()  # until everything is imported
        from backend.devices.torchvision_ops import ensure_torchvision_operators

        ensure_torchvision_operators()


def pytest_collection_finish() -> None:
    """What was imported stays: Python's collector need not look through it again and again."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _ultralytics_is_careful(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Before whichever test is the first to import it."""
    from modules.detection.yolo import offline_ultralytics

    offline_ultralytics(tmp_path_factory.mktemp("ultralytics"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port, folder = free_port(), tmp_path_factory.mktemp("server")
    temporary, log = folder / "tmp", folder / "log"
    temporary.mkdir()
    with log.open("w") as output:
        environment = {**os.environ, "TMPDIR": str(temporary), "FLUX_DTYPE": "float32"}  # as ``service``
        process = subprocess.Popen(
            [ROOT / "scripts" / "serve", "--port", str(port)], cwd=folder, env=environment, stdout=output, stderr=output
        )
    try:
        running = Server(f"http://127.0.0.1:{port}", temporary, log)
        begin = time.monotonic()
        while not answers(running.url):
            assert process.poll() is None, f"the server ended: {log.read_text()}"
            assert time.monotonic() - begin < START_SECONDS, f"the server does not answer: {log.read_text()}"
            time.sleep(0.1)
        running.wait_until_ready(START_SECONDS)
        running.at_rest = running.files()
        yield running
    finally:
        process.terminate()
        process.wait(30)
    deadline = time.monotonic() + 30
    while running.files() and time.monotonic() < deadline:  # its worker process ends a little later
        time.sleep(0.1)
    assert not running.files(), "the server leaves files behind when it ends"


@pytest.fixture(scope="session")
def _compiled_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if worker else folder) / "compiled"


@pytest.fixture
def compile_cache(_compiled_code: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where torch keeps the code that it generates: one folder for all workers. Its own headers, which take longer to
    compile than a block, it keeps elsewhere for the user. It takes the processor's vector instructions as they are,
    where it would first compile a program for each kind of them."""
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(_compiled_code))
    with config.patch("cpp.vec_isa_ok", True):
        yield _compiled_code


@pytest.fixture(scope="session")
def service() -> Service:
    """The package on its embedded models, in this process; in float32 on every machine, so that pictures can be
    compared to a 255th."""
    return start(replace(Settings(), model="embedded", dtype="float32"))


@pytest.fixture(scope="session")
def _lora_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoraHub]:
    hub = LoraHub(make_certificate(tmp_path_factory.mktemp("certificate")))
    yield hub
    hub.close()


@pytest.fixture
def hub(_lora_hosts: LoraHub) -> LoraHub:
    """Hosts of LoRA files on this machine, without pages."""
    for kept in (_lora_hosts.pages, _lora_hosts.seen, _lora_hosts.addresses):
        kept.clear()
    return _lora_hosts
