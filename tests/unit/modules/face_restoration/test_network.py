"""Faces restored by a network of the real GFPGAN architecture; its weights are random, because the trained ones are
not ours to bring."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.face_restorers import gfpgan, write_gfpgan
from support.pictures import PICTURE
from support.requests_data import DETECTORS, EMBEDDED, INPUTS

import modules.face_restoration.network
from backend.core.errors import InputError, WeightsError
from backend.core.settings import ROOT, Settings
from modules.app.service import Service, start
from modules.face_restoration.discovery import find_face_restorer
from modules.face_restoration.network import SIDE, FaceRestorerNetwork, face_square, load_face_restorer, restored
from modules.output.image_writer import read_parameters
from modules.request.parser import build_request
from modules.upscaling.tiled import load_upscaler_network

TOLERANCE = 0.1
"""How far the plan's peak may be from what is seen, as a share."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights with the embedded models and a GFPGAN as it is published: a pickle of "params_ema"."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "embedded").symlink_to(ROOT / "weights" / "embedded")
    write_gfpgan(folder)
    return folder


@pytest.fixture(scope="module")
def service(weights: Path) -> Iterator[Service]:
    yield start(
        replace(
            Settings(),
            model="embedded",
            dtype="float32",
            weights_dir=str(weights),
            emulate_vram="1GB",
            warm_up=False,
            log_level="WARNING",
        )
    )


def test_a_face_lies_in_its_square_as_in_the_frame_that_the_networks_were_trained_on() -> None:
    """Where FFHQ has eyes at 240 and the chin near 440 of 512, a detector's box is about 101 to 411, 130 to 440."""
    left, top, side = face_square(np.array([130.0, 130.0, 382.0, 440.0]))
    assert abs(left) < 4 and abs(top) < 4 and abs(side - SIDE) < 4
    left, top, side = face_square(np.array([1000.0, 50.0, 1025.2, 81.0]))
    assert abs(side - SIDE / 10) < 1 and abs(left - 987) < 1 and abs(top - 37) < 1


def test_the_network_is_the_one_in_the_file(weights: Path) -> None:
    tensors = torch.load(weights / "GFPGANv1.4.pth", weights_only=True, mmap=True)["params_ema"]
    ours: Any = load_face_restorer(weights / "GFPGANv1.4.pth")
    read = ours.network.state_dict()
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_pixels_from_0_to_1_are_restored_with_the_noise_of_the_file() -> None:
    """The same twice; by the same architecture for smaller pictures."""
    torch.manual_seed(1)
    network = gfpgan(side=32, narrow=0.125).eval().requires_grad_(False)
    for parameter in network.parameters():  # what weighs the noise is 0 at first
        parameter.uniform_(-0.1, 0.1)
    pixels = torch.rand(1, 3, 32, 32)
    ours = FaceRestorerNetwork(network)
    with torch.inference_mode():
        expected = (network(pixels * 2 - 1, randomize_noise=False)[0] + 1) / 2
        assert expected.clamp(0, 1).std() > 0 and torch.equal(ours(pixels), expected.clamp(0, 1))
        assert torch.equal(ours(pixels), ours(pixels))


