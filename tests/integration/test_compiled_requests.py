"""What the set-up has warmed up is enough: no request compiles anything, whatever its size, number and passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters

from backend.core.settings import Settings
from modules.app.service import Service, start
from modules.request.adetailer_unit import AdetailerUnit
from modules.request.image_request import Hires, ImageRequest

ONE = ImageRequest(prompt="a man with a hat", width=256, height=256, seed=1, num_inference_steps=1)
REQUESTS = {
    "upright": replace(ONE, width=128, height=224),
    "small and square": replace(ONE, width=64, height=64),
    "large": replace(ONE, width=320, height=288),
    "four pictures": replace(ONE, width=96, height=128, num_outputs=4),
    "from an image": replace(ONE, width=160, height=96, num_outputs=3, image=Image.new("RGB", (160, 96), "red")),
    "hires": replace(ONE, width=96, height=64, hires=Hires(scale=2, strength=1)),
    "skipped steps": replace(ONE, width=128, height=160, num_inference_steps=3, go_fast=True),
    "details and scale": replace(ONE, height=128, adetailer=(AdetailerUnit(),), scale=2),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The embedded models with compiled blocks. Tracing and its guards are real; no code is generated, which would
    take most of the time."""
    torch._dynamo.reset()
    compiler = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
        patch.setattr(torch, "compile", lambda run, dynamic, mode: compiler(run, dynamic=dynamic, backend="eager"))
        settings = replace(Settings(), model="embedded", dtype="float32", device="cpu", log_level="WARNING")
        cache = str(tmp_path_factory.mktemp("compiled"))
        yield start(replace(settings, compile="on", compile_cache=cache))
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_compiles_nothing(compiled: Service, name: str) -> None:
    before = counters["stats"]["unique_graphs"]
    assert before > 0
    compiled.pipeline.run(REQUESTS[name])
    assert counters["stats"]["unique_graphs"] == before
