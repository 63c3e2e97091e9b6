"""Which upscalers are there, by name, and what becomes of files that are none."""

from __future__ import annotations

import shutil
import zipfile
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
    """Files in the folder for other upscalers: one of factor 1, a web page, a pickle with code, a LoRA, an archive that
    unpacks to more than it is, numbers that no file holds; and good ones, among them pickles of tensors."""

    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        (tmp_path / "embedded").symlink_to(EMBEDDED.parent)
        folder = tmp_path / "upscalers"
        folder.mkdir()
        save_file(ESRGAN(num_filters=8, num_blocks=1, scale=1).state_dict(), folder / "1x-clean.safetensors")
        (folder / "4x-page.pt").write_text("<html>not found</html>")
        tensors = export(load_upscaler_network(EMBEDDED).network)
        torch.save({"state_dict": tensors}, folder / "4x-other.ckpt")
        torch.save(tensors, folder / "4x-older.pth", _use_new_zipfile_serialization=False)
        torch.save({**tensors, "epoch": Path("x")}, folder / "4x-code.pth")
        torch.save({"conv_first.weight": torch.zeros(1).expand(2**30)}, folder / "4x-huge.pth")
        with zipfile.ZipFile(folder / "4x-bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", bytes(2**20))
        lora, block = "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "double_blocks.0.img_mod.lin.weight"
        save_file({lora: torch.zeros(4, 8)}, folder / "lora.safetensors")
        save_file({block: torch.zeros(6, 6)}, folder / "unet.safetensors")
        shutil.copy(EMBEDDED, folder / "4x-drawings.safetensors")
        return Settings(weights_dir=str(tmp_path))

    def test_those_that_no_setting_names_are_left_out_with_a_warning_each(
        self, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        found = find_upscalers(settings)
        assert list(found) == ["upscaler", "4x-drawings", "4x-older", "4x-other"]
        assert load_upscaler_network(found["4x-other"]).factor == load_upscaler_network(found["4x-older"]).factor == 4
        assert [record.message.partition("; ")[0] for record in caplog.records if record.levelname == "WARNING"] == [
            "upscaler left out: 1x-clean.safetensors: does not upscale RGB pictures",
            "upscaler left out: 4x-bomb.pth: is damaged, or a compressed archive, which no checkpoint is",
            "upscaler left out: 4x-code.pth: is damaged, or not what its name says",
            "upscaler left out: 4x-huge.pth: claims 1073741824 numbers, more than the file can hold",
            "upscaler left out: upscalers/4x-page.pt: is a web page in place of the file",
            "upscaler left out: lora.safetensors: is a LoRA for Flux, and no upscaler",
            "upscaler left out: unet.safetensors: is a model of the family flux1, and no upscaler",
        ]

    def test_the_reason_is_told_to_whoever_asks_for_one(self, settings: Settings) -> None:
        found = find_upscalers(settings)
        for name in ("4x-huge", "4x-huge.pth"):
            with pytest.raises(InputError, match=f"^upscaler: '{name}' cannot be used: 4x-huge.pth: claims 1073741824"):
                asked = {**INPUTS, "upscaler": name}
                build_request(asked, CANVAS, DETECTORS, tuple(found), left_out=found.left_out)

    @pytest.mark.parametrize("name", ["ESRGAN_4x.pth", "4x-UltraSharp.pth"])
    def test_nor_does_one_stop_anything_that_has_a_published_name(self, settings: Settings, name: str) -> None:
        (settings.weights_path / name).write_text("<!DOCTYPE html>")
        found = find_upscalers(settings)
        assert next(iter(found)) == "upscaler" and "is a web page" in found.left_out[Path(name).stem]
        torch.save(export(load_upscaler_network(EMBEDDED).network), settings.weights_path / name)
        assert Path(name).stem in find_upscalers(settings)

    def test_the_one_that_the_setting_names_is_an_error_all_the_same(self, settings: Settings) -> None:
        with pytest.raises(WeightsError, match="^upscalers/4x-page.pt: is a web page"):
            find_upscalers(replace(settings, upscaler="upscalers/4x-page.pt"))
        with pytest.raises(WeightsError, match="^1x-clean.safetensors: does not upscale RGB pictures"):
            load_upscaler_network(
                find_upscalers(replace(settings, upscaler="upscalers/1x-clean.safetensors"))["1x-clean"]
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
