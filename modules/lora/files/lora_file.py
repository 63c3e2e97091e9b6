"""A LoRA's file on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backend.core.errors import UserError


@dataclass(frozen=True)
class LoraFile:
    """A file that has been checked to be safetensors.

    Attributes:
        name: What messages and the parameters of a picture call it; without ``.safetensors``.
        path: The file.
        sha256: Of its content, in hexadecimal digits.
        tensors_sha256: Of what follows its header. WebUIs call the first 12 digits the hash of a LoRA.
    """

    name: str
    path: Path
    sha256: str
    tensors_sha256: str = ""


class LoraError(UserError):
    """A LoRA that this model cannot use."""
