"""Optional packages that speed up programs of this kind: which are installed, and what each is used for or replaced by.

Guides also recommend NVIDIA DALI and Apex, which are for training, CuPy and Numba, which speed up array code outside of
torch, and SageAttention, whose 8-bit attention changes the pictures. They have no row, because nothing here has a use
for them.

Nothing is imported to find out, since importing some of them takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version


@dataclass(frozen=True)
class Package:
    """An optional package by its name in the package index, with one of: what it is used for, what is used instead."""

    name: str
    used_for: str = ""
    replaced_by: str = ""


_ATTENTION = "attention of the transformer, when it is measured to be faster than PyTorch's own"
_QUANTIZED = "backend/offload/quantized_linear.py, whose weights can also be offloaded and streamed"

PACKAGES = (
    Package("flash-attn-3", used_for=f"{_ATTENTION}; on Hopper"),
    Package("xformers", used_for=_ATTENTION),
    Package("exllamav2", used_for="the language model of examples/inference_cuda_optimized.py, on CUDA"),
    Package("flash-attn", replaced_by="PyTorch's scaled_dot_product_attention, which has FlashAttention 2 built in"),
    Package("optimum", replaced_by="PyTorch's scaled_dot_product_attention, which its BetterTransformer became"),
    Package("torchao", replaced_by=_QUANTIZED),
    Package("bitsandbytes", replaced_by=_QUANTIZED),
    Package("torch-tensorrt", replaced_by="torch.compile, which is not bound to one size of picture"),
)


def installed_version(name: str) -> str:
    """The version of an installed package, "" when it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def acceleration_rows(version_of: Callable[[str], str] = installed_version) -> list[tuple[str, str, str]]:
    """Of every package: name, version or "absent", and what it is used for or what is used instead."""
    return [
        (package.name, version_of(package.name) or "absent", package.used_for or f"replaced by {package.replaced_by}")
        for package in PACKAGES
    ]


def acceleration_table() -> str:
    """One line a package."""
    rows = acceleration_rows()
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{name:<{widths[0]}}  {found:<{widths[1]}}  {use}" for name, found, use in rows)
