"""Attention of Flux and FLUX.2 that rotates queries and keys as complex numbers: the bits of diffusers' own, sooner.

diffusers rotates each pair of numbers by a table of cosines and one of sines, in several operations that each write a
whole tensor. One multiplication of complex numbers does the same (Su et al., "RoFormer", 2021, section 3.2.1). It is
for a CPU without compiled blocks: compiling makes one kernel of the operations, so compiled code is diffusers' own.
"""

from __future__ import annotations

from typing import Any

import torch

from modules.compat import attend


class Rotations:
    """A step's rotary embedding as complex numbers, computed once for all layers.

    Several threads may share it: what is kept is replaced at once, and never changed.
    """

    def __init__(self) -> None:
        self._last: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def of(self, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        """1 x tokens x 1 x half of the head size, of tokens x head size in which every number is there twice."""
        last = self._last
        if last is None or last[0] is not cosines or last[1] is not sines:
            rotations = torch.complex(cosines[:, ::2], sines[:, ::2])[None, :, None]
            last = self._last = (cosines, sines, rotations)
        return last[2]


def rotate(numbers: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """N x tokens x heads x head size, each two neighbours rotated as one complex number."""
    pairs = torch.view_as_complex(numbers.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotations).flatten(-2).to(numbers.dtype)


def by_head(attn: Any, numbers: torch.Tensor) -> torch.Tensor:
    """N x tokens x width to N x tokens x heads x head size."""
    split: torch.Tensor = numbers.unflatten(-1, (-1, attn.head_dim))
    return split


class ComplexAttention:
    """In the place of diffusers' ``own`` processor. It takes and returns the same."""

    def __init__(self, own: Any, rotations: Rotations) -> None:
        self.own, self.rotations = own, rotations


class JointAttention(ComplexAttention):
    """For ``FluxAttnProcessor`` and ``Flux2AttnProcessor``."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> Any:
        if torch.compiler.is_compiling() or image_rotary_emb is None or attn.fused_projections:
            return self.own(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        query = attn.norm_q(by_head(attn, attn.to_q(hidden_states)))
        key = attn.norm_k(by_head(attn, attn.to_k(hidden_states)))
        value = by_head(attn, attn.to_v(hidden_states))
        text = 0
        if encoder_hidden_states is not None:  # the text's tokens come first
            text = encoder_hidden_states.shape[1]
            text_query = attn.norm_added_q(by_head(attn, attn.add_q_proj(encoder_hidden_states)))
            text_key = attn.norm_added_k(by_head(attn, attn.add_k_proj(encoder_hidden_states)))
            text_value = by_head(attn, attn.add_v_proj(encoder_hidden_states))
            query, key = torch.cat([text_query, query], dim=1), torch.cat([text_key, key], dim=1)
            value = torch.cat([text_value, value], dim=1)
        rotations = self.rotations.of(*image_rotary_emb)
        attended = attend(rotate(query, rotations), rotate(key, rotations), value, attention_mask).flatten(2)
        if encoder_hidden_states is None:
            return attended
        linear, dropout = attn.to_out
        return dropout(linear(attended[:, text:].contiguous())), attn.to_add_out(attended[:, :text].contiguous())


class ParallelAttention(ComplexAttention):
    """For ``Flux2ParallelSelfAttnProcessor``."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> Any:
        if torch.compiler.is_compiling() or image_rotary_emb is None:
            return self.own(attn, hidden_states, attention_mask, image_rotary_emb)
        attention, hidden = attn.to_qkv_mlp_proj(hidden_states).tensor_split([3 * attn.inner_dim], dim=-1)
        query, key, value = attention.unflatten(-1, (3, -1, attn.head_dim)).unbind(2)
        rotations = self.rotations.of(*image_rotary_emb)
        query, key = rotate(attn.norm_q(query), rotations), rotate(attn.norm_k(key), rotations)
        attended = attend(query, key, value, attention_mask).flatten(2)
        return attn.to_out(torch.cat([attended, attn.mlp_act_fn(hidden)], dim=-1))


def rotate_as_complex(transformer: Any) -> bool:
    """Gives a diffusers transformer these processors where it has the ones that they stand for. Returns whether it has
    any."""
    from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
    from diffusers.models.transformers.transformer_flux2 import Flux2AttnProcessor, Flux2ParallelSelfAttnProcessor

    kinds = {
        FluxAttnProcessor: JointAttention,
        Flux2AttnProcessor: JointAttention,
        Flux2ParallelSelfAttnProcessor: ParallelAttention,
    }
    rotations = Rotations()
    own = getattr(transformer, "attn_processors", {})
    ours = {name: kinds[type(one)](one, rotations) for name, one in own.items() if type(one) in kinds}
    if ours:
        transformer.set_attn_processor({**own, **ours})
    return bool(ours)
