"""What makes Flux fast on this device: each technique by name, whether it was applied, and why or why not.

Nothing is reported as applied that is not: every entry of the report is made where the technique is applied, and
``tests/unit/modules/test_flux_memory_optimizer.py`` observes each of them from outside. None of them changes a picture
by more than rounding. What does is asked for: products in fp8 by ``weight_precision``, the block cache by ``go_fast``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backend.core.settings import ROOT, Settings
from backend.devices.probe import Device
from backend.memory_management import MemoryPlan
from backend.offload.oom_fallback import is_out_of_memory
from backend.offload.placements import block_modules
from backend.offload.quantized_linear import Fp8ComputeLinear
from backend.planning.rules import FP8_COMPUTE_CAPABILITY
from modules.compat import attend
from modules.compilation import Compilation, why_no_compiler
from modules.diffusion.rotary_attention import rotate_as_complex
from modules.diffusion.rotary_cache import CachedRotaryEmbedding

logger = logging.getLogger(__name__)

ATTENTION_BACKENDS = ("_flash_3", "_native_cudnn", "xformers", "native")
"""diffusers' names of the attention kernels that a CUDA device is tried with: FlashAttention 3 (Hopper, the package
``flash_attn_interface``), cuDNN, xformers, and what PyTorch chooses itself (FlashAttention 2 from Ampere on)."""
ATTENTION_GAIN = 0.9
"""Another kernel than PyTorch's own choice has to be this much faster: less is noise, and a choice that changes from
start to start would change the last bits of every picture. On a busy H200 one kernel took 0.44 to 0.89 ms, another
0.53 to 1.14 (``bench/results/gpu.md``)."""
ATTENTION_ERROR = 0.02
"""Relative difference from PyTorch's own kernel that rounding to 16 bits explains; a kernel beyond it computes
something else."""

COMPILED = ("compiled blocks", "whole transformer in one graph", "compiled decoding")
"""The techniques that are code of ``torch.compile``."""


@dataclass(frozen=True)
class Optimization:
    """One technique: its name, whether it is applied, and why or why not, in words for the log."""

    name: str
    applied: bool
    reason: str


class FluxMemoryOptimizer:
    """Chooses techniques by device, plan and settings, and reports on each.

    The set-up calls :meth:`set_process_options` once; :meth:`improve` is called for every model when it has been read.
    ``upscalers`` are the names of the upscalers in the model cache.
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

    def set_process_options(self) -> None:
        """Sets what holds for the whole process: TensorFloat-32 for float32 matrix products on CUDA."""
        name = "TensorFloat-32"
        if self.device.kind != "cuda":
            self._note(name, False, "for CUDA devices only")
        elif (self.device.capability or (0, 0)) < (8, 0):
            self._note(name, False, "the device is older than Ampere")
        else:
            torch.set_float32_matmul_precision("high")
            self._note(name, True, "for the matrix products of what computes in float32 (detectors, some upscalers)")

    def improve(self, name: str, module: nn.Module) -> nn.Module:
        """The model that the cache has read under this name, made faster. Weights and results stay the same."""
        if name == "transformer":
            self._note_products(module)
            self._choose_attention(module)
            self._cache_rotary_embedding(module)
            self._compile_transformer(module)
            self._rotate_as_complex(module)
        elif name in ("vae", "unet", *self.upscalers):
            self._order_channels_last(name, module)
            if name == "vae":
                self._compile_decoder(module)
                tiled = bool(getattr(module, "use_tiling", False))
                self._note(
                    "autoencoder in tiles", tiled, "the memory plan asks for it" if tiled else "whole pictures fit"
                )
        return module

    @property
    def compiles(self) -> bool:
        """Whether anything of what was improved so far is compiled."""
        return any(one.applied for one in self.report if one.name in COMPILED)

    def table(self) -> str:
        """One line a technique."""
        width = max(len(one.name) for one in self.report)
        return "\n".join(f"{'+' if one.applied else '-'} {one.name:<{width}}  {one.reason}" for one in self.report)

    def _note(self, name: str, applied: bool, reason: str) -> None:
        self.report.append(Optimization(name, applied, reason))

    def _note_precision(self) -> None:
        diffusion, upscaling = (
            str(dtype).removeprefix("torch.") for dtype in (self.device.dtype, self.device.upscaler_dtype)
        )
        half = self.device.dtype != torch.float32
        asked = "the setting 'dtype' asks for it" if self.settings.dtype != "auto" else ""
        chosen = "faster here than float32" if half else "no shorter type is faster on this device"
        self._note(
            "16 bits", half, f"diffusion models compute in {diffusion}, upscalers in {upscaling}: {asked or chosen}"
        )

    def _note_products(self, transformer: nn.Module) -> None:
        """Products in fp8 are chosen by the plan and made by the layers."""
        name, dtype = "fp8 products", self.plan.placements["transformer"].dtype
        count = sum(isinstance(layer, Fp8ComputeLinear) for layer in transformer.modules())
        if count:
            self._note(name, True, f"{count} layers; modulations and what is outside of the blocks stay as they are")
        elif self.device.kind != "cuda" or (self.device.capability or (0, 0)) < FP8_COMPUTE_CAPABILITY:
            self._note(name, False, "for CUDA devices from compute capability 8.9 on")
        else:
            self._note(name, False, f"the plan keeps the transformer's weights in {dtype}")
        self._note("block cache", True, "in requests with go_fast, in steps that change little: docs/performance.md")

    def _choose_attention(self, transformer: nn.Module) -> None:
        name = "attention kernel"
        if self.device.kind != "cuda":
            self._note(name, False, "PyTorch's own; a CPU has no other that is faster")
            return
        # by the layer itself: families have different names for it in their configurations
        attention: Any = next(part for part in transformer.modules() if hasattr(part, "heads"))
        # text and image tokens of one picture of 1024 x 1024
        shape = (1, 512 + 4096, attention.heads, attention.norm_q.weight.shape[-1])
        try:
            best, reason = fastest_attention(ATTENTION_BACKENDS, shape, self.device.torch_device, self.device.dtype)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            best, reason = "native", "not timed: the device's memory is full"
        if best != "native":
            set_attention(transformer, best)
        self._note(name, best != "native", reason)

    def _cache_rotary_embedding(self, transformer: Any) -> None:
        name, embedding = "cached rotary embedding", getattr(transformer, "pos_embed", None)
        if embedding is None or any(embedding.parameters()):
            self._note(name, False, "the transformer has no rotary embedding of that kind")
        elif self.device.kind == "cuda":
            self._note(name, False, "to compare positions the host would wait for the device")
        else:
            transformer.pos_embed = CachedRotaryEmbedding(embedding)
            self._note(name, True, "computed once for all steps of a picture")

    def _rotate_as_complex(self, transformer: Any) -> None:
        name = "complex rotations"
        if self.compiles:
            self._note(name, False, "compiled blocks rotate in one kernel as it is")
        elif self.device.kind == "cuda":
            self._note(name, False, "not measured on a CUDA device")
        elif rotate_as_complex(transformer):
            self._note(name, True, "queries and keys are rotated in one operation each")
        else:
            self._note(name, False, "the transformer's attention does not rotate by tables of sines")

    def _order_channels_last(self, name: str, module: nn.Module) -> None:
        if self.device.kind == "cuda" and any(isinstance(part, nn.GroupNorm) for part in module.modules()):
            reason = "its group norms return another layout on CUDA, and every convolution would reorder its input"
            self._note(f"channels last: {name}", False, reason)
            return
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._note(f"channels last: {name}", True, "convolutions read this layout without reordering")

    def _compile_transformer(self, transformer: nn.Module) -> None:
        name, whole, _ = COMPILED
        kind = self.plan.placements["transformer"].kind
        reason = self._why_not_compiled()
        if not reason and kind == "layer offload":
            reason = "the memory plan loads its layers one by one, by hooks inside the blocks"
        if reason:
            self._note(name, False, reason)
            self._note(whole, False, reason)
            return
        blocks = block_modules(transformer)
        compilation = Compilation(lambda failure: self._note_failure(name, failure, whole))
        for block in blocks:
            compilation.compile(block)
        self._note(name, True, f"{len(blocks)} blocks, for all sizes at once; {self._where_code_is_kept()}")
        if self.settings.compile != "whole":
            self._note(whole, False, "the setting 'compile' is not 'whole'")
        elif kind != "resident":
            self._note(whole, False, f"its weights move ({kind}), and a CUDA graph knows only fixed addresses")
        else:
            compilation.compile(transformer, graphs=True)
            replayed = "replayed as a CUDA graph" if self.device.kind == "cuda" else "without CUDA graphs on a CPU"
            self._note(whole, True, f"{replayed}; with go_fast the blocks are used")

    def _compile_decoder(self, vae: Any) -> None:
        name = COMPILED[-1]
        reason = "for CUDA devices only" if self.device.kind != "cuda" else self._why_not_compiled()
        if not reason and self.settings.compile != "whole":  # measured on an H200: bench/results/gpu.md
            reason = "a minute of compiling saves 25 ms a picture; 'compile' 'whole' turns it on"
        if not reason:
            Compilation(lambda failure: self._note_failure(name, failure)).compile(vae.decoder)
        self._note(name, not reason, reason or "the autoencoder's decoder, for all sizes at once")

    def _why_not_compiled(self) -> str:
        """What speaks against compiling anything, "" when nothing does."""
        setting = self.settings.compile
        if setting == "off":
            return "the setting 'compile' is off"
        if setting == "auto" and self.device.kind == "cpu":
            return "takes longer than it saves in a few pictures on a CPU; the setting 'compile' turns it on"
        return why_no_compiler(self.device.kind == "cuda")

    def _where_code_is_kept(self) -> str:
        folder = ROOT / self.settings.compile_cache
        kept = "kept" if keep_compiled_code(folder) else "lost with the process: it cannot be written"
        return f"the code is {kept} in '{folder.name}'"

    def _note_failure(self, name: str, reason: str, *others: str) -> None:
        """Corrects the report, and says it in the log once."""
        logger.warning("%s: %s", name, reason)
        failed = (name, *others)
        self.report[:] = [Optimization(one.name, False, reason) if one.name in failed else one for one in self.report]


