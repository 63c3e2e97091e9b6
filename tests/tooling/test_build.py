"""cog.yaml and its variants against cog's rules and the manifest, and their commands run for real in a scratch
folder."""

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
from support.slow import sampled

from backend.core.settings import ROOT
from backend.weights.catalog import read_manifest
from modules.cli.build_check import BuildError, run_commands
from modules.cli.build_check import main as run_build_check
from modules.cli.cog_files import IMAGES, baked_models, cog_file, commands
from modules.cli.cog_files import main as cog_files

CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "cog.yaml").read_text())
FILES = ("cog.yaml", *(cog_file(name).name for name in IMAGES))
RUN = commands(CONFIG)
PREINSTALLED = tuple(name for name, model in read_manifest().items() if model.preinstalled)
FLUX = read_manifest()["FLUX.1-dev"].repository
SCHEMA = {
    "build": {"gpu", "cuda", "python_version", "python_requirements", "sdk_version", "system_packages", "run"},
    "environment": None,
    "predict": None,
    "concurrency": {"max"},
}
"""What of cog's schema the files use; it refuses other names."""


def config_of(file: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())
    return config


def models_in(file: str) -> tuple[str, ...]:
    """What the manifest calls the models that are to be in the image."""
    name = next((name for name in IMAGES if cog_file(name).name == file), "flux1-dev")
    return tuple(IMAGES[name] if other == "FLUX.1-dev" else other for other in PREINSTALLED)


def test_the_files_of_further_images_are_what_the_template_gives() -> None:
    assert cog_files(["--check"]) == 0, "scripts/cog-files writes them"
    assert config_of("cog.flux1-dev.yaml") == CONFIG


@pytest.mark.parametrize("file", FILES)
def test_names_are_those_of_cogs_schema(file: str) -> None:
    config = config_of(file)
    assert set(config) == set(SCHEMA)
    for name, known in SCHEMA.items():
        assert known is None or set(config[name]) <= known


@pytest.mark.parametrize("file", FILES)
def test_commands_are_single_lines_because_cog_refuses_others(file: str) -> None:
    assert all("\n" not in command.strip() for command in commands(config_of(file)))


@pytest.mark.parametrize("file", FILES)
def test_the_commands_bring_the_models_of_the_image_and_no_other(file: str) -> None:
    config, models = config_of(file), models_in(file)
    run = commands(config)
    named = " ".join(run).split()
    known = {one for name in models for one in read_manifest()[name].files}
    for one in known:
        assert any(word.strip("'") == one.path for word in named), one.path
        assert any(word.strip("'") == one.repository for word in named), one.repository
    downloaded = [
        word.strip("'") for word in named if re.search(r"\.(safetensors|pt|pth|model)'?$", word) and "*" not in word
    ]
    assert {word for word in downloaded if not word.startswith(".")} <= {one.path for one in known}
    assert f"len(files) != {len({one.local for one in known})}" in run[-1]
    assert {model.name for model in baked_models(config)} == set(models)


@pytest.mark.parametrize("file", FILES)
def test_the_token_is_a_secret_of_the_gated_models_commands_alone(file: str) -> None:
    run = config_of(file)["build"]["run"]
    gated = [item for item in run if not isinstance(item, str)]
    assert all(FLUX in item["command"] for item in gated)
    assert all(
        item["mounts"] == [{"type": "secret", "id": "hf_token", "target": "/run/secrets/hf_token"}] for item in gated
    )
    assert not any(FLUX in item or "hf_token" in item for item in run if isinstance(item, str))
    assert bool(gated) == ("FLUX.1-dev" in models_in(file))
    assert not re.search(r"hf_[A-Za-z0-9]{20}", (ROOT / file).read_text())


