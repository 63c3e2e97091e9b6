"""What makes Flux fast on this device: each technique by name, whether it was applied, and why or why not.

Nothing is reported as applied that is not: every report is made where the technique was put in force, and
``tests/unit/modules/test_flux_memory_optimizer.py`` observes each of them from outside. None of them changes what is
drawn by more than rounding; the one that does, the first-block cache, is an input of its own (``go_fast``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn import functional

from backend.core.settings import ROOT, Settings
from backend.devices.probe import Device
from backend.memory_management import MemoryPlan
from backend.offload.placements import block_modules

ATTENTION_BACKENDS = ("_flash_3", "_native_cudnn", "xformers", "native")
"""diffusers' names of the attention kernels that a CUDA device is tried with: FlashAttention 3 (Hopper, the package
``flash_attn_interface``), cuDNN, xformers, and what PyTorch chooses itself (FlashAttention 2 from Ampere on)."""
ATTENTION_GAIN = 0.97
"""Another kernel than PyTorch's own choice has to be this much faster: less is noise, and a choice that changes from
start to start would change the last bits of every picture."""
ATTENTION_ERROR = 0.02
"""Relative difference from PyTorch's own kernel that rounding to 16 bits explains; a kernel beyond it computes
something else."""
FIRST_BLOCK_THRESHOLD = 0.08
"""ParaAttention's value for Flux: a step whose first block changes less than this, relative to the last one
computed, is not computed."""


@dataclass(frozen=True)
class Optimization:
    """One technique: what it is, whether it is in force, and why or why not, in words for the log."""

    name: str
    applied: bool
    reason: str


class FluxMemoryOptimizer:
    """Chooses by device, plan and settings. Making one sets what belongs to the process; :meth:`improve` is for every
    model as it is read.

    ``upscalers`` are what the model cache calls them.
    """

    def __init__(
        self, device: Device, plan: MemoryPlan, settings: Settings, upscalers: Collection[str] = ("upscaler",)
    ) -> None:
        self.device, self.plan, self.settings, self.upscalers = device, plan, settings, upscalers
        self.report: list[Optimization] = []
        self._note(
            "threads", True, f"{torch.get_num_threads()} of torch, on {os.cpu_count()} processors of the machine"
        )
        self._note_precision()
        self._set_matmul_precision()

    def improve(self, name: str, module: nn.Module) -> nn.Module:
        """The model that was read under this name of the model cache, made faster; weights and results stay the
        same."""
        if name == "transformer":
            self._choose_attention(module)
            self._keep_rotary_tables(module)
            self._compile_blocks(module)
        elif name in ("vae", "unet", *self.upscalers):
            self._order_channels_last(name, module)
            if name == "vae":
                self._work_in_place(module)
                tiled = bool(getattr(module, "use_tiling", False))
                self._note(
                    "autoencoder in tiles", tiled, "the memory plan asks for it" if tiled else "whole pictures fit"
                )
        return module

    def table(self) -> str:
        """One line a technique."""
        width = max(len(one.name) for one in self.report)
        return "\n".join(f"{'+' if one.applied else '-'} {one.name:<{width}}  {one.reason}" for one in self.report)

    def _note(self, name: str, applied: bool, reason: str) -> None:
        self.report.append(Optimization(name, applied, reason))

    def _note_precision(self) -> None:
        drawing, upscaling = (
            str(dtype).removeprefix("torch.") for dtype in (self.device.dtype, self.device.upscaler_dtype)
        )
        half = self.device.dtype != torch.float32
        asked = "the setting 'dtype' asks for it" if self.settings.dtype != "auto" else ""
        chosen = "multiplied faster here than float32" if half else "this processor multiplies nothing shorter faster"
        self._note(
            "16 bits", half, f"models that draw compute in {drawing}, upscalers in {upscaling}: {asked or chosen}"
        )

    def _set_matmul_precision(self) -> None:
        name = "TensorFloat-32"
        if self.device.kind != "cuda":
            self._note(name, False, "for CUDA devices only")
        elif (self.device.capability or (0, 0)) < (8, 0):
            self._note(name, False, "the device is older than Ampere")
        else:
            torch.set_float32_matmul_precision("high")
            self._note(name, True, "for the matrix products of what computes in float32 (detectors, some upscalers)")

    def _choose_attention(self, transformer: nn.Module) -> None:
        name = "attention kernel"
        if self.device.kind != "cuda":
            self._note(name, False, "PyTorch's own; a CPU has no other that is faster")
            return
        config: Any = transformer.config
        # text and image tokens of one picture of 1024 x 1024
        shape = (1, 512 + 4096, config.num_attention_heads, config.attention_head_dim)
        best, reason = fastest_attention(ATTENTION_BACKENDS, shape, self.device.torch_device, self.device.dtype)
        if best != "native":
            set_attention(transformer, best)
        self._note(name, best != "native", reason)

    def _keep_rotary_tables(self, transformer: Any) -> None:
        tables = RotaryTables(transformer.pos_embed)
        transformer.pos_embed = tables
        transformer.register_forward_pre_hook(tables.look_at, with_kwargs=True)
        self._note("rotary tables kept", True, "computed once for all steps of a picture")

    def _order_channels_last(self, name: str, module: nn.Module) -> None:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._note(f"channels last: {name}", True, "convolutions read it without reordering")

    def _work_in_place(self, autoencoder: nn.Module) -> None:
        plain = (block for block in autoencoder.modules() if isinstance(block, ResnetBlock2D))
        blocks = [
            block for block in plain if isinstance(block.nonlinearity, nn.SiLU) and block.output_scale_factor == 1
        ]
        for block in blocks:
            block.__class__ = ResidualInPlace  # its weights, hooks and names stay what they are
        self._note(
            "residual blocks in place",
            bool(blocks),
            f"{len(blocks)} blocks of the autoencoder overwrite what nobody reads again",
        )

    def _compile_blocks(self, transformer: nn.Module) -> None:
        name, kind = "compiled blocks", self.plan.placements["transformer"].kind
        against = {
            "the setting 'compile' is off": self.settings.compile == "off",
            "takes longer than it saves in a few pictures on a CPU; the setting 'compile' turns it on": (
                self.settings.compile == "auto" and self.device.kind == "cpu"
            ),
            "the memory plan lets its layers come one by one, by hooks inside of the blocks": kind == "layer offload",
            "there is no C compiler (gcc or cc) for the code that it makes": not (
                shutil.which("gcc") or shutil.which("cc")
            ),
        }
        for reason, holds in against.items():
            if holds:
                self._note(name, False, reason)
                return
        folder = ROOT / self.settings.compile_cache
        kept = keep_compiled_code(folder)
        blocks = block_modules(transformer)
        for block in blocks:
            # the forward, not the module: hooks that stream weights or skip blocks then stay outside of the compiled
            # code
            block.forward = torch.compile(block.forward)
        self._note(
            name,
            True,
            f"{len(blocks)} blocks; the code is {'kept' if kept else 'lost with the process: it cannot be written'} "
            f"in '{folder.name}'",
        )


class ResidualInPlace(ResnetBlock2D):  # type: ignore[misc]  # diffusers has no types
    """A residual block of an ``AutoencoderKL``, N x C x H x W to N x D x H x W, to the bit.

    Where diffusers makes new tensors for the activations, for the sum and for a division by 1, this overwrites those
    that nobody reads again.
    """

    def forward(self, input_tensor: torch.Tensor, temb: None = None) -> torch.Tensor:
        """``temb`` is a time step's embedding, which an autoencoder does not have."""
        hidden = self.conv1(functional.silu(self.norm1(input_tensor), inplace=True))
        hidden = self.conv2(functional.silu(self.norm2(hidden), inplace=True))
        shortcut = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return hidden.add_(shortcut)  # type: ignore[no-any-return]


