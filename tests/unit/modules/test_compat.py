"""The contracts of ``modules/compat.py``: what we use of other libraries beyond their public interface is there, takes
the same arguments, and does the same on a small example."""

from __future__ import annotations

import subprocess
import sys
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spandrel import ModelLoader
from spandrel.architectures.ESRGAN import ESRGAN
from support.detector_files import unfused
from support.signatures import assert_has, assert_takes
from support.small_flux import forward, small_transformer

from backend.core.settings import ROOT
from modules import compat
from modules.detection.yolo import load_detector_network, offline_ultralytics

FACE_DETECTOR = ROOT / "weights" / "embedded" / "face_detector.safetensors"


@pytest.fixture(autouse=True)
def ultralytics(tmp_path_factory: pytest.TempPathFactory) -> None:
    offline_ultralytics(tmp_path_factory.mktemp("ultralytics"))


def test_diffusers_packs_latents_as_tokens_of_two_by_two() -> None:
    from diffusers import FluxPipeline

    assert_has(FluxPipeline, "_pack_latents", "diffusers")
    names = ("latents", "batch_size", "num_channels_latents", "height", "width")
    assert_takes(FluxPipeline._pack_latents, "diffusers", *names)
    latents = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    tokens = compat.pack_latents(latents)
    assert tokens.shape == (2, 2 * 3, 3 * 4)
    assert torch.equal(tokens[1, 4].reshape(3, 2, 2), latents[1, :, 2:4, 2:4])  # row 1, column 1 of 2 x 3 tokens


def test_diffusers_unpacks_what_it_packed() -> None:
    from diffusers import FluxPipeline

    assert_has(FluxPipeline, "_unpack_latents", "diffusers")
    assert_takes(FluxPipeline._unpack_latents, "diffusers", "latents", "height", "width", "vae_scale_factor")
    latents = torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(compat.unpack_latents(compat.pack_latents(latents), 48, 32, latent_factor=8), latents)


def test_a_pipeline_of_diffusers_computes_where_it_is_told() -> None:
    from diffusers import DiffusionPipeline, FluxPipeline

    assert_has(DiffusionPipeline, "_execution_device", "diffusers")
    pipeline = FluxPipeline(None, None, None, None, None, None, None)
    assert pipeline._execution_device == torch.device("cpu")
    compat.set_execution_device(pipeline, torch.device("meta"))
    assert pipeline._execution_device == torch.device("meta") and isinstance(pipeline, FluxPipeline)


