"""A face restorer of the published architecture with random weights, because the trained ones are not ours to bring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from modules.cli.fetch_weights import trust
from modules.face_restoration.network import SIDE


def gfpgan(side: int = SIDE, narrow: float = 1) -> Any:
    """The architecture, as published unless for pictures of another ``side`` and with a share of the channels."""
    from spandrel.architectures.GFPGAN import GFPGAN

    return GFPGAN(
        out_size=side,
        num_style_feat=512,
        channel_multiplier=2,
        num_mlp=8,
        input_is_latent=True,
        different_w=True,
        narrow=narrow,
        sft_half=True,
    )


def write_gfpgan(folder: Path) -> Path:
    """A GFPGAN as it is published: a pickle of "params_ema", which the lock in ``folder`` knows."""
    with torch.device("meta"):
        network = gfpgan()
    torch.manual_seed(3)
    tensors = {name: torch.empty(tensor.shape).uniform_(-0.05, 0.05) for name, tensor in network.state_dict().items()}
    file = folder / "GFPGANv1.4.pth"
    torch.save({"params_ema": tensors}, file)
    trust(file, folder)
    return file
