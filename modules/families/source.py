"""The files that a model is read from: a folder as diffusers saves it, or a single file beside such a folder.

Light: headers and configurations are read, no weights, and torch is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from backend.checkpoints.config import Config, read_config, read_optional_config
from backend.checkpoints.header import Header, Shape, read_header
from backend.planning.checkpoint_sizes import folder_header

INDEX = "model_index.json"


@dataclass(frozen=True)
class Source:
    """``path`` is a folder or one ``.safetensors`` file; ``base`` the folder with the parts that the file lacks
    (text encoders, tokenizers, configurations), if one was named."""

    path: Path
    base: Path | None = None

    @cached_property
    def file(self) -> Path | None:
        """The single file."""
        return None if self.path.is_dir() else self.path

    @property
    def folder(self) -> Path:
        """The folder of the configurations. Only for a source that has one."""
        if self.file is None:
            return self.path
        assert self.base is not None, "the family was matched without asking for 'base_model'"
        return self.base

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.path.name

    @property
    def name(self) -> str:
        return self.path.stem if self.file else self.path.name

    @cached_property
    def header(self) -> Header:
        """Of the single file; empty for a folder."""
        return read_header(self.file) if self.file else Header()

    @property
    def tensors(self) -> Mapping[str, Shape]:
        """Names and shapes in the single file; none for a folder."""
        return self.header.shapes

    def holds(self, *beginnings: str) -> bool:
        """Whether the single file has a tensor whose name begins so."""
        return any(name.startswith(beginnings) for name in self.tensors)

    @cached_property
    def index(self) -> Mapping[str, Any]:
        """``model_index.json`` of the folder; empty where there is none."""
        return {} if self.file else read_optional_config(self.path / INDEX)

    @property
    def pipeline_class(self) -> str:
        """The pipeline that the folder was saved from, "FluxPipeline" for instance; "" when it does not say."""
        return str(self.index.get("_class_name", ""))

    def has(self, component: str) -> bool:
        """Whether the folder holds this component."""
        return not self.file and (self.path / component / "config.json").is_file()

    def config(self, component: str) -> Config:
        """The configuration of a component. Raises :class:`backend.core.errors.WeightsError` that names what is
        missing or damaged."""
        return read_config(self.folder / component / "config.json")

    def folder_header(self, component: str) -> Header:
        """Tensors of a component that lies in the folder. Raises WeightsError when its weights are missing."""
        return folder_header(self.folder / component)