def test_diffusers_attends_with_the_kernel_that_is_active() -> None:
    from diffusers import attention_backend
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    assert_takes(dispatch_attention_fn, "diffusers", "query", "key", "value", "attn_mask")
    query, key, value = torch.randn(3, 1, 5, 2, 8, generator=torch.Generator().manual_seed(0))
    heads_first = (one.transpose(1, 2) for one in (query, key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)
    for kernel in ("native", "_native_math"):
        with attention_backend(kernel):
            assert torch.allclose(compat.attend(query, key, value), expected, atol=1e-5)


def test_the_first_block_cache_of_diffusers_asks_what_it_is_told_to_ask() -> None:
    asked: list[bool] = []

    def decide(added: tuple[torch.Tensor, ...] | None) -> tuple[torch.Tensor, ...] | None:
        asked.append(added is None)
        return added and tuple(torch.zeros_like(one) for one in added)

    transformer: Any = small_transformer()
    plain = forward(transformer)
    compat.decide_first_block(transformer, decide)
    with transformer.cache_context("cond"):
        assert torch.equal(forward(transformer), plain) and not torch.equal(forward(transformer), plain)
    transformer.disable_cache()
    assert torch.equal(forward(transformer), plain) and asked == [True, False]


def test_spandrel_calls_a_network_as_its_descriptor_does_but_for_the_clamping() -> None:
    torch.manual_seed(0)
    state = ESRGAN(num_filters=4, num_blocks=1, scale=2).state_dict()
    model = ModelLoader("cpu").load_from_state_dict(state)
    assert_has(model, "_call_fn", "spandrel")
    pixels = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        result = compat.upscaler_call(model)(model.model, pixels * 100)  # type: ignore[arg-type]
        assert not torch.equal(result, result.clamp(0, 1))
        assert torch.equal(result.clamp(0, 1), model(pixels * 100))  # type: ignore[operator]


IMPORTS = """
import sys
from pathlib import Path
from PIL import Image
before = Image.open
if sys.argv[2] == "prepared":
    from modules.detection.yolo import offline_ultralytics
    offline_ultralytics(Path(sys.argv[1]))
from modules import compat
safe = compat.ultralytics_loads_safely()
replaced = Image.open is not before
compat.restore_image_open()
print(safe, replaced, Image.open is before)
"""


@pytest.mark.parametrize("order", ["prepared", "unprepared"])
def test_ultralytics_tells_whether_it_loads_safely_and_gives_pillows_open_back(tmp_path: Path, order: str) -> None:
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "YOLO_OFFLINE": "1"}
    process = subprocess.run(
        [sys.executable, "-P", "-c", IMPORTS, str(tmp_path), order],
        env={**environment, "YOLO_CONFIG_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.stdout.splitlines()[-1:] == [f"{order == 'prepared'} True True"], process.stderr


def test_the_head_of_a_yolo_computes_its_anchors_every_call() -> None:
    from ultralytics.nn.modules import Detect

    assert_has(Detect, "dynamic", "ultralytics-opencv-headless")
    network = unfused(FACE_DETECTOR)
    compat.compute_anchors_every_call(network)
    head, pixels = network.model[-1], torch.zeros(1, 3, 64, 64)
    with torch.inference_mode():
        network(pixels)
        head.anchors = None  # as if they were on another device
        network(pixels)
    assert head.anchors is not None


def test_a_letterbox_fits_an_image_in_between_grey_bars() -> None:
    from ultralytics.data.augment import LetterBox

    assert_takes(LetterBox.__init__, "ultralytics-opencv-headless", "new_shape", "auto", "stride")
    image = np.full((40, 80, 3), 200, np.uint8)
    fitted = compat.letterbox(image, (128, 128), smallest=False, stride=32)
    assert fitted.shape == (128, 128, 3)
    assert (fitted[:32] == 114).all() and (fitted[32:96] == 200).all() and (fitted[96:] == 114).all()
    assert compat.letterbox(image, (128, 128), smallest=True, stride=32).shape == (64, 128, 3)


def test_boxes_come_back_from_a_letterbox() -> None:
    from ultralytics.utils.ops import scale_boxes

    assert_takes(scale_boxes, "ultralytics-opencv-headless", "img1_shape", "boxes", "img0_shape")
    boxes = torch.tensor([[16.0, 48.0, 32.0, 64.0], [-5.0, 0.0, 200.0, 200.0]])
    scaled = compat.unletterbox_boxes(boxes, (128, 128), (40, 80))
    assert torch.allclose(scaled, torch.tensor([[10.0, 10.0, 20.0, 20.0], [0.0, 0.0, 80.0, 40.0]]))


def test_outlines_are_prototypes_by_coefficients_within_their_box() -> None:
    from ultralytics.utils.ops import process_mask_native

    assert_takes(process_mask_native, "ultralytics-opencv-headless", "protos", "masks_in", "bboxes", "shape")
    prototypes = torch.stack([torch.full((16, 16), 1.0), torch.full((16, 16), -1.0)])
    coefficients = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    boxes = torch.tensor([[16.0, 8.0, 48.0, 40.0], [0.0, 0.0, 64.0, 64.0]])
    masks = compat.outlines(prototypes, coefficients, boxes, (64, 64))
    expected = torch.zeros(2, 64, 64, dtype=torch.uint8)
    expected[0, 8:40, 16:48] = 1
    assert torch.equal(masks.to(torch.uint8), expected)


def test_a_detector_that_was_loaded_has_been_adapted() -> None:
    assert load_detector_network(FACE_DETECTOR).model[-1].dynamic  # type: ignore[index,union-attr]


@pytest.mark.parametrize(
    ("prediction", "name"),
    [("p-1", "p-1"), ("-p", "-p"), ("", None), ("../../x", None), (".", None), ("a/b", None), ("a\n", None)],
)
def test_the_folder_of_a_prediction_is_named_by_its_id(prediction: str, name: str | None) -> None:
    """That Cog's server makes it there is seen in ``tests/e2e/test_concurrency.py``."""
    assert compat.server_folder() is None
    variable: ContextVar[str] = ContextVar("_coglet_prediction_id")

    def inside() -> Path | None:
        variable.set(prediction)
        return compat.server_folder()

    assert copy_context().run(inside) == (Path("/tmp/coglet/predictions", name) if name else None)
