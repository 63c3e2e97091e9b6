"""The tables of models in docs/models.md say what the descriptors, the manifest and the memory plan say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.model_specs import KNOWN
from support.small_flux2 import write_klein
from support.small_z_image import write_z_image

from backend.core.settings import ROOT
from backend.core.units import GIB
from backend.memory_management import MemoryPlanError, MemoryRules, Workload, plan_memory
from backend.planning.gpu_specs import nearest_card
from backend.weights.catalog import read_manifest
from modules.diffusion.profile import FamilyInputs
from modules.families.flux1.published import CANNY, DEPTH, DEV, FILL, KONTEXT, SCHNELL, Variant
from modules.families.registry import identify
from modules.families.source import Source
from modules.families.stable_diffusion import SD15, SDXL

CARDS = 4, 6, 8
"""Of GB, the least that cards have."""
DESKTOP = int(1.5 * GIB)


@dataclass(frozen=True)
class Row:
    """A model: what it honours, its default steps and guidance where the descriptor says them without files, and its
    names in the manifest and among the known specs."""

    inputs: FamilyInputs
    steps: int = 0
    guidance: float = 0
    manifest: str = ""
    spec: str = ""


def of_flux(variant: Variant, manifest: str, spec: str) -> Row:
    return Row(variant.inputs, variant.steps, variant.guidance, manifest, spec)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    """By the names of the rows."""
    folder = tmp_path_factory.mktemp("models")

    def small(made: Path, manifest: str, spec: str) -> Row:
        profile = identify(Source(made)).profile
        return Row(profile.inputs, profile.steps, profile.guidance, manifest, spec)

    schnell = of_flux(SCHNELL, "FLUX.1-schnell", "flux-schnell")
    klein, z_image = "flux2-klein", "z-image-turbo"
    return {
        "FLUX.1-dev": of_flux(DEV, "FLUX.1-dev", "flux-dev"),
        "FLUX.1-schnell": replace(schnell, inputs=replace(schnell.inputs, guidance=None)),
        "FLUX.1 Fill": of_flux(FILL, "FLUX.1-Fill-dev", "flux-fill-dev"),
        "FLUX.1 Kontext": of_flux(KONTEXT, "FLUX.1-Kontext-dev", "flux-kontext-dev"),
        "FLUX.1 Canny": of_flux(CANNY, "FLUX.1-Canny-dev", "flux-dev"),
        "FLUX.1 Depth": of_flux(DEPTH, "FLUX.1-Depth-dev", "flux-dev"),
        "FLUX.2 klein": small(write_klein(folder / "klein"), klein, klein),
        "FLUX.2 klein base": small(write_klein(folder / "base", distilled=False), klein, klein),
        "Z-Image-Turbo": small(write_z_image(folder / "turbo"), z_image, z_image),
        "Z-Image": small(write_z_image(folder / "z", turbo=False), z_image, z_image),
        "SDXL": Row(SDXL.inputs, manifest="SDXL", spec="sdxl"),
        "SD 1.5": Row(SD15.inputs, manifest="SD-1.5", spec="sd15"),
    }


def tables() -> list[dict[str, list[str]]]:
    """The tables of docs/models.md whose rows are models: by the first column the others."""
    found: list[dict[str, list[str]]] = []
    for line in (ROOT / "docs" / "models.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| family |"):
            found.append({"family": cells[1:]})
        elif not line.startswith("|"):
            if found:
                found.append({})
        elif found and found[-1] and not line.startswith("|---"):
            found[-1][cells[0]] = cells[1:]
    return [table for table in found if table]


def smallest_card(spec: str) -> str:
    """The smallest card for which there is a plan, beside a desktop."""
    models = KNOWN[spec]
    work = Workload(models.native, models.native, steps=models.steps, detail_crop=models.native, scale=2)
    for size in CARDS:
        card = nearest_card(size * GIB).device()
        held = replace(card, total_bytes=size * GIB, free_bytes=size * GIB - DESKTOP)
        try:
            plan_memory(held, models, work, MemoryRules(weight_precision="auto"))
        except MemoryPlanError:
            continue
        return f"{size} GB"
    raise AssertionError(f"no card of {CARDS} GB takes {spec}")


def row(model: Row) -> list[str]:
    """The columns of the table, as the model's own data have them."""
    has = model.inputs
    least, most = has.references
    samplers = "all" if len(has.samplers) > 1 else has.samplers[0]
    given = " and ".join(f"`{name}`" for name in has.needs)
    return [
        f"with {given}" if given else "yes",
        "yes" if has.image else "no",
        ("yes, reads it" if has.fills else "yes") if has.mask else "no",
        "yes" if has.image else "no",  # Hires fix starts from the smaller picture
        "yes" if has.mask else "no",  # the detail pass repaints by a mask
        "yes",  # put on layers of any model
        f"above {has.negative_above:g}" if has.negative_prompt else "no",
        "no" if not most else (str(most) if least == most else f"up to {most}"),
        samplers,
        read_manifest()[model.manifest].licence.partition(";")[0].removesuffix(" License"),
        smallest_card(model.spec),
    ]


def test_what_every_model_takes(models: dict[str, Row]) -> None:
    _, table = tables()
    expected = {name: row(model) for name, model in models.items()}
    printed = "\n".join(f"| {name} | {' | '.join(cells)} |" for name, cells in expected.items())
    assert table | expected == table, f"the rows are\n{printed}"
    assert set(table) == {"family", *expected}


def test_steps_and_guidance_that_are_left_out(models: dict[str, Row]) -> None:
    table, _ = tables()
    for name, model in models.items():
        if not model.steps:  # a UNet's are said by its files
            continue
        cells = next(
            cells
            for told, cells in table.items()
            if name in told.replace("Canny, Depth", "Canny, FLUX.1 Depth").split(", ")
        )
        _, steps, guidance, negative, _ = cells
        assert steps == str(model.steps), name
        assert (guidance == "none") == (model.inputs.guidance is None), name
        assert model.inputs.guidance is None or f"{model.guidance:g}" in guidance, name
        assert negative == ("yes" if model.inputs.negative_prompt else "no"), name
