"""The block cache of ``go_fast``: which steps it skips, what it adds in their place, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from hypothesis import given
from hypothesis import strategies as st
from support.pictures import PROMPT
from support.services import flux_of
from support.small_flux import forward, small_transformer
from torch.utils._python_dispatch import TorchDispatchMode

from backend.core.timeline import Timeline
from backend.devices.emulated import EmulatedDevice
from backend.offload.placements import placed_model
from backend.planning.costs import Kind
from modules.app.service import Service
from modules.diffusion.block_cache import MOST_SKIPPED, THRESHOLD, BlockCache, block_cache, computed_steps
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor

LEVELS = [1 - step / 28 for step in range(28)]


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=60, unique=True))
def test_the_first_steps_and_the_last_are_computed_and_few_are_skipped_in_a_row(levels: list[float]) -> None:
    levels = sorted(levels, reverse=True)
    computed = computed_steps(levels)
    assert len(computed) == len(levels) and all(computed[:2]) and computed[-1]
    assert "s" * (MOST_SKIPPED + 1) not in "".join("c" if one else "s" for one in computed)
    last = levels[0]
    for level, compute in zip(levels, computed, strict=True):
        assert compute or last - level < THRESHOLD
        last = level if compute else last


def test_of_28_steps_a_third_or_more_is_skipped_and_of_4_none() -> None:
    shift = 3.16  # of FLUX.1-dev at 1024 x 1024
    assert computed_steps([shift * t / (1 + (shift - 1) * t) for t in LEVELS]).count(False) >= 9
    assert all(computed_steps([1.0, 0.75, 0.5, 0.25]))


def test_the_change_from_step_to_step_is_carried_on() -> None:
    cache = BlockCache(LEVELS)
    added: tuple[torch.Tensor, ...] | None = None
    for level, computed in zip(LEVELS, cache.computed, strict=True):
        given_back = cache.decide(added)
        right = (torch.tensor([level]), torch.tensor([3 - 2 * level]))
        assert (given_back is None) == computed
        if given_back is None:
            added = right
        else:
            added = given_back
            torch.testing.assert_close(given_back, right)


@pytest.fixture
def transformer() -> Any:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        axes_dims_rope=(8, 12, 12),
        in_channels=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
    ).eval()


class Waits(TorchDispatchMode):
    """Counts the operations for whose result the host waits."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def steps(transformer: Any, levels: list[float]) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    noise, picture = (torch.randn(1, 16, 16, generator=generator) for _ in range(2))
    words, pooled = torch.randn(1, 4, 32, generator=generator), torch.randn(1, 32, generator=generator)
    with torch.inference_mode(), transformer.cache_context("cond"):
        for level in levels:
            yield transformer(
                hidden_states=torch.lerp(picture, noise, level),
                timestep=torch.tensor([level]),
                guidance=torch.tensor([3.5]),
                encoder_hidden_states=words,
                pooled_projections=pooled,
                txt_ids=torch.zeros(4, 3),
                img_ids=torch.zeros(16, 3),
                return_dict=False,
            )[0]


def test_a_skipped_step_runs_the_first_block_only_and_is_close(transformer: Any) -> None:
    right = list(steps(transformer, LEVELS))
    runs: list[int] = []
    for block in (transformer.transformer_blocks[0], transformer.single_transformer_blocks[-1]):
        block.norm1.register_forward_pre_hook(lambda *_: runs.append(0)) if hasattr(block, "norm1") else None
        block.norm.register_forward_pre_hook(lambda *_: runs.append(1)) if hasattr(block, "norm") else None
    with Waits() as waits, block_cache(transformer, LEVELS):
        fast = list(steps(transformer, LEVELS))
    assert runs.count(0) == len(LEVELS) and runs.count(1) == computed_steps(LEVELS).count(True) < len(LEVELS)
    assert waits.count == 0
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(fast, right, strict=True)]
    assert 0 < max(errors) < 0.1
    assert all(torch.equal(a, b) for a, b in zip(steps(transformer, LEVELS), right, strict=True))


def test_without_levels_the_model_is_left_alone(transformer: Any) -> None:
    with block_cache(transformer, None):
        assert not transformer.is_cache_enabled


def test_where_nothing_is_skipped_nothing_changes(transformer: Any) -> None:
    levels = [1.0, 0.75, 0.5, 0.25]
    right = list(steps(transformer, levels))
    with block_cache(transformer, levels):
        assert all(torch.equal(a, b) for a, b in zip(steps(transformer, levels), right, strict=True))


def test_an_error_ends_it(transformer: Any) -> None:
    with pytest.raises(KeyError), block_cache(transformer, LEVELS):
        assert transformer.is_cache_enabled
        raise KeyError
    assert not transformer.is_cache_enabled


def test_go_fast_leaves_nothing_behind(service: Service) -> None:
    flux, drawing = flux_of(service), DenoiseRequest((PROMPT,), (7,), 256, 256, steps=16, guidance=3.5)
    plain, fast, again = (
        np.asarray(flux.generate(replace(drawing, go_fast=go_fast), Monitor(Timeline()))[0]).astype(float)
        for go_fast in (False, True, False)
    )
    assert np.array_equal(plain, again)
    assert 0 < np.square(plain - fast).mean() < 255**2 / 1000  # over 30 dB


def test_go_fast_pictures_do_not_depend_on_those_beside_them(service: Service) -> None:
    flux = flux_of(service)
    prompts = (PROMPT, "a man with a yellow hat")
    drawing = DenoiseRequest(prompts, (7, 8), 256, 256, steps=12, guidance=3.5, go_fast=True)
    together = [np.asarray(image).astype(int) for image in flux.generate(drawing, Monitor(Timeline()))]
    alone = [np.asarray(flux.generate(drawing.only(index), Monitor(Timeline()))[0]) for index in range(2)]
    assert all(
        np.abs(a - b).max() <= 2 for a, b in zip(together, alone, strict=True)
    )  # sums of a batch round otherwise


@pytest.mark.parametrize("kind", ["partial", "block offload"])
def test_no_block_is_uploaded_for_a_step_that_skips_it(kind: Kind) -> None:
    def uploaded(cached: bool) -> int:
        model, device = small_transformer(), EmulatedDevice(10**9)
        placed_model(model, device, kind, kept=2).load()
        with block_cache(model, LEVELS if cached else None), model.cache_context("cond"):  # type: ignore[operator]
            for _ in range(len(LEVELS) if cached else computed_steps(LEVELS).count(True)):
                forward(model)
        return device.bytes_uploaded

    assert uploaded(cached=True) == uploaded(cached=False)