def keep_compiled_code(folder: Path) -> bool:
    """Makes torch keep its compiled code in ``folder`` for the next start. Returns whether the folder can be
    written."""
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

    with attention_backend("native"):  # on leaving, undoes what the call below sets for the whole process
        transformer.set_attention_backend(backend)


def fastest_attention(
    backends: Sequence[str], shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype
) -> tuple[str, str]:
    """The fastest kernel for queries of ``shape`` (batch, tokens, heads, head size), and a sentence with the
    milliseconds of all.

    A kernel that refuses, or whose result is not that of "native", is not taken; it is named with the reason.
    """
    from diffusers import attention_backend
    from torch.utils.benchmark import Timer

    query, key, value = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))

    with torch.inference_mode():
        with attention_backend("native"):
            right = attend(query, key, value).float()
        seconds: dict[str, float] = {}
        words: list[str] = []
        for backend in backends:
            try:
                with attention_backend(backend):
                    error = float((attend(query, key, value).float() - right).norm() / right.norm())
                    timer = Timer("run()", globals={"run": partial(attend, query, key, value)})
                    seconds[backend] = timer.blocked_autorange(min_run_time=0.05).median
            except (RuntimeError, ValueError, TypeError, ImportError) as refusal:
                words.append(f"{backend}: {str(refusal).partition('.')[0]}")
                continue
            words.append(f"{backend} {1000 * seconds[backend]:.2f} ms")
            if not error < ATTENTION_ERROR:
                words[-1] += f", {error:.0%} from native"
                del seconds[backend]
    if not seconds:
        return "native", f"no kernel could be timed ({'; '.join(words)})"
    best = clearly_fastest(seconds)
    return best, f"{best} is taken ({'; '.join(words)})"


def clearly_fastest(seconds: Mapping[str, float]) -> str:
    """The kernel with the least time; another than "native" only where it gains what ``ATTENTION_GAIN`` asks for."""
    return min(seconds, key=lambda name: seconds[name] / (1 if name == "native" else ATTENTION_GAIN))
