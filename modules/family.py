"""A model family as data: what its folder holds and how it likes to be used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from backend.errors import WeightsError
from modules.request import Canvas

FAMILY_FILE = "family.json"


@dataclass(frozen=True)
class Family:
    """``native`` is the side in pixels of the square the model was trained on; ``tokens`` the padded length of T5 prompts.

    ``distilled_guidance`` tells whether the model takes a guidance scale as an input (Flux dev) or none (schnell).
    """

    name: str
    native: int
    tokens: int
    latent_factor: int
    distilled_guidance: bool

    @property
    def canvas(self) -> Canvas:
        """Sizes lie on the grid of a token: two latents a side."""
        return Canvas(self.native, 2 * self.latent_factor)


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a model folder. Raises :class:`WeightsError` that names the file when it is missing or damaged."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise WeightsError(f"{path.parent.name}/{path.name} is missing; restore the model folder, or choose another 'model' in config_optimized.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise WeightsError(f"{path.parent.name}/{path.name} is damaged (not JSON); restore the model folder") from None
    if not isinstance(data, dict):
        raise WeightsError(f"{path.parent.name}/{path.name} is damaged (no JSON object); restore the model folder")
    return data


def read_family(folder: Path) -> Family:
    """The family of a diffusers folder: from its configurations, and from ``family.json`` where it departs from Flux."""
    vae = read_json(folder / "vae" / "config.json")
    transformer = read_json(folder / "transformer" / "config.json")
    own = read_json(folder / FAMILY_FILE) if (folder / FAMILY_FILE).exists() else {}
    channels = vae.get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise WeightsError("vae/config.json names no block_out_channels; this is not a Flux autoencoder")
    guided = bool(transformer.get("guidance_embeds"))
    return Family(
        name=str(own.get("name", folder.name)),
        native=int(str(own.get("native", 1024))),
        tokens=int(str(own.get("tokens", 512 if guided else 256))),
        latent_factor=int(2 ** (len(channels) - 1)),
        distilled_guidance=guided,
    )
