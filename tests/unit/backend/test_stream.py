"""Copies to a card: whole pages pinned in one piece, one copy for all tensors, and slots that two streams share."""

from __future__ import annotations

import gc
import logging
import mmap
from collections.abc import Iterator

import pytest
import torch
from support.fake_cuda import FakeCard
from support.fake_cuda_driver import FakeEvent, FakeStream

from backend.devices.probe import probe_device
from backend.stream import ALIGNMENT, CudaTransfers, PackedTensors, packed, page_aligned

CARD = torch.device("cuda", 0)
SIZES = (1000, 3, 40_000)


def tensors() -> list[torch.Tensor]:
    return [torch.arange(size, dtype=torch.float32) for size in SIZES]


BYTES = 4 * sum(SIZES)


@pytest.fixture
def card() -> Iterator[FakeCard]:
    with FakeCard(8) as card:
        yield card


class TestPackedTensors:
    """Without any card."""

    def test_tensors_lie_side_by_side_at_aligned_addresses_with_their_values(self) -> None:
        channels_last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
        given = [*tensors(), channels_last, torch.tensor(True), torch.zeros(0), torch.randn(8).to(torch.float8_e4m3fn)]
        loose = packed(given)
        memory = page_aligned(loose.size)
        loose.copy_to(memory)
        for view, tensor in zip(loose.views(memory), given, strict=True):
            assert view.dtype == tensor.dtype and view.stride() == tensor.stride()
            assert torch.equal(view.float(), tensor.float())
            assert view.numel() == 0 or view.data_ptr() % ALIGNMENT == 0
        assert loose.bytes == sum(tensor.nbytes for tensor in given)

    def test_host_memory_begins_and_ends_with_a_page(self) -> None:
        memory = page_aligned(mmap.PAGESIZE + 1)
        assert memory.data_ptr() % mmap.PAGESIZE == 0 and memory.nbytes == 2 * mmap.PAGESIZE


class TestPinning:
    def test_a_group_is_one_registered_piece_and_one_copy_from_it(self, card: FakeCard) -> None:
        transfers = CudaTransfers(CARD, pin_bytes=10**6)
        group = packed(tensors(), transfers)
        [(address, size)] = card.driver.registered.items()
        assert address % mmap.PAGESIZE == 0 and size % mmap.PAGESIZE == 0 and size >= group.size
        transfers.upload(group)
        assert card.bytes_uploaded == group.size and card.pageable_bytes == 0
        assert transfers.bytes_uploaded == BYTES

    def test_what_is_beyond_the_budget_stays_where_it_is(self, card: FakeCard) -> None:
        given = tensors()
        group = packed(given, CudaTransfers(CARD, pin_bytes=BYTES // 2))
        assert not card.driver.registered
        assert all(kept is tensor for kept, tensor in zip(group.tensors, given, strict=True))

    def test_unpinned_memory_is_unregistered_and_may_be_pinned_again(self, card: FakeCard) -> None:
        transfers = CudaTransfers(CARD, pin_bytes=200_000)
        for _ in range(3):
            slab = packed(tensors(), transfers).slab
            assert slab is not None
            transfers.unpin(slab)
            assert not card.driver.registered

    def test_everything_is_unregistered_at_the_end(self, card: FakeCard) -> None:
        transfers = CudaTransfers(CARD, pin_bytes=10**6)
        groups = [packed(tensors(), transfers) for _ in range(3)]
        assert len(card.driver.registered) == 3
        del transfers
        gc.collect()
        assert not card.driver.registered and len(groups) == 3

    def test_that_needs_no_torch_that_still_finds_the_driver(self) -> None:
        """At the end of a process parts of torch are gone before the finalizers run."""
        with FakeCard(24) as card:
            transfers = CudaTransfers(CARD, pin_bytes=10**6)
            packed(tensors(), transfers)
        assert card.driver.registered
        del transfers
        gc.collect()
        assert not card.driver.registered

    def test_where_pinning_fails_the_error_is_cleared_and_told_once_and_copies_are_pageable(
        self, card: FakeCard, caplog: pytest.LogCaptureFixture
    ) -> None:
        card.driver.register_error = 712
        transfers = CudaTransfers(CARD, pin_bytes=10**6)
        with caplog.at_level(logging.WARNING):
            groups = [packed(tensors(), transfers) for _ in range(3)]
        assert card.driver.pending_error == 0
        assert [record.levelname for record in caplog.records] == ["WARNING"] and "712" in caplog.text
        transfers.upload(groups[0])
        assert card.pageable_bytes == BYTES

    def test_an_older_error_that_registering_reports_does_not_end_pinning(
        self, card: FakeCard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        register, errors = card.driver.cudaHostRegister, [700]

        def report_older(address: int, size: int, flags: int) -> int:
            if errors:
                card.driver.pending_error = errors.pop()
                return card.driver.pending_error
            return register(address, size, flags)

        monkeypatch.setattr(card.driver, "cudaHostRegister", report_older)
        transfers = CudaTransfers(CARD, pin_bytes=10**6)
        assert packed(tensors(), transfers).slab is not None
        assert len(card.driver.registered) == 1 and card.driver.pending_error == 0


def test_the_device_that_the_probe_finds_is_one_to_every_function_of_torch(card: FakeCard) -> None:
    """Some refuse ``torch.device("cuda")``."""
    transfers = CudaTransfers(probe_device("cuda", "auto").torch_device, pin_bytes=10**6)
    before = transfers.free_bytes()
    transfers.upload(packed(tensors(), transfers), transfers.slot(10**6))
    transfers.synchronize()
    assert before == card.driver.free_bytes() + card.allocated_bytes


class TestSlots:
    def test_a_slot_takes_no_memory_for_what_passes_through_it(self, card: FakeCard) -> None:
        transfers = CudaTransfers(CARD, pin_bytes=10**6)
        groups = [packed(tensors(), transfers) for _ in range(3)]
        slot = transfers.slot(groups[0].size)
        before = card.allocated_bytes
        card.peak_bytes = 0
        for group in groups * 4:
            views = transfers.upload(group, slot)
            slot.wait()
            assert [view.shape for view in views] == [tensor.shape for tensor in group.tensors]
            slot.release()
        assert card.allocated_bytes == before and card.peak_bytes <= before
        assert transfers.bytes_uploaded == 12 * BYTES
        assert card.waits == []  # the host never waits for the card

    def test_an_upload_waits_for_the_computation_on_the_slot_and_the_computation_for_the_upload(
        self, card: FakeCard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[tuple[str, object, object]] = []
        wait, record, copied = FakeStream.wait_event, FakeEvent.record, PackedTensors.copy_to
        monkeypatch.setattr(FakeStream, "wait_event", lambda s, e: (done.append(("wait", s, e)), wait(s, e)))
        monkeypatch.setattr(FakeEvent, "record", lambda e, s: (done.append(("record", s, e)), record(e, s)))
        monkeypatch.setattr(
            PackedTensors, "copy_to", lambda p, m: (done.append(("copy", card.driver.stream, None)), copied(p, m))
        )
        transfers = CudaTransfers(CARD, pin_bytes=0)
        group = packed(tensors())
        slot, computing = transfers.slot(group.size), torch.cuda.current_stream()
        for _ in range(2):
            transfers.upload(group, slot)
            slot.wait()
            slot.release()
        copies, computed, uploaded = done[0][1], done[0][2], done[2][2]
        assert copies is not computing and computed is not uploaded
        assert done == 2 * [
            ("wait", copies, computed),
            ("copy", copies, None),
            ("record", copies, uploaded),
            ("wait", computing, uploaded),
            ("record", computing, computed),
        ]
