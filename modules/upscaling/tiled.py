"""Upscales a picture with an ESRGAN-type network, tile by tile, so that memory does not grow with the picture.

A tile is given to the network with ``context`` more pixels of the picture on every side, as far as its receptive field
reaches; the result of these is thrown away. Neighbouring tiles then agree to rounding. They are blended over a few
shared pixels all the same, for networks with a larger receptive field than ``CONTEXT``. Nothing is added around
the picture itself, so that its border is what the network makes of it in one pass.

In a network that is not made of convolutions alone the result depends on a pixel's position: on windows of attention,
or on strides. Its tiles begin at multiples of ``GRID``, so that they fall into the same windows as in the whole
picture. Seams may show where ``GRID`` is no multiple of a window, and where a network attends to the whole picture at
once (OmniSR, RGT, CRAFT, GRL, IPT). DCTLSA joins opposite borders, so those of its tiles differ.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from backend.core.errors import WeightsError
from backend.planning.upscale_tiles import CONTEXT, OVERLAP, Span, tile_spans, with_context
from modules.compat import upscaler_call
from modules.upscaling.spandrel_loader import read_network

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor, SizeRequirements

logger = logging.getLogger(__name__)

GRID = 16
"""Pixels: a multiple of most architectures' windows of attention (8 or 16) and strides (2 to 8)."""

FLOAT32_ONLY = ("ATD", "DRCT", "GRL", "Swin2SR", "SwinIR")
"""Architectures that spandrel 0.4.2 lists as computing in bfloat16 although their attention masks are float32."""

Call = Callable[[nn.Module, torch.Tensor], torch.Tensor]
TileProgress = Callable[[int, int], None]
"""Called after every tile: tiles done, tiles in total."""


def blend_weights(spans: list[Span], ramp: int) -> list[torch.Tensor]:
    """One float32 weight vector a span: it rises over ``ramp`` pixels from both ends, and the weights of every pixel
    add up to 1."""
    start, stop = spans[0]
    rising = torch.arange(stop - start) + 0.5
    raw = torch.minimum(rising, rising.flip(0)).clamp(max=max(ramp, 0.5))
    total = torch.zeros(spans[-1][1])
    for start, stop in spans:
        total[start:stop] += raw
    return [raw / total[start:stop] for start, stop in spans]


def receptive_reach(network: nn.Module) -> int:
    """An upper bound of the receptive field's radius in input pixels, of a network that :func:`is_convolutional`."""
    return sum(
        max(module.kernel_size) // 2 * max(module.dilation)
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    )


def is_convolutional(network: UpscalerNetwork) -> bool:
    """Whether the result does not depend on a pixel's position: all parameters are those of convolutions of stride 1,
    and the picture may have any size."""
    with_parameters = [module for module in network.modules() if any(True for _ in module.parameters(recurse=False))]
    plain = all(
        isinstance(module, nn.PReLU) or isinstance(module, nn.Conv2d) and module.stride == (1, 1)
        for module in with_parameters
    )
    return plain and (network.requirements is None or network.requirements.multiple_of == 1)


def pass_sizes(size: tuple[int, int], scale: float, factor: int) -> list[tuple[int, int]]:
    """Width and height after each run of a network that upscales by ``factor``; the last is ``size * scale``, rounded.

    Between two runs the picture is reduced to what the next run needs. That costs a quarter of running on everything,
    bounds the memory by the finished picture, and gives the network the sharp pixels that it was trained on.
    """
    passes = next(passes for passes in count(1) if factor**passes >= scale)
    width, height = (max(1, round(side * scale)) for side in size)
    return [(math.ceil(width / factor**later), math.ceil(height / factor**later)) for later in reversed(range(passes))]


class UpscalerNetwork(nn.Module):
    """A network with the factor, 2 or more, that it upscales by. N x 3 x H x W in and out, RGB from 0 to 1, of any
    size.

    ``call`` is how the network is run, ``requirements`` are the sizes that it takes; both are spandrel's. The result is
    that of spandrel's own call, but is not clamped to 0 and 1, which would hide numbers that are not finite.
    """

    def __init__(
        self,
        network: nn.Module,
        factor: int,
        call: Call = nn.Module.__call__,
        requirements: SizeRequirements | None = None,
    ) -> None:
        super().__init__()
        self.network, self.factor, self.call, self.requirements = network, factor, call, requirements

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        height, width = pixels.shape[2:]
        right, below = self.requirements.get_padding(width, height) if self.requirements else (0, 0)
        if right or below:
            mirrored = min(right, width - 1), min(below, height - 1)  # torch cannot reflect more than there is
            pixels = functional.pad(pixels, (0, mirrored[0], 0, mirrored[1]), "reflect")
            pixels = functional.pad(pixels, (0, right - mirrored[0], 0, below - mirrored[1]), "replicate")
        return self.call(self.network, pixels)[..., : height * self.factor, : width * self.factor]


