"""Whether two specs count a model alike."""

from __future__ import annotations

import pytest

from backend.planning.model_specs import ModelSpec


def assert_alike(found: ModelSpec, known: ModelSpec, tolerance: float, image_tokens: int) -> None:
    """The same components to the parameter, and costs within ``tolerance``; the detectors and upscaler of ``known``
    aside."""
    for name, component in found.components.items():
        other = known.components[name]
        assert component.parameters == other.parameters, name
        assert sorted(component.blocks) == sorted(other.blocks), name
        assert not other.layers or (component.layers, component.largest_layer) == (other.layers, other.largest_layer)
        assert component.on_disk == "bf16" and component.rounds == other.rounds
    x = {"encode": found.text_tokens, "denoise": found.text_tokens + image_tokens}
    for name, cost in found.costs.items():
        size, other_cost = x.get(name, found.native**2), known.costs[name]
        assert cost.memory(size) == pytest.approx(other_cost.memory(size), rel=tolerance), name
        assert cost.work(size) == pytest.approx(other_cost.work(size), rel=tolerance), name
    for field in ("native", "steps", "token_pixels", "text_tokens", "encoders", "denoiser"):
        assert getattr(found, field) == getattr(known, field), field
