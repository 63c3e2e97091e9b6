"""Our upscaler gives what basicsr 1.4.2's own RRDBNet gives, for the three ways in which ESRGAN files name their
weights.

basicsr's source is fetched once from the package index into ``build/peers``; where that cannot be done, the tests are
skipped.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.core.settings import ROOT
from modules.upscaling.tiled import load_upscaler_network

PEERS = ROOT / "build" / "peers"
SOURCE = PEERS / "basicsr-1.4.2"
FETCH_SECONDS = 120


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the peer's random weights, an input and its result."""
    if not SOURCE.is_dir():
        scratch = tmp_path_factory.mktemp("download")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "basicsr==1.4.2",
            "--no-deps",
            "--no-build-isolation",
            "--no-binary",
            ":all:",
        ]
        try:
            subprocess.run(
                [*command, "--retries", "0", "-q", "-d", str(scratch)],
                check=True,
                capture_output=True,
                text=True,
                timeout=FETCH_SECONDS,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"basicsr's source cannot be fetched here: {str(error.stderr or error)[-200:]}")
        shutil.unpack_archive(next(scratch.glob("*.tar.gz")), scratch, filter="data")
        PEERS.mkdir(parents=True, exist_ok=True)
        shutil.move(scratch / SOURCE.name, SOURCE)
    out = tmp_path_factory.mktemp("peer")
    subprocess.run(
        [sys.executable, str(ROOT / "tests" / "peer_basicsr.py"), str(SOURCE), str(out)], check=True, timeout=300
    )
    return out


def original(name: str, blocks: int) -> str:
    """The name that ESRGAN's first files have for a weight: a plain list of layers."""
    places = {
        "conv_first": "model.0",
        "conv_body": f"model.1.sub.{blocks}",
        "conv_up1": "model.3",
        "conv_up2": "model.6",
    }
    places |= {"conv_hr": "model.8", "conv_last": "model.10"}
    layer, _, kind = name.rpartition(".")
    inner = re.sub(r"body\.(\d+)\.rdb(\d)\.conv(\d)", r"model.1.sub.\1.RDB\2.conv\3.0", layer)
    return f"{places.get(layer, inner)}.{kind}"


def bsrgan(name: str) -> str:
    renamed = re.sub(r"body\.(\d+)\.rdb", r"RRDB_trunk.\1.RDB", name)
    for new, old in {
        "conv_body": "trunk_conv",
        "conv_up1": "upconv1",
        "conv_up2": "upconv2",
        "conv_hr": "HRconv",
    }.items():
        renamed = renamed.replace(new, old)
    return renamed


@pytest.mark.parametrize("keys", ["Real-ESRGAN", "BSRGAN", "ESRGAN"])
def test_the_output_is_basicsrs(peer: Path, tmp_path: Path, keys: str) -> None:
    weights = load_file(peer / "weights.safetensors")
    name = {"Real-ESRGAN": lambda key: key, "BSRGAN": bsrgan, "ESRGAN": lambda key: original(key, blocks=2)}[keys]
    renamed = {name(key): tensor for key, tensor in weights.items()}
    assert (set(renamed) == set(weights)) == (keys == "Real-ESRGAN")
    save_file(renamed, tmp_path / "upscaler.safetensors")
    torch.save({"params_ema": renamed}, tmp_path / "upscaler.pth")  # as Real-ESRGAN is published
    for file in ("upscaler.safetensors", "upscaler.pth"):
        network = load_upscaler_network(tmp_path / file)
        with torch.inference_mode():
            ours = network(load_file(peer / "pixels.safetensors")["pixels"])
        assert torch.equal(ours, load_file(peer / "result.safetensors")["result"])
