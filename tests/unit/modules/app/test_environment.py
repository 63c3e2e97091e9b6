"""Variables that libraries read when they are imported are set before; where that is too late, a warning says so."""

from __future__ import annotations

import logging

import pytest

from backend.core.errors import SettingsError
from backend.core.settings import Settings
from modules.app.environment import SPIN_COUNT, set_environment

OURS = {
    "HF_HUB_OFFLINE": "1",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "GOMP_SPINCOUNT": SPIN_COUNT,
}


def test_what_is_not_set_is_set_before_anything_is_imported(caplog: pytest.LogCaptureFixture) -> None:
    environment: dict[str, str] = {}
    assert set_environment(Settings(), environment, imported=()) == ()
    assert environment == OURS
    assert not caplog.records


def test_what_the_user_has_set_stays() -> None:
    given = {"HF_HUB_OFFLINE": "0", "PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync", "GOMP_SPINCOUNT": "7"}
    environment = dict(given)
    assert set_environment(Settings(), environment, imported=("torch", "huggingface_hub")) == ()
    assert environment == given


def test_a_wait_policy_of_the_user_goes_before_our_spin_count() -> None:
    environment = {"OMP_WAIT_POLICY": "passive"}
    set_environment(Settings(), environment, imported=())
    assert "GOMP_SPINCOUNT" not in environment


@pytest.mark.parametrize(
    ("imported", "late"),
    [
        ("torch", ("PYTORCH_ALLOC_CONF", "GOMP_SPINCOUNT")),
        ("huggingface_hub", ("HF_HUB_OFFLINE",)),
    ],
)
def test_a_variable_that_comes_too_late_is_named_with_the_library(
    imported: str, late: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert set_environment(Settings(), {}, imported=(imported,)) == late
    for name, record in zip(late, caplog.records, strict=True):
        assert record.getMessage().startswith(f"{name}={OURS[name]} has no effect: {imported} was imported before")


def test_a_second_set_up_in_one_process_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    environment: dict[str, str] = {}
    set_environment(Settings(), environment, imported=())
    assert set_environment(Settings(), environment, imported=("torch", "huggingface_hub")) == ()
    assert not caplog.records


def test_an_allocator_conf_that_torch_would_not_understand_is_refused() -> None:
    with pytest.raises(SettingsError, match="allocator_conf: unknown option"):
        set_environment(Settings(allocator_conf="expandable_segment:True"), {}, imported=())
