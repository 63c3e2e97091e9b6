"""What is reported as applied is there; what is not applied says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from support.small_flux import forward, small_transformer
from torch import nn
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from backend.checkpoints.loader import load_diffusers_module
from backend.core.settings import ROOT, Settings
from backend.devices.emulated import EmulatedDevice
from backend.devices.probe import Device, probe_device
from backend.memory_management import MemoryPlan, Placement
from backend.offload.placements import block_modules, placed_model
from backend.offload.quantized_linear import FORMATS, quantize
from backend.planning.costs import Kind
from backend.stream import HostTransfers
from modules.app.service import Service
from modules.flux_memory_optimizer import FluxMemoryOptimizer, clearly_fastest, fastest_attention, set_attention

FOLDER = ROOT / "weights" / "embedded" / "flux"
CPU = torch.device("cpu")
CARD = Device("cuda", "a card", 80 * 2**30, 80 * 2**30, (9, 0), torch.bfloat16)
FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"


@pytest.fixture
def plan(service: Service) -> MemoryPlan:
    return service.runtime.plan


@pytest.fixture
def transformer() -> nn.Module:
    return small_transformer()


def operators(run: Callable[[], object]) -> set[str]:
    """The names of all that was computed, down to the kernels."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    return {event.key for event in profiled.key_averages()}


def optimizer(plan: MemoryPlan, device: Device | None = None, **settings: Any) -> FluxMemoryOptimizer:
    """As the set-up makes it."""
    made = FluxMemoryOptimizer(device or probe_device("cpu", "float32"), plan, replace(Settings(), **settings))
    made.set_process_options()
    return made


def entry(made: FluxMemoryOptimizer, name: str) -> tuple[bool, str]:
    [(applied, reason)] = [(one.applied, one.reason) for one in made.report if one.name == name]
    return applied, reason


def test_on_a_cpu_every_technique_is_listed_once_with_a_reason(plan: MemoryPlan) -> None:
    made = optimizer(plan)
    for name in ("transformer", "vae"):
        made.improve(name, load(name))
    made.improve("upscaler", nn.Conv2d(3, 3, 3))
    names = [one.name for one in made.report]
    assert len(set(names)) == len(names) and all(one.reason for one in made.report)
    assert {one.name for one in made.report if one.applied} == {
        "threads",
        "block cache",
        "cached rotary embedding",
        "complex rotations",
        "channels last: vae",
        "channels last: upscaler",
    }


def load(name: str) -> nn.Module:
    kind = {"transformer": FluxTransformer2DModel, "vae": AutoencoderKL}[name]
    return load_diffusers_module(kind, FOLDER / name, torch.float32)


def small_autoencoder() -> AutoencoderKL:
    """With every kind of block of Flux's, one of each and two that upsample: all of them are traced in seconds."""
    channels = (16, 16, 16)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    return AutoencoderKL(
        block_out_channels=channels, latent_channels=16, norm_num_groups=4, layers_per_block=1, **blocks
    ).eval()


def test_threads_are_those_of_torch(plan: MemoryPlan) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert entry(optimizer(plan), "threads")[1].startswith("1 of torch")
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("dtype", "upscaler", "asked", "expected"),
    [
        (
            torch.bfloat16,
            torch.float16,
            "auto",
            (True, "in bfloat16, upscalers in float16: faster here than float32"),
        ),
        (
            torch.float32,
            torch.float32,
            "auto",
            (False, "in float32, upscalers in float32: no shorter type is faster on this device"),
        ),
        (
            torch.float32,
            torch.float32,
            "float32",
            (False, "in float32, upscalers in float32: the setting 'dtype' asks for it"),
        ),
    ],
)
def test_the_precision_is_told_with_its_reason(
    plan: MemoryPlan, dtype: torch.dtype, upscaler: torch.dtype, asked: str, expected: tuple[bool, str]
) -> None:
    device = Device("cpu", "a processor", 0, 0, None, dtype, upscaler)
    applied, reason = entry(optimizer(plan, device, dtype=asked), "16 bits")
    assert (applied, reason) == (expected[0], f"diffusion models compute {expected[1]}")


