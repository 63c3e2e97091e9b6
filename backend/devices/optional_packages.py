"""Optional packages that speed up other programs of this kind: which are installed, and what each is used for here, or
why it is not.

Nothing is imported to find out, since importing some of them takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version


@dataclass(frozen=True)
class Package:
    """An optional package: its name in the package index, what it is used for here ("" = nothing), and what else
    there is to know."""

    name: str
    used_for: str
    remark: str


PACKAGES = (
    Package(
        "flash-attn-3",
        "attention of the transformer on Hopper, when it is measured to be faster than PyTorch's own",
        "",
    ),
    Package("flash-attn", "", "FlashAttention 2 is one of the kernels of PyTorch's own attention, which is used"),
    Package("xformers", "attention of the transformer, when it is measured to be faster than PyTorch's own", ""),
    Package("sageattention", "", "8-bit attention changes the pictures, and by how much has not been measured here"),
    Package(
        "torchao",
        "",
        "weights in 8 and 4 bits are kept by backend/offload/quantized_linear.py, which can also be swapped and "
        "streamed",
    ),
    Package(
        "bitsandbytes",
        "",
        "its 4-bit state cannot be moved tensor by tensor, and it needs CUDA; backend/offload/quantized_linear.py is "
        "used",
    ),
    Package("exllamav2", "the prompt upsampler of examples/inference_cuda_optimized.py, on CUDA", ""),
    Package("apex", "", "its fused kernels are for training; what inference needs is part of PyTorch"),
    Package("nvidia-dali-cuda130", "", "reads training data in bulk; a prediction has one picture at most"),
    Package("cupy-cuda13x", "", "there is no array work outside of torch"),
    Package("numba", "", "there are no loops over pixels in Python"),
    Package("torch-tensorrt", "", "an engine fits one size of picture; torch.compile covers all of them"),
    Package(
        "optimum", "", "its BetterTransformer is part of PyTorch now, as scaled_dot_product_attention, which is used"
    ),
)


def installed_version(name: str) -> str:
    """The version of an installed package, "" when it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def acceleration_rows(version_of: Callable[[str], str] = installed_version) -> list[tuple[str, str, str]]:
    """Name, version or "absent", and what it is used for or why it is not."""
    return [
        (package.name, version_of(package.name) or "absent", package.used_for or f"not used: {package.remark}")
        for package in PACKAGES
    ]


def acceleration_table() -> str:
    """One line a package."""
    rows = acceleration_rows()
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{name:<{widths[0]}}  {found:<{widths[1]}}  {use}" for name, found, use in rows)
