"""Every script of ``scripts/`` says what it is for and which version it belongs to, from any folder."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

import pytest

from backend.core.settings import ROOT
from backend.core.version import name_and_version, version
from modules.cli.command import NOT_READ

SHARED = ROOT / "scripts" / "common.sh"
SCRIPTS = sorted(path for path in (ROOT / "scripts").iterdir() if path != SHARED)
ENTRIES = {path: path.name.replace("-", "_") for path in SCRIPTS if not path.suffix}


def answer(script: Path, option: str, folder: Path) -> str:
    ran = subprocess.run([script, option], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_answers_help_and_version(script: Path, tmp_path: Path) -> None:
    assert f"scripts/{script.name}" in answer(script, "--help", tmp_path)
    assert answer(script, "--version", tmp_path) == f"{name_and_version()}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", [path for path in (*SCRIPTS, SHARED) if b"bash" in path.read_bytes()[:30]])
def test_a_shell_script_is_valid_bash(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_every_command_has_one_script_and_every_python_script_is_a_thin_entry() -> None:
    commands = {path.stem for path in (ROOT / "modules" / "cli").glob("*.py") if "\ndef main(" in path.read_text()}
    assert commands <= set(ENTRIES.values())
    for script, name in ENTRIES.items():
        if name in commands:
            assert len(script.read_text().splitlines()) <= 12, f"{script.name} holds more than a call"


def test_every_command_ends_quietly_where_its_reader_ends_early() -> None:
    ends = {
        name: script.read_text() + (ROOT / "modules" / "cli" / f"{name}.py").read_text()
        for script, name in ENTRIES.items()
        if (ROOT / "modules" / "cli" / f"{name}.py").exists()
    }
    assert len(ends) >= 8 and all("exit_with(main)" in text for text in ends.values())
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        ran = subprocess.run(
            ["scripts/healthcheck", "--help"], cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert ran.returncode in (0, NOT_READ) and not ran.stderr  # 0 where argparse writes unbuffered and sees it itself


def test_the_version_is_stated_in_one_place() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version() == stated
    listed = subprocess.run(
        ["git", "grep", "-lF", stated, "--", "backend", "modules", "scripts", "predict.py", "cog.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert listed.stdout.split() == []
