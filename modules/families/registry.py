"""The model families, in the order in which they are asked, and which of them a model is of.

To add one: a folder beside this file, and its descriptor in :data:`FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backend.checkpoints.folder_files import shard_files
from backend.checkpoints.untrusted import untrusted
from backend.core.errors import WeightsError
from backend.planning.companions import with_detectors, with_upscaler
from backend.planning.model_specs import ModelSpec
from modules.diffusion.profile import ModelProfile
from modules.families.descriptor import FamilyDescriptor, Match
from modules.families.flux1 import FLUX1
from modules.families.flux2_klein import FLUX2_KLEIN
from modules.families.parts import separate_files
from modules.families.source import Source
from modules.families.stable_diffusion import SD15, SDXL
from modules.families.text_writer import TextWriter
from modules.families.unsupported import described, refused
from modules.families.z_image import Z_IMAGE

Families = Sequence[FamilyDescriptor]

MISREAD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a family raises for configurations and shapes that contradict each other."""

FAMILIES: Families = (FLUX1, FLUX2_KLEIN, Z_IMAGE, SDXL, SD15)


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

    @property
    def text_writer(self) -> TextWriter | None:
        """The language model that its text encoder is the beginning of. Raises :class:`WeightsError` for one that
        contradicts itself."""
        with untrusted(self.source.label, kinds=MISREAD):
            return self.family.text_writer(self.source)

    @property
    def files(self) -> list[Path]:
        """All that its components are read from."""
        parts = [self.source.part(name, self.family.parts) for name in self.family.parts]
        folders = [file for part in parts if part.folder for file in shard_files(part.folder)]
        return sorted({*folders, *(file for part in parts for file in part.files)})


def identify(source: Source, families: Families = FAMILIES) -> FoundModel:
    """The model that the source is. Raises :class:`WeightsError`, which says what the source is instead, or that a
    single file and what lies beside it are of two families."""
    _ = source.index  # read first: a damaged index is no model of any family
    if source.separate:
        source = _model_among(source, families)
    family, what = _match(source, families)
    if family is None:
        raise WeightsError(_told(source.label, what, "model", families))
    with untrusted(source.label, kinds=MISREAD):
        _check_base(source, family, families)
        return FoundModel(family, source, family.profile(source))


def _match(source: Source, families: Families) -> tuple[FamilyDescriptor | None, str]:
    """The family of the source, or None and what it is instead, "" where that is not known."""
    with untrusted(source.label, kinds=MISREAD):
        if what := refused(source):
            return None, what
        reasons = []
        for family in families:
            found = family.detect(source)
            if isinstance(found, Match):
                return family, ""
            reasons.append(found.what)
        return None, next(filter(None, reasons), "") or described(source)


def named_file(file: Path) -> str:
    """What a file of weights is: "a model of the family sdxl", "a LoRA for Flux"; "" where that is not known."""
    try:
        family, what = _match(Source(file), FAMILIES)
    except WeightsError:
        return ""
    return f"a model of the family {family.name}" if family else what


def _told(label: str, what: str, setting: str, families: Families) -> str:
    names = ", ".join(family.name for family in families)
    return (
        f"{label} is {what or 'no model that is known here'}; '{setting}' takes a model of one of the families {names}"
    )


def _model_among(source: Source, families: Families) -> Source:
    """The file of a folder of separate files that generates, with the others beside it."""
    found, others = [], []
    for file in separate_files(source.path):
        one = replace(source, path=file, beside=source.path)
        family, what = _match(one, families)
        if family:
            found.append(one)
        elif what:
            others.append(f"{file.name} is {what}")
    if not found:
        told = f" ({'; '.join(others[:3])})" if others else ""
        raise WeightsError(
            f"{source.label} holds no model that generates{told}; put a transformer or UNet of one of the families "
            f"{', '.join(family.name for family in families)} into it, or choose another 'model'"
        )
    if len(found) > 1:
        names = ", ".join(one.label for one in found[:5])
        raise WeightsError(
            f"{source.label} holds several models that generate ({names}); name one of these files in 'model' and the "
            "folder in 'base_model'"
        )
    return found[0]


def _check_base(source: Source, family: FamilyDescriptor, families: Families) -> None:
    """Raises :class:`WeightsError` when the place beside a single file holds a model of another family, or nothing
    that the file can use."""
    if not source.file or not source.base:
        return
    base = Source(source.base)
    if base.separate:
        return  # what fits is taken, by its size
    lacking = [kind for kind in family.parts.values() if not any(kind.prefixes(source.tensors))]
    if base.file and any(any(kind.prefixes(base.tensors)) for kind in lacking) and not refused(base):
        return
    other, what = _match(base, families)
    if other is None:
        raise WeightsError(_told(base.label, what, "base_model", families))
    if other is not family:
        raise WeightsError(
            f"{source.label} holds a model of the family {family.name}, but 'base_model' names one of {other.name}; "
            "change one of them"
        )


def known_models(families: Families = FAMILIES) -> dict[str, ModelSpec]:
    """The published models whose sizes are known without their files, in 16 bits, by name; each with a detector and an
    upscaler beside it."""
    return {
        name: with_upscaler(with_detectors(spec)) for family in families for name, spec in family.known_models().items()
    }
