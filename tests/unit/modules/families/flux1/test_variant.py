"""Which variant of FLUX.1 a folder or a file is, and what follows for requests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.headers import write_header
from support.small_flux import write_small_flux

from backend.core.errors import WeightsError
from backend.core.settings import ROOT
from modules.families.registry import FoundModel, identify
from modules.families.source import Source

EMBEDDED = ROOT / "weights" / "embedded" / "flux"


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose parts single files use."""
    return write_small_flux(tmp_path_factory.mktemp("models") / "dev", "dev")


def header(channels: int, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Tensors of a guided transformer in Black Forest Labs' names, as far as recognizing it needs them."""
    shapes = {
        "double_blocks.0.img_mod.lin.weight": (18, 3),
        "guidance_in.in_layer.weight": (3, 256),
        "img_in.weight": (3, channels),
        "final_layer.linear.weight": (64, 3),
        "txt_in.weight": (3, 192),
        "vector_in.in_layer.weight": (3, 128),
    }
    return {prefix + name: shape for name, shape in shapes.items()}


def label(found: FoundModel) -> str:
    return found.profile.inputs.label


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize(
    ("name", "channels", "metadata", "expected"),
    [
        ("flux1-fill-dev", 384, None, "FLUX.1 Fill"),
        ("mine", 384, None, "FLUX.1 Fill"),
        ("flux1-canny-dev", 128, None, "FLUX.1 Canny"),
        ("mine", 128, None, "FLUX.1 Canny"),
        ("flux1-depth-dev", 128, None, "FLUX.1 Depth"),
        ("mine", 128, {"modelspec.title": "FLUX.1 Depth"}, "FLUX.1 Depth"),
        ("flux1-dev-kontext_fp8_scaled", 64, None, "FLUX.1 Kontext"),
        ("mine", 64, {"modelspec.architecture": "flux-1-kontext"}, "FLUX.1 Kontext"),
        ("depth-of-field", 64, None, "Flux"),
    ],
)
def test_a_single_file_is_told_by_its_channels_and_its_words(
    tmp_path: Path, dev: Path, name: str, channels: int, metadata: Mapping[str, str] | None, expected: str, prefix: str
) -> None:
    file = write_header(tmp_path / f"{name}.safetensors", header(channels, prefix), metadata)
    assert label(identify(Source(file, dev))) == expected


@pytest.mark.parametrize(
    ("variant", "expected"),
    [("dev", "Flux"), ("fill", "FLUX.1 Fill"), ("kontext", "FLUX.1 Kontext"), ("canny", "FLUX.1 Canny")],
)
def test_a_folder_is_told_by_its_transformer_and_its_index(tmp_path: Path, variant: str, expected: str) -> None:
    assert label(identify(Source(write_small_flux(tmp_path / "mine", variant)))) == expected


def test_a_folder_of_the_inpainting_pipeline_is_kontext_too(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "mine")
    index = tmp_path / "mine" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "FluxKontextInpaintPipeline"}))
    assert label(identify(Source(tmp_path / "mine"))) == "FLUX.1 Kontext"


@pytest.mark.parametrize(
    ("name", "channels", "defaults"),
    [
        ("fill", 384, (28, 30.0, 1.0, "1:1")),
        ("canny", 128, (28, 30.0, 0.8, "1:1")),
        ("depth", 128, (28, 10.0, 0.8, "1:1")),
        ("kontext", 64, (28, 2.5, 0.8, "match_input_image")),
    ],
)
def test_each_has_the_defaults_of_its_hosts_and_asks_for_the_safety_check(
    tmp_path: Path, dev: Path, name: str, channels: int, defaults: tuple[object, ...]
) -> None:
    profile = identify(Source(write_header(tmp_path / f"{name}.safetensors", header(channels)), dev)).profile
    assert (profile.steps, profile.guidance, profile.strength, profile.aspect_ratio) == defaults
    assert profile.safety_check and profile.host.guidance is None


def test_fill_beside_an_autoencoder_of_another_factor_is_refused(tmp_path: Path) -> None:
    file = write_header(tmp_path / "fill.safetensors", header(384))
    with pytest.raises(WeightsError, match="^fill.safetensors takes 384 channels, and with its autoencoder .* 1152;"):
        identify(Source(file, EMBEDDED))
