"""Files on lent models: in every placement, beside compiled blocks, with room made on the device, and without a trace
once they are off."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import pytest
import torch
from support.gguf_files import gguf_type
from support.lora_files import Pair, lora_file, named, random_pairs
from support.small_flux import forward, small_transformer
from torch import nn
from torch._dynamo.utils import counters

from backend.checkpoints.packed_weight import PackedWeight
from backend.devices.emulated import EmulatedDevice
from backend.model_cache_optimizer import ModelCache
from backend.offload.packed_linear import keep_packed
from backend.offload.placements import block_modules
from backend.offload.quantized_linear import FORMATS, quantize
from backend.planning.costs import Kind
from backend.stream import HostTransfers, Transfers
from modules.families.flux1.lora_names import LORA_NAMES
from modules.lora.adapters import Adapted, Adapters, Loras
from modules.lora.deltas import layer_shape
from modules.lora.files.lora_file import LoraError, LoraFile

PLACES: Sequence[Kind] = ("resident", "model offload", "partial", "block offload", "layer offload")
NAME = "transformer"


def adapters_on(
    module: nn.Module | None = None, transfers: Transfers | None = None, kind: Kind = "resident"
) -> tuple[ModelCache, Adapters]:
    models = ModelCache(torch.device("cpu"), transfers or HostTransfers(), {NAME: kind}, kept_blocks={NAME: 2})
    models.register(NAME, lambda: module or small_transformer())
    return models, Adapters(models, Adapted("small", "Flux", (NAME,), LORA_NAMES), torch.float32)


def linear_shapes() -> dict[str, tuple[int, ...]]:
    layers = small_transformer().named_modules()
    return {name: layer_shape(layer) for name, layer in layers if isinstance(layer, nn.Linear)}


def file_of(pairs: dict[str, Pair], path: Path) -> LoraFile:
    return lora_file(named(pairs, lambda name: f"transformer.{name}"), path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[LoraFile]:
    folder, shapes = tmp_path_factory.mktemp("loras"), linear_shapes()
    return [file_of(random_pairs(shapes, seed), folder / f"{seed}.safetensors") for seed in range(4)]


def computed(adapters: Adapters, loras: Loras = ()) -> torch.Tensor:
    with adapters.on_device((NAME,), loras) as (module,):
        return forward(module)


@pytest.mark.parametrize("kind", PLACES)
def test_every_placement_computes_the_same_and_is_as_before_afterwards(kind: Kind, files: list[LoraFile]) -> None:
    loras = ((files[0], 0.8), (files[1], -0.5))
    _, on_host = adapters_on()
    plain, changed = computed(on_host), computed(on_host, loras)
    assert not torch.equal(plain, changed)
    with EmulatedDevice(10**8) as device:
        models, adapters = adapters_on(transfers=device, kind=kind)
        models.load(NAME)
        for loan in ((), loras, ((files[0], 0.0),), loras):
            expected = changed if loan == loras else plain
            assert torch.equal(computed(adapters, loan), expected)
        assert torch.equal(computed(adapters), plain)
    names = {name for name, _ in models.module(NAME).named_modules()}
    assert names == {name for name, _ in small_transformer().named_modules()}


def stored_in(format: str) -> nn.Module:
    """The small transformer with its blocks rounded, or with all layers in the bits of a GGUF file."""
    model = small_transformer()
    if format in FORMATS:
        return quantize(model, format, torch.float32)
    for layer in (part for part in model.modules() if isinstance(part, nn.Linear) and part.in_features % 32 == 0):
        rows = torch.from_numpy(gguf.quants.quantize(layer.weight.numpy(), gguf_type(format)).copy())
        packed = PackedWeight(format, [rows], layer.in_features, torch.float32)
        layer.weight = nn.Parameter(packed, requires_grad=False)
    return keep_packed(model, torch.float32)


@pytest.mark.parametrize("format", [*FORMATS, "Q4_0"])
def test_quantized_weights_are_changed_as_plain_ones_are(format: str, files: list[LoraFile]) -> None:
    """Nearly by as much, and in every placement by the same bits."""
    loras = ((files[0], 1.0),)
    _, on_host = adapters_on(stored_in(format))
    plain, changed = computed(on_host), computed(on_host, loras)
    _, exact = adapters_on()
    expected = computed(exact, loras) - computed(exact)
    assert (changed - plain - expected).norm() < 0.25 * expected.norm()
    for kind in PLACES:
        with EmulatedDevice(10**8, pin_bytes=10**8) as device:
            models, adapters = adapters_on(stored_in(format), device, kind)
            models.load(NAME)
            assert torch.equal(computed(adapters, loras), changed), kind
            assert torch.equal(computed(adapters), plain), kind


def test_twenty_changes_leave_memory_where_it_was(files: list[LoraFile]) -> None:
    with EmulatedDevice(10**8) as device:
        models, adapters = adapters_on(transfers=device, kind="block offload")
        models.load(NAME)
        plain = computed(adapters)
        computed(adapters, tuple((file, 1.0) for file in files))
        models.release()
        before = device.allocated_bytes
        for turn in range(20):
            computed(adapters, ((files[turn % 4], 0.1 * turn), (files[(turn + 1) % 4], 1.0)))
        models.release()
        assert device.allocated_bytes == before
        assert torch.equal(computed(adapters), plain)


def test_what_was_used_last_stays_on_the_device_and_the_rest_makes_room(files: list[LoraFile]) -> None:
    with EmulatedDevice(10**8) as device:
        models, adapters = adapters_on(transfers=device)
        adapters.limit = sum(file.path.stat().st_size for file in files[:2])
        computed(adapters, ((files[0], 1.0), (files[1], 1.0)))
        uploaded = device.bytes_uploaded
        computed(adapters, ((files[1], 0.5),))
        assert device.bytes_uploaded == uploaded
        allocated = device.allocated_bytes
        computed(adapters, ((files[2], 1.0), (files[1], 1.0)))
        assert device.bytes_uploaded > uploaded and device.allocated_bytes == allocated
        with pytest.raises(
            LoraError, match="take .* of the device's memory, and 'lora_memory' has .* for them; use fewer"
        ):
            adapters.check(files[:3])


def test_compiled_blocks_run_the_same_code_for_every_file(files: list[LoraFile], tmp_path: Path) -> None:
    """Other ranks, other layers, two at once, none: once with files and once without is all that is compiled."""
    module = small_transformer(double_blocks=0)  # one kind of block is traced in half of the time
    some = {path: shape for path, shape in linear_shapes().items() if "attn" in path}
    other = file_of(random_pairs(some, seed=9, rank=7), tmp_path / "other.safetensors")
    cases: list[Loras] = [
        ((files[0], 1.0),),
        ((files[1], 0.3), (files[2], -1.0)),
        ((other, 1.0),),
        ((other, 0.5), (files[0], 2.0)),
    ]
    _, exact = adapters_on(small_transformer(double_blocks=0))
    expected = [computed(exact, loras) for loras in cases]
    for block in block_modules(module):
        block.forward = torch.compile(block.forward, dynamic=True, backend="eager")
    _, adapters = adapters_on(module)
    plain = computed(adapters)
    counters.clear()
    computed(adapters, cases[0])
    compiled = counters["stats"]["unique_graphs"]
    for loras, right in zip(cases, expected, strict=True):
        assert torch.allclose(computed(adapters, loras), right, atol=1e-4)
        assert torch.equal(computed(adapters), plain)
    assert compiled > 0 and counters["stats"]["unique_graphs"] == compiled


def test_a_file_that_fits_no_layer_is_refused(tmp_path: Path) -> None:
    _, adapters = adapters_on()
    pairs = random_pairs({"transformer_blocks.0.attn.to_q": (3072, 3072)}, rank=1)
    with pytest.raises(LoraError, match=r"^LoRA 'big' changes nothing of small: none of its 2 tensors fits one of"):
        adapters.check([file_of(pairs, tmp_path / "big.safetensors")])


def test_tensors_without_a_place_are_named_and_the_others_count(tmp_path: Path, files: list[LoraFile]) -> None:
    _, adapters = adapters_on()
    pairs = random_pairs(linear_shapes())
    more = named(random_pairs({"transformer_blocks.99.attn.to_q": (64, 64)}), lambda name: f"transformer.{name}")
    odd = {"transformer.x_embedder.lora_C.weight": torch.ones(1), "transformer.proj_out.alpha_x": torch.ones(1)}
    tensors = named(pairs, lambda name: f"transformer.{name}") | more | odd
    file = lora_file(tensors, tmp_path / "odd.safetensors")
    [line] = adapters.check([file])
    assert line.startswith(f"LoRA 'odd': 4 of its {len(tensors)} tensors fit no layer of small and are left out: ")
    assert all(name in line for name in (*more, *odd))
    assert torch.equal(computed(adapters, ((file, 1.0),)), computed(adapters, ((files[0], 1.0),)))
