"""A CUDA card that is not there: tensors on it have shapes and no data, and everything that happens to it is counted.

>>> with FakeCard(gib=24) as card:
...     service = start(settings)
...     service.predict(inputs, report)
>>> card.peak_bytes, card.flops, card.bytes_uploaded, card.waits

Inside of the context ``torch.cuda`` (``support/fake_cuda_driver.py``) finds this card, and the product runs as it
would there, through its own pipelines, at real size, in seconds. Tensors on the CPU are real, but for weights that are
read from a sparse checkpoint (``support/sparse_checkpoints.py``) and what is computed from them: these have no data
either, and an error comes of asking for it. What is downloaded from the card is zeros, and any condition that is read
there holds.

Not simulated: time, the fragmentation of memory, and the workspace of kernels.
"""

from __future__ import annotations

import mmap
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import MethodWrapperType, TracebackType
from typing import Any, Self

import torch
from support.fake_cuda_blocks import alike_blocks_run_once
from support.fake_cuda_driver import BUILT_FOR, FakeDriver, installed_driver
from support.fake_cuda_operators import BY_NAME, SPECIAL, meta_of
from support.fake_cuda_results import Results
from support.sparse_checkpoints import hollow_files
from torch._C import DispatchKey
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from backend.compat import storage_id
from backend.devices.emulated import tensors_in

aten = torch.ops.aten
CARD, HOST, META = torch.device("cuda", 0), torch.device("cpu"), torch.device("meta")
COMPOSITE = DispatchKey.CompositeImplicitAutograd
WRITTEN_FOR = "2.13."
"""The version of torch whose inner parts this uses."""
GRANULE = 512
"""Bytes: what torch's allocator rounds up to."""
LARGE = 2**20
"""Bytes from which zeros are not written, but pages that read as zeros."""
ROOT = Path(__file__).resolve().parents[2]


