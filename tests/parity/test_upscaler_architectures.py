"""Any architecture that spandrel knows, with random weights: ours gives what spandrel's own call gives, whole and in
tiles."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from spandrel import ImageModelDescriptor, ModelLoader
from spandrel.architectures.ATD import ATD
from spandrel.architectures.Compact import Compact
from spandrel.architectures.CRAFT import CRAFT
from spandrel.architectures.DAT import DAT
from spandrel.architectures.DCTLSA import DCTLSA
from spandrel.architectures.DITN import DITN
from spandrel.architectures.DRCT import DRCT
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.FDAT import FDAT
from spandrel.architectures.GRL import GRL
from spandrel.architectures.HAT import HAT
from spandrel.architectures.IPT import IPT
from spandrel.architectures.MMRealSR import MMRealSR
from spandrel.architectures.MoESR import MoESR
from spandrel.architectures.MoSR import MoSR
from spandrel.architectures.OmniSR import OmniSR
from spandrel.architectures.PLKSR import PLKSR, RealPLKSR
from spandrel.architectures.RCAN import RCAN
from spandrel.architectures.RealCUGAN import UpCunet2x_fast
from spandrel.architectures.RGT import RGT
from spandrel.architectures.SAFMN import SAFMN
from spandrel.architectures.SeemoRe import SeemoRe
from spandrel.architectures.SPAN import SPAN
from spandrel.architectures.SwiftSRGAN import SwiftSRGAN
from spandrel.architectures.Swin2SR import Swin2SR
from spandrel.architectures.SwinIR import SwinIR
from support.slow import sampled
from support.upscaling import UNTILED, largest_difference, picture
from torch import nn

from backend.planning.upscale_tiles import CONTEXT
from modules.upscaling.tiled import Upscaler, UpscalerNetwork, load_upscaler_network, receptive_reach

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "ATD": lambda: ATD(
        depths=[2], embed_dim=24, num_heads=[2], upscale=4, num_tokens=8, category_size=32, upsampler="pixelshuffle"
    ),
    "Compact": lambda: Compact(num_feat=8, num_conv=2),
    "CRAFT": lambda: CRAFT(embed_dim=24, depths=[2], num_heads=[2]),
    "DAT": lambda: DAT(depth=[2], embed_dim=16, num_heads=[4], split_size=[8, 16], expansion_factor=2.0),
    "DCTLSA": lambda: DCTLSA(nf=20),
    "DITN": lambda: DITN(dim=24, ITL_blocks=1, SAL_blocks=1),
    "DRCT": lambda: DRCT(depths=[2], embed_dim=24, num_heads=[2], gc=8, upscale=4, upsampler="pixelshuffle"),
    "ESRGAN": lambda: ESRGAN(num_filters=8, num_blocks=1),
    "ESRGAN+": lambda: ESRGAN(num_filters=8, num_blocks=1, plus=True),
    "ESRGAN of factor 2": lambda: ESRGAN(in_nc=12, num_filters=8, num_blocks=1, shuffle_factor=2),
    "FDAT": lambda: FDAT(embed_dim=16, num_groups=1, depth_per_group=2, num_heads=2, mid_dim=16),
    "GRL": lambda: GRL(
        embed_dim=12, upscale=4, depths=[1], num_heads_window=[1], num_heads_stripe=[1], upsampler="nearest+conv"
    ),
    "HAT": lambda: HAT(depths=[2], embed_dim=12, num_heads=[2], window_size=8, squeeze_factor=6, upscale=2),
    "IPT": lambda: IPT(patch_size=24, n_feats=12, num_layers=1, scale=[2]),
    "MMRealSR": lambda: MMRealSR(
        num_in_ch=3, num_out_ch=3, num_feat=16, num_block=1, num_grow_ch=8, num_feats=[8] * 4, num_blocks=[1] * 4
    ),
    "MoESR": lambda: MoESR(dim=16, n_blocks=1, n_block=1, expansion_factor=2.0, upsample_dim=16),
    "MoSR": lambda: MoSR(n_block=1, dim=16),
    "OmniSR": lambda: OmniSR(num_feat=16, up_scale=4),
    "PLKSR": lambda: PLKSR(dim=16, n_blocks=1),
    "RealPLKSR": lambda: RealPLKSR(dim=16, n_blocks=1, dysample=True),
    "RCAN": lambda: RCAN(scale=2, n_resgroups=1, n_resblocks=1, n_feats=16),
    "RealCUGAN": UpCunet2x_fast,
    "RGT": lambda: RGT(depth=[2], embed_dim=24, num_heads=[4]),
    "SAFMN": lambda: SAFMN(dim=16, n_blocks=1),
    "SeemoRe": lambda: SeemoRe(num_layers=1, embedding_dim=16),
    "SPAN": lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8),
    "SwiftSRGAN": lambda: SwiftSRGAN(num_channels=16, num_blocks=1),
    "Swin2SR": lambda: Swin2SR(depths=[2], embed_dim=12, num_heads=[2], window_size=8, upsampler="pixelshuffle"),
    "SwinIR": lambda: SwinIR(
        depths=[2], embed_dim=12, num_heads=[2], window_size=8, upscale=2, upsampler="pixelshuffle"
    ),
}
WHOLE_PICTURE = ("CRAFT", "DCTLSA", "GRL", "IPT", "OmniSR", "RGT")
"""What attends to the whole picture, or to more of it than a tile has: a tile shows something else, whatever is
around it. DCTLSA's windows reach from one border of the picture to the opposite one."""
SIZE = (67, 19)
"""Of what takes several tiles of 32 pixels."""
SMALL = (25, 19)


