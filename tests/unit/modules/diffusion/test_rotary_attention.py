"""Attention that rotates as complex numbers: the numbers of diffusers' own, in Flux and in FLUX.2."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, FluxPosEmbed
from support.small_flux import forward, small_transformer
from support.small_flux2 import small_flux2_transformer
from support.small_qwen3 import WIDTH
from torch import nn

from modules.diffusion.rotary_attention import JointAttention, ParallelAttention, Rotations, rotate, rotate_as_complex

EMBEDDING = FluxPosEmbed(theta=10000, axes_dim=[4, 14, 14])


def tables(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of that many positions in a row."""
    return EMBEDDING(torch.tensor([[0.0, 1.0, column] for column in range(tokens)]))  # type: ignore[no-any-return]


def small_flux2() -> nn.Module:
    return small_flux2_transformer().eval().requires_grad_(False)  # type: ignore[no-any-return]


def forward_flux2(transformer: nn.Module) -> torch.Tensor:
    """One step of two pictures of 16 tokens, with 8 tokens of text each."""
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        output: torch.Tensor = transformer(
            hidden_states=torch.randn(2, 16, 16, generator=generator),
            encoder_hidden_states=torch.randn(2, 8, 3 * WIDTH, generator=generator),
            timestep=torch.tensor([0.5, 0.5]),
            txt_ids=torch.tensor([[0, 0, 0, index] for index in range(8)]),
            img_ids=torch.tensor([[0, index // 4, index % 4, 0] for index in range(16)]),
            return_dict=False,
        )[0]
    return output


FAMILIES = pytest.mark.parametrize(
    ("build", "step", "kinds"),
    [
        pytest.param(small_transformer, forward, {JointAttention}, id="flux"),
        pytest.param(small_flux2, forward_flux2, {JointAttention, ParallelAttention}, id="flux2"),
    ],
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotated_numbers_are_those_of_diffusers(dtype: torch.dtype) -> None:
    numbers = torch.randn(2, 9, 3, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours = rotate(numbers, Rotations().of(*tables(9)))
    own = apply_rotary_emb(numbers, tables(9), sequence_dim=1)
    assert ours.dtype == dtype and not torch.equal(ours, numbers)
    torch.testing.assert_close(ours, own, rtol=1e-6, atol=1e-6)


@FAMILIES
def test_a_transformer_computes_the_same_and_keeps_its_parameters(
    build: Callable[[], Any], step: Callable[[nn.Module], torch.Tensor], kinds: set[type]
) -> None:
    transformer = build()
    plain, names = step(transformer), list(transformer.state_dict())
    assert rotate_as_complex(transformer)
    assert {type(one) for one in transformer.attn_processors.values()} == kinds
    torch.testing.assert_close(step(transformer), plain, rtol=1e-5, atol=1e-5)
    assert list(transformer.state_dict()) == names


def test_projections_that_somebody_fused_are_used() -> None:
    transformer: Any = small_transformer()
    rotate_as_complex(transformer)
    plain = forward(transformer)
    transformer.fuse_qkv_projections()
    for block in transformer.transformer_blocks:
        del block.attn.to_q
    torch.testing.assert_close(forward(transformer), plain, rtol=1e-5, atol=1e-5)


@FAMILIES
def test_compiled_code_is_that_of_diffusers(
    build: Callable[[], Any], step: Callable[[nn.Module], torch.Tensor], kinds: set[type]
) -> None:
    """Inductor makes one kernel of diffusers' rotation, and has none for complex numbers."""
    transformer = build()
    plain = step(transformer)
    rotate_as_complex(transformer)
    traced: list[str] = []

    def trace(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        traced.append(graph.code)
        return graph.forward

    torch._dynamo.reset()
    for block in (transformer.transformer_blocks[0], transformer.single_transformer_blocks[0]):
        block.compile(backend=trace, fullgraph=True)
    torch.testing.assert_close(step(transformer), plain, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()
    assert traced and not any("complex" in code for code in traced)


def test_a_model_that_attends_otherwise_stays_as_it_is() -> None:
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "cross_attention_dim": 8, "norm_num_groups": 4}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    unet: Any = UNet2DConditionModel(**sizes, **blocks, attention_head_dim=2)
    before = unet.attn_processors
    assert not rotate_as_complex(unet) and unet.attn_processors == before
    assert not rotate_as_complex(nn.Linear(2, 2))


def test_processors_of_somebody_else_stay() -> None:
    class Theirs(FluxAttnProcessor):  # type: ignore[misc]
        """Somebody's own attention, which computes something else."""

    transformer: Any = small_transformer()
    first, theirs = next(iter(transformer.attn_processors)), Theirs()
    transformer.set_attn_processor({**transformer.attn_processors, first: theirs})
    assert rotate_as_complex(transformer)
    kinds = [type(one) for one in transformer.attn_processors.values()]
    assert transformer.attn_processors[first] is theirs and kinds.count(JointAttention) == len(kinds) - 1


def test_threads_with_other_positions_get_their_own() -> None:
    rotations = Rotations()

    def right(tokens: int) -> bool:
        cosines, sines = tables(tokens)
        expected = torch.complex(cosines[:, ::2], sines[:, ::2])[None, :, None]
        return all(torch.equal(rotations.of(cosines, sines), expected) for _ in range(500))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(right, (5, 6))) == [True, True]
