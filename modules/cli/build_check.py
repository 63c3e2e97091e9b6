"""``scripts/build-check``: what ``cog build`` does, without Docker, in a scratch folder that stands for the image's
root.

It runs the commands of ``cog.yaml``, or of another such file, in their order, with ``/src`` and ``/run/secrets`` inside
the scratch folder and this installation instead of the image's Python. System packages are not installed.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from backend.core.settings import ROOT
from modules.cli.cog_files import TEMPLATE, baked_models
from modules.cli.command import BAD_INPUT, FAILED, CommandParser, exit_with

SECRETS = {"hf_token": "HF_TOKEN"}
"""Environment variables that hold the secrets of the build."""

CUDA_PACKAGES = ("cuda-", "nvidia-nv")
"""How the names of CUDA's own libraries begin."""
RESOLVE = (
    "from backend.core.settings import load_settings; from backend.weights.resolver import resolve_model; "
    "resolve_model(load_settings())"
)


class BuildError(Exception):
    """Why the build would stop."""


def check_packages(config: Mapping[str, Any]) -> None:
    """Raises :class:`BuildError` unless the packages installed here are those of the image. CUDA's are not
    compared: a CPU build of torch needs none, and elsewhere torch takes the newest ones that it works with."""
    lines = (ROOT / config["build"]["python_requirements"]).read_text().splitlines()
    for name, _, version in (line.partition("==") for line in lines if line and not line.startswith("#")):
        if name.startswith(CUDA_PACKAGES):
            continue
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise BuildError(
                f"{name} {version} of {config['build']['python_requirements']} is not installed; run scripts/bootstrap"
            ) from None
        if found.partition("+")[0] != version:
            raise BuildError(
                f"{name} is {found} here and {version} in {config['build']['python_requirements']}; run "
                "scripts/bootstrap"
            )


def run_commands(config: Mapping[str, Any], root: Path) -> None:
    """Runs each command of ``build.run`` in its own shell, as a Dockerfile does."""
    (root / "src").mkdir(parents=True, exist_ok=True)
    environment = environment_of(config)
    for item in config["build"].get("run") or ():
        command, mounts = (item, []) if isinstance(item, str) else (item["command"], item.get("mounts", []))
        for mount in mounts:
            secret = root / mount["target"].lstrip("/")
            secret.parent.mkdir(parents=True, exist_ok=True)
            secret.touch(mode=0o600)
            secret.write_text(os.environ.get(SECRETS[mount["id"]], ""))
        inside = command.replace("/src", str(root / "src")).replace("/run/secrets", str(root / "run" / "secrets"))
        begin = time.monotonic()
        try:
            ran = subprocess.run(
                ["/bin/sh", "-c", inside], cwd=root, env=environment, capture_output=True, text=True, check=False
            )
        finally:
            for mount in mounts:
                (root / mount["target"].lstrip("/")).unlink()
        if ran.returncode:
            last = "\n".join((ran.stdout + ran.stderr).strip().splitlines()[-8:])
            raise BuildError(f"a command ended with {ran.returncode}: {command[:120]} ...\n{last}")
        print(f"ok {command[:100]} ... ({time.monotonic() - begin:.1f} s)", flush=True)


def environment_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The environment of the image, with this Python first in ``PATH`` and our variables that lead to a hub."""
    kept = {name: os.environ[name] for name in ("HF_ENDPOINT", "HTTPS_PROXY", "TMPDIR") if name in os.environ}
    own = dict(line.split("=", 1) for line in config.get("environment") or ())
    return {
        **kept,
        "HOME": tempfile.gettempdir(),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **own,
    }


def copy_source(root: Path) -> None:
    """``COPY . /src`` without what ``.dockerignore`` excludes. As in Docker, a later line with ``!`` includes names
    again."""
    rules = [line.strip() for line in (ROOT / ".dockerignore").read_text().splitlines() if line.strip()]

    def left_out(path: str) -> bool:
        left = False
        for rule in rules:
            if fnmatchcase(path, rule.removeprefix("!")) or path.startswith(f"{rule.removeprefix('!')}/"):
                left = not rule.startswith("!")
        return left

    def ignore(folder: str, names: list[str]) -> list[str]:
        inside = Path(folder).relative_to(ROOT)
        return [name for name in names if left_out((inside / name).as_posix()) or name == "__pycache__"]

    shutil.copytree(ROOT, root / "src", ignore=ignore, dirs_exist_ok=True)


def in_image(config: Mapping[str, Any], root: Path, *arguments: str) -> None:
    """Runs this Python on the copied source, as the image does."""
    environment = {**environment_of(config), "PYTHONPATH": str(root / "src")}
    ran = subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=root / "src",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise BuildError(f"{' '.join(arguments)[:80]}: {(ran.stdout + ran.stderr).strip()[-800:]}")


def steps(config: Mapping[str, Any], root: Path, weights: bool) -> list[tuple[str, Callable[[], None]]]:
    """The steps in the order of a build. Without weights the image would use the embedded models."""
    models = [option for model in baked_models(config) for option in ("--only", model.name)]
    installed = [
        (
            "the weights are those of the manifest and the lock",
            lambda: in_image(config, root, "-m", "modules.cli.fetch_weights", "--check", *models),
        ),
        (
            "a server would find them",
            lambda: in_image(config, root, "-c", RESOLVE),
        ),
    ]
    return [
        ("packages are the pinned ones", lambda: check_packages(config)),
        *([("the weights are downloaded", lambda: run_commands(config, root))] if weights else []),
        ("the source is there", lambda: copy_source(root)),
        ("the schema can be read", lambda: in_image(config, root, "-m", "backend.api.openapi")),
        (
            "predict.py can be imported",
            lambda: in_image(config, root, "-c", f"import {config['predict'].partition('.py:')[0]}"),
        ),
        *(installed if weights else []),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the steps until one fails; returns the exit status."""
    parser = CommandParser("scripts/build-check", "What cog build does, without Docker, in a scratch folder.")
    parser.add_argument("--root", type=Path, metavar="DIR", help="use this folder and keep it")
    parser.add_argument("--without-weights", action="store_true", help="skip what needs a hub")
    parser.add_argument(
        "--file", default=TEMPLATE, metavar="NAME", help="another file than cog.yaml, such as cog.flux2-klein.yaml"
    )
    options = parser.parse_args(arguments)
    if not (ROOT / options.file).is_file():
        print(f"error: --file: there is no {options.file} beside {TEMPLATE}", file=sys.stderr)
        return BAD_INPUT
    config = yaml.safe_load((ROOT / options.file).read_text())
    with tempfile.TemporaryDirectory() as scratch:
        root = (options.root or Path(scratch)).resolve()
        try:
            for name, step in steps(config, root, not options.without_weights):
                step()
                print(f"ok {name}", flush=True)
        except BuildError as error:
            print(f"failed {error}", file=sys.stderr)
            return FAILED
    return 0


if __name__ == "__main__":
    exit_with(main)
