"""The memory planner: decides from numbers, before anything is loaded, where every model is placed.

:func:`plan_memory` takes bytes and gives decisions, each with its reason. It needs no torch. Every combination of
placements is tried, a few thousand, and the fastest that fits is taken. The parts are in ``backend/planning/``: what a
prediction needs (``activations``, ``costs``), the rules, the search, the reasons.
"""

from backend.planning.activations import Workload
from backend.planning.costs import DeviceMemory, Placement
from backend.planning.model_specs import ModelSizes
from backend.planning.plan import MemoryPlan, MemoryPlanError, VRAMState
from backend.planning.planner import plan_memory, predicted_peak
from backend.planning.rules import WEIGHT_PRECISIONS, MemoryRules

__all__ = [
    "WEIGHT_PRECISIONS",
    "DeviceMemory",
    "MemoryPlan",
    "MemoryPlanError",
    "MemoryRules",
    "ModelSizes",
    "Placement",
    "VRAMState",
    "Workload",
    "plan_memory",
    "predicted_peak",
]