def test_making_an_optimizer_sets_nothing_in_the_process(plan: MemoryPlan) -> None:
    before = torch.get_float32_matmul_precision()
    made = FluxMemoryOptimizer(CARD, plan, Settings())
    assert torch.get_float32_matmul_precision() == before == "highest"
    assert "TensorFloat-32" not in made.table()


@pytest.mark.parametrize(("capability", "applied"), [((9, 0), True), ((7, 5), False)])
def test_tensorfloat_is_for_ampere_and_newer(plan: MemoryPlan, capability: tuple[int, int], applied: bool) -> None:
    card = Device("cuda", "a card", 80 * 2**30, 80 * 2**30, capability, torch.bfloat16)
    try:
        assert entry(optimizer(plan, card), "TensorFloat-32")[0] == applied
        assert torch.get_float32_matmul_precision() == ("high" if applied else "highest")
    finally:
        torch.set_float32_matmul_precision("highest")


def test_on_cuda_only_what_keeps_the_layout_computes_channels_last(plan: MemoryPlan) -> None:
    """There group norms return the usual layout, whatever they are given."""
    card = Device("cuda", "card", 2**35, 2**35, (8, 9), torch.bfloat16)
    made = optimizer(plan, card)
    vae = made.improve("vae", load("vae"))
    upscaler = made.improve("upscaler", nn.Conv2d(4, 8, 3))
    assert not entry(made, "channels last: vae")[0] and entry(made, "channels last: upscaler")[0]
    assert all(p.is_contiguous() for p in vae.parameters())
    assert next(upscaler.parameters()).is_contiguous(memory_format=torch.channels_last)


def test_on_a_cpu_queries_and_keys_are_rotated_as_complex_numbers(plan: MemoryPlan, transformer: nn.Module) -> None:
    made = optimizer(plan)
    made.improve("transformer", transformer)
    assert entry(made, "complex rotations")[0]
    assert "aten::view_as_complex" in operators(lambda: forward(transformer))


def test_the_autoencoder_computes_channels_last(plan: MemoryPlan) -> None:
    vae: Any = load("vae")
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        right = vae.decode(latents, return_dict=False)[0]
        made = optimizer(plan)
        made.improve("vae", vae)
        seen: list[bool] = []
        vae.decoder.conv_out.register_forward_hook(
            lambda module, args, output: seen.append(output.is_contiguous(memory_format=torch.channels_last))
        )
        assert torch.allclose(vae.decode(latents, return_dict=False)[0], right, atol=1e-4)
    assert entry(made, "channels last: vae")[0] and seen == [True]


def test_tiles_are_reported_as_they_are(plan: MemoryPlan) -> None:
    vae: Any = load("vae")
    for tiled in (False, True):
        vae.use_tiling = tiled
        made = optimizer(plan)
        made.improve("vae", vae)
        assert entry(made, "autoencoder in tiles")[0] == tiled


def test_the_attention_kernel_that_was_set_is_the_one_that_runs(transformer: nn.Module) -> None:
    before = _AttentionBackendRegistry.get_active_backend()[0]
    assert FUSED in operators(lambda: forward(transformer))
    set_attention(transformer, "_native_math")
    assert FUSED not in operators(lambda: forward(transformer))
    assert _AttentionBackendRegistry.get_active_backend()[0] == before  # other models keep theirs


def test_the_fastest_kernel_is_taken_and_the_others_are_named() -> None:
    best, reason = fastest_attention(("_flash_3", "_native_math", "native"), (1, 2048, 4, 32), CPU, torch.float32)
    assert best == "native" and "_native_math" in reason and " ms" in reason
    assert "_flash_3: Flash Attention 3 backend" in reason  # not installed here


@pytest.mark.parametrize(
    ("seconds", "taken"),
    [
        ({"native": 1.0, "_native_cudnn": 0.92, "xformers": 0.95}, "native"),
        ({"native": 1.0, "_native_cudnn": 0.88, "xformers": 0.85}, "xformers"),
        ({"_native_cudnn": 1.0, "xformers": 1.1}, "_native_cudnn"),
    ],
)
def test_another_kernel_than_pytorchs_choice_has_to_be_a_tenth_faster(seconds: dict[str, float], taken: str) -> None:
    assert clearly_fastest(seconds) == taken


