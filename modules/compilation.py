"""``torch.compile`` with a way back: what cannot be compiled on this machine runs as it is, and says so once.

Generated code needs a C compiler and Python's headers, and may fail in ways of its own. No picture must fail with it.
"""

from __future__ import annotations

import logging
import shutil
import sysconfig
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backend.core.errors import UserError
from backend.offload.oom_fallback import is_out_of_memory

logger = logging.getLogger(__name__)

COMPILERS = ("cc", "gcc", "clang")


def why_no_compiler(for_cuda: bool) -> str:
    """What is missing on this machine for compiled code, with what to install; "" if nothing is.

    A card's kernels are written by Triton, whose launchers are in C; a CPU's are in C++.
    """
    compilers = COMPILERS if for_cuda else ("g++", "clang++")
    if not any(map(shutil.which, compilers)):
        return f"there is no C compiler ({' or '.join(compilers)}); install {'gcc' if for_cuda else 'g++'}"
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not headers.is_file():
        return f"Python's headers are missing (Python.h); install python{sysconfig.get_python_version()}-dev"
    return ""


class Compilation:
    """The compiled forwards of a model. When one fails, all of them are plain again.

    ``on_failure`` is called once, with the reason in one line.
    """

    def __init__(self, on_failure: Callable[[str], None]) -> None:
        self.failed = False
        self._on_failure = on_failure

    def compile(self, module: nn.Module, *, graphs: bool = False) -> None:
        """Compiles the module's forward at its first call, for inputs of all sizes at once.

        The forward only: hooks that stream weights or skip blocks stay outside. With ``graphs`` a card replays it as a
        CUDA graph, which is recorded anew for every size; a model whose blocks are skipped (``go_fast``) then runs
        plain.
        """
        plain: Callable[..., Any] = module.forward
        compiled = torch.compile(plain, dynamic=True, mode="reduce-overhead" if graphs else None)
        run = _replayed(compiled) if graphs else compiled

        @wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            # a model that is compiled as a whole is traced through the plain forwards of its blocks
            if self.failed or torch.compiler.is_compiling() or graphs and getattr(module, "is_cache_enabled", False):
                return plain(*args, **kwargs)
            try:
                return run(*map(_usual_strides, args), **{name: _usual_strides(kwargs[name]) for name in kwargs})
            except Exception as error:
                if isinstance(error, UserError) or is_out_of_memory(error):
                    raise
                self._give_up(error)
            return plain(*args, **kwargs)  # an error that is not of the compiler's is raised here again

        module.forward = forward

    def _give_up(self, error: Exception) -> None:
        self.failed = True
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"compiling failed, so it runs as it is: {type(error).__name__}: {lines[0][:200]}"
        logger.debug("compiling failed", exc_info=error)
        self._on_failure(reason)


def _usual_strides(value: Any) -> Any:
    """The same tensor, whose dimensions of one have the strides that torch gives to a new tensor.

    Some blocks return slices of one tensor of text and picture tokens. With one picture they differ from whole tensors
    only in the stride of that dimension; a graph knows it, and the first block would be compiled for itself.
    """
    if isinstance(value, torch.Tensor) and value.ndim == 3 and value.is_contiguous():
        return value.view(-1).view(value.shape)
    return value


def _replayed(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Calls of a CUDA graph whose results stay valid when it is replayed."""

    def run(*args: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        result = compiled(*args, **kwargs)
        return tuple(one.clone() for one in result) if isinstance(result, tuple) else result

    return run
