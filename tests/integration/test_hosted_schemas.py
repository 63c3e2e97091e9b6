"""Hosted Flux models, input by input: a caller who changes nothing but the model's name gets as many pictures, of the
same type and size.

The table says what the hosts' schemas say: names, defaults and ranges. Pictures are drawn by small random models of the
published variants.
"""

from __future__ import annotations

import base64
import io
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from support.data_urls import png
from support.hosted_schemas import LORA_OF_HUB, MODELS, REQUIRED
from support.processes import START_SECONDS, Server, answers, free_port
from support.small_flux import write_small_flux
from support.small_flux2 import write_klein

from backend.api.input_schema import InputSchema
from backend.core.errors import InputError
from backend.core.settings import ROOT, Settings
from modules.app.service import Service, start
from modules.extension_optimizer import optional_features
from modules.lora.files.sources import LoraSources
from modules.request.defaults import DEFAULTS
from modules.request.image_request import ImageRequest
from modules.request.parser import build_request

SCHEMA = InputSchema()
BESIDE: Mapping[str, Mapping[str, Any]] = {
    "width": {"aspect_ratio": "custom", "height": 512},
    "height": {"aspect_ratio": "custom", "width": 512},
    "mask": {"image": "picture"},
}
"""What an input counts with alone."""
FIELDS = {"guidance": "guidance_scale", "output_megapixels": "megapixels"}
"""Where the request calls an input otherwise."""
PICTURES = ("image", "mask", "input_image", "images")
NAMES_OF_LORA = ("lora_weights", "hf_lora", "replicate_weights")
SOURCES = LoraSources(("local", "huggingface", "civitai", "replicate", "https"))
EVERY_INPUT = [(model, name) for model, hosted in MODELS.items() for name in hosted.inputs]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    Image.linear_gradient("L").resize((320, 256)).convert("RGB").save(folder / "picture.png")
    mask = Image.new("L", (320, 256))
    mask.paste(255, (100, 100, 200, 200))
    mask.save(folder / "mask.png")
    return {name: folder / f"{name}.png" for name in ("picture", "mask")}


def requested(hosted: str, pictures: Mapping[str, Path], /, **given: Any) -> ImageRequest:
    """The request that a call of a hosted model becomes, with the profile hosted."""
    call = {"prompt": "a fox", **MODELS[hosted].always, **given}
    inputs = SCHEMA.validate(with_files(call, pictures))
    return build_request(inputs, MODELS[hosted].profile, {}, defaults=DEFAULTS["hosted"], lora_sources=SOURCES)


def with_files(call: Mapping[str, Any], pictures: Mapping[str, Path]) -> dict[str, Any]:
    """The call with files in place of the names of pictures."""

    def file(value: Any) -> Any:
        return pictures[value] if isinstance(value, str) else [pictures[one] for one in value]

    return {name: file(value) if name in PICTURES else value for name, value in call.items()}


def lora_for(model: str, scale: str) -> dict[str, str]:
    """The LoRA that a scale of this model belongs to."""
    names = ("extra_lora",) if scale == "extra_lora_scale" else NAMES_OF_LORA
    return {next(name for name in names if name in MODELS[model].inputs): LORA_OF_HUB}


@pytest.mark.parametrize(("model", "name"), EVERY_INPUT)
def test_every_value_is_taken(model: str, name: str, pictures: Mapping[str, Path]) -> None:
    for value in MODELS[model].inputs[name].values:
        beside = lora_for(model, name) if name.endswith("lora_scale") else BESIDE.get(name, {})
        if value == "custom":
            beside = {"width": 512, "height": 512}
        elif value == "match_input_image" and "images" in MODELS[model].inputs:
            beside = {"images": ("picture",)}
        request = requested(model, pictures, **beside, **{name: value})
        if name.endswith("lora_scale"):
            assert request.loras[0].scale == value
        elif name in (*NAMES_OF_LORA, "extra_lora"):
            assert len(request.loras) == 1
        elif name in PICTURES:
            shown = getattr(request, name, request.references)
            assert len(shown) == len(value) if name == "images" else shown
        elif name in ("width", "height"):
            assert getattr(request, name) == round(value / 16) * 16
        elif name == "go_fast":
            assert request.go_fast is (value and MODELS[model].profile.inputs.go_fast)
            assert bool(request.notices) is (value and not request.go_fast), "what has no effect is told"
        else:
            assert getattr(request, FIELDS.get(name, name), value) == value