def test_where_no_kernel_can_be_timed_the_usual_one_stays() -> None:
    best, reason = fastest_attention(("_flash_3",), (1, 8, 2, 32), CPU, torch.float32)
    assert best == "native" and "no kernel could be timed (_flash_3: " in reason


def test_a_kernel_that_computes_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "_native_math"
    monkeypatch.setitem(_AttentionBackendRegistry._backends, name, lambda query, key, value: torch.zeros_like(query))
    monkeypatch.setitem(_AttentionBackendRegistry._supported_arg_names, name, {"query", "key", "value"})
    best, reason = fastest_attention((name, "native"), (1, 512, 4, 32), CPU, torch.float32)
    assert best == "native" and "100% from native" in reason


@pytest.fixture
def fresh_compiler(compile_cache: Path) -> Iterator[Path]:
    """The folder of its code."""
    torch._dynamo.reset()
    counters.clear()
    yield compile_cache
    torch._dynamo.reset()


def compile_with(backend: str | Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are made as always, and code is made of them by another part of torch."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, dynamic, mode: compiler(run, dynamic=dynamic, backend=backend))


@pytest.mark.slow
def test_the_next_start_finds_the_compiled_code_which_computes_the_same(plan: MemoryPlan, fresh_compiler: Path) -> None:
    right = forward(small_transformer(double_blocks=0))  # one kind of block is compiled in half of the time
    for start in range(2):
        transformer = small_transformer(double_blocks=0)
        made = optimizer(plan, compile="on", compile_cache=str(fresh_compiler))
        made.improve("transformer", transformer)
        applied, reason = entry(made, "compiled blocks")
        assert applied and reason.startswith("3 blocks")
        assert torch.allclose(forward(transformer), right, atol=1e-4)
        assert counters["stats"]["unique_graphs"] == 1  # not one a block
        assert (counters["inductor"]["fxgraph_cache_miss"] > 0) == (start == 0)
        torch._dynamo.reset()
        counters.clear()
    assert any(fresh_compiler.rglob("*.so"))


def test_compiled_blocks_may_be_streamed(plan: MemoryPlan, fresh_compiler: Path) -> None:
    right = forward(small_transformer(double_blocks=0))
    kinds: tuple[Kind, ...] = ("model offload", "partial", "block offload")
    for kind in kinds:
        transformer = small_transformer(double_blocks=0)
        optimizer(plan, compile="on", compile_cache=str(fresh_compiler)).improve("transformer", transformer)
        placed = placed_model(transformer, EmulatedDevice(10**9), kind, kept=1)
        placed.load()
        for _ in range(3):
            assert torch.allclose(forward(transformer), right, atol=1e-4)
        # no graph more for another slot, for weights that were uploaded again or for another placement
        assert counters["stats"]["unique_graphs"] == 1
        assert "forward" in vars(block_modules(transformer)[0])


def test_blocks_whose_layers_are_streamed_are_not_compiled(plan: MemoryPlan, fresh_compiler: Path) -> None:
    """Layers that come one by one need hooks inside of the blocks, which compiled code does not run."""
    transformer = small_transformer(double_blocks=0)
    right = forward(transformer)
    optimizer(plan, compile="on", compile_cache=str(fresh_compiler)).improve("transformer", transformer)
    placed_model(transformer, EmulatedDevice(10**9), "layer offload").load()
    assert torch.allclose(forward(transformer), right, atol=1e-4)
    assert not counters["stats"]["unique_graphs"] and "forward" not in vars(block_modules(transformer)[0])


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_with_quantized_weights_are_compiled_once_a_kind(
    plan: MemoryPlan, fresh_compiler: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The graphs; ``test_quantized_linear.py`` generates code of every format."""
    compile_with("eager", monkeypatch)
    transformer = quantize(small_transformer(double_blocks=0), name, torch.float32)
    right = forward(transformer)
    optimizer(plan, compile="on", compile_cache=str(fresh_compiler)).improve("transformer", transformer)
    assert torch.allclose(forward(transformer), right, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1  # as without quantization: not one a block


@pytest.mark.parametrize(
    ("settings", "placement", "why"),
    [
        ({"compile": "off"}, {}, "is off"),
        ({"compile": "auto"}, {}, "on a CPU"),
        ({"compile": "on"}, {"kind": "layer offload"}, "layers one by one"),
    ],
)
def test_blocks_that_are_not_compiled_say_why(
    plan: MemoryPlan, transformer: nn.Module, settings: dict[str, str], placement: dict[str, Any], why: str
) -> None:
    changed: Placement = replace(plan.placements["transformer"], **placement)
    made = optimizer(replace(plan, placements={**plan.placements, "transformer": changed}), **settings)
    made.improve("transformer", transformer)
    applied, reason = entry(made, "compiled blocks")
    assert not applied and why in reason and "forward" not in vars(block_modules(transformer)[0])


def test_the_whole_transformer_is_one_graph_only_where_its_weights_stay(
    plan: MemoryPlan, fresh_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = "whole transformer in one graph"
    resident = small_transformer(double_blocks=0)
    made = optimizer(plan, compile="whole", compile_cache=str(fresh_compiler))
    made.improve("transformer", resident)
    assert entry(made, whole)[0] and "forward" in vars(resident)
    placed_model(resident, HostTransfers(), "model offload")  # as the fallback does when memory is full
    assert "forward" not in vars(resident) and "forward" in vars(block_modules(resident)[0])

    moved = replace(plan.placements["transformer"], kind="block offload")
    made = optimizer(replace(plan, placements={**plan.placements, "transformer": moved}), compile="whole")
    made.improve("transformer", small_transformer(double_blocks=0))
    assert entry(made, whole) == (
        False,
        "its weights move (block offload), and a CUDA graph knows only fixed addresses",
    )


@pytest.mark.parametrize("compile", ["auto", "on"])
def test_a_set_up_does_not_take_a_minute_for_a_decoder_that_is_hardly_faster(plan: MemoryPlan, compile: str) -> None:
    made = FluxMemoryOptimizer(CARD, plan, replace(Settings(), compile=compile))
    made.improve("vae", load("vae"))
    assert "saves 25 ms" in entry(made, "compiled decoding")[1] and not made.compiles


def test_the_decoder_is_compiled_for_all_sizes(plan: MemoryPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_with("eager", monkeypatch)
    torch._dynamo.reset()
    counters.clear()
    vae: Any = small_autoencoder()
    made = FluxMemoryOptimizer(CARD, plan, replace(Settings(), compile="whole"))
    made.improve("vae", vae)
    assert entry(made, "compiled decoding")[0] and made.compiles
    with torch.inference_mode():
        for rows, columns in ((8, 12), (12, 10), (10, 10)):  # small ones: a CPU has another convolution for large
            vae.decode(torch.zeros(1, 16, rows, columns))
    assert counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


def test_what_cannot_be_compiled_is_reported_and_runs_as_it_is(
    plan: MemoryPlan, fresh_compiler: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Code cannot be generated; the set-up has not failed for it."""

    def broken(graph: object, inputs: object) -> None:
        raise OSError("no space for code")

    compile_with(broken, monkeypatch)
    transformer = small_transformer()
    right = forward(transformer)
    made = optimizer(plan, compile="on", compile_cache=str(fresh_compiler))
    made.improve("transformer", transformer)
    assert made.compiles and not entry(made, "complex rotations")[0]
    assert torch.equal(forward(transformer), right)
    assert not made.compiles and "compiling failed, so it runs as it is" in entry(made, "compiled blocks")[1]
    assert len([record for record in caplog.records if record.name == "modules.flux_memory_optimizer"]) == 1


@pytest.mark.parametrize("compile", ["on", "auto"])
def test_without_a_compiler_nothing_is_tried(
    plan: MemoryPlan, transformer: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compile: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    made = FluxMemoryOptimizer(CARD, plan, replace(Settings(), compile=compile))
    made.improve("vae", load("vae"))
    assert "install gcc" in entry(made, "compiled decoding")[1] and not made.compiles


@pytest.mark.parametrize("name", FORMATS)
def test_products_in_fp8_are_reported_where_the_layers_make_them(plan: MemoryPlan, name: str) -> None:
    made = optimizer(plan, compile="off")
    made.improve("transformer", quantize(small_transformer(), name, torch.float32))
    applied, reason = entry(made, "fp8 products")
    assert applied == (name == "fp8_compute") and ("layers" if applied else "CUDA devices") in reason