class Upscaler:
    """Upscales pictures with a network that the caller owns, on the device and in the dtype of its parameters.

    ``tile_size`` is the longest side of a tile in pixels of the input, context not counted.
    """

    def __init__(self, network: UpscalerNetwork, tile_size: int) -> None:
        self.network, self.tile_size, self.factor = network, tile_size, network.factor
        self.overlap = min(OVERLAP, tile_size // 2)
        self.context, self.grid = (
            (min(receptive_reach(network), CONTEXT), 1) if is_convolutional(network) else (CONTEXT, GRID)
        )

    def upscale(self, image: Image.Image, scale: float, progress: TileProgress | None = None) -> Image.Image:
        """The picture at ``scale`` (1 to 8, fractions too) times its size, rounded; RGB, or RGBA if it has
        transparency.

        The network runs once, or as often as it takes to reach ``scale``; LANCZOS then reduces to the exact size.
        """
        sizes = pass_sizes(image.size, scale, self.factor)
        total = sum(len(self._spans(width)) * len(self._spans(height)) for width, height in [image.size, *sizes[:-1]])
        tiles = count(1)

        def tick() -> None:
            if progress:
                progress(next(tiles), total)

        result = image.convert("RGB")
        for size in sizes:
            result = self._upscale_whole(result, tick).resize(size, Image.Resampling.LANCZOS)
        if image.has_transparency_data:
            result.putalpha(image.convert("RGBA").getchannel("A").resize(result.size, Image.Resampling.LANCZOS))
        return result

    def _spans(self, side: int) -> list[Span]:
        return tile_spans(side, self.tile_size, self.overlap)

    @torch.inference_mode()
    def _upscale_whole(self, image: Image.Image, tick: Callable[[], None]) -> Image.Image:
        """One run of the network over an RGB picture. The device holds one row of tiles as float32 at a time."""
        factor, device = self.factor, next(self.network.parameters()).device
        rows, columns = self._spans(image.height), self._spans(image.width)
        row_weights, column_weights = (
            [weight.to(device) for weight in blend_weights(self._upscaled(spans), factor * self.overlap)]
            for spans in (rows, columns)
        )
        source = torch.tensor(np.asarray(image), device=device)
        pixels = np.empty((image.height * factor, image.width * factor, 3), np.uint8)
        shared = torch.zeros(3, 0, image.width * factor, device=device)  # the rows that the band above has begun
        next_tops = [top for top, _ in rows[1:]] + [image.height]
        for (top, bottom), next_top, row_weight in zip(rows, next_tops, row_weights):
            band = torch.zeros(3, (bottom - top) * factor, image.width * factor, device=device)
            band[:, : shared.shape[1]] = shared
            above, below = self._with_context((top, bottom), image.height)
            for (left, right), column_weight in zip(columns, column_weights):
                before, after = self._with_context((left, right), image.width)
                tile = self.upscale_tile(source[above:below, before:after])
                tile = tile[:, (top - above) * factor :, (left - before) * factor :]
                tile = tile[:, : len(row_weight), : len(column_weight)]
                # in place: nothing else of this size is made
                band[:, :, left * factor : right * factor] += tile.mul_(row_weight[:, None]).mul_(column_weight)
                tick()
            shared = band[:, (next_top - top) * factor :].clone()
            finished = self._bytes(band[:, : (next_top - top) * factor])
            pixels[top * factor : next_top * factor] = finished.cpu().permute(1, 2, 0).numpy()
        return Image.fromarray(pixels)

    def _upscaled(self, spans: list[Span]) -> list[Span]:
        return [(self.factor * start, self.factor * stop) for start, stop in spans]

    def _with_context(self, span: Span, size: int) -> Span:
        return with_context(span, size, self.context, self.grid)

    def upscale_tile(self, pixels: torch.Tensor) -> torch.Tensor:
        """H x W x 3 bytes on the network's device to 3 x H x W float32, upscaled, with the context still around it."""
        dtype = next(self.network.parameters()).dtype
        tile = pixels.permute(2, 0, 1)[None].to(dtype) / 255
        upscaled: torch.Tensor = self.network(tile)[0].float()
        return upscaled

    def _bytes(self, finished: torch.Tensor) -> torch.Tensor:
        """3 x H x W of a finished picture, changed in place, as bytes.

        Raises WeightsError if it is not finite, because a number exceeded the range of the network's dtype.
        """
        if not finished.isfinite().all():
            dtype = next(self.network.parameters()).dtype
            advice = "set 'dtype' to \"bfloat16\" in config_optimized.json, or " if dtype == torch.float16 else ""
            raise WeightsError(f"upscaler: its numbers exceed the range of {dtype}; {advice}choose another one")
        return finished.clamp_(0, 1).mul_(255).round_().byte()


def read_upscaler(path: Path) -> ImageModelDescriptor[nn.Module]:
    """An upscaler on the CPU, as spandrel describes it. Raises WeightsError if the file is missing, cannot be read, is
    damaged or holds something else."""
    model = read_network(path, "upscaler", "use an ESRGAN-type network")
    if (model.input_channels, model.output_channels) != (3, 3) or model.scale < 2:
        raise WeightsError(
            f"{path.name}: does not upscale RGB pictures; use an ESRGAN-type network of factor 2 or more"
        )
    return model


def load_upscaler_network(path: Path, dtype: torch.dtype = torch.float32) -> UpscalerNetwork:
    """Reads an upscaler to the CPU for :class:`Upscaler`, in ``dtype``, or in float32 if its architecture cannot
    compute in that.

    Raises WeightsError as :func:`read_upscaler` does.
    """
    model = read_upscaler(path)
    able = {
        torch.float16: model.supports_half,
        torch.bfloat16: model.supports_bfloat16 and model.architecture.id not in FLOAT32_ONLY,
    }
    dtype = dtype if able.get(dtype, True) else torch.float32
    logger.info(
        "upscaler %s: %s, factor %d, %s",
        path.name,
        model.architecture.name,
        model.scale,
        str(dtype).removeprefix("torch."),
    )
    network = model.model.to(dtype).eval().requires_grad_(False)
    return UpscalerNetwork(network, model.scale, upscaler_call(model), model.size_requirements)
