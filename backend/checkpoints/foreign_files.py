"""Names a file that is no weights at all by its first bytes: a web page that was saved under a model's name, a pointer
of Git LFS, an archive. Pure, without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from backend.core.texts import shortened

HEAD = 512
SIGNATURES: Sequence[tuple[bytes, str]] = (
    (rb"version https://git-lfs", "a Git LFS pointer in place of the file; run 'git lfs pull', or download it again"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--)", "a web page in place of the file; download it again"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|....ftyp", "a picture or a video"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", "an archive; unpack it"),
    (rb"%PDF", "a PDF document"),
    (rb"\x08[\x01-\x20](\x12|\x1a|:|\x42)", "an ONNX model"),
    (rb"TRT|ftrt", "a TensorRT engine"),
    (rb"\s*[{\[]\s*[\"{\[}\]]", "a JSON file"),
)
"""By how a file begins. None of them is how a file of safetensors, GGUF or torch can begin."""
TEXT = re.compile(rb"[\t\n\r\x20-\x7e]{16,}")


def foreign_content(path: Path) -> str:
    """ "a web page", with what to do where that is plain; "" for what may hold weights. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return "empty; download it again"
    for pattern, what in SIGNATURES:
        if re.match(pattern, head, re.DOTALL):
            return what
    if TEXT.fullmatch(head):
        return f"a text in place of the file ('{shortened(head.decode('ascii').split(chr(10))[0])}')"
    return ""