def load(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[UpscalerNetwork, ImageModelDescriptor]:
    """Ours, and spandrel's own in the dtype that ours took."""
    torch.manual_seed(0)
    torch.save(ARCHITECTURES[name]().state_dict(), folder / "a.pth")
    ours, theirs = load_upscaler_network(folder / "a.pth", dtype), ModelLoader("cpu").load_from_file(folder / "a.pth")
    assert isinstance(theirs, ImageModelDescriptor)
    return ours, theirs.eval().to(next(ours.parameters()).dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", sampled(ARCHITECTURES, 4))
def test_in_16_bits_a_picture_of_odd_size_becomes_what_spandrels_own_call_makes_of_it(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    """Or in 32, where an architecture has no shorter type; all others are in 32 bits below."""
    ours, theirs = load(name, tmp_path, dtype)
    pixels = torch.rand(1, 3, *SMALL).to(theirs.dtype)
    with torch.inference_mode():
        upscaled = ours(pixels.clone())
    assert upscaled.shape == (1, 3, SMALL[0] * theirs.scale, SMALL[1] * theirs.scale)
    # equal to the bit on most processors; some kernels of some round by where in memory a tensor begins
    assert (upscaled.clamp(0, 1) - theirs(pixels.clone())).abs().max() <= 1 / 255


@pytest.mark.parametrize("name", sampled(ARCHITECTURES, 4))
def test_pictures_are_upscaled_as_in_one_plain_pass_borders_included_and_in_tiles_without_seams(
    tmp_path: Path, name: str
) -> None:
    ours, theirs = load(name, tmp_path)
    image = picture(*SIZE)
    upscaled = Upscaler(ours, UNTILED).upscale(image, theirs.scale)
    with torch.inference_mode():
        plain = theirs(torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 255)[0]
    expected = plain.mul(255).round().byte()
    assert largest_difference(upscaled, Image.fromarray(expected.permute(1, 2, 0).numpy())) == 0
    seam = largest_difference(Upscaler(ours, 32).upscale(image, theirs.scale), upscaled)
    assert seam <= 1 or name in WHOLE_PICTURE


@pytest.mark.parametrize("name", ["DCTLSA", "ESRGAN of factor 2", "MoESR", "RealCUGAN", "SAFMN", "Swin2SR"])
def test_that_tiles_begin_where_windows_and_strides_do_is_what_prevents_seams(tmp_path: Path, name: str) -> None:
    network = load(name, tmp_path)[0]
    anywhere = Upscaler(network, 32)
    anywhere.grid = 1
    assert (
        largest_difference(
            anywhere.upscale(picture(*SIZE), network.factor),
            Upscaler(network, UNTILED).upscale(picture(*SIZE), network.factor),
        )
        > 4
    )


def test_a_network_with_windows_never_sees_more_than_a_tile_and_its_context_either(tmp_path: Path) -> None:
    network, seen = load("DRCT", tmp_path)[0], []
    network.network.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    upscaler = Upscaler(network, 32)
    upscaler.upscale(picture(*SIZE), 2)
    assert max(max(sides) for sides in seen) <= 32 + 2 * upscaler.context


def test_one_that_needs_more_than_a_call_is_copied_and_reordered_as_any_module_is(tmp_path: Path) -> None:
    network, _ = load("MMRealSR", tmp_path)
    copied = deepcopy(network).to(memory_format=torch.channels_last)
    assert {id(tensor) for tensor in copied.parameters()}.isdisjoint(map(id, network.parameters()))
    assert sum(tensor.numel() for tensor in copied.parameters()) == sum(
        tensor.numel() for tensor in network.network.parameters()
    )
    pixels = torch.rand(1, 3, *SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(copied(pixels), network(pixels))


def test_a_network_that_looks_farther_than_the_context_hardly_sees_what_is_there() -> None:
    """Four blocks of ESRGAN look 66 pixels far. With weights three times PyTorch's own, as loud as no trained
    network's: a seam of 1 of 255."""
    torch.manual_seed(0)
    blocks = ESRGAN(num_filters=8, num_blocks=4).eval().requires_grad_(False)
    for weight in blocks.parameters():
        weight.mul_(3)
    network = UpscalerNetwork(blocks, 4)
    assert receptive_reach(network) == 66 > CONTEXT
    whole = Upscaler(network, UNTILED).upscale(picture(131, 35), 4)
    seams = {}
    for context in (4, CONTEXT):
        tiled = Upscaler(network, 64)
        tiled.context = context
        seams[context] = largest_difference(tiled.upscale(picture(131, 35), 4), whole)
    assert seams[4] > 8 and seams[CONTEXT] <= 1
