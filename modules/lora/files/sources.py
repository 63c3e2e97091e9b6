"""Which LoRA a reference may lead to here: the files of ``weights/loras``, and the sources that the settings allow.

Light: the gateway refuses with it what the worker would refuse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from backend.core.errors import InputError, nearest
from modules.lora.files.references import LOCAL, SUFFIXES, LocalName, Reference, ReferenceProblem, meanings, shown

FOLDER = "loras"
"""Under the weights."""
MAX_FILES = 10_000
"""Of the folder that are looked at."""


@dataclass(frozen=True)
class LoraSources:
    """``allowed`` are names of the setting ``lora_sources``, the first one to be asked first; ``folder`` holds the
    files of "local", None where there are none."""

    allowed: tuple[str, ...] = (LOCAL,)
    folder: Path | None = None

    def references(self, text: str, input_name: str, home: str = "") -> tuple[Reference, ...]:
        """What the text may mean, in the order in which it is looked for; the first is a :class:`LocalName` only where
        there is such a file.

        ``home`` is the source that the text belongs to where the input says so. Raises :class:`InputError` for what is
        no reference, a source that is not allowed, and the name of a file that is not there.
        """
        try:
            meant = meanings(text, home)
        except ReferenceProblem as problem:
            raise InputError(input_name, str(problem)) from None
        found = [one for source in self.allowed for one in meant if one.source == source]
        there = [one for one in found if not isinstance(one, LocalName) or self.file(one.name)]
        if there:
            return tuple(there)
        raise InputError(input_name, self._refusal(text, meant))

    def _refusal(self, text: str, meant: Sequence[Reference]) -> str:
        """Why none of these meanings counts here."""
        remote = " or ".join(dict.fromkeys(one.source for one in meant if not isinstance(one, LocalName)))
        if not remote:
            return self._not_there(meant[0].text)
        beside = f"is not in weights/{FOLDER}, and " if isinstance(meant[0], LocalName) else ""
        return (
            f"'{shown(text)}' {beside}would be downloaded from {remote}, which the setting lora_sources does not "
            f"allow; put the file into weights/{FOLDER} and give its name"
        )

    def names(self) -> Mapping[str, Path]:
        """The files by their paths in the folder, without suffix."""
        if self.folder is None or not self.folder.is_dir():
            return {}
        files = sorted(file for file in self.folder.rglob("*") if file.suffix.lower() in SUFFIXES)[:MAX_FILES]
        return {file.relative_to(self.folder).with_suffix("").as_posix(): file for file in files}

    def file(self, name: str) -> Path | None:
        """The file that a name means: its path in the folder, or the last part of it where no other file has that; with
        or without suffix. Upper and lower case count only where both are there."""
        if LOCAL not in self.allowed:
            return None
        names, wanted = self.names(), _without_suffix(name)
        alike = {one: path for one, path in names.items() if one.lower() == wanted.lower()}
        alike = alike or {one: path for one, path in names.items() if one.rpartition("/")[2] == wanted}
        alike = alike or {one: path for one, path in names.items() if one.rpartition("/")[2].lower() == wanted.lower()}
        return alike.get(wanted) or (next(iter(alike.values())) if len(alike) == 1 else None)

    def _not_there(self, name: str) -> str:
        names, wanted = self.names(), _without_suffix(name)
        if same := [one for one in names if one.rpartition("/")[2].lower() == wanted.lower()]:
            return f"'{shown(name)}' is the name of several files; give one with its folder: {', '.join(same[:5])}"
        short = {one.rpartition("/")[2]: one for one in names}
        hint = nearest(wanted, names) or nearest(wanted, short)
        others = f"; there are {', '.join(list(names)[:5])}" + ", ..." * (len(names) > 5) if names else ""
        return f"'{shown(name)}' is not in weights/{FOLDER}{hint or f'{others}; put its file there'}"


LOCAL_ONLY = LoraSources()
"""Without any files."""


def _without_suffix(name: str) -> str:
    suffix = next((one for one in SUFFIXES if name.lower().endswith(one)), "")
    return name[: len(name) - len(suffix)]
