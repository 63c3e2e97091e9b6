"""cog.yaml against cog's rules and the manifest, and its commands run for real in a scratch folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from support.local_hub import TOKEN, LocalHub, manifest_files, sha256

from backend.core.settings import ROOT
from backend.weights.catalog import read_manifest

CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "cog.yaml").read_text())
RUN = [item if isinstance(item, str) else item["command"] for item in CONFIG["build"]["run"]]
PREINSTALLED = tuple(name for name, model in read_manifest().items() if model.preinstalled)
FLUX = read_manifest()["FLUX.1-dev"].repository


def test_commands_are_single_lines_because_cog_refuses_others() -> None:
    assert all("\n" not in command.strip() for command in RUN)


def test_the_commands_bring_every_preinstalled_model_and_no_other() -> None:
    named = " ".join(RUN).split()
    for name in PREINSTALLED:
        for file in read_manifest()[name].files:
            assert any(word.strip("'") == file.path for word in named), file.path
            assert any(word.strip("'") == file.repository for word in named), file.repository
    downloaded = [
        word.strip("'") for word in named if re.search(r"\.(safetensors|pt|pth|model)'?$", word) and "*" not in word
    ]
    known = {file.path for name in PREINSTALLED for file in read_manifest()[name].files}
    assert {word for word in downloaded if not word.startswith(".")} <= known
    assert (
        f"len(files) != {len({file.local for name in PREINSTALLED for file in read_manifest()[name].files})}" in RUN[-1]
    )


def test_the_token_is_a_secret_of_the_gated_models_command_alone() -> None:
    gated = [item for item in CONFIG["build"]["run"] if not isinstance(item, str)]
    assert all(FLUX in item["command"] for item in gated)
    assert all(
        item["mounts"] == [{"type": "secret", "id": "hf_token", "target": "/run/secrets/hf_token"}] for item in gated
    )
    assert not any(FLUX in item for item in CONFIG["build"]["run"] if isinstance(item, str))
    assert not re.search(r"hf_[A-Za-z0-9]{20}", (ROOT / "cog.yaml").read_text())


def test_every_large_file_is_a_layer_of_its_own() -> None:
    """Layers are pulled side by side, and one that has not changed is not pulled again."""
    for command in RUN[:-1]:
        if FLUX in command:
            assert len(re.findall(r"\S+\.safetensors(?!\S)", command)) <= 1
            assert command.endswith("/.cache")  # else the layer has what the download keeps for itself


def test_nothing_asks_a_hub_at_run_time() -> None:
    assert "HF_HUB_OFFLINE=1" in CONFIG["environment"]


def test_the_image_does_not_draw_on_the_cpu() -> None:
    assert "FLUX_DEVICE=cuda" in CONFIG["environment"]


def test_the_source_does_not_bring_weights_of_its_own() -> None:
    """They would lie twice in the image, and anybody's weights/ would replace those that were checked."""
    rules = (ROOT / ".dockerignore").read_text().split()
    assert rules.index("weights/*") < min(
        rules.index(f"!weights/{name}") for name in ("manifest.json", "lock.json", "embedded")
    )


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    hub = LocalHub(manifest_files(PREINSTALLED, 50_000), gated=frozenset({FLUX}))
    yield hub
    hub.close()


def build_check(hub: LocalHub, root: Path, token: str = TOKEN) -> tuple[int, str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_TOKEN": token}
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "modules.cli.build_check", "--root", root],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_the_commands_run_and_leave_checked_weights(hub: LocalHub, tmp_path: Path) -> None:
    status, output = build_check(hub, tmp_path)
    assert status == 0, output
    weights = tmp_path / "src" / "weights"
    lock = json.loads((weights / "lock.json").read_text())
    for name in PREINSTALLED:
        for file in read_manifest()[name].files:
            content = hub.repositories[file.repository][file.path]
            assert (weights / file.local).read_bytes() == content
            assert lock[file.local] == {"bytes": len(content), "sha256": sha256(content)}
    assert hub.tokens["Bingsu/adetailer"] == {""}
    assert all(TOKEN.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert (tmp_path / "src" / "predict.py").is_file() and not (tmp_path / "src" / "tests").exists()


@pytest.mark.parametrize("fault", ["no token", "wrong bytes", "missing", "not safetensors"])
def test_the_build_fails_loudly(hub: LocalHub, tmp_path: Path, fault: str) -> None:
    vae = "vae/diffusion_pytorch_model.safetensors"
    if fault == "wrong bytes":
        right = hub.repositories["Bingsu/adetailer"]["face_yolov8n.pt"]
        hub.wrong = {"face_yolov8n.pt": right[:-1] + bytes([right[-1] ^ 1])}
    elif fault == "missing":
        del hub.repositories["uwg/upscaler"]["ESRGAN/ESRGAN_4x.pth"]
    elif fault == "not safetensors":
        hub.repositories[FLUX][vae] = b"\x80\x02}q\x00."
    status, output = build_check(hub, tmp_path, token="" if fault == "no token" else TOKEN)
    assert status == 1 and "a command of cog.yaml ended with" in output, output
