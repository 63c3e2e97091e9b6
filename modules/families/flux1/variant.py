"""Which FLUX.1 a model is: what its transformer says decides, and not what lies beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from backend.checkpoints.config import Config, read_config, read_optional_config
from backend.checkpoints.header import Shape
from backend.core.errors import WeightsError
from modules.families.flux1.parts import DEV, PARTS, SCHNELL, Variant
from modules.families.scheduler import SCHEDULER_FILE
from modules.families.source import Source

OWN_FILE = "family.json"
"""Where a folder says what its configurations cannot: its name, native size, length of prompts, and what it draws where
it knows few words."""
READ_WIDTHS = (
    ("text_encoder_2", "d_model", ("txt_in.weight", "context_embedder.weight")),
    (
        "text_encoder",
        "hidden_size",
        ("vector_in.in_layer.weight", "time_text_embed.text_embedder.linear_1.weight"),
    ),
)
"""By text encoder: the entry that says how wide its output is, and the layers of the transformer that read it."""


def is_guided(source: Source) -> bool:
    """Whether the transformer takes a guidance scale."""
    if source.file:
        return any("guidance" in name for name in source.part("transformer", PARTS).header.shapes)
    return bool(source.config("transformer").get("guidance_embeds"))


def variant(source: Source) -> Variant:
    return DEV if is_guided(source) else SCHNELL


def own_folder(source: Source) -> Path | None:
    """The folder whose scheduler and other remarks are the model's own: one that is of the same variant."""
    if not source.file:
        return source.path
    guided = is_guided(source)
    for place in filter(Path.is_dir, source.places):
        transformer = read_optional_config(place / "transformer" / "config.json")
        scheduler = read_optional_config(place / "scheduler" / SCHEDULER_FILE)
        told = transformer.get("guidance_embeds") if transformer else scheduler.get("use_dynamic_shifting")
        if told is not None and bool(told) == guided:
            return place
    return None


def remarks(source: Source) -> Config:
    """What the model's own folder says of it in :data:`OWN_FILE`. Of another variant's only the native size counts,
    which its autoencoder has a part in."""
    if folder := own_folder(source):
        return read_optional_config(folder / OWN_FILE)
    beside = source.folder_with(OWN_FILE)
    found = read_optional_config(beside / OWN_FILE) if beside else Config(OWN_FILE, {})
    return Config(OWN_FILE, {name: found[name] for name in ("native",) if name in found})


def flow_config(source: Source) -> Config:
    """The configuration of the scheduler. Raises :class:`WeightsError` where the model's own is damaged."""
    folder = own_folder(source)
    if folder and (not source.file or (folder / "scheduler").exists()):
        return read_config(folder / "scheduler" / SCHEDULER_FILE)
    return Config(SCHEDULER_FILE, variant(source).scheduler)


def check_widths(source: Source) -> None:
    """Raises :class:`WeightsError` where the transformer of a single file does not read what the text encoders give."""
    shapes = source.part("transformer", PARTS).header.shapes
    for encoder, entry, layers in READ_WIDTHS:
        part, read = source.part(encoder, PARTS), _width(shapes, layers)
        if read and part.config.get(entry, read) != read:
            raise WeightsError(
                f"{source.label} reads text of width {read}, and {PARTS[encoder].what} in {_where(part.home)} gives "
                f"{part.config[entry]}; name the parts of its own model in 'base_model'"
            )


def _where(home: Path | None) -> str:
    return f"'{home.name}'" if home else "the files beside it"


def _width(shapes: Mapping[str, Shape], layers: tuple[str, ...]) -> int:
    return next((shapes[name][-1] for name in layers if name in shapes and shapes[name]), 0)
