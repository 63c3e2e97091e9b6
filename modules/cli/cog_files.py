"""``scripts/cog-files``: writes a ``cog.NAME.yaml`` for every model that an image is offered with.

``cog.yaml`` is the template: such a file has all of it but the commands that download the model, which follow from
``weights/manifest.json``. ``cog build -f cog.flux2-klein.yaml`` takes it.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml  # type: ignore[import-untyped]

from backend.core.files import write_atomic
from backend.core.settings import ROOT
from backend.weights.catalog import Model, find_model, read_manifest
from modules.cli.command import FAILED, CommandParser, exit_with

TEMPLATE = "cog.yaml"
IMAGES: Mapping[str, str] = MappingProxyType(
    {"flux1-dev": "FLUX.1-dev", "flux2-klein": "flux2-klein", "z-image": "z-image-turbo"}
)
"""By the name of the image, the model in it."""
ONLINE = "HF_HUB_OFFLINE=0"
TOKEN = "HF_TOKEN_PATH=/run/secrets/hf_token"
MOUNTS = [{"type": "secret", "id": "hf_token", "target": "/run/secrets/hf_token"}]
WEIGHTS = "/src/weights"
WIDTH = 120


def baked_models(config: Mapping[str, Any]) -> tuple[Model, ...]:
    """The models of the manifest that the commands of a ``cog.yaml`` download, in the order of the manifest."""
    words = {word.strip("'") for command in commands(config) for word in command.split()}
    return tuple(
        model
        for model in read_manifest().values()
        if model.repository in words and all(file.path in words for file in model.files)
    )


def commands(config: Mapping[str, Any]) -> list[str]:
    """The commands of ``build.run``, in their order."""
    return [item if isinstance(item, str) else item["command"] for item in config["build"].get("run") or ()]


def cog_config(template: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """The content of ``cog.yaml`` with this model in the image in place of the one that it has there."""
    config = copy.deepcopy(dict(template))
    theirs = next(model for model in baked_models(template) if "pipeline" in model.parts)
    old, new = ({file.local for file in one.files} for one in (theirs, model))
    kept = [item for item in config["build"]["run"] if theirs.repository not in str(item)]
    count = re.compile(r"(?<=len\(files\) != )\d+")
    kept[-1] = count.sub(lambda found: str(int(found[0]) - len(old) + len(new)), kept[-1])
    config["build"]["run"] = [*downloads(model), *kept]
    return config


def downloads(model: Model) -> list[Any]:
    """The commands that bring a pipeline: its small files, then each large file as a layer of its own; the last one
    compares all with the hub's checksums."""
    hub = f"{ONLINE} {TOKEN}" if model.gated else ONLINE
    target = f"{WEIGHTS}/{model.name}"
    clean = f"rm -rf {target}/.cache"
    verify = f"{hub} hf cache verify {model.repository} --local-dir {target}"
    paths = sorted((file.path for file in model.files), key=lambda path: "/" in path)  # what is of all parts first
    large = [path for path in paths if path.endswith(".safetensors")]
    groups = [[path for path in paths if path not in large], *([path] for path in large)]
    found = [f"{hub} hf download {model.repository} {' '.join(group)} --local-dir {target}" for group in groups]
    found = [f"{command} && {clean}" for command in found[:-1]] + [f"{found[-1]} && {verify} && {clean}"]
    return [{"command": command, "mounts": MOUNTS} for command in found] if model.gated else list(found)


def cog_text(model: Model) -> str:
    """The file of an image with this model."""
    template = yaml.safe_load((ROOT / TEMPLATE).read_text())
    told = (
        f"# Written by scripts/cog-files from {TEMPLATE}, which says why, and from weights/manifest.json.\n"
        f"# In the image: {model.repository} ({model.licence.partition(';')[0]}), "
        f"{model.about_bytes / 1e9:.0f} GB; {'a token is needed' if model.gated else 'no token is needed'}.\n"
    )
    dumped: str = yaml.dump(cog_config(template, model), Dumper=_Dumper, sort_keys=False, width=WIDTH)
    return told + dumped


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes commands folded, as they are written by hand, and nothing as a reference to what stands above."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _folded(dumper: yaml.SafeDumper, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=">" if len(text) > WIDTH else None)


_Dumper.add_representer(str, _folded)


def cog_file(name: str) -> Path:
    """The file of an image: ``cog.flux2-klein.yaml``."""
    return ROOT / f"cog.{name}.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the files, or says which are not as they should be; returns the exit status."""
    parser = CommandParser("scripts/cog-files", "Writes a cog.NAME.yaml for every model that an image is offered with.")
    parser.add_argument("--check", action="store_true", help="write nothing; name the files that are not up to date")
    options = parser.parse_args(arguments)
    status = 0
    for name, known in IMAGES.items():
        model, path = find_model(known), cog_file(name)
        assert model is not None
        text = cog_text(model)
        if path.is_file() and path.read_text() == text:
            continue
        if options.check:
            status = FAILED
            print(f"{path.name}: is not what {TEMPLATE} and the manifest give; run scripts/cog-files", file=sys.stderr)
        else:
            write_atomic(path, text)
            print(f"wrote {path.name}")
    return status


if __name__ == "__main__":
    exit_with(main)
