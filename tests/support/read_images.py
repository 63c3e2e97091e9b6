"""What the reader makes of a file's content."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modules.request.input_image import read_image, read_mask


def read(tmp_path: Path, content: bytes, mask: bool = False) -> np.ndarray:
    """The pixels, H x W x 3, or H x W of a mask."""
    path = tmp_path / "given"  # no suffix: the content says what it is
    path.write_bytes(content)
    image = read_mask(path, "mask") if mask else read_image(path, "image")
    assert image.mode == ("L" if mask else "RGB")
    return np.asarray(image).astype(int)
