"""What a model family is: it recognizes its models, counts their sizes, loads their components and generates with them.

A family is a folder with one descriptor, listed in ``modules/families/registry.py``. Descriptors are light: what needs
torch is imported inside of the methods that load and generate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from backend.planning.model_specs import ModelSpec
from modules.diffusion.profile import FamilyInputs, ModelProfile
from modules.families.parts import PartKind
from modules.families.source import Source
from modules.families.text_writer import TextWriter

if TYPE_CHECKING:
    import torch
    from torch import nn

    from backend.model_cache_optimizer import ModelCache
    from backend.offload.oom_fallback import OomFallback
    from modules.diffusion.base import DiffusionService


@dataclass(frozen=True)
class Match:
    """The source is a model of the family."""


@dataclass(frozen=True)
class NoMatch:
    """The source is no model of the family. ``what`` names the thing where the family knows it: "a LoRA for Flux"."""

    what: str = ""


class FamilyDescriptor(ABC):
    """One model family.

    Attributes:
        name: "flux1", for messages and the list of families.
        inputs: What its models honour of a request; the profile of a model may honour less.
        parts: How each component is known in files, by its name.
    """

    name: str
    inputs: FamilyInputs
    parts: Mapping[str, PartKind] = MappingProxyType({})

    @abstractmethod
    def detect(self, source: Source) -> Match | NoMatch:
        """Whether the source is a model of the family, by tensor names or ``model_index.json`` and configurations."""

    @abstractmethod
    def profile(self, source: Source) -> ModelProfile:
        """What a matching source says of itself.

        Raises :class:`backend.core.errors.WeightsError` when it cannot be used: a file is missing or damaged, or a
        single file needs a folder beside it.
        """

    @abstractmethod
    def spec(self, source: Source, dtype: str) -> ModelSpec:
        """Sizes and costs from the headers and configurations, for components that compute in ``dtype`` ("bf16").

        Raises WeightsError for what is missing or damaged.
        """

    @abstractmethod
    def load(self, source: Source, component: str, dtype: torch.dtype) -> nn.Module:
        """Reads one component of the spec into host memory. Raises WeightsError."""

    @abstractmethod
    def service(
        self,
        source: Source,
        models: ModelCache,
        dtype: torch.dtype,
        fallback: OomFallback,
        prompt_cache_entries: int,
    ) -> DiffusionService:
        """What generates with the components, which it borrows from ``models``."""

    def text_writer(self, source: Source) -> TextWriter | None:
        """The language model that the text encoder is the beginning of, where the source has all of it."""
        return None

    def known_models(self) -> Mapping[str, ModelSpec]:
        """Specs of published models by name, in 16 bits, for plans without files."""
        return {}
