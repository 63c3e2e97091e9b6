"""The files that a model is read from: a folder as diffusers saves it, or a single file and what lies beside it.

Light: headers and configurations are read, no weights, and torch is not imported.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from backend.checkpoints.config import Config, read_config, read_optional_config
from backend.checkpoints.folder_files import is_pipeline
from backend.checkpoints.header import Header, Shape, read_header
from backend.core.errors import WeightsError
from backend.planning.checkpoint_sizes import folder_header
from modules.families.parts import Part, PartKind, has_weights, part_header, separate_files

INDEX = "model_index.json"
PUBLISHED = "the published model's config.json"


@dataclass(frozen=True)
class Source:
    """A model's files.

    Attributes:
        path: A folder in diffusers' layout, one file, or a folder in which every part is a file of its own.
        base: Where the parts, tokenizers and configurations are that ``path`` lacks, if the setting ``base_model``
            names a place: any of the three.
        beside: The folder of separate files that ``path`` is one of.
        shelf: The folder of all weights, where the tokenizers of published models may lie.
    """

    path: Path
    base: Path | None = None
    beside: Path | None = None
    shelf: Path | None = None

    @cached_property
    def file(self) -> Path | None:
        """The single file."""
        return None if self.path.is_dir() else self.path

    @cached_property
    def separate(self) -> bool:
        """Whether ``path`` is a folder in which every part is a file of its own."""
        return not self.file and not is_pipeline(self.path) and bool(separate_files(self.path))

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

    def shape(self, kind: PartKind, *names: str) -> Shape:
        """That of the first of these tensors which a part in the single file has; () without one."""
        prefix, _ = next(kind.prefixes(self.tensors), ("", ()))
        return next((self.tensors[prefix + name] for name in names if prefix + name in self.tensors), ())

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
        """The configuration of a component in the folder. Raises :class:`backend.core.errors.WeightsError` that names
        what is missing or damaged."""
        return read_config(self.path / component / "config.json")

    def folder_header(self, component: str) -> Header:
        """Tensors of a component that lies in the folder. Raises WeightsError when its weights are missing."""
        return folder_header(self.path / component)

    @cached_property
    def places(self) -> tuple[Path, ...]:
        """Where parts are looked for, in order."""
        return tuple(place for place in (self.path, self.beside, self.base) if place)

    def folder_with(self, *inside: str) -> Path | None:
        """The first folder among the places that holds one of these files or folders."""
        return next(
            (place for place in self.places if place.is_dir() and any((place / name).exists() for name in inside)), None
        )

    def part(self, component: str, kinds: Mapping[str, PartKind]) -> Part:
        """Where a component is. ``kinds`` are all components of the family by name.

        Raises :class:`WeightsError` when it is nowhere, or what is there does not fit its configuration.
        """
        if component not in self._parts:
            found = self._find(component, kinds)
            if isinstance(found, str):
                raise WeightsError(found or self._without([component], kinds))
            self._parts[component] = found
        return self._parts[component]

    def require(self, kinds: Mapping[str, PartKind]) -> None:
        """Raises :class:`WeightsError` that names every component that is nowhere."""
        found = {name: self._find(name, kinds) for name in kinds}
        if missing := [name for name, part in found.items() if part == ""]:
            raise WeightsError(self._without(missing, kinds))
        for name in kinds:
            self.part(name, kinds)

    def _without(self, components: Sequence[str], kinds: Mapping[str, PartKind]) -> str:
        *first, last = (kinds[name].what for name in components)
        what, them = (f"{', '.join(first)} and {last}", "them") if first else (last, "it")
        beside = f" into '{self.beside.name}'" if self.beside else " beside it"
        return (
            f"{self.label} comes without {what}; put {them}{beside}, or name a folder or a file that has {them} in "
            "'base_model'"
        )

    @cached_property
    def _parts(self) -> dict[str, Part]:
        return {}

    def _find(self, component: str, kinds: Mapping[str, PartKind]) -> Part | str:
        """The component; else why it cannot be used, "" where it is nowhere."""
        rejected = ""
        for place in self.places:
            folder = place / component
            if has_weights(folder) or (place == self.path and is_pipeline(place)):
                header, config = folder_header(folder), read_config(folder / "config.json")
                return Part(component, (), header, config, place, folder)
            if is_pipeline(place):
                continue
            for file in separate_files(place) if place.is_dir() else [place]:
                found = self._part_in(file, component, kinds)
                if isinstance(found, Part):
                    return found
                rejected = rejected or found
        return rejected

    def _part_in(self, file: Path, component: str, kinds: Mapping[str, PartKind]) -> Part | str:
        """The component in a file; else why not, "" where the file has nothing of the kind."""
        kind = kinds[component]
        try:
            header = self._headers[file] = self._headers.get(file) or read_header(file)
        except WeightsError as damaged:
            if file == self.path:
                raise
            return str(damaged)
        found = sorted(kind.prefixes(header.shapes), key=lambda one: not kind.is_hinted(file, one[0]))
        for prefix, shape in found:
            config, home = self._config(component, kind, shape)
            if config is not None:
                others = [one for other in kinds.values() for one, _ in other.prefixes(header.shapes)]
                return Part(
                    component,
                    (file,),
                    part_header(header, prefix, others),
                    config,
                    home,
                    None,
                    prefix,
                )
        if not found:
            return ""
        size = " x ".join(map(str, found[0][1]))
        return (
            f"{file.name} holds {kind.what} of a size ({size}) that is neither the published one nor that of "
            "'base_model'; name a folder of its own model there"
        )

    @cached_property
    def _headers(self) -> dict[Path, Header]:
        return {}

    def _config(self, component: str, kind: PartKind, shape: Shape) -> tuple[Config | None, Path | None]:
        """The configuration that fits a part whose mark has this shape, and the folder that it lies in."""
        for place in self.places:
            if place.is_dir() and (place / component / "config.json").is_file():
                config = read_config(place / component / "config.json")
                if kind.fits(shape, config):
                    return config, place
        published = Config(PUBLISHED, kind.published)
        return (published, None) if kind.published and kind.fits(shape, published) else (None, None)

    def tokenizer(self, name: str, part: Part, published: Collection[str]) -> Path:
        """The folder of the tokenizer ``name`` for a text encoder.

        ``published`` are folders under the weights in which the published model's one may lie. Raises
        :class:`WeightsError` with the command that downloads it.
        """
        if part.home:
            return part.home / name
        folder = self.folder_with(name)
        shelf = [self.shelf / one for one in published] if self.shelf else []
        found = next((one for one in ([folder / name] if folder else shelf) if one.is_dir()), None)
        if found:
            return found
        model, _, _ = next(iter(published)).partition("/")
        raise WeightsError(
            f"{self.label} comes without the tokenizer of its text encoder; scripts/fetch-weights --only "
            f"{model}/tokenizers downloads it, or name a folder that has '{name}' in 'base_model'"
        )
