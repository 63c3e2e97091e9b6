"""Where the parts of a model lie, told by their tensors: in the model's own file, in files of their own, or in a folder
as diffusers saves it. Without torch.

A part is known by one tensor of it. What the name of that tensor begins with is the prefix of the whole part, so it
does not matter which program wrote the file: ``vae.``, ``first_stage_model.`` and no prefix at all are found alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.checkpoints.config import Config
from backend.checkpoints.folder_files import SUFFIXES
from backend.checkpoints.header import Header, Shape

WEIGHT_FILES = (*SUFFIXES, ".gguf")
"""How the names of files that hold tensors end."""
SUBFOLDERS = frozenset(("diffusion_models", "unet", "text_encoders", "text_encoder", "clip", "vae"))
"""Where ComfyUI and Forge keep such files, in small letters."""


@dataclass(frozen=True)
class PartKind:
    """How a component is known, whatever file it lies in.

    Attributes:
        what: In messages: "an autoencoder".
        marks: For every way to name its tensors, how the name of one of them ends.
        sides: Sides of that tensor, by the entry of the configuration that gives their length; of a list its last.
        published: The configuration of the published model, for files that come without one.
        hint: What its prefix or file is called where a model has two parts that look alike.
    """

    what: str
    marks: tuple[str, ...]
    sides: Mapping[str, int] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    hint: str = ""

    def prefixes(self, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Shape]]:
        """The prefixes under which these tensors hold the part, each with the shape of its mark."""
        seen = set()
        for mark in self.marks:  # one mark may be the end of another
            for name, shape in shapes.items():
                if name not in seen and (name == mark or name.endswith(f".{mark}")):
                    seen.add(name)
                    yield name.removesuffix(mark), shape

    def fits(self, shape: Shape, config: Mapping[str, Any]) -> bool:
        """Whether a part whose mark has this shape has this configuration, as far as one tensor tells."""
        return all(
            len(shape) > side and shape[side] == _last(config.get(entry, shape[side]))
            for entry, side in self.sides.items()
        )

    def is_hinted(self, file: Path, prefix: str) -> bool:
        return not self.hint or re.search(self.hint, f"{file.stem}/{prefix}") is not None


@dataclass(frozen=True)
class Part:
    """The tensors of one component: those of ``files`` whose names begin with ``prefix``.

    Attributes:
        component: Its name: "text_encoder".
        header: Of its tensors alone, by their names without the prefix.
        config: Its ``config.json``, or that of the published model.
        home: The folder that the configuration lies in beside the tokenizers, if it is not the published one.
        folder: The component's own folder, where diffusers saved it.
    """

    component: str
    files: tuple[Path, ...]
    header: Header
    config: Config
    home: Path | None = None
    folder: Path | None = None
    prefix: str = ""

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.component if self.folder else f"{self.component} of {self.files[0].name}"


def _last(value: Any) -> Any:
    return value[-1] if isinstance(value, (list, tuple)) and value else value


def separate_files(folder: Path) -> list[Path]:
    """The files of a folder in which every part is a file of its own, as ComfyUI's users have them: in its usual
    subfolders, or all together."""
    folders = [
        folder,
        *(path for path in sorted(folder.iterdir()) if path.name.lower() in SUBFOLDERS and path.is_dir()),
    ]
    return [
        path
        for one in folders
        for path in sorted(one.iterdir())
        if path.suffix.lower() in WEIGHT_FILES and path.is_file()
    ]


def has_weights(folder: Path) -> bool:
    """Whether a component's folder, as diffusers saves it, holds more than configurations."""
    return (folder / "config.json").is_file() and any(
        path.suffix.lower() in WEIGHT_FILES or ".index." in path.name for path in folder.iterdir()
    )


def folder_of_parts(file: Path) -> Path:
    """The folder of separate files that the file is one of: its own, or the one above a usual subfolder."""
    folder = file.resolve().parent
    return folder.parent if folder.name.lower() in SUBFOLDERS else folder


def part_header(header: Header, prefix: str, others: Sequence[str]) -> Header:
    """The tensors that begin with ``prefix``, without it; ``others`` are the prefixes of other parts of the file."""
    longer = tuple(other for other in others if other != prefix and other.startswith(prefix))
    names = [name for name in header.shapes if name.startswith(prefix) and not (longer and name.startswith(longer))]
    return Header(
        {name.removeprefix(prefix): header.shapes[name] for name in names},
        {name.removeprefix(prefix): header.formats[name] for name in names},
        header.metadata,
    )