class RotaryTables(nn.Module):
    """Flux's rotary position embedding, computed again only when the position ids are other tensors than in the step
    before.

    Within one denoising the pipeline hands the same two tensors to every step; ``FluxTransformer2DModel`` joins them
    anew each time.
    """

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.computed = 0
        self._ids: tuple[torch.Tensor | None, torch.Tensor | None] = (
            None,
            None,
        )  # held, so that no other tensor gets their identity
        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None

    def look_at(self, module: nn.Module, args: object, arguments: dict[str, Any]) -> None:
        """To be called before the transformer's forward."""
        ids = arguments.get("txt_ids"), arguments.get("img_ids")
        if ids[0] is None or ids[0] is not self._ids[0] or ids[1] is not self._ids[1]:
            self._ids, self._tables = ids, None

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._tables is None:
            self._tables = self.embedding(ids)
            self.computed += 1
        return self._tables


def keep_compiled_code(folder: Path) -> bool:
    """Makes torch keep what it compiles in ``folder``, for the next start; returns whether that can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    if not os.access(folder, os.W_OK):
        return False
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    return True


def set_attention(transformer: Any, backend: str) -> None:
    """Gives a diffusers model the attention kernel of that name."""
    from diffusers import attention_backend

    with attention_backend("native"):  # what the model sets for the whole process besides is undone at the end
        transformer.set_attention_backend(backend)


def fastest_attention(
    backends: Sequence[str], shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype
) -> tuple[str, str]:
    """The fastest kernel for queries of ``shape`` (batch, tokens, heads, head size), and a sentence with the
    milliseconds of all.

    A kernel that refuses, or whose result is not that of "native", is not taken; it is named with the reason.
    """
    from diffusers import attention_backend
    from diffusers.models.attention_dispatch import dispatch_attention_fn
    from torch.utils.benchmark import Timer

    query, key, value = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))

    def attend() -> torch.Tensor:
        output: torch.Tensor = dispatch_attention_fn(query, key, value)
        return output

    with torch.inference_mode():
        with attention_backend("native"):
            right = attend().float()
        seconds: dict[str, float] = {}
        words: list[str] = []
        for backend in backends:
            try:
                with attention_backend(backend):
                    error = float((attend().float() - right).norm() / right.norm())
                    seconds[backend] = (
                        Timer("attend()", globals={"attend": attend}).blocked_autorange(min_run_time=0.05).median
                    )
            except (RuntimeError, ValueError, TypeError, ImportError) as refusal:
                words.append(f"{backend}: {str(refusal).partition('.')[0]}")
                continue
            words.append(f"{backend} {1000 * seconds[backend]:.2f} ms")
            if not error < ATTENTION_ERROR:
                words[-1] += f", {error:.0%} from native"
                del seconds[backend]
    best = min(seconds, key=lambda name: seconds[name] / (1 if name == "native" else ATTENTION_GAIN))
    return best, f"{best} is the fastest ({'; '.join(words)})"


@contextmanager
def first_block_cache(transformer: Any, wanted: bool) -> Iterator[None]:
    """While it is open, and ``wanted``, steps that change little are taken from the step before instead of being
    computed.

    Faster by the share of steps that are skipped, at the price of the picture: ``docs/performance.md`` has both.
    """
    if not wanted:
        yield
        return
    from diffusers import FirstBlockCacheConfig

    transformer.enable_cache(FirstBlockCacheConfig(threshold=FIRST_BLOCK_THRESHOLD))
    try:
        yield
    finally:
        transformer.disable_cache()