@pytest.mark.parametrize(("model", "name"), EVERY_INPUT)
def test_what_is_left_out_is_as_on_the_host(model: str, name: str, pictures: Mapping[str, Path]) -> None:
    default = MODELS[model].inputs[name].default
    if name.endswith("lora_scale"):
        assert requested(model, pictures, **lora_for(model, name)).loras[0].scale == default
    elif name == "guidance_scale" and "hf_lora" in MODELS[model].inputs:
        assert requested(model, pictures, hf_lora=LORA_OF_HUB).guidance_scale == default
    elif default is REQUIRED:
        with pytest.raises(InputError, match=f"^{name}: is (missing|needed)"):
            left_out = {"prompt": "a fox", **MODELS[model].always}
            left_out.pop(name)
            given = SCHEMA.validate({one: value for one, value in left_out.items() if one not in PICTURES})
            build_request(given, MODELS[model].profile, {}, defaults=DEFAULTS["hosted"])
    elif default is not None and name != "model":
        assert getattr(requested(model, pictures), FIELDS.get(name, name), default) == default


@pytest.mark.parametrize("model", MODELS)
def test_nothing_is_done_that_the_host_does_not_do(model: str, pictures: Mapping[str, Path]) -> None:
    request = requested(model, pictures)
    assert (request.adetailer, request.scale, request.hires, request.face_enhance) == ((), 1.0, None, False)
    assert (request.loras, request.notices) == ((), ())


def test_a_second_lora_that_is_the_first_is_left_out(pictures: Mapping[str, Path]) -> None:
    request = requested("flux-dev-lora", pictures, lora_weights=LORA_OF_HUB, extra_lora=f"https://{LORA_OF_HUB}")
    assert [use.input_name for use in request.loras] == ["lora_weights"]
    assert request.notices == ("extra_lora: is the same as lora_weights and is left out",)


def test_a_fine_tune_of_another_model_is_refused(pictures: Mapping[str, Path]) -> None:
    with pytest.raises(InputError, match="^model: 'schnell' is asked for, and flux is installed here"):
        requested("a fine-tune of dev", pictures, model="schnell")


SIZES = {"1:1": (1024, 1024), "16:9": (1344, 768), "21:9": (1536, 640), "3:2": (1216, 832), "4:5": (896, 1088),
         "3:4": (896, 1152)}  # fmt: skip
KONTEXT_SIZES = {"1:1": (1024, 1024), "16:9": (1328, 800), "3:2": (1248, 832)}


@pytest.mark.parametrize("model", MODELS)
def test_every_ratio_has_the_size_of_the_host(model: str, pictures: Mapping[str, Path]) -> None:
    if "aspect_ratio" not in MODELS[model].inputs:
        return
    for ratio, size in (KONTEXT_SIZES if "kontext" in model else SIZES).items():
        request = requested(model, pictures, aspect_ratio=ratio)
        turned = requested(model, pictures, aspect_ratio=":".join(reversed(ratio.split(":"))))
        assert (request.width, request.height) == size
        assert ratio == "21:9" or (turned.width, turned.height) == size[::-1]
        for name in {"megapixels", "output_megapixels"} & MODELS[model].inputs.keys():
            quarter = requested(model, pictures, aspect_ratio=ratio, **{name: "0.25"})
            assert (quarter.width, quarter.height) == (size[0] // 2, size[1] // 2)


@pytest.mark.parametrize(
    ("given", "drawn"), [((800, 608), (800, 608)), ((500, 333), (496, 336)), ((2880, 1440), (1440, 720))]
)
def test_a_picture_that_starts_from_an_image_has_its_size(
    given: tuple[int, int], drawn: tuple[int, int], tmp_path: Path
) -> None:
    Image.new("RGB", given, "teal").save(tmp_path / "image.png")
    request = requested("flux-dev", {"picture": tmp_path / "image.png"}, image="picture")
    assert (request.width, request.height) == drawn


SMALL = {"num_inference_steps": 1, "seed": 7}
DRAWN: Mapping[str, tuple[str, dict[str, Any], int, str, tuple[int, int]]] = {
    "four webp": ("dev", {"megapixels": "0.25", "num_outputs": 4}, 4, "WEBP", (128, 128)),
    "a wide jpg": ("dev", {"aspect_ratio": "16:9", "output_format": "jpg", "guidance": 0}, 1, "JPEG", (336, 192)),
    "a png of its own size": (
        "dev",
        {"aspect_ratio": "custom", "width": 300, "height": 256, "output_format": "png"},
        1,
        "PNG",
        (304, 256),
    ),
    "from an image": ("dev", {"image": "picture", "prompt_strength": 1.0}, 1, "WEBP", (320, 256)),
    "filled": ("fill", {"image": "picture", "mask": "mask", "megapixels": "match_input"}, 1, "WEBP", (320, 256)),
    "looked at": (
        "klein",
        {"images": ("picture", "picture"), "aspect_ratio": "match_input_image", "output_megapixels": "0.5"},
        1,
        "JPEG",
        (96, 80),
    ),
    "edited": ("kontext", {"input_image": "picture", "aspect_ratio": "16:9"}, 1, "WEBP", (336, 192)),
}
"""The small model, the inputs, and the answer. The small models are a quarter as wide as the published ones."""


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Service]]:
    """By variant, started when asked for."""
    started: dict[str, Service] = {}

    def service(variant: str) -> Service:
        if variant not in started:
            folder = tmp_path_factory.mktemp(variant) / "model"
            folder = write_klein(folder) if variant == "klein" else write_small_flux(folder, variant)
            started[variant] = start(
                replace(
                    Settings(),
                    model=str(folder),
                    profile="hosted",
                    dtype="float32",
                    warm_up=False,
                    log_level="WARNING",
                    disabled_extensions=tuple(optional_features()),
                )
            )
        return started[variant]

    yield service
    started.clear()


