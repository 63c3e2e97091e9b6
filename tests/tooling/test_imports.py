"""Who imports whom: the contracts of pyproject.toml hold, and they name every stage and every family."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from backend.core.settings import ROOT

CONTRACTS = {
    contract["name"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}
TORCH_FREE = CONTRACTS["a plan and a request need no torch"]["source_modules"]


def test_the_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    process = subprocess.run([linter, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr


def test_every_stage_is_named() -> None:
    named = set(CONTRACTS["a stage imports no other stage"]["modules"])
    files = {path.stem for path in (ROOT / "modules" / "pipeline").glob("*.py")} - {"__init__", "base"}
    assert named == {f"modules.pipeline.{name}" for name in files}


def test_every_family_is_named() -> None:
    named = set(CONTRACTS["a family imports no other family"]["modules"])
    folders = {path.parent.name for path in (ROOT / "modules" / "families").glob("*/__init__.py")}
    assert named == {f"modules.families.{name}" for name in folders}


def test_a_plan_and_a_request_are_imported_without_torch() -> None:
    code = f"""
import importlib, pkgutil, sys
for name in {TORCH_FREE}:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(getattr(package, "__path__", []), f"{{name}}."):
        importlib.import_module(module.name)
print(sorted({{"torch", "torchvision", "diffusers", "transformers", "ultralytics", "spandrel", "cv2"}} & set(sys.modules)))
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.stdout == "[]\n", process.stdout + process.stderr
