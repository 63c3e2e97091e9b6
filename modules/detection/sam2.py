"""SAM 2 in ultralytics' classes: what is in a box becomes a mask of its own shape.

Of the model, which follows objects through videos, the parts for a single picture are used. Its predictor is not: it
copies the network, as in ``modules/detection/yolo.py``.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from backend.checkpoints.build_budget import building
from backend.checkpoints.file_type import is_safetensors
from backend.checkpoints.tensor_pickle import check_tensor_pickle
from backend.core.errors import WeightsError
from backend.core.settings import Settings
from backend.weights.resolver import checked_file, safe_form
from modules.detection.detections import Detections, Mask

FILES = tuple(f"{version}_{size}.pt" for size in "lbst" for version in ("sam2.1", "sam2"))
"""As ultralytics names them, the best first. The first that lies under ``weights/`` is used."""
MODEL = "sam2"
"""Its name in the cache."""
SIDE = 1024
"""Of the square that a picture is fitted into, in pixels."""
GREY = 114
"""Of the rest of the square, as ultralytics has it."""
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of the colours, 0 to 255, of the pictures that it was trained on."""
CORNERS = (2, 3)
"""What the prompt encoder calls the upper left and the lower right corner of a box."""
AT_ONCE = 8
"""Boxes; more take more memory and no less time."""
FOR_VIDEOS = ("no_obj_embed_spatial", "obj_ptr_tpos_proj")
"""What version 2.1 has beyond 2, and no single picture needs."""


def find_sam2(settings: Settings) -> Path | None:
    """The file that is used. Raises :class:`~backend.core.errors.WeightsError` if it is not the one that was
    installed."""
    present = next((path for name in FILES if (path := settings.weights_path / name).is_file()), None)
    return safe_form(checked_file(present, settings, tensors_only=True), settings) if present else None


def load_sam2(path: Path) -> torch.nn.Module:
    """SAM 2 on the CPU in float32, of the size that its tensors have. Raises
    :class:`~backend.core.errors.WeightsError` for a file that is damaged or holds something else."""
    from ultralytics.models.sam import build

    try:
        tensors = _tensors(path)
        width = len(tensors["image_encoder.trunk.patch_embed.proj.weight"])
        blocks = {name.split(".")[3] for name in tensors if name.startswith("image_encoder.trunk.blocks.")}
        sizes = {
            (96, 12): build.build_sam2_t,
            (96, 16): build.build_sam2_s,
            (112, 24): build.build_sam2_b,
            (144, 48): build.build_sam2_l,
        }
        with building(path.name, [path], len(tensors), "get the file again"):
            network: Any = sizes[width, len(blocks)]()
        found = network.load_state_dict(tensors, strict=False)
    except (OSError, EOFError, RuntimeError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path.name}: is damaged or not SAM 2; get the file again, or take it away") from error
    if found.missing_keys or not all(name.startswith(FOR_VIDEOS) for name in found.unexpected_keys):
        raise WeightsError(f"{path.name}: is not SAM 2 as ultralytics has it; get the file again, or take it away")
    return network.eval().requires_grad_(False)  # type: ignore[no-any-return]


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    if is_safetensors(path):
        return load_file(path)
    check_tensor_pickle(path, "SAM 2")
    content = torch.load(path, map_location="cpu", weights_only=True)
    return content.get("model", content)  # type: ignore[no-any-return]


@torch.inference_mode()
def outlined(network: Any, image: Image.Image, found: Detections) -> Detections:
    """The detections with masks of the shape that SAM 2 sees in their boxes. Where it sees nothing, the mask stays."""
    if not len(found):
        return found
    device = network.no_mem_embed.device
    pixels, shrink = _fitted(image)
    levels = network.forward_image(pixels.to(device))["backbone_fpn"][-network.num_feature_levels :]
    corners = torch.from_numpy(found.boxes * shrink).float().view(-1, 2, 2).to(device)
    parts = [_outlines(network, levels, some, image.size, shrink) for some in corners.split(AT_ONCE)]
    masks = np.concatenate(parts)
    kept = np.where(masks.any(axis=(1, 2), keepdims=True), masks, found.masks)
    return Detections(found.boxes, kept, found.confidences, found.numbers)


def _fitted(image: Image.Image) -> tuple[torch.Tensor, float]:
    """The picture in the upper left of a grey square, normalised, 1 x 3 x side x side; and by what it was scaled."""
    import cv2

    shrink = SIDE / max(image.size)
    width, height = (max(1, round(side * shrink)) for side in image.size)
    square = np.full((SIDE, SIDE, 3), GREY, np.float32)
    square[:height, :width] = cv2.resize(np.asarray(image.convert("RGB")), (width, height))
    normalised = (square - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
    return torch.from_numpy(normalised).permute(2, 0, 1)[None].contiguous(), shrink


def _outlines(
    network: Any, levels: list[torch.Tensor], corners: torch.Tensor, size: tuple[int, int], shrink: float
) -> Mask:
    """N x height x width, 0 or 255, for N boxes as their corners in the square: N x 2 x 2."""
    labels = torch.tensor([CORNERS], device=corners.device).expand(len(corners), -1)
    sparse, dense = network.sam_prompt_encoder(points=(corners, labels), boxes=None, masks=None)
    low, _, _, _ = network.sam_mask_decoder(
        image_embeddings=levels[-1] + network.no_mem_embed.view(1, -1, 1, 1),
        image_pe=network.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
        repeat_image=len(corners) > 1,
        high_res_features=levels[:-1],
    )
    rows, columns = (max(1, round(side * shrink * low.shape[-1] / SIDE)) for side in size[::-1])
    whole = functional.interpolate(low[:, :, :rows, :columns].float(), size[::-1], mode="bilinear")[:, 0] > 0
    return np.asarray(whole.cpu().numpy() * np.uint8(255))