@pytest.mark.parametrize(("variant", "inputs", "count", "kind", "size"), DRAWN.values(), ids=DRAWN)
def test_the_answer_has_the_count_the_type_and_the_size(
    services: Callable[[str], Service],
    pictures: Mapping[str, Path],
    variant: str,
    inputs: dict[str, Any],
    count: int,
    kind: str,
    size: tuple[int, int],
) -> None:
    given = with_files({"prompt": "a fox", **SMALL, **inputs}, pictures)
    answer = services(variant).predict(given, lambda name, value: None)
    assert len(answer) == count
    for file in answer:
        with Image.open(file) as picture:
            assert (picture.format, picture.size) == (kind, size)


@pytest.fixture(scope="module")
def hosted_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real server on the embedded model, with the profile hosted."""
    port, folder = free_port(), tmp_path_factory.mktemp("hosted")
    settings = {"FLUX_PROFILE": "hosted", "FLUX_DTYPE": "float32", "FLUX_WARM_UP": "false", "FLUX_SAFETY_CHECKER": ""}
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [ROOT / "scripts" / "serve", "--port", str(port)],
            cwd=folder,
            env={**os.environ, **settings, "TMPDIR": str(folder)},
            stdout=output,
            stderr=output,
        )
    try:
        running = Server(f"http://127.0.0.1:{port}", folder, log)
        begin = time.monotonic()
        while not answers(running.url):
            assert process.poll() is None and time.monotonic() - begin < START_SECONDS, log.read_text()
            time.sleep(0.1)
        running.wait_until_ready(START_SECONDS)
        yield running
    finally:
        process.terminate()
        process.wait(30)


def answered(answer: requests.Response) -> list[tuple[str, tuple[int, int]]]:
    """Media type and size of every picture in an answer."""
    assert answer.status_code == 200, answer.text
    found = []
    for url in answer.json()["output"]:
        head, _, content = url.partition(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            found.append((head.removeprefix("data:"), picture.size))
    return found


def test_the_server_takes_a_call_of_every_model_as_it_is(hosted_server: Server) -> None:
    everything = {
        "prompt": "a fox",
        "go_fast": True,
        "guidance": 3,
        "lora_weights": None,
        "lora_scale": 1,
        "extra_lora": None,
        "extra_lora_scale": 1,
        "hf_api_token": None,
        "num_outputs": 2,
        "aspect_ratio": "3:2",
        "output_format": "jpg",
        "output_quality": 80,
        "prompt_strength": 0.8,
        "num_inference_steps": 1,
        "disable_safety_checker": False,
        "megapixels": "1",
    }
    assert answered(hosted_server.predict(everything)) == [("image/jpeg", (320, 192))] * 2
    fine_tune = {"prompt": "a fox", "model": "dev", "aspect_ratio": "custom", "width": 256, "height": 320}
    assert answered(hosted_server.predict({**fine_tune, **SMALL})) == [("image/webp", (256, 320))]
    image = png(Image.new("RGB", (256, 192), "teal"))
    assert answered(hosted_server.predict({"prompt": "a fox", "image": image, **SMALL})) == [("image/webp", (256, 192))]
    refused = hosted_server.predict({"prompt": "a fox", "lora_weights": "fofr/flux-pixar-cars", **SMALL})
    assert refused.status_code == 422 and "lora_sources" in refused.text
