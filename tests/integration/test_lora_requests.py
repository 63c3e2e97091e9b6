"""LoRA in whole requests: by input and by tag, downloaded and refused, written into the file and made again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save, save_file
from support.lora_files import named, random_pairs
from support.lora_hub import QUICK, LoraHub, tar_of
from support.pictures import PROMPT
from support.predictions import pixels
from torch import Tensor, zeros

from backend.core.errors import InputError
from modules.app.service import Service
from modules.cli.given_inputs import PictureSource
from modules.output.image_writer import read_parameters
from modules.pipeline.base import no_progress

SMALL: dict[str, Any] = {
    "prompt": "a portrait of a man",
    "seed": 3,
    "num_inference_steps": 1,
    "megapixels": "0.25",
    "adetailer": False,
    "scale": 1.0,
    "output_format": "png",
}
FAR = "https://loras.example/far.safetensors"


def tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    return named(random_pairs(shapes, seed), lambda path: f"transformer.{path}")


@pytest.fixture(scope="module")
def shapes(service: Service) -> dict[str, tuple[int, ...]]:
    """Of the layers of attention."""
    with service.models.on_device("transformer") as (transformer,):
        layers = {name: module for name, module in transformer.named_modules() if name.endswith(("to_q", "to_v"))}
    return {name: tuple(layer.weight.shape) for name, layer in layers.items()}


@pytest.fixture
def lora_service(
    service: Service, shapes: Mapping[str, tuple[int, ...]], hub: LoraHub, tmp_path: Path
) -> Iterator[Service]:
    """The package with two files in its folder, and all sources on the hub of the tests."""
    folder = tmp_path / "loras"
    (folder / "old").mkdir(parents=True)
    save_file(tensors(shapes, 1), folder / "ink.safetensors")
    save_file(tensors(shapes, 2), folder / "old" / "film.safetensors")
    store = hub.store(tmp_path, replace(QUICK, file_bytes=10**7), room=10**8)
    yield replace(service, loras=store)


def predicted(service: Service, folder: Path, **inputs: Any) -> Path:
    (file,) = service.predict({**SMALL, **inputs}, lambda name, value: None, no_progress)
    return Path(file.rename(folder / f"{len(list(folder.iterdir()))}.png"))


def image(file: Path) -> np.ndarray[Any, Any]:
    return pixels(Image.open(file).convert("RGB"))


REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "an input": ({"lora_weights": "ink", "lora_scale": 0.8}, "<lora:ink:0.8>"),
    "two inputs": (
        {"lora_weights": "ink", "extra_lora": "film", "extra_lora_scale": -0.5},
        "<lora:ink:1> <lora:film:-0.5>",
    ),
    "tags": ({"prompt": "a portrait of a man <lora:ink:0.8> <lora:old/film>"}, "<lora:ink:0.8> <lora:film:1>"),
    "an input and a tag": ({"prompt": "a man <lora:ink:0.3>", "lora_weights": "film"}, "<lora:ink:0.3> <lora:film:1>"),
    "an address": ({"hf_lora": "alice/ink"}, "<lora:ink_v1:0.8>"),
    "in the regions": (
        {"adetailer": True, "ad_prompt": "a smile <lora:ink:0.7>", "lora_weights": "film"},
        "<lora:film:1>",
    ),
}


@pytest.mark.parametrize(("inputs", "tags"), REQUESTS.values(), ids=REQUESTS)
def test_a_file_names_its_lora_and_gives_its_pixels_again(
    lora_service: Service,
    shapes: Mapping[str, tuple[int, ...]],
    hub: LoraHub,
    tmp_path: Path,
    inputs: dict[str, Any],
    tags: str,
) -> None:
    hub.add_model("alice/ink", {"ink_v1.safetensors": save(tensors(shapes, 1))})
    made = tmp_path / "made"
    made.mkdir()
    first = predicted(lora_service, made, **inputs)
    text, record = read_parameters(first)
    names = {part.split(":")[1] for part in (tags + inputs.get("ad_prompt", "")).split("<")[1:]}
    assert text.splitlines()[0].endswith(tags) and "Lora hashes: " in text
    assert all(f"{name}: {lora_hash(lora_service, name)}" in text for name in names if name != "ink_v1")
    assert len(record["loras"]) == len(names)
    again, notices = PictureSource(first, lora_service.schema).inputs({}, lora_service)
    assert notices == []
    assert np.array_equal(image(first), image(predicted(lora_service, made, **again)))


def lora_hash(service: Service, name: str) -> str:
    return service.loras.fetch(name).tensors_sha256[:12]


def test_a_text_of_a_webui_takes_what_is_here_and_tells_the_rest(lora_service: Service) -> None:
    text = (
        "a man <lora:ink:0.8> <lora:inc:0.5>, smiling <lora:ink:9>\n"
        'Steps: 2, Sampler: Euler, Seed: 3, Size: 128x128, Model: x, Lora hashes: "ink: 0123456789ab, inc: 0"'
    )
    filled = lora_service.checks.filled_in(text)
    assert filled.inputs["prompt"] == "a man <lora:ink:0.8> , smiling"
    told = [notice for notice in filled.notices if "left out" in notice]
    assert told == [
        "from the parameters: prompt: 'inc' is not in weights/loras (did you mean 'ink'?); it is left out",
        "from the parameters: prompt: has <lora:ink:9>; a scale is from -3 to 3; it is left out",
    ]
    assert not any("Lora hashes" in notice for notice in filled.notices)


OTHER_FAMILY = {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": zeros(4, 320)}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a name": ({"lora_weights": "inc"}, "lora_weights: 'inc' is not in weights/loras (did you mean 'ink'?)"),
    "a tag": ({"prompt": "a fox <lora:inc:1>"}, "prompt: 'inc' is not in weights/loras (did you mean 'ink'?)"),
    "a tag of a region": (
        {"adetailer": True, "ad_prompt": "a smile <lora:inc:1>"},
        "ad_prompt: 'inc' is not in weights/loras (did you mean 'ink'?)",
    ),
    "a tag without a name": ({"prompt": "a fox <lora::1>"}, "prompt: has <lora::1>; write <lora:name:scale>"),
    "a scale": ({"lora_weights": "ink", "lora_scale": 3.5}, "lora_scale: must be from -3 to 3, not 3.5"),
    "two names": (
        {"lora_weights": "ink", "hf_lora": "alice/ink"},
        "hf_lora: is another name of lora_weights; give one, and a second LoRA as extra_lora",
    ),
    "another family": ({"extra_lora": FAR}, "extra_lora: LoRA 'far' is for "),
    "too many": ({"prompt": "a fox" + "<lora:ink:0.1>" * 33}, "prompt: names 33 LoRA files; at most 32 are used"),
}


def test_what_cannot_be_used_is_refused_and_leaves_no_trace(
    lora_service: Service, hub: LoraHub, tmp_path: Path
) -> None:
    hub.add("loras.example/far.safetensors", save(OTHER_FAMILY))
    made = tmp_path / "made"
    made.mkdir()
    before = image(predicted(lora_service, made, lora_weights="ink"))
    for inputs, problem in REFUSED.values():
        with pytest.raises(InputError) as refused:
            lora_service.predict({**SMALL, **inputs}, lambda name, value: None, no_progress)
        assert str(refused.value).startswith(problem)
    assert list((tmp_path / "cache").iterdir()) == []
    assert np.array_equal(before, image(predicted(lora_service, made, lora_weights="ink")))


def test_a_fine_tune_of_a_host_is_drawn_with(
    lora_service: Service, shapes: Mapping[str, tuple[int, ...]], hub: LoraHub, tmp_path: Path
) -> None:
    hub.add("replicate.com/bob/ink/_weights", tar_of(lora_st=save(tensors(shapes, 1)), captions=b"ink"))
    made = tmp_path / "made"
    made.mkdir()
    metrics: dict[str, Any] = {}
    (file,) = lora_service.predict({**SMALL, "replicate_weights": "bob/ink"}, metrics.__setitem__, no_progress)
    assert np.array_equal(image(file), image(predicted(lora_service, made, lora_weights="ink")))
    assert metrics["lora_files.seconds"] > 0


def test_what_has_no_effect_is_told(lora_service: Service) -> None:
    inputs = {**SMALL, "lora_scale": 0.5, "extra_lora_scale": 0.5}
    request = lora_service.checks.request(inputs)
    assert request.notices == (
        "lora_scale: has no effect without lora_weights",
        "extra_lora_scale: has no effect without extra_lora",
    )


def test_a_tag_of_the_detail_pass_changes_its_region_alone(lora_service: Service, tmp_path: Path) -> None:
    request = {"prompt": PROMPT, "num_inference_steps": 4, "adetailer": True, "megapixels": "1"}
    plain, own, after = (
        predicted(lora_service, tmp_path, **request, ad_prompt=words)
        for words in (PROMPT, f"{PROMPT} <lora:ink:2>", PROMPT)
    )
    regions = read_parameters(own)[1]["parameters"]["_adetailer_regions"]
    assert regions
    changed = np.abs(image(own) - image(plain)).max(axis=-1) > 0
    outside = np.ones_like(changed)
    for left, top, right, bottom in regions:
        assert changed[top:bottom, left:right].mean() > 0.1
        outside[top:bottom, left:right] = False
    assert not changed[outside].any()
    assert np.array_equal(image(after), image(plain))


def test_all_passes_and_all_pictures_are_drawn_with_it(lora_service: Service) -> None:
    """Hires fix, skipped steps and a batch."""
    passes = {"num_inference_steps": 6, "enable_hr": True, "hr_scale": 1.2, "go_fast": True, "num_outputs": 2}
    drawn = [
        [
            image(file)
            for file in lora_service.predict({**SMALL, **passes, "prompt": words}, lambda *told: None, no_progress)
        ]
        for words in (SMALL["prompt"], f"{SMALL['prompt']} <lora:ink:2>", SMALL["prompt"])
    ]
    for before, with_it, after in zip(*drawn, strict=True):
        assert np.abs(with_it - before).mean() > 1 and np.array_equal(after, before)
