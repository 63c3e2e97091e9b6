"""Which FLUX.1 a model is: what its transformer says decides, and not what lies beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from backend.checkpoints.config import Config, read_optional_config
from backend.checkpoints.header import Shape
from backend.core.errors import WeightsError
from modules.families.flux1.parts import PARTS
from modules.families.flux1.published import CANNY, DEPTH, DEV, FILL, KONTEXT, SCHNELL, Variant
from modules.families.scheduler import SCHEDULER_FILE, scheduler_of
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

LATENTS_OF_A_TOKEN = 4
FIRST_LAYER = "img_in.weight", "x_embedder.weight"
LAST_LAYER = "final_layer.linear.weight", "proj_out.weight"
CONTROLLED = 2
"""How many times the latents' channels Canny and Depth take, with the control image behind them. Fill takes more: the
picture without what is masked, and the mask."""


def is_guided(source: Source) -> bool:
    """Whether the transformer takes a guidance scale."""
    if source.file:
        return any("guidance" in name for name in source.part("transformer", PARTS).header.shapes)
    return bool(source.config("transformer").get("guidance_embeds"))


def variant(source: Source) -> Variant:
    """Which of the published ones the model is. Kontext has the tensors of dev, and Depth those of Canny: words tell
    them apart."""
    words = "\n".join((source.name, source.pipeline_class, *source.header.metadata.values())).lower()
    taken, own = token_channels(source)
    if taken > CONTROLLED * own:
        return FILL
    if taken == CONTROLLED * own:
        return DEPTH if "depth" in words else CANNY
    if not is_guided(source):
        return SCHNELL
    return KONTEXT if "kontext" in words else DEV


def token_channels(source: Source) -> tuple[int, int]:
    """The channels of a token that the transformer takes, and those of the latents themselves; twice the same where a
    damaged file does not tell. Raises :class:`WeightsError` for a configuration that is missing."""
    if not source.file:
        own = LATENTS_OF_A_TOKEN * int(source.config("vae").get("latent_channels", 16))
        return int(source.config("transformer").get("in_channels", 64)), own
    first, last = (source.shape(PARTS["transformer"], *names) for names in (FIRST_LAYER, LAST_LAYER))
    return (first[1], last[0]) if len(first) > 1 and last else (1, 1)


def mask_channels(latent_factor: int) -> int:
    """The channels of a token that hold the mask of Fill: one for each of its pixels."""
    return LATENTS_OF_A_TOKEN * latent_factor**2


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
    own = folder if folder and (not source.file or (folder / "scheduler").exists()) else None
    return scheduler_of(own, variant(source).scheduler)


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
