"""How an ``AutoencoderKL`` is read, whichever family it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def autoencoder_precision(config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
    """``dtype``, or float32 for an autoencoder that overflows in fp16; ``config`` is its ``config.json``."""
    return torch.float32 if dtype == torch.float16 and config.get("force_upcast") else dtype
