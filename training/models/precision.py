"""Where training runs, in which precision it multiplies matrices, and with which kernels it attends."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def best_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def product_type(device: torch.device) -> torch.dtype:
    """bfloat16 where ``device`` multiplies in it; on a processor that does not, float32 is forty times faster
    (measured with AVX2 alone)."""
    fast = device.type != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16")
    return torch.bfloat16 if fast else torch.float32


CPU = torch.device("cpu")


def fast_products(device: torch.device = CPU) -> torch.autocast:
    """A context in which matrix products on ``device`` run in ``product_type(device)``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=product_type(device) is torch.bfloat16)


def attention_kernels(device: torch.device) -> AbstractContextManager[None]:
    """A context with the kernels that are right for a hundred tokens.

    On a CPU plain matrix products are faster backwards than the blockwise kernel, by a third of the whole pass. On a
    GPU cuDNN's kernel, which torch prefers on Hopper, is left out.
    """
    if device.type == "cpu":
        return sdpa_kernel(SDPBackend.MATH)
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
