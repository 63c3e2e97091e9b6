"""The measurement runs here on the CPU, which is a device like any other to it."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from backend.devices import speed
from backend.devices.speed import Sizes, Speed, measure_speed, with_measured
from backend.planning.gpu_specs import card_named

CPU = torch.device("cpu")
SMALL = Sizes(copied=2**20, tokens=96, width=128, heads=4)
EXPECTED = card_named("RTX 4090").device()


def test_a_block_computes_what_is_counted() -> None:
    run = speed._block(CPU, torch.float32, SMALL)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the one that is counted
        run()
    assert counter.get_total_flops() == pytest.approx(SMALL.work)


def test_the_block_is_one_of_flux() -> None:
    """38 of them and 19 double ones, which have the same layers twice for fewer tokens each, are 74.4 TFLOP."""
    assert 57 * Sizes().work == pytest.approx(74.38e12, rel=0.05)


def test_it_measures_this_machine() -> None:
    found = measure_speed(CPU, torch.float32, SMALL)
    assert found and 1e8 < found.copy_bandwidth < 1e13 and 1e8 < found.flops < 1e14


def test_a_device_without_room_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(speed, "_block", full)
    assert measure_speed(CPU, torch.float32, SMALL) is None
    assert with_measured(EXPECTED, None, known=False) == EXPECTED


def measured(bandwidth: float, flops: float) -> Speed:
    """These shares of the expected figures; one block is faster than a whole transformer."""
    return Speed(bandwidth * EXPECTED.copy_bandwidth, flops * EXPECTED.flops / speed.SUSTAINED)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("share", [0.83, 0.95, 1.0, 1.1, 1.2, 1.45])
def test_what_is_near_the_expected_figure_does_not_count(share: float, known: bool) -> None:
    """Two starts on one machine plan alike."""
    assert with_measured(EXPECTED, measured(share, share), known) == EXPECTED


@pytest.mark.parametrize("known", [True, False])
def test_a_narrow_slot_and_a_slow_card_count_in_steps(caplog: pytest.LogCaptureFixture, known: bool) -> None:
    caplog.set_level(logging.INFO)
    found = with_measured(EXPECTED, measured(1 / 4.3, 1 / 1.6), known)
    again = with_measured(EXPECTED, measured(1 / 5.5, 1 / 1.4), known)
    assert found == again
    assert found.copy_bandwidth < 0.35 * EXPECTED.copy_bandwidth and found.flops == EXPECTED.flops / speed.STEP
    assert "copies from the host: 5.81 GB/s measured, 25 expected" in caplog.text


@pytest.mark.parametrize("share", [1.3, 1.6, 2.2, 3.5])
def test_a_faster_card_never_counts_with_more_than_was_measured(share: float) -> None:
    """An H200 with 664 TFLOP/s a block was taken for one of 712, where 475 were expected."""
    found = with_measured(EXPECTED, measured(share, share), known=False)
    assert share / speed.STEP < found.flops / EXPECTED.flops <= share
    assert share / speed.STEP < found.copy_bandwidth / EXPECTED.copy_bandwidth <= share
    assert with_measured(EXPECTED, measured(share, share), known=True) == EXPECTED


def test_one_slow_series_of_copies_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones are slow, say beside a process that ends."""
    taken = iter([1.0, 0.1, 0.001])
    monkeypatch.setattr(speed, "_seconds", lambda run, device: next(taken))
    assert measure_speed(CPU, torch.float32, SMALL) == Speed(SMALL.copied / 0.001, SMALL.work / 0.1)


@pytest.mark.parametrize("factor", [0.0, 1e-4, 1e4])
def test_a_figure_that_cannot_be_is_left_out(factor: float) -> None:
    assert with_measured(EXPECTED, measured(factor, factor), known=False) == EXPECTED
