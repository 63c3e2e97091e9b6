"""A face restorer of the published architecture with random weights, because the trained ones are not ours to bring."""

from __future__ import annotations

from pathlib import Path

import torch

from modules.cli.fetch_weights import trust
from modules.face_restoration.network import SIDE


def write_gfpgan(folder: Path) -> Path:
    """A GFPGAN as it is published: a pickle of "params_ema", which the lock in ``folder`` knows."""
    from spandrel.architectures.GFPGAN import GFPGAN

    with torch.device("meta"):
        network = GFPGAN(
            out_size=SIDE,
            num_style_feat=512,
            channel_multiplier=2,
            num_mlp=8,
            input_is_latent=True,
            different_w=True,
            narrow=1,
            sft_half=True,
        )
    torch.manual_seed(3)
    tensors = {name: torch.empty(tensor.shape).uniform_(-0.05, 0.05) for name, tensor in network.state_dict().items()}
    file = folder / "GFPGANv1.4.pth"
    torch.save({"params_ema": tensors}, file)
    trust(file, folder)
    return file
