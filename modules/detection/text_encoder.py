"""Class names as the features that a YOLO-World compares boxes with."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

from backend.checkpoints.loader import load_tokenizer, load_transformers_module


class ClassNameEncoder:
    """Encodes class names with a text model in ``folder``, and remembers the last 32 lists of names.

    The model is read from disk for every new list: it is needed rarely, so it is not kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.encode = lru_cache(maxsize=32)(self._encode)
        """A tuple of class names -> 1 x classes x width, every class a vector of length 1."""

    def _encode(self, classes: tuple[str, ...]) -> torch.Tensor:
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        tokenizer = load_tokenizer(CLIPTokenizer, self.folder)
        encoder = load_transformers_module(CLIPTextModelWithProjection, self.folder, torch.float32).eval()
        with torch.inference_mode():
            tokens = tokenizer(list(classes), padding=True, truncation=True, return_tensors="pt")
            features: torch.Tensor = encoder(**tokens).text_embeds
            return torch.nn.functional.normalize(features, dim=-1)[None]