class Negative(torch.nn.Module):
    """In place of a network that takes seconds; its result is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.shape == (1, 3, SIDE, SIDE)
        return 1 - pixels


@pytest.mark.parametrize(
    "box", [(40, 40, 80, 90), (-5, -9, 30, 40), (90, 100, 127, 140)], ids=["inside", "over the corner", "over the edge"]
)
def test_only_the_face_changes_and_fades_into_the_picture(box: tuple[int, int, int, int]) -> None:
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 100, (120, 128, 3), np.uint8))
    result = restored(Negative(), picture, np.array(box, np.float64))
    left, top, side = face_square(np.array(box, np.float64))
    before, after = np.asarray(picture).astype(int), np.asarray(result).astype(int)
    outside = np.ones(before.shape[:2], bool)
    outside[max(top, 0) : top + side, max(left, 0) : left + side] = False
    assert result.size == picture.size and (after == before)[outside].all()
    x, y = min(max((box[0] + box[2]) // 2, 0), 127), min(max((box[1] + box[3]) // 2, 0), 119)
    assert after[y, x].mean() > 130, "what the network gave"
    if top > 0:
        assert np.abs(after - before)[top, max(left, 0) : left + side].max() <= 2, "the square's edge is not to be seen"


@pytest.mark.slow
def test_end_to_end(service: Service, tmp_path: Path) -> None:
    metrics: dict[str, float] = {}
    files = service.predict({**PICTURE, "scale": 1.0, "adetailer": False, "face_enhance": True}, metrics.__setitem__)
    assert "Face restoration: GFPGANv1.4, Faces restored: 1" in read_parameters(files[0])[0]
    restored_picture = np.asarray(Image.open(files[0]).convert("RGB")).astype(int)
    plain = service.predict({**PICTURE, "scale": 1.0, "adetailer": False}, lambda name, value: None)
    changed = (restored_picture != np.asarray(Image.open(plain[0]).convert("RGB"))).any(axis=2)
    assert 0.05 < changed.mean() < 0.95 and "face_enhance.seconds" in metrics
    assert service.runtime.plan.predicted_peak_bytes == pytest.approx(metrics["face_enhance.peak_bytes"], rel=TOLERANCE)


def test_the_detail_pass_restores_what_it_painted_and_only_there_also_where_the_stage_is_turned_off(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules.face_restoration.network, "load_face_restorer", lambda path: Negative())
    service = start(
        Settings(
            model="embedded",
            dtype="float32",
            weights_dir=str(weights),
            warm_up=False,
            log_level="WARNING",
            disabled_extensions=("face_enhance",),
        )
    )

    def pictures(**arguments: Any) -> tuple[np.ndarray, str, dict[str, Any]]:
        file = service.predict(
            {**PICTURE, "scale": 1.0, "adetailer_args": json.dumps(arguments)}, lambda name, value: None
        )[0]
        text, record = read_parameters(file)
        return np.asarray(Image.open(file).convert("RGB")).astype(int), text, record

    painted, plain_text, _ = pictures()
    restored_too, text, record = pictures(ad_restore_face=True)
    assert "ADetailer restore face: True" in text and "restore face" not in plain_text
    changed = (restored_too != painted).any(axis=2)
    (left, top, right, bottom), *others = record["parameters"]["_adetailer_regions"]
    assert not others
    middle = (
        slice((3 * top + bottom) // 4, (top + 3 * bottom) // 4),
        slice((3 * left + right) // 4, (left + 3 * right) // 4),
    )
    assert changed[middle].mean() > 0.9
    changed[top:bottom, left:right] = False
    assert not changed.any()
    with pytest.raises(InputError, match="^face_enhance: needs the stage 'face_enhance'"):
        service.predict({**PICTURE, "scale": 1.0, "face_enhance": True}, lambda name, value: None)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"adetailer_args": '[{}, {"ad_restore_face": true}]'}, "adetailer_args: ad_restore_face cannot be honoured: "),
        (
            {"adetailer_args_hands": json.dumps({"ad_model": next(iter(DETECTORS)), "ad_restore_face": True})},
            "adetailer_args_hands: ad_restore_face cannot be honoured: ",
        ),
    ],
)
def test_without_the_file_asking_is_refused_before_anything_runs(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        build_request({**INPUTS, **inputs}, EMBEDDED, DETECTORS)
    assert (
        str(caught.value)
        == f"{message}no face restorer is installed; leave it out, or put GFPGANv1.4.pth under weights/"
    )


def test_it_is_found_by_its_name_or_not_at_all(weights: Path) -> None:
    assert find_face_restorer(Settings(weights_dir=str(weights))) == weights / "GFPGANv1.4.pth"
    assert (
        find_face_restorer(Settings()) is None
        and find_face_restorer(Settings(weights_dir=str(weights), face_restorer="")) is None
    )
    with pytest.raises(WeightsError, match="^face_restorer: other.pth is not under weights/"):
        find_face_restorer(Settings(weights_dir=str(weights), face_restorer="other.pth"))


def test_one_is_not_taken_for_the_other(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a ESRGAN, which restores no faces; use GFPGAN or RestoreFormer"):
        load_face_restorer(ROOT / "weights" / "embedded" / "upscaler.safetensors")
    with pytest.raises(WeightsError, match="does not upscale RGB pictures"):
        load_upscaler_network(weights / "GFPGANv1.4.pth")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="holds no face restorer that spandrel knows"):
        load_face_restorer(tmp_path / "other.safetensors")
