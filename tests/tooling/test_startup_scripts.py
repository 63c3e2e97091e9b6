"""The scripts around the start: TCMalloc set up, checked and undone, and the environment that a start gets."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from backend.core.settings import ROOT

INSTALL = ROOT / "scripts" / "install-tcmalloc.sh"
START = ROOT / "scripts" / "start-backend-optimized.sh"
UNSET = (
    "LD_PRELOAD",
    "NO_TCMALLOC",
    "ACCELERATE",
    "ACCELERATE_CONFIG_FILE",
    "OMP_NUM_THREADS",
    "FLUX_CPU_THREADS",
    "MALLOC_TRIM_THRESHOLD_",
)


def environment(**changes: str) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if name not in UNSET}, **changes}


@dataclass
class System:
    """A machine as the script sees it: an os-release, a linker that knows one folder, and an apt that puts a library
    there."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "allocator.env"

    @property
    def library(self) -> Path:
        return self.folder / "lib" / "libtcmalloc_minimal.so.4"

    def apt_calls(self) -> list[str]:
        log = self.folder / "apt.log"
        return log.read_text().splitlines() if log.exists() else []

    def run(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        variables = environment(PATH=path, OS_RELEASE=str(self.folder / "os-release"), **changes)
        command = [INSTALL, "--file", str(self.file), *arguments]
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def system(tmp_path: Path) -> System:
    found = System(tmp_path)
    (tmp_path / "os-release").write_text('ID=debian\nVERSION_ID="12"\n')
    for folder in ("bin", "lib"):
        (tmp_path / folder).mkdir()
    # any shared library does: what counts is that the loader takes it under this name
    zlib = next(
        line.split()[-1]
        for line in subprocess.run(
            ["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        if "libz.so" in line
    )
    shutil.copy(zlib, tmp_path / "library")
    programs = {
        "ldconfig": f'[[ -e {found.library} ]] && echo "libtcmalloc_minimal.so.4 (libc6,x86-64) => {found.library}"; true',
        "apt-get": f'echo "$*" >>{tmp_path}/apt.log; case $1 in install) cp {tmp_path}/library {found.library} ;; remove) rm {found.library} ;; esac',
        "sudo": '"$@"',
    }
    for name, body in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return found


@pytest.mark.parametrize(
    ("release", "package"),
    [
        ('ID=debian\nVERSION_ID="12"', "libtcmalloc-minimal4"),
        ('ID=debian\nVERSION_ID="13"', "libtcmalloc-minimal4t64"),
        ('ID=ubuntu\nVERSION_ID="22.04"', "libtcmalloc-minimal4"),
        ('ID=ubuntu\nVERSION_ID="24.04"', "libtcmalloc-minimal4t64"),
    ],
)
def test_the_package_has_the_name_of_the_release(system: System, release: str, package: str) -> None:
    (system.folder / "os-release").write_text(release + "\n")
    assert system.run("--package").stdout == package + "\n"


def test_another_system_is_told_what_to_do(system: System) -> None:
    (system.folder / "os-release").write_text("ID=fedora\nVERSION_ID=42\n")
    process = system.run()
    assert process.returncode == 1 and "only Debian and Ubuntu" in process.stderr and not system.file.exists()


def test_installed_twice_checked_and_undone(system: System) -> None:
    assert system.run("--check").returncode == 1
    first = system.run()
    assert first.returncode == 0, first.stderr
    content = system.file.read_text()
    assert f"TCMALLOC_LIBRARY={system.library}" in content
    calls = system.apt_calls()
    assert system.run().returncode == 0 and system.file.read_text() == content and system.apt_calls() == calls
    assert system.run("--check").stdout == f"TCMalloc: {system.library}\n"
    assert system.run("--undo").returncode == 0
    assert not system.file.exists() and not system.library.exists() and system.apt_calls()[-1].startswith("remove")
    assert system.run("--undo").returncode == 0
    assert [path.name for path in system.folder.iterdir() if path.suffix == ".part"] == []


def test_a_package_that_was_there_before_stays_after_undo(system: System) -> None:
    shutil.copy(system.folder / "library", system.library)
    assert system.run().returncode == 0 and system.run("--undo").returncode == 0
    assert system.library.exists() and system.apt_calls() == []


def test_no_tcmalloc_means_nothing_is_done(system: System) -> None:
    assert system.run(NO_TCMALLOC="1").returncode == 0
    assert not system.file.exists() and system.apt_calls() == []


def test_a_file_that_names_a_library_that_is_gone_does_not_pass_the_check(system: System) -> None:
    system.run()
    system.library.unlink()
    process = system.run("--check")
    assert process.returncode == 1 and "run scripts/install-tcmalloc.sh again" in process.stderr


@pytest.fixture
def shown(system: System) -> Path:
    """The start script in a folder of its own, with an ``allocator.env`` beside."""
    assert system.run().returncode == 0
    (system.folder / "scripts").mkdir()
    for name in (START.name, "common.sh"):
        shutil.copy(ROOT / "scripts" / name, system.folder / "scripts" / name)
    return system.folder / "scripts" / START.name


def variables(script: Path, *arguments: str, **changes: str) -> dict[str, str]:
    process = subprocess.run(
        [script, "--show", *arguments],
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return dict(line.split("=", 1) for line in process.stdout.splitlines())


def test_the_start_takes_tcmalloc_where_it_is_set_up(shown: Path, system: System) -> None:
    assert variables(shown)["LD_PRELOAD"] == str(system.library)
    assert variables(shown, LD_PRELOAD="/lib/other.so")["LD_PRELOAD"] == f"/lib/other.so:{system.library}"


def test_an_allocator_that_is_preloaded_already_stays_alone(shown: Path) -> None:
    assert variables(shown, LD_PRELOAD="/lib/libjemalloc.so.2")["LD_PRELOAD"] == "/lib/libjemalloc.so.2"


def test_the_c_library_stays_as_it_is_where_there_is_no_tcmalloc(shown: Path) -> None:
    for without in (variables(shown, "--no-tcmalloc"), variables(shown, NO_TCMALLOC="1")):
        assert "LD_PRELOAD" not in without and "MALLOC_TRIM_THRESHOLD_" not in without
    assert variables(shown, "--no-tcmalloc", MALLOC_TRIM_THRESHOLD_="7")["MALLOC_TRIM_THRESHOLD_"] == "7"


def test_the_flag_goes_before_the_configuration_file_and_that_before_the_default(shown: Path, tmp_path: Path) -> None:
    config = tmp_path / "accelerate.yaml"
    config.write_text("compute_environment: LOCAL_MACHINE\nnum_cpu_threads_per_process: 3 # of 8\n")
    given = {"ACCELERATE": "True", "ACCELERATE_CONFIG_FILE": str(config)}
    assert variables(shown, "--num_cpu_threads_per_process=5", **given)["FLUX_CPU_THREADS"] == "5"
    assert variables(shown, **given)["FLUX_CPU_THREADS"] == variables(shown, **given)["OMP_NUM_THREADS"] == "3"
    assert "FLUX_CPU_THREADS" not in variables(shown, **{**given, "ACCELERATE": "False"})
    assert "FLUX_CPU_THREADS" not in variables(shown)


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (["--num_cpu_threads_per_process", "many"], {}, "must be a whole number from 1, not 'many'"),
        (
            [],
            {"ACCELERATE": "True", "ACCELERATE_CONFIG_FILE": "/none.yaml"},
            "names a file that cannot be read: /none.yaml",
        ),
        (["--speed"], {}, "unknown option --speed"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], changes: dict[str, str], message: str) -> None:
    process = subprocess.run(
        [START, *arguments], env=environment(**changes), capture_output=True, text=True, timeout=60, check=False
    )
    assert (
        process.returncode == 2
        and process.stderr.startswith("error: ")
        and message in process.stderr
        and process.stderr.count("\n") == 1
    )