class FakeCard:
    """A card of ``gib`` as it is sold.

    ``held_bytes`` are in use by others from the start, and ``context_bytes`` are what the driver takes as soon as
    anything runs. ``host_gib`` is the memory of the machine, ``cuda`` the version of CUDA that the driver supports.

    Attributes:
        allocated_bytes, peak_bytes: Of tensors on the card.
        flops: Floating point operations of matrix products, convolutions and attention on the card.
        bytes_uploaded, pageable_bytes, bytes_downloaded: By copies to the card, those of them from memory that is not
            pinned, and copies from the card.
        waits: Where the host waited for the card: what for, and the line of the code outside of torch.
    """

    def __init__(
        self,
        gib: float = 24,
        *,
        capability: tuple[int, int] = (8, 9),
        held_bytes: int = 0,
        context_bytes: int = 500_000_000,
        host_gib: float = 128,
        cuda: tuple[int, int] = BUILT_FOR,
    ) -> None:
        self.driver = FakeDriver(self, gib, capability, held_bytes, context_bytes, host_gib, cuda)
        self.allocated_bytes = self.peak_bytes = self.flops = 0
        self.bytes_uploaded = self.pageable_bytes = self.bytes_downloaded = 0
        self.waits: list[tuple[str, str]] = []
        self.steps: list[list[int]] = []
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.mode.cache_enabled = False  # ``Results`` remembers more, for less
        self._attributes = vars(FakeTensor(self.mode, torch.empty(0, device="meta"), HOST)).copy()
        self.results = Results(self)
        self._live: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.weights: set[int] = set()
        self._addresses: dict[int, int] = {}
        self._next_address = 1 << 48
        self._stack = ExitStack()
        self.disguised = False
        """Whether torch is told for the moment that the tensors of the card are on the meta device."""

    def __enter__(self) -> Self:
        # torch.tensor(values, device="cuda") is then made on the host, and copied by an operator
        self._stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        # what the set-up changes for the whole process on a card
        self._stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        self._stack.enter_context(installed_driver(self.driver))
        self._stack.enter_context(hollow_files(self))
        self._stack.enter_context(alike_blocks_run_once(self))
        self._stack.enter_context(_Functions(self))
        self._stack.enter_context(_Operators(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # tensors ---------------------------------------------------------------------------------------------------------

    def empty(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, strides: Sequence[int] | None = None
    ) -> FakeTensor:
        """A tensor without data, on the card or on the host. Inside of an operator, where no mode is on."""
        if strides is None:
            made = torch.empty(shape, dtype=dtype, device="meta")
        else:
            made = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        return self.note(self.fake(made, device))

    def hollow(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device = HOST,
        strides: Sequence[int] | None = None,
    ) -> FakeTensor:
        """:meth:`empty`, anywhere."""
        with torch.utils._python_dispatch._disable_current_modes():
            return self.empty(shape, dtype, device, strides)

    def view(
        self, tensor: torch.Tensor, shape: Sequence[int], strides: Sequence[int], offset: int, dtype: torch.dtype
    ) -> FakeTensor:
        """Another tensor in the memory of this one, which has no data; ``offset`` from its beginning. As
        :meth:`empty`."""
        # a view of what was made outside of an inference may be made inside, and is then no tensor of an inference
        with torch.inference_mode(tensor.is_inference()):
            made = torch.empty(0, dtype=dtype, device="meta").set_(tensor.untyped_storage(), offset, shape, strides)
            return self.fake(made, tensor.fake_device)  # type: ignore[attr-defined]

    def fake(self, made: torch.Tensor, device: torch.device) -> FakeTensor:
        """``FakeTensor(self.mode, made, device)``, without the checks of its arguments that take most of the time."""
        tensor = torch.Tensor._make_subclass(
            FakeTensor, made, False, dispatch_device=True, device_for_backend_keys=device
        )
        tensor.__dict__.update(self._attributes)
        tensor.fake_device = device
        return tensor  # type: ignore[return-value]

    def note(self, tensor: torch.Tensor) -> Any:
        """Counts the memory of a tensor on the card, once, until it is freed. Raises ``torch.OutOfMemoryError``."""
        if not isinstance(tensor, FakeTensor) or tensor.fake_device.type != "cuda":
            return tensor
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return tensor
        size = -(-storage.nbytes() // GRANULE) * GRANULE
        self.driver.require(size)

        def forget(_: weakref.ref[torch.UntypedStorage]) -> None:
            del self._live[key]
            self.weights.discard(key)
            self.allocated_bytes -= size

        self._live[key] = weakref.ref(storage, forget)
        self.allocated_bytes += size
        self._rise(self.allocated_bytes)
        return tensor

    def _rise(self, size: int) -> None:
        self.peak_bytes = max(self.peak_bytes, size)
        self.driver.peak_bytes = max(self.driver.peak_bytes, size)

    def empty_like(self, tensor: torch.Tensor) -> FakeTensor:
        return self.hollow(tensor.shape, tensor.dtype, CARD, tensor.stride())

    def require_room(self, size: int) -> None:
        """Something needs so many bytes for a moment."""
        self.driver.require(size)
        self._rise(self.allocated_bytes + size)

    def place_in_file(self, tensor: FakeTensor, address: int) -> None:
        """Says where a file's mapping has the data of a hollow tensor."""
        self._addresses[storage_id(tensor)] = address

    def reserve_addresses(self, size: int) -> int:
        """A range of host addresses that begins at a page."""
        address = self._next_address
        self._next_address += -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        return address

    def address(self, tensor: torch.Tensor) -> int:
        """Where a tensor of the host begins; a hollow one gets an address of its own when it is first asked."""
        if not isinstance(tensor, FakeTensor):
            return tensor.data_ptr()
        key = storage_id(tensor)
        if key not in self._addresses:
            self._addresses[key] = self.reserve_addresses(tensor.untyped_storage().nbytes())
            weakref.finalize(tensor.untyped_storage(), self._addresses.pop, key, None)
        return self._addresses[key] + tensor.storage_offset() * tensor.element_size()

    def set_data(self, tensor: torch.Tensor, data: torch.Tensor) -> None:
        """``tensor.data = data``, where one of the two has no data."""
        if not isinstance(data, FakeTensor):
            data = self.hollow(data.shape, data.dtype, HOST, data.stride())
        if isinstance(tensor, FakeTensor):
            torch.Tensor.data.__set__(tensor, data)  # type: ignore[attr-defined]
            tensor.fake_device = data.fake_device
            return
        alias = self.fake(meta_of(data), data.fake_device)
        alias._is_param = isinstance(tensor, torch.nn.Parameter)  # type: ignore[attr-defined]
        torch.utils.swap_tensors(tensor, alias)

    # what happens on the card ----------------------------------------------------------------------------------------

    def wait(self, what: str) -> None:
        """The host waits for the card."""
        outside = [
            frame
            for frame in traceback.extract_stack()
            if "/torch/" not in frame.filename and "/fake_cuda" not in frame.filename
        ]
        self.waits.append((what, f"{outside[-1].filename.removeprefix(f'{ROOT}/')}:{outside[-1].lineno}"))

    def run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An operator on tensors of which at least one has no data."""
        if special := special_of(func):
            result = special(self, func, args, kwargs)
            if result is not NotImplemented:
                return result
        return self.results.of(func, args, kwargs)

    def copy_to_host(self, tensor: FakeTensor, dtype: torch.dtype, blocking: bool) -> torch.Tensor:
        size = tensor.numel() * tensor.element_size()
        self.bytes_downloaded += size
        if blocking:
            self.wait("download")
        if storage_id(tensor) in self.weights:
            return self.empty(tensor.shape, dtype, HOST)
        if size < LARGE:
            return torch.zeros(tensor.shape, dtype=dtype)
        # pages that nobody touches take no memory and no time
        pages = mmap.mmap(-1, tensor.numel() * dtype.itemsize)
        return torch.frombuffer(pages, dtype=dtype).view(tensor.shape)

    def copy_to_card(self, tensor: torch.Tensor, hollow: bool) -> None:
        """Counts a copy from the host to the card."""
        size = tensor.numel() * tensor.element_size()
        self.bytes_uploaded += size
        if not self.is_pinned(tensor):
            self.pageable_bytes += size

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return self.driver.is_registered(self.address(tensor), tensor.numel() * tensor.element_size())


@cache
def special_of(func: Any) -> Callable[..., Any] | None:
    return SPECIAL.get(func) or BY_NAME.get(func.name())


@cache
def is_composite(func: Any) -> bool:
    """Whether an operator is made of others, and not treated here."""
    made_of_others: bool = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE)
    return made_of_others and not special_of(func)


class _Operators(TorchDispatchMode):
    """Sends every operator that touches the card, or a hollow tensor, to :meth:`FakeCard.run`."""

    def __init__(self, card: FakeCard) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.card = card

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not: it would wrap every call, and nothing is compiled here."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is torch.ops.prim.device.default:
            return META if self.card.disguised else args[0].fake_device
        disguised, self.card.disguised = self.card.disguised, False
        try:
            return self._dispatch(func, args, options)
        finally:
            self.card.disguised = disguised

    def _dispatch(self, func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
        values = (*args, *options.values())
        hollow = number = False
        for tensor in tensors_in(values):
            if isinstance(tensor, FakeTensor):
                hollow = True
            elif tensor.is_meta:
                number = True
        if hollow or any(isinstance(one, torch.device) and one.type == "cuda" for one in values):
            if number:
                # a number that torch has made a tensor of, beside one of the card that it was told is on "meta"
                args = tree_map(self._as_on_card, args)
            if not is_composite(func):
                return self.card.run(func, args, options)
            with self:  # in inference mode operators arrive that are made of others
                return func._op_dk(COMPOSITE, *args, **options)
        if func is aten.copy_.default and self.card.is_pinned(args[0]):
            return args[0]  # only a card will read it, and looks at sizes alone
        # memory that the driver gives out pinned is ordinary memory here
        return func(*args, **{name: value for name, value in options.items() if name != "pin_memory"})

    def _as_on_card(self, value: Any) -> Any:
        number = isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor) and value.is_meta
        return self.card.empty(value.shape, value.dtype, CARD) if number and not value.dim() else value


class _Functions(TorchFunctionMode):
    """What has to be known before an operator is reached: the kernel of attention, and which tensor gets new data."""

    def __init__(self, card: FakeCard) -> None:
        self.card = card
        self.handlers: dict[Any, Callable[..., Any]] = {
            torch.nn.functional.scaled_dot_product_attention: _attention,
            torch.Tensor.to: _to,
            torch.Tensor.data_ptr: lambda tensor: card.address(tensor),
            torch.Tensor.is_pinned: lambda tensor, device=None: card.is_pinned(tensor),
        }
        self.set_data = torch.Tensor.data.__set__  # type: ignore[attr-defined]

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if isinstance(func, MethodWrapperType):  # an attribute
            if func == self.set_data and any(isinstance(one, FakeTensor) for one in args):
                return self.card.set_data(*args)
            return func(*args, **(kwargs or {}))
        if handler := self.handlers.get(func):
            return handler(*args, **(kwargs or {}))
        # many functions enter the device before they reach an operator, and a build without CUDA cannot
        before, self.card.disguised = self.card.disguised, True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.card.disguised = before


def _to(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """A build of torch without CUDA does not know which card "cuda" is."""
    given = [CARD if isinstance(one, str | torch.device) and str(one) == "cuda" else one for one in args]
    if str(options.get("device")) == "cuda":
        options["device"] = CARD
    return torch.Tensor.to(tensor, *given, **options)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **options: Any) -> Any:
    """As CUDA chooses: a fused kernel, whose scores are never in memory."""
    native = torch._C._nn.scaled_dot_product_attention
    if not isinstance(query, FakeTensor):
        return native(query, key, value, *rest, **options)
    mask = rest[0] if rest else options.get("attn_mask")
    causal, scale = options.get("is_causal", False), options.get("scale")
    if mask is None and query.dtype in (torch.float16, torch.bfloat16):
        return aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scale)[0]
    return aten._scaled_dot_product_efficient_attention(query, key, value, mask, False, 0.0, causal, scale=scale)[0]
