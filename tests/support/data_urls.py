"""Pictures as data URLs."""

from __future__ import annotations

import base64
import io

from PIL import Image


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return data_url(file.getvalue())
