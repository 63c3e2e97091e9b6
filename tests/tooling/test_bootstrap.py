"""``scripts/bootstrap``, with lists of tiny packages: what is installed works at every moment, whatever goes wrong.

The packages are wheels in a folder, and no index answers. Every test has its own project with the real scripts.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zipfile import ZipFile

import pytest
from support.background import serve_in_background
from support.slow import sampled

from backend.core.settings import ROOT

NOBODY = 65534
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NOWHERE = "http://127.0.0.1:9"  # the port "discard"
NO_NETWORK = {
    "PIP_INDEX_URL": NOWHERE,
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_NO_CACHE_DIR": "1",
    "PIP_RETRIES": "0",
}
PYTHON = """#!/bin/bash
[[ "$1 $2" == "-m venv" ]] || exec {python} "$@"
[[ ! -d {made} ]] || exec cp -a {made} "${{@: -1}}"
{python} "$@" && cp -a "${{@: -1}}" {made}
"""
"""A python3 that makes one virtual environment, which takes it five seconds, and copies this where another is asked
for."""
READ_ONLY = "mount --bind {0} {0} && mount -o remount,ro,bind {0} && exec scripts/bootstrap"


def write_wheel(folder: Path, version: str, name: str = "tiny", needs: str = "") -> None:
    """A package that says its version, with a script of its name; it says that it ``needs`` another one."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"def main():\n    print('{version}')\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + (f"Requires-Dist: {needs}\n" if needs else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    with ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD")))


@dataclass(frozen=True)
class Project:
    """A checkout with the real scripts, and lists of its own. The first python3 is that of the folder ``python``."""

    root: Path
    python: Path

    def require(self, *pins: str, dev: str = "") -> None:
        (self.root / "requirements.txt").write_text("\n".join(("# what is needed", *pins, "torch==1.0")) + "\n")
        (self.root / "requirements-dev.txt").write_text(f"-r requirements.txt\n{dev}\n")

    def require_for_page(self, *pins: str) -> None:
        (self.root / "requirements-webui.txt").write_text("\n".join(("-r requirements.txt", *pins)) + "\n")

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            arguments,
            cwd=self.root,
            env={
                **os.environ,
                **NO_NETWORK,
                "PIP_FIND_LINKS": str(self.root.parent / "wheels"),
                "PATH": os.pathsep.join((str(self.python), os.environ["PATH"])),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def bootstrap(self, *arguments: str, before: tuple[str, ...] = ()) -> tuple[int, str]:
        """The exit code and the messages."""
        process = self.command(*before, "scripts/bootstrap", *arguments)
        output, messages = process.communicate(timeout=120)
        assert output == ""
        return process.returncode, messages

    @property
    def installed(self) -> str:
        """What the installed script prints, which calls the Python of the environment by its path."""
        ran = subprocess.run([self.root / ".venv/bin/tiny"], capture_output=True, text=True, check=False)
        return ran.stdout.strip() or ran.stderr

    def wait_for(self, pattern: str) -> None:
        """Until there is such a file."""
        deadline = time.monotonic() + 60
        while not any(self.root.glob(pattern)):
            assert time.monotonic() < deadline, f"there is no {pattern}"
            time.sleep(0.005)

    @property
    def leftovers(self) -> list[str]:
        return sorted(path.name for path in self.root.glob(".venv?*"))


def new_project(folder: Path, python: Path, cpu_index: str = NOWHERE) -> Project:
    """One that needs tiny 1.0 and torch; there is tiny 2.0 too. ``cpu_index`` takes the place of PyTorch's."""
    project = Project(folder / "project", python)
    (folder / "wheels").mkdir(parents=True)
    for version in ("1.0", "2.0"):
        write_wheel(folder / "wheels", version)
    write_wheel(folder / "wheels", "1.0", "torch")
    for path in ("scripts/bootstrap", "scripts/common.sh", "backend/core/virtualenv.py", "pyproject.toml"):
        (project.root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, project.root / path)
    script = project.root / "scripts/bootstrap"
    assert CPU_INDEX in script.read_text()
    script.write_text(script.read_text().replace(CPU_INDEX, cpu_index))
    project.require("tiny==1.0")
    return project


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def index_of_torch_for_cpus(folder: Path) -> Iterator[str]:
    """The address of a package index that has torch 1.0+cpu."""
    (folder / "torch").mkdir(parents=True)
    write_wheel(folder / "torch", "1.0+cpu", "torch")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        serve_in_background(server)
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with :data:`PYTHON`."""
    folder = tmp_path_factory.mktemp("python")
    script = folder / "python3"
    script.write_text(PYTHON.format(python=sys.executable, made=folder / "made"))
    script.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, python: Path) -> tuple[Project, tuple[int, str]]:
    """A project after its first installation, and how that went."""
    with index_of_torch_for_cpus(tmp_path_factory.mktemp("index")) as address:
        project = new_project(tmp_path_factory.mktemp("first") / "it", python, address)
        return project, project.bootstrap()


def link_or_copy(source: str, target: str) -> None:
    if "/site-packages/" in source:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


@pytest.fixture
def project(first: tuple[Project, tuple[int, str]], tmp_path: Path) -> Project:
    """A project of this test in which tiny 1.0 is installed. (The paths in its scripts are those of ``first``, and so
    are the files of its packages, which nothing writes into.)"""
    shutil.copytree(first[0].root.parent, tmp_path / "copy", symlinks=True, copy_function=link_or_copy)
    return replace(first[0], root=tmp_path / "copy" / "project")


def test_the_first_installation_works_and_leaves_nothing_beside_it(first: tuple[Project, tuple[int, str]]) -> None:
    project, (code, messages) = first
    assert code == 0, messages
    assert project.installed == "1.0" and project.leftovers == []
    assert str(project.root / ".venv") in (project.root / ".venv/bin/activate").read_text()
    assert not [path for path in (project.root / ".venv/bin").iterdir() if b".venv.new" in path.read_bytes()]


def test_without_an_nvidia_driver_torch_is_the_build_for_cpus(first: tuple[Project, tuple[int, str]]) -> None:
    project, (_, messages) = first
    [torch] = project.root.glob(".venv/lib/*/site-packages/torch-*.dist-info")
    if Path("/dev/nvidiactl").exists():
        assert torch.name == "torch-1.0.dist-info" and "CUDA" in messages.splitlines()[0]
    else:
        assert torch.name == "torch-1.0+cpu.dist-info"
        assert "PyTorch for CPUs, as there is no NVIDIA driver: about " in messages.splitlines()[0]


def test_nothing_happens_where_nothing_has_changed(project: Project) -> None:
    before = (project.root / ".venv").stat().st_ino
    begin = time.monotonic()
    assert project.bootstrap() == (0, "")
    assert time.monotonic() - begin < 2 and (project.root / ".venv").stat().st_ino == before


def test_a_comment_needs_no_installation(project: Project) -> None:
    project.require("tiny==1.0  # it is small")
    assert project.bootstrap() == (0, "") and project.bootstrap() == (0, "")


def test_a_changed_requirement_replaces_the_environment_and_keeps_what_a_user_added(project: Project) -> None:
    (project.root / ".venv" / "own.txt").write_text("mine")
    (project.root / ".venv.new").mkdir()  # by one that was killed
    project.require("tiny==2.0")
    assert project.bootstrap() == (0, "Installing into .venv: tiny==2.0\n")
    assert project.installed == "2.0" and project.leftovers == []
    assert (project.root / ".venv" / "own.txt").read_text() == "mine"


def test_the_packages_of_the_page_are_installed_as_listed(project: Project) -> None:
    """Also where one of them asks for an older version of what is here."""
    write_wheel(project.root.parent / "wheels", "1.0", "page", needs="tiny<1.0")
    project.require_for_page("page==1.0")
    assert project.bootstrap("webui") == (0, "Installing into .venv: page==1.0\n")
    assert project.bootstrap("webui") == project.bootstrap() == (0, "")
    assert project.installed == "1.0"


def test_the_environment_of_a_link_stays_as_it_is(project: Project) -> None:
    shared = project.root.parent / "shared"
    (project.root / ".venv").rename(shared)
    (project.root / ".venv").symlink_to(shared)
    assert project.bootstrap() == (0, "")
    project.require("tiny==2.0")
    assert project.bootstrap()[0] == 0 and project.installed == "2.0"
    assert not (project.root / ".venv").is_symlink() and list(shared.glob("lib/*/site-packages/tiny-1.0*"))


def test_what_cannot_be_had_is_one_line_and_the_old_environment_works(project: Project) -> None:
    project.require("tiny==3.0", "other==1.0", dev="more==1")
    for arguments in ((), ("dev",)):
        code, messages = project.bootstrap(*arguments)
        assert code == 3 and messages.startswith("Installing into .venv: tiny==3.0, other==1.0")
        assert "warning: not installed: tiny==3.0, other==1.0, " in messages and len(messages.splitlines()) == 2
        assert "(ERROR: No matching distribution found for tiny==3.0)" in messages
        assert project.leftovers == []
    project.require("tiny==1.0")
    assert project.bootstrap() == (0, "")


def test_without_an_environment_what_cannot_be_had_is_an_error(python: Path, tmp_path: Path) -> None:
    project = new_project(tmp_path, python)
    project.require("tiny==3.0")
    code, messages = project.bootstrap()
    assert code == 1 and messages.splitlines()[-1].startswith("error: pip could not install requirements.txt")
    assert messages.startswith("Installing requirements.txt into .venv, with ") and "GB to download" in messages
    assert sorted(path.name for path in project.root.glob(".venv*")) == []


@pytest.mark.parametrize("arguments", [("prod",), ("dev", "now"), ("--force",), ("../x",)], ids=" ".join)
def test_a_wrong_argument_changes_nothing(project: Project, arguments: tuple[str, ...]) -> None:
    project.require("tiny==2.0")
    code, messages = project.bootstrap(*arguments)
    assert code == 2 and messages.startswith("error: unknown argument") and len(messages.splitlines()) == 1
    assert project.root.joinpath(".venv/bin/tiny").exists() and project.leftovers == []


@pytest.mark.parametrize("option", ["--help", "-h", "--version"])
def test_help_installs_nothing(project: Project, option: str) -> None:
    project.require("tiny==2.0")
    process = project.command("scripts/bootstrap", option)
    output, messages = process.communicate(timeout=60)
    assert process.returncode == 0 and output and not messages and project.leftovers == []


def test_a_folder_that_is_no_environment_is_not_deleted(project: Project) -> None:
    shutil.rmtree(project.root / ".venv")
    (project.root / ".venv").mkdir()
    (project.root / ".venv" / "letter.txt").write_text("mine")
    assert project.bootstrap() == (1, "error: '.venv' is no virtual environment; move it away, then run this again\n")
    assert (project.root / ".venv" / "letter.txt").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_is_told_whose_it_is_and_changes_nothing(project: Project) -> None:
    for folder in [project.root, *project.root.parents][: len(project.root.parents) - 1]:
        folder.chmod(0o755)
    another = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    runs = subprocess.run([*another, "test", "-x", project.root / ".venv/bin/python"], check=False)
    project.require("tiny==2.0")
    code, messages = project.bootstrap(before=another)
    assert code == (3 if runs.returncode == 0 else 1)
    assert f"'{project.root}/.venv' belongs to root: run scripts/bootstrap as that user" in messages
    assert len(messages.splitlines()) == 1 and project.leftovers == []
    assert subprocess.run([project.root / ".venv/bin/python", "-c", "import tiny"], check=False).returncode == 0


def test_a_checkout_that_cannot_be_written_is_one_line(project: Project) -> None:
    unshared = ("unshare", "--mount", "--map-root-user", "bash", "-c")
    if subprocess.run([*unshared, READ_ONLY.format(project.root)], cwd=project.root, check=False).returncode:
        pytest.skip("this system lets nobody mount")
    project.require("tiny==2.0")
    process = project.command(*unshared, READ_ONLY.format(project.root))
    messages = process.communicate(timeout=60)[1]
    assert process.returncode == 3 and "is not writable" in messages and len(messages.splitlines()) == 1


def test_two_at_once_do_not_collide(project: Project) -> None:
    project.require("tiny==2.0")
    both = [project.command("scripts/bootstrap") for _ in range(2)]
    messages = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], messages
    assert sorted(map(len, messages))[0] <= len("waiting for another scripts/bootstrap to end\n")
    assert project.installed == "2.0" and project.leftovers == []


@pytest.mark.parametrize(
    ("begun", "whole_group"),
    sampled(
        [(".venv", False), (".venv.new", True), (".venv.new", False), (".venv*/lib/*/site-packages/tiny-2.0*", True)], 3
    ),
    ids=["at once", "early, with pip", "early, alone", "late, with pip"],
)
def test_killed_at_any_moment_the_environment_works_and_the_next_one_finishes(
    project: Project, begun: str, whole_group: bool
) -> None:
    project.require("tiny==2.0")
    process = project.command("scripts/bootstrap")
    project.wait_for(begun)
    if whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    assert subprocess.run([project.root / ".venv/bin/python", "-c", "import tiny"], check=False).returncode == 0
    code, messages = project.bootstrap()
    assert code == 0, messages
    assert project.installed == "2.0" and project.leftovers == []


def test_killed_between_the_two_steps_of_a_replacement_the_old_one_comes_back(project: Project) -> None:
    """Only where the system cannot exchange two folders in one step."""
    (project.root / ".venv").rename(project.root / ".venv.old")
    (project.root / ".venv.new").mkdir()
    assert project.bootstrap() == (0, "")
    assert (project.root / ".venv/bin/python").exists()


def test_an_environment_whose_python_is_gone_is_built_anew_also_after_a_kill(project: Project) -> None:
    for name in ("python", "python3", f"python3.{sys.version_info.minor}"):
        (project.root / ".venv/bin" / name).unlink()
    process = project.command("scripts/bootstrap")
    project.wait_for(".venv.new/bin/python")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (project.root / ".venv/bin/python").exists() and project.leftovers == [".venv.new"]
    assert project.bootstrap()[0] == 0 and project.installed == "1.0" and project.leftovers == []
