"""A model family as data: what its folder holds and how it likes to be used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backend.core.errors import WeightsError
from modules.diffusion.canvas import Canvas

FAMILY_FILE = "family.json"

Kind = Literal["flux", "sdxl", "sd15"]


@dataclass(frozen=True)
class Family:
    """``native`` is the side in pixels of the square the model was trained on; ``tokens`` the padded length of prompts.

    ``distilled_guidance`` tells whether the model takes a guidance scale as an input (Flux dev) or none (schnell).
    ``steps`` and ``guidance`` are what a request gets that names none.
    """

    name: str
    native: int
    tokens: int
    latent_factor: int
    distilled_guidance: bool
    kind: Kind = "flux"
    latent_channels: int = 16
    steps: int = 28
    guidance: float = 3.5

    @property
    def canvas(self) -> Canvas:
        """Sizes lie on the grid of a token of Flux, two latents a side; UNets take the same."""
        return Canvas(self.native, 2 * self.latent_factor)

    @property
    def denoiser(self) -> str:
        """The component that denoises, by the name of its folder."""
        return "transformer" if self.kind == "flux" else "unet"

    @property
    def encoders(self) -> tuple[str, ...]:
        return ("text_encoder",) if self.kind == "sd15" else ("text_encoder", "text_encoder_2")

    @property
    def negative_prompts(self) -> bool:
        """Whether the model can be told what to avoid, by a second forward with every step."""
        return self.kind != "flux"

    @property
    def solver_schedules(self) -> tuple[str, ...]:
        """The schedules of samplers other than Euler, which place their steps themselves."""
        return ("Simple",) if self.kind == "flux" else ("Simple", "Karras", "Exponential")


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a model folder. Raises :class:`WeightsError` that names the file when it is missing or
    damaged."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise WeightsError(
            f"{path.parent.name}/{path.name} is missing; restore the model folder, or choose another 'model' in "
            "config_optimized.json"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise WeightsError(f"{path.parent.name}/{path.name} is damaged (not JSON); restore the model folder") from None
    if not isinstance(data, dict):
        raise WeightsError(f"{path.parent.name}/{path.name} is damaged (no JSON object); restore the model folder")
    return data


def read_family(folder: Path) -> Family:
    """The family of a diffusers folder: from its configurations, and from ``family.json`` where it departs from what
    those say."""
    vae = read_json(folder / "vae" / "config.json")
    channels = vae.get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise WeightsError("vae/config.json names no block_out_channels; this is no autoencoder that can be used")
    factor, latents = int(2 ** (len(channels) - 1)), int(str(vae.get("latent_channels", 16)))
    own = read_json(folder / FAMILY_FILE) if (folder / FAMILY_FILE).exists() else {}
    name = str(own.get("name", folder.name))
    if (folder / "unet" / "config.json").is_file():
        unet = read_json(folder / "unet" / "config.json")
        if unet.get("in_channels") != latents:
            takes = f"unet/config.json takes {unet.get('in_channels')} channels where the autoencoder has {latents}"
            raise WeightsError(f"{takes}; take the model that is not for inpainting only")
        kind: Kind = "sdxl" if (folder / "text_encoder_2").is_dir() else "sd15"
        native, guidance = (
            int(str(unet.get("sample_size", 128 if kind == "sdxl" else 64))) * factor,
            5.0 if kind == "sdxl" else 7.5,
        )
        return Family(name, native, 77, factor, False, kind, latents, 30, guidance)
    guided = bool(read_json(folder / "transformer" / "config.json").get("guidance_embeds"))
    return Family(
        name=name,
        native=int(str(own.get("native", 1024))),
        tokens=int(str(own.get("tokens", 512 if guided else 256))),
        latent_factor=factor,
        distilled_guidance=guided,
        latent_channels=latents,
        steps=28 if guided else 4,
    )
