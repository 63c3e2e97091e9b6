"""The table of a plan and its reasons say the same."""

from __future__ import annotations

import re

import pytest
from support.model_specs import KNOWN

from backend.memory_management import MemoryRules, Workload, plan_memory
from backend.planning.gpu_specs import card_named
from backend.planning.report import plan_as_text


@pytest.mark.parametrize("card", ["RTX 4060", "RTX 4070", "RTX 4080", "RTX 3090"])
def test_the_blocks_of_a_partial_model_that_stay_do_not_wait_on_the_host(card: str) -> None:
    """An H200 of 16 GB had 20.1 GB there in the table, and 6.8 in the reasons."""
    models = KNOWN["flux-dev"]
    plan = plan_memory(card_named(card).device(), models, Workload(1024, 1024), MemoryRules(weight_precision="auto"))
    assert plan.placements["transformer"].kind == "partial"
    text = plan_as_text(plan, models)
    [table] = re.findall(r"on the host +(.+?) of models, (.+?) of them pinned", text)
    [reasons] = re.findall(r"- (.+?) of models wait in host memory, (.+?) of it pinned", text)
    assert table == reasons
