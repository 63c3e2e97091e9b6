"""Which files of a component's folder are its weights: a repository may hold them several times. Pure, without torch.

diffusers and transformers name them ``STEM.safetensors``, ``STEM.VARIANT.safetensors``, in shards
``STEM-00001-of-00002.safetensors`` with the variant before or after the numbers, and list shards in
``STEM.safetensors.index.json`` or ``STEM.safetensors.index.VARIANT.json``. One variant is taken, never two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backend.checkpoints.config import MAX_TABLE
from backend.core.data_files import DataError, read_json
from backend.core.errors import WeightsError

RESTORE = "restore the file, or choose another 'model' in config_optimized.json"
SUFFIXES = (".safetensors", ".sft")
"""Of files that are safetensors inside."""
STEMS = ("diffusion_pytorch_model", "model")
"""What libraries call the weights. Files of other names count where there are none of these."""
VARIANTS = ("", "fp16", "bf16", "fp32")
"""Those that are taken first. Weights without the averaging of the training ("non_ema") come last."""
SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
INDEX = re.compile(r"(.+)\.safetensors\.index(?:\.([^.]+))?\.json", re.IGNORECASE)
MOST_SHARDS = 1000
PIPELINE_FILE = "model_index.json"
"""In the folder of a whole model, as diffusers has them."""


@dataclass(frozen=True)
class _Weights:
    """The files of one variant, as an index or their own numbers name them. They need not be there."""

    stem: str
    variant: str
    files: Sequence[Path]

    @property
    def is_complete(self) -> bool:
        return all(file.is_file() for file in self.files)

    def order(self) -> tuple[int, bool, int, str, bool]:
        stem = STEMS.index(self.stem) if self.stem in STEMS else len(STEMS)
        known = VARIANTS.index(self.variant) if self.variant in VARIANTS else len(VARIANTS)
        return stem, "non_ema" in self.variant, known, self.variant, not self.is_complete


def is_pipeline(folder: Path) -> bool:
    """Whether it is the folder of a whole model."""
    return (folder / PIPELINE_FILE).is_file()


def shard_files(folder: Path, advice: str = RESTORE) -> list[Path]:
    """The files with the weights of a component. The main variant is taken before "fp16", and others after it.

    Raises :class:`WeightsError` that names a missing file or a damaged index.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        names = []
    found = sorted([*_indexed(folder, names), *_numbered(folder, names)], key=_Weights.order)
    if not found:
        raise WeightsError(f"{folder.name} holds no .safetensors file; {advice}")
    # an index is often downloaded without its files
    begun = [weights for weights in found if any(file.is_file() for file in weights.files)] or found
    for file in begun[0].files:
        if not file.is_file():
            raise WeightsError(f"{folder.name}/{file.name} is missing; {advice}")
    return list(begun[0].files)


def _indexed(folder: Path, names: Sequence[str]) -> list[_Weights]:
    matches = [match for name in names if (match := INDEX.fullmatch(name))]
    return [_weights(match[1], match[2] or "", index_files(folder / match[0])) for match in matches]


def _numbered(folder: Path, names: Sequence[str]) -> list[_Weights]:
    """The files by their own names: whole, or in shards of which all numbers must be there."""
    sets: dict[str, list[Path]] = {}
    for name in names:
        base, suffix = Path(name).stem, Path(name).suffix
        if suffix.lower() in SUFFIXES:
            shard = SHARD.search(base)
            count = min(int(shard[2]), MOST_SHARDS) if shard else 0
            # the number alone is exchanged: it may stand before or after the variant
            numbered = (
                [f"{base[: shard.start(1)]}{n:05}{base[shard.end(1) :]}" for n in range(1, count + 1)] if shard else []
            )
            sets[SHARD.sub("", base)] = [folder / f"{one}{suffix}" for one in numbered or [base]]
    return [_weights(base, "", files) for base, files in sets.items()]


def _weights(base: str, variant: str, files: Sequence[Path]) -> _Weights:
    stem, _, inner = base.lower().partition(".")
    return _Weights(stem, variant.lower() or inner, files)


def index_files(index: Path) -> list[Path]:
    """The files that an index of weights names, which lie beside it."""
    name = f"{index.parent.name}/{index.name}"
    try:
        entries = read_json(index, MAX_TABLE).get("weight_map")
    except FileNotFoundError:  # a link that leads nowhere
        raise WeightsError(f"{name} is missing; {RESTORE}") from None
    except DataError as problem:
        raise WeightsError(f"{name} {problem}; {RESTORE}") from None
    if not isinstance(entries, dict) or not all(isinstance(file, str) for file in entries.values()):
        raise WeightsError(f"{name} is damaged (no files in its weight_map); {RESTORE}")
    files = sorted(set(entries.values()))
    if outside := [file for file in files if file != Path(file).name or file in ("", "..")]:
        raise WeightsError(f"{name} names a file outside of its folder, '{outside[0][:60]}'; {RESTORE}")
    return [index.parent / file for file in files]
