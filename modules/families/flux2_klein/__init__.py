"""FLUX.2 klein: a small FLUX.2 that reads prompts with Qwen3."""

from __future__ import annotations

from modules.families.flux2_klein.descriptor import FLUX2_KLEIN

__all__ = ["FLUX2_KLEIN"]
