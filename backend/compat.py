"""What ``backend`` uses of other libraries beyond their public interface, all in one place.

A new version of a library may rename or change any of it without notice. So every entry says of which version it is and
why there is no public way, and ``tests/unit/backend/test_compat.py`` checks each on a small example. Libraries are
imported when a function is called, so that downloading needs no torch and computing no hub.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import torch


def run_exit_functions() -> None:
    """Calls what was registered with ``atexit``, the last first.

    Python 3.11 to 3.13, ``atexit._run_exitfuncs``: for ``os._exit``, which calls nothing.
    """
    atexit._run_exitfuncs()


def map_tensors(change: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """The same nested tuples, lists and dicts with every tensor replaced by what ``change`` makes of it.

    torch 2.13.0, ``utils._pytree.tree_map_only``: as :func:`tensors_in`.
    """
    import torch
    from torch.utils._pytree import tree_map_only

    return tree_map_only(torch.Tensor, change, tree)


def wrapper_tensor(kind: type, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Any:
    """A tensor without data of the subclass ``kind``, whose operations go to ``kind.__torch_dispatch__``.

    torch 2.13.0, ``Tensor._make_wrapper_subclass``: PyTorch's own documentation of subclasses knows no other way.
    """
    import torch

    return torch.Tensor._make_wrapper_subclass(kind, shape, dtype=dtype, device=device)


def call_torch(function: Callable[..., Any], args: Any, options: Any) -> Any:
    """Calls a function of torch for a tensor subclass that leaves everything to ``__torch_dispatch__``.

    torch 2.13.0, ``_C.DisableTorchFunctionSubclass``: what ``Tensor.__torch_function__`` does itself before it turns
    every result into the subclass, which is not wanted.
    """
    import torch

    with torch._C.DisableTorchFunctionSubclass():
        return function(*args, **options)


def storage_id(tensor: torch.Tensor) -> int:
    """The same number for all tensors that share memory, a view and its base for instance, as long as one of them
    lives.

    torch 2.13.0, ``UntypedStorage._cdata``: the public ``data_ptr`` is 0 for every tensor without data.
    """
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]


def hub_headers(token: str | bool) -> dict[str, str]:
    """The headers of a request to the hub, with the user agent that it asks for; ``token`` False sends none.

    huggingface_hub 2.4.0, ``utils.build_hf_headers``: what its own functions send, for :func:`hub_download`.
    """
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers: dict[str, str] = build_hf_headers(token=token)
    return headers


def hub_download(url: str, file: BinaryIO, start: int, headers: dict[str, str], progress_bar: Any) -> None:
    """Appends to ``file`` what the hub has at ``url`` from byte ``start`` on, and connects again where a connection is
    lost. ``progress_bar`` is called like the class tqdm.

    huggingface_hub 2.4.0, ``file_download.http_get``: the public ``hf_hub_download`` writes into a cache of its own, or
    keeps a folder of its own beside the files.
    """
    from huggingface_hub.file_download import http_get

    http_get(url, file, resume_size=start, headers=headers, tqdm_class=progress_bar)


def scaled_mm(
    rows: torch.Tensor,
    row_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """A linear layer's product in fp8: ``(rows * row_scale) @ (weight * weight_scale).T + bias`` in ``dtype``.

    ``rows`` (tokens x inputs) and ``weight`` (outputs x inputs) are e4m3, their scales (tokens x 1 and outputs x 1)
    float32.

    torch 2.13.0, ``_scaled_mm``: the operations of the public ``nn.functional.scaled_mm`` are not counted by
    ``FlopCounterMode``.
    """
    import torch

    return torch._scaled_mm(
        rows, weight.t(), scale_a=row_scale, scale_b=weight_scale.t(), bias=bias, out_dtype=dtype, use_fast_accum=True
    )
