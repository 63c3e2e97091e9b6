"""The model families, in the order in which they are asked, and which of them a model is of.

To add one: a folder beside this file, and its descriptor in :data:`FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backend.checkpoints.untrusted import untrusted
from backend.core.errors import WeightsError
from backend.planning.companions import with_detectors, with_upscaler
from backend.planning.model_specs import ModelSpec
from modules.diffusion.profile import ModelProfile
from modules.families.descriptor import FamilyDescriptor, Match
from modules.families.flux1 import FLUX1
from modules.families.source import Source
from modules.families.stable_diffusion import SD15, SDXL
from modules.families.unsupported import described

Families = Sequence[FamilyDescriptor]

MISREAD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a family raises for configurations and shapes that contradict each other."""

FAMILIES: Families = (FLUX1, SDXL, SD15)


@dataclass(frozen=True)
class FoundModel:
    """A model, the family that recognized it, and its profile."""

    family: FamilyDescriptor
    source: Source
    profile: ModelProfile

    def spec(self, dtype: str) -> ModelSpec:
        """Sizes and costs for components that compute in ``dtype``. Raises :class:`WeightsError` for what is missing,
        damaged or contradicts itself."""
        with untrusted(self.source.label, kinds=MISREAD):
            return self.family.spec(self.source, dtype)


def identify(source: Source, families: Families = FAMILIES) -> FoundModel:
    """The model that the source is. Raises :class:`WeightsError`, which says what the source is instead, or that a
    single file and the folder beside it are of two families."""
    reasons, _ = [], source.index  # read first: a damaged index is no model of any family
    for family in families:
        with untrusted(source.label, kinds=MISREAD):
            found = family.detect(source)
            if isinstance(found, Match):
                _check_base(source, family, families)
                return FoundModel(family, source, family.profile(source))
        reasons.append(found.what)
    what = next(filter(None, reasons), "") or described(source)
    names = ", ".join(family.name for family in families)
    raise WeightsError(
        f"{source.label} is {what or 'no model that is known here'}; 'model' takes a model of one of the families "
        f"{names}"
    )


def _check_base(source: Source, family: FamilyDescriptor, families: Families) -> None:
    """Raises :class:`WeightsError` when the folder beside a single file holds a model of another family."""
    if not source.file or not source.base:
        return
    base = identify(Source(source.base), families).family
    if base is not family:
        raise WeightsError(
            f"{source.label} holds a model of the family {family.name}, but 'base_model' names one of {base.name}; "
            "change one of them"
        )


def known_models(families: Families = FAMILIES) -> dict[str, ModelSpec]:
    """The published models whose sizes are known without their files, in 16 bits, by name; each with a detector and an
    upscaler beside it."""
    return {
        name: with_upscaler(with_detectors(spec)) for family in families for name, spec in family.known_models().items()
    }
