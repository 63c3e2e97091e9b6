"""The emulated device counts what is made on it, and is as full and as slow as it is told to be."""

from __future__ import annotations

import time

import pytest
import torch

from backend.devices.emulated import EmulatedDevice
from backend.stream import packed

MIB = 2**20


def test_counts_what_is_made_inside_until_its_last_user_lets_go() -> None:
    with EmulatedDevice(MIB) as device:
        a = torch.zeros(1000)
        view = a[10:]
        assert device.allocated_bytes == 4000
        del a
        assert device.allocated_bytes == 4000
        del view
        assert device.allocated_bytes == 0 and device.peak_bytes == 4000


def test_does_not_count_what_is_made_outside() -> None:
    outside = torch.zeros(1000)
    with EmulatedDevice(MIB) as device:
        outside.add_(1)
    assert device.peak_bytes == 0


def test_raises_the_same_error_as_a_card_when_it_is_full() -> None:
    with EmulatedDevice(5000) as device:
        kept = torch.zeros(1000)
        with pytest.raises(torch.OutOfMemoryError, match="capacity of 5000 bytes of which 1000 bytes are free"):
            torch.zeros(1000)
        assert device.allocated_bytes == kept.nbytes


def test_copies_take_as_long_as_the_bandwidth_says() -> None:
    device = EmulatedDevice(MIB, copy_bandwidth=4_000_000)
    begin = time.perf_counter()
    device.upload(packed([torch.zeros(100_000)]))
    assert 0.1 <= time.perf_counter() - begin < 10
