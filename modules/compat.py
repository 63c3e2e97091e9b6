"""What this package uses of other libraries beyond their public interface, all in one place.

A new version of a library may rename or change any of it without notice. So every entry says of which version it is and
why there is no public way, and ``tests/unit/modules/test_compat.py`` checks each on a small example. Libraries are
imported when a function is called: they are heavy, and some must not be imported before the set-up has configured them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from spandrel import ImageModelDescriptor


def pack_latents(latents: torch.Tensor) -> torch.Tensor:
    """N x C x rows x columns to Flux's tokens of 2 x 2, N x tokens x 4C.

    diffusers 0.42.1, ``FluxPipeline._pack_latents``: the pipeline takes packed latents, and packs only those that it
    has made itself.
    """
    from diffusers import FluxPipeline

    packed: torch.Tensor = FluxPipeline._pack_latents(latents, *latents.shape)
    return packed


def unpack_latents(tokens: torch.Tensor, width: int, height: int, latent_factor: int) -> torch.Tensor:
    """The inverse of :func:`pack_latents`. ``width`` and ``height`` are those of the image in pixels,
    ``latent_factor`` is how many of them make one row or column of latents.

    diffusers 0.42.1, ``FluxPipeline._unpack_latents``: the pipeline unpacks only right before its own decoding, which
    cannot work in tiles one image at a time.
    """
    from diffusers import FluxPipeline

    latents: torch.Tensor = FluxPipeline._unpack_latents(tokens, height, width, latent_factor)
    return latents


def set_execution_device(pipeline: Any, device: torch.device) -> None:
    """Makes a diffusers pipeline compute on ``device``, wherever the parameters of its models are.

    diffusers 0.42.1, ``DiffusionPipeline._execution_device``: it is that of the first model's parameters, and those of
    a streamed model wait on the host.
    """
    kind = type(pipeline)
    pipeline.__class__ = type(kind.__name__, (kind,), {"_execution_device": device})


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of N x tokens x heads x head size with the kernel that is active in diffusers.

    diffusers 0.42.1, ``models.attention_dispatch.dispatch_attention_fn``: kernels can be chosen by public functions,
    but run only inside a model.
    """
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    output: torch.Tensor = dispatch_attention_fn(query, key, value, attn_mask=mask)
    return output


def decide_first_block(transformer: Any, decide: Callable[[Any], tuple[torch.Tensor, ...] | None]) -> None:
    """Turns on diffusers' first-block cache, with another decision: ``decide`` is called after the first block with
    what the others added when they ran last, None before that. It returns what they add now, or None for them to run.
    ``transformer.disable_cache()`` ends it.

    diffusers 0.42.1, ``hooks.first_block_cache``: the public configuration has a threshold only, and its decision makes
    the host wait in every step.
    """
    import torch
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks import HookRegistry
    from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK

    transformer.enable_cache(FirstBlockCacheConfig())
    head = next(
        hook
        for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
        if (hook := HookRegistry.check_if_exists_or_initialize(block).get_hook(_FBC_LEADER_BLOCK_HOOK))
    )

    def runs(residual: torch.Tensor) -> bool:
        state = head.state_manager.get_state()
        added = decide(state.tail_block_residuals)
        if added is not None:
            state.tail_block_residuals = added
        return added is None

    head._should_compute_remaining_blocks = torch.compiler.disable(runs)


def upscaler_call(model: ImageModelDescriptor[torch.nn.Module]) -> Callable[[torch.nn.Module, torch.Tensor], Any]:
    """How spandrel runs the network of an upscaler; for some architectures that is more than calling it.

    spandrel 0.4.2, ``ImageModelDescriptor._call_fn``: calling the descriptor itself would clamp the result to 0..1,
    which hides numbers that are not finite, and it holds on to a network that the model cache must be able to move.
    """
    return model._call_fn  # type: ignore[no-any-return]


def ultralytics_loads_safely() -> bool:
    """Whether ultralytics was imported with ``ULTRALYTICS_SAFE_LOAD=1``, so that it reads checkpoints with a
    restricted unpickler.

    ultralytics 8.4.190, ``utils.SAFE_LOAD``: the variable is read once, and nothing else tells what was read.
    """
    from ultralytics.utils import SAFE_LOAD

    return bool(SAFE_LOAD)


def restore_image_open() -> None:
    """Puts back ``PIL.Image.open``, which ultralytics replaces when it is imported.

    ultralytics 8.4.190, ``utils.patches._image_open``: its replacement installs a package with pip when it meets a file
    that is no image, and no setting turns that off.
    """
    from PIL import Image
    from ultralytics.utils import patches

    Image.open = patches._image_open


def compute_anchors_every_call(network: Any) -> None:
    """Makes a YOLO's head compute its anchors in every call.

    ultralytics 8.4.190, ``Detect.dynamic``: the head otherwise keeps its anchors on the device of the last call, where
    nobody who moves the network's parameters finds them.
    """
    network.model[-1].dynamic = True


def letterbox(image: NDArray[Any], size: tuple[int, int], smallest: bool, stride: int) -> NDArray[Any]:
    """An image, H x W x 3 bytes, fitted into ``size`` (height, width) with grey bars.

    With ``smallest`` the bars only fill up to the next multiple of ``stride``.

    ultralytics 8.4.190, ``data.augment.LetterBox``: made for its own datasets and predictor. The predictor copies the
    network, which a model cache can then neither move nor free.
    """
    from ultralytics.data.augment import LetterBox

    fitted: NDArray[Any] = LetterBox(size, auto=smallest, stride=stride)(image=image)
    return fitted


def unletterbox_boxes(boxes: torch.Tensor, fitted: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """Boxes, N x (x1, y1, x2, y2), from an image in a :func:`letterbox` of ``fitted`` to the image of ``size``; both
    are (height, width).

    ultralytics 8.4.190, ``utils.ops.scale_boxes``: what its predictor does after the network.
    """
    from ultralytics.utils.ops import scale_boxes

    scaled: torch.Tensor = scale_boxes(fitted, boxes, size)
    return scaled


def outlines(
    prototypes: torch.Tensor, coefficients: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """The masks of a segmenting YOLO at the image's own ``size`` (height, width): N x H x W, 0 or 1.

    ``prototypes`` are C x h x w, ``coefficients`` N x C, ``boxes`` N x (x1, y1, x2, y2) in pixels of the image.

    ultralytics 8.4.190, ``utils.ops.process_mask_native``: what its predictor does with ``retina_masks``.
    """
    from ultralytics.utils.ops import process_mask_native

    masks: torch.Tensor = process_mask_native(prototypes, coefficients, boxes, size)
    return masks


def server_folder() -> Path | None:
    """The folder that Cog's server has made for the prediction of this context; None outside of a prediction, and for
    an id that is not the plain name of a folder.

    coglet 0.23.1, ``/tmp/coglet/predictions`` and the context variable ``_coglet_prediction_id``: the folder stays
    when the prediction has ended, and nothing public names it.
    """
    ids = [value for variable, value in copy_context().items() if variable.name == "_coglet_prediction_id"]
    return Path("/tmp/coglet/predictions", ids[0]) if ids and re.fullmatch(r"[\w-]+", ids[0]) else None
