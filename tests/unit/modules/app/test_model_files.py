"""How much of a device's memory is kept for LoRA files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from backend.core.errors import SettingsError
from backend.core.settings import Settings
from backend.memory_management import Workload, plan_memory
from backend.planning.gpu_specs import emulated_memory
from modules.app.model_files import find_files, lora_bytes

CARD = 24 * 10**9


def test_it_is_what_the_folder_holds_and_no_more_than_a_share_of_the_card(tmp_path: Path) -> None:
    settings = Settings(weights_dir=str(tmp_path))
    assert lora_bytes(settings, CARD, 2) == 0
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "ink.safetensors").write_bytes(bytes(5000))
    assert lora_bytes(settings, CARD, 2) == 5000 and lora_bytes(settings, CARD, 4) == 10_000
    assert lora_bytes(settings, 16_000, 2) == 1000
    assert lora_bytes(replace(settings, lora_sources=("local", "civitai")), CARD, 2) == 10**9
    assert lora_bytes(replace(settings, lora_memory="300MB"), CARD, 2) == 300 * 10**6
    with pytest.raises(SettingsError, match="'much' is not an amount"):
        lora_bytes(replace(settings, lora_memory="much"), CARD, 2)


def test_the_plan_reserves_it() -> None:
    settings = replace(Settings(), model="embedded")
    files, memory = find_files(settings), emulated_memory(10**9, 10**10)
    workload: Workload = files.workload(settings)
    plain = plan_memory(memory, files.spec(), workload)
    with_loras = plan_memory(memory, files.spec(), replace(workload, lora_bytes=50 * 10**6))
    assert with_loras.predicted_peak_bytes - plain.predicted_peak_bytes == 50 * 10**6
