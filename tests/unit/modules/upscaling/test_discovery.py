"""Which upscalers are there, by name, and what becomes of files that are none."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from spandrel.architectures.ESRGAN import ESRGAN
from support.requests_data import DETECTORS, INPUTS
from support.requests_data import EMBEDDED as CANVAS

from backend.core.errors import InputError, WeightsError
from backend.core.settings import ROOT, Settings
from modules.cli.fetch_weights import trust
from modules.request.parser import build_request
from modules.upscaling.discovery import find_upscalers, upscaler_parameters
from modules.upscaling.tiled import load_upscaler_network
from training.models.upscaler import export

EMBEDDED = ROOT / "weights" / "embedded" / "upscaler.safetensors"


def test_every_installed_file_has_a_name(tmp_path: Path) -> None:
    for name in ("embedded", "upscalers"):
        (tmp_path / name).mkdir()
    shutil.copy(EMBEDDED, tmp_path / "embedded" / "upscaler.safetensors")
    shutil.copy(EMBEDDED, tmp_path / "upscalers" / "4x-drawings.safetensors")
    found = find_upscalers(Settings(weights_dir=str(tmp_path)))
    assert {name: path.relative_to(tmp_path).as_posix() for name, path in found.items()} == {
        "upscaler": "embedded/upscaler.safetensors",
        "4x-drawings": "upscalers/4x-drawings.safetensors",
    }
    assert (
        next(iter(find_upscalers(Settings(weights_dir=str(tmp_path), upscaler="upscalers/4x-drawings.safetensors"))))
        == "4x-drawings"
    )
    assert upscaler_parameters(EMBEDDED) == sum(
        parameter.numel() for parameter in load_upscaler_network(EMBEDDED).parameters()
    )


class TestUnusableFiles:
    """Four files in the folder for other upscalers: one of factor 1, a web page, a pickle that nobody trusts, and a
    good one."""

    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        (tmp_path / "embedded").symlink_to(EMBEDDED.parent)
        folder = tmp_path / "upscalers"
        folder.mkdir()
        save_file(ESRGAN(num_filters=8, num_blocks=1, scale=1).state_dict(), folder / "1x-clean.safetensors")
        (folder / "4x-page.pt").write_text("<html>not found</html>")
        torch.save({"state_dict": export(load_upscaler_network(EMBEDDED).network)}, folder / "4x-other.ckpt")
        shutil.copy(EMBEDDED, folder / "4x-drawings.safetensors")
        return Settings(weights_dir=str(tmp_path))

    def test_those_that_no_setting_names_are_left_out_with_a_warning_each(
        self, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert list(find_upscalers(settings)) == ["upscaler", "4x-drawings"]
        assert [record.message.partition("; ")[0] for record in caplog.records if record.levelname == "WARNING"] == [
            "upscaler left out: 1x-clean.safetensors: does not upscale RGB pictures",
            "upscaler left out: upscalers/4x-other.ckpt: is a pickle whose checksum is not in the lock",
            "upscaler left out: upscalers/4x-page.pt: is damaged or not what torch saves",
        ]

    def test_the_one_that_the_setting_names_is_an_error_all_the_same(self, settings: Settings) -> None:
        for name in ("4x-page.pt", "4x-other.ckpt"):
            with pytest.raises(WeightsError, match=f"^upscalers/{name}: is "):
                find_upscalers(replace(settings, upscaler=f"upscalers/{name}"))
        with pytest.raises(WeightsError, match="^1x-clean.safetensors: does not upscale RGB pictures"):
            load_upscaler_network(
                find_upscalers(replace(settings, upscaler="upscalers/1x-clean.safetensors"))["1x-clean"]
            )

    def test_a_ckpt_file_that_somebody_trusts_is_as_good_as_any(self, settings: Settings) -> None:
        trust(settings.weights_path / "upscalers" / "4x-other.ckpt", settings.weights_path)
        found = find_upscalers(settings)
        assert (
            list(found) == ["upscaler", "4x-drawings", "4x-other"]
            and load_upscaler_network(found["4x-other"]).factor == 4
        )


def test_an_upscaler_that_is_not_installed_is_refused_with_the_names_of_those_that_are() -> None:
    there = ("ESRGAN_4x", "4x-UltraSharp")
    assert build_request({**INPUTS, "upscaler": "4x-UltraSharp"}, CANVAS, DETECTORS, there).upscaler == "4x-UltraSharp"
    with pytest.raises(
        InputError,
        match=(
            r"^upscaler: '4x-Ultrasharp' is not installed \(did you mean '4x-UltraSharp'\?\); leave it out, or use "
            r"ESRGAN_4x, 4x-U"
        ),
    ):
        build_request({**INPUTS, "upscaler": "4x-Ultrasharp"}, CANVAS, DETECTORS, there)
