"""The contracts of ``backend/compat.py``: what we use of other libraries beyond their public interface is there, takes
the same arguments, and does the same on a small example."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO

import pytest
import torch
from support.local_hub import LocalHub
from support.signatures import assert_takes
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from backend import compat
from backend.core.settings import ROOT

CONTENT = bytes(range(256)) * 40


def test_what_is_to_be_done_at_the_end_can_be_done_at_once_and_is_done_once() -> None:
    code = """
import atexit
from backend import compat
atexit.register(print, "first registered")
atexit.register(print, "last registered")
compat.run_exit_functions()
print("now the end")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["last registered", "first registered", "now the end"]


def test_tensors_are_replaced_in_nested_trees() -> None:
    a, b = torch.zeros(2, 2)
    assert compat.map_tensors(torch.Tensor.tolist, ((a, 1), {"x": [b, None]})) == (([0, 0], 1), {"x": [[0, 0], None]})


class Negative(torch.Tensor):
    """Holds a tensor, and every operation works on its negative."""

    inner: torch.Tensor

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return compat.call_torch(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*(-arg.inner if isinstance(arg, cls) else arg for arg in args), **(kwargs or {}))


def test_a_wrapper_has_a_shape_and_its_class_answers_every_operation() -> None:
    wrapper = compat.wrapper_tensor(Negative, (2, 3), torch.float16, torch.device("cpu"))
    wrapper.inner = torch.ones(2, 3)
    assert isinstance(wrapper, Negative) and wrapper.shape == (2, 3) and wrapper.dtype == torch.float16
    result = wrapper + 3
    assert type(result) is torch.Tensor and torch.equal(result, torch.full((2, 3), 2.0))
    assert torch.equal(compat.call_torch(torch.add, (torch.ones(1), 1), {}), torch.tensor([2.0]))


def test_views_share_the_id_of_their_storage_and_others_do_not() -> None:
    tensor = torch.zeros(4, 4)
    assert compat.storage_id(tensor[1:].T) == compat.storage_id(tensor) != compat.storage_id(tensor.clone())
    empty = torch.empty(0), torch.empty(0)
    assert compat.storage_id(empty[0]) != compat.storage_id(empty[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_in_fp8_is_that_of_the_scaled_matrices_and_its_operations_are_counted(dtype: torch.dtype) -> None:
    rows, weight = (torch.randn(count, 48).to(torch.float8_e4m3fn) for count in (5, 32))
    scales = [torch.rand(count, 1) for count in (5, 32)]
    bias = torch.randn(32, dtype=dtype)
    with FlopCounterMode(display=False) as counter:
        product = compat.scaled_mm(rows, scales[0], weight, scales[1], bias, dtype)
    exact = (rows.float() * scales[0]) @ (weight.float() * scales[1]).T + bias.float()
    assert product.dtype == dtype and (product - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
    assert counter.get_total_flops() == 2 * 5 * 32 * 48


def test_the_hub_is_told_who_asks_and_the_token_only_where_there_is_one() -> None:
    from huggingface_hub.utils import build_hf_headers

    assert_takes(build_hf_headers, "huggingface_hub", "token")
    without = compat.hub_headers(False)
    assert "hf_hub" in without["user-agent"] and "authorization" not in without
    assert compat.hub_headers("hf_test")["authorization"] == "Bearer hf_test"


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    hub = LocalHub({"owner/name": {"model.safetensors": CONTENT}})
    yield hub
    hub.close()


@pytest.mark.parametrize("start", [0, 5000])
def test_the_hub_appends_what_is_missing_and_tells_the_bar(hub: LocalHub, start: int) -> None:
    from huggingface_hub.file_download import http_get

    assert_takes(http_get, "huggingface_hub", "url", "temp_file", "resume_size", "headers", "tqdm_class")
    file, told = BytesIO(CONTENT[:start]), []

    class Bar(tqdm):  # type: ignore[type-arg]
        def update(self, n: float | None = 1) -> None:
            told.append(int(n or 0))

    file.seek(start)
    url = f"{hub.url}/owner/name/resolve/main/model.safetensors"
    compat.hub_download(url, file, start, compat.hub_headers(False), Bar)
    assert file.getvalue() == CONTENT
    assert sum(told) == len(CONTENT) - start
    assert hub.requests[-1][2] == (f"bytes={start}-" if start else "")