@pytest.mark.parametrize("file", FILES)
def test_every_large_file_is_a_layer_of_its_own(file: str) -> None:
    """Layers are pulled side by side, and one that has not changed is not pulled again."""
    model = read_manifest()[models_in(file)[0]]
    for command in commands(config_of(file))[:-1]:
        if model.repository in command:
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
def hub(request: pytest.FixtureRequest) -> Iterator[LocalHub]:
    """With the models of an image, of cog.yaml where a test names none."""
    models = models_in(getattr(request, "param", "cog.yaml"))
    hub = LocalHub(manifest_files(models, 50_000), gated=frozenset({FLUX}))
    yield hub
    hub.close()


def build_check(hub: LocalHub, root: Path, file: str = "cog.yaml", token: str = TOKEN) -> tuple[int, str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_TOKEN": token}
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "modules.cli.build_check", "--root", root, "--file", file],
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
    for name in models_in("cog.yaml"):
        for one in read_manifest()[name].files:
            content = hub.repositories[one.repository][one.path]
            assert (weights / one.local).read_bytes() == content
            assert lock[one.local] == {"bytes": len(content), "sha256": sha256(content)}
    assert hub.tokens["Bingsu/adetailer"] == {""}
    assert all(TOKEN.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert (tmp_path / "src" / "predict.py").is_file() and not (tmp_path / "src" / "tests").exists()


KLEIN, Z_IMAGE = "cog.flux2-klein.yaml", "cog.z-image.yaml"


def config_with(file: str, *parts: str) -> dict[str, Any]:
    """That of a file with those of its commands that contain one of the parts."""
    config = config_of(file)
    config["build"]["run"] = [command for command in commands(config) if any(part in command for part in parts)]
    return config


@pytest.mark.slow
@pytest.mark.parametrize("hub", [Z_IMAGE], indirect=True)
def test_the_model_of_another_image_needs_no_token(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands that bring it, without those that every image has."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    model = read_manifest()[models_in(Z_IMAGE)[0]]
    run_commands(config_with(Z_IMAGE, model.repository), tmp_path)
    for one in model.files:
        assert (tmp_path / "src" / "weights" / one.local).read_bytes() == hub.repositories[one.repository][one.path]
    assert hub.tokens[model.repository] == {""}


@pytest.mark.parametrize("hub", [KLEIN], indirect=True)
def test_a_build_with_a_file_of_another_kind_fails_loudly(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that brings the file, and the last one, which looks at all of them."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    file = "vae/diffusion_pytorch_model.safetensors"
    hub.repositories[read_manifest()[models_in(KLEIN)[0]].repository][file] = b"\x80\x02}q\x00."
    with pytest.raises(BuildError, match="(?s)^a command ended with .*safetensors.*deserializing header"):
        run_commands(config_with(KLEIN, file, "safe_open"), tmp_path)


@pytest.mark.parametrize("hub", [KLEIN], indirect=True)
@pytest.mark.parametrize("fault", sampled(["wrong bytes", "missing"], 2))
def test_a_download_that_goes_wrong_ends_the_build(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The command that brings the small models, without those before it."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    config = config_with(KLEIN, "ESRGAN_4x.pth")
    if fault == "wrong bytes":
        right = hub.repositories["Bingsu/adetailer"]["face_yolov8n.pt"]
        hub.wrong = {"face_yolov8n.pt": right[:-1] + bytes([right[-1] ^ 1])}
    else:
        del hub.repositories["uwg/upscaler"]["ESRGAN/ESRGAN_4x.pth"]
    with pytest.raises(BuildError, match="^a command ended with") as caught:
        run_commands(config, tmp_path)
    told = str(caught.value).partition("\n")[2]
    assert (".fetched/Bingsu/adetailer" if fault == "wrong bytes" else "ESRGAN_4x.pth") in told


def test_a_gated_model_is_not_built_without_a_token(hub: LocalHub, tmp_path: Path) -> None:
    status, output = build_check(hub, tmp_path, token="")
    assert status == 1 and "a command ended with" in output, output


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_build_check(["--file", "cog.other.yaml"]) == 2
    assert capsys.readouterr().err == "error: --file: there is no cog.other.yaml beside cog.yaml\n"
