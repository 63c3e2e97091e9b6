"""Cog's real server, driven over HTTP: what a client of a deployed image gets."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from support.adetailer_units import WRONG
from support.data_urls import data_url, png
from support.pictures import PICTURE, PROMPT
from support.processes import Server

from backend.api.input_schema import PREDICTOR_FILE
from backend.api.openapi import openapi
from backend.core.settings import ROOT
from modules.app.service import Service
from modules.diffusion.canvas import ASPECT_RATIOS
from modules.diffusion.sampler_names import SAMPLERS, SCHEDULES
from modules.request.image_request import HIRES_UPSCALERS, OUTPUT_FORMATS

STAGES = ("generate", "adetailer", "upscale", "outputs")


def pictures(answer: dict[str, Any]) -> list[Image.Image]:
    contents = [
        base64.b64decode(url.partition(",")[2]) if url.startswith("data:") else requests.get(url, timeout=10).content
        for url in answer["output"]
    ]
    return [Image.open(io.BytesIO(content)) for content in contents]


@pytest.fixture(scope="module")
def answer(server: Server) -> dict[str, Any]:
    """One prediction with every stage on."""
    response = server.predict(PICTURE)
    assert response.status_code == 200
    result: dict[str, Any] = response.json()
    return result


def test_it_is_ready_and_says_so(server: Server) -> None:
    health = server.health()
    assert (health["status"], health["setup"]["status"]) == ("READY", "succeeded")


def test_it_shows_the_schema_of_predict_py(server: Server) -> None:
    assert requests.get(f"{server.url}/openapi.json", timeout=10).json() == openapi(PREDICTOR_FILE.read_text())


@pytest.mark.parametrize(
    ("field", "inputs"),
    [
        ("prompt", {}),
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": ["a fox"]}),
        ("aspect_ratio", {"aspect_ratio": "16:10"}),
        ("width", {"width": 255}),
        ("num_outputs", {"num_outputs": 5}),
        ("num_outputs", {"num_outputs": 1.5}),
        ("num_inference_steps", {"num_inference_steps": "4"}),
        ("guidance_scale", {"guidance_scale": "3.5"}),
        ("adetailer", {"adetailer": "yes"}),
        ("sampler", {"sampler": "Euler a"}),
        ("scheduler", {"scheduler": "KL Optimal"}),
        ("hr_upscaler", {"hr_upscaler": "Nearest"}),
        ("seed", {"seed": -1}),
        ("image", {"image": "/etc/hostname"}),
        ("mask", {"mask": "file:///etc/hostname"}),
        ("images", {"images": "/etc/hostname"}),
        ("images", {"images": [png(Image.new("RGB", (64, 64)))] * 11}),
        ("images", {"images": [["/etc/hostname"]]}),
    ],
)
def test_a_bad_input_is_refused_before_a_model_works(server: Server, field: str, inputs: dict[str, Any]) -> None:
    response = server.predict(inputs if field == "prompt" else {"prompt": "a fox", **inputs})
    assert response.status_code == 422
    (problem,) = response.json()["detail"]
    assert problem["loc"] == ["body", "input", field]
    assert problem["msg"]
    offered: tuple[str, ...] = {"sampler": SAMPLERS, "scheduler": SCHEDULES, "hr_upscaler": HIRES_UPSCALERS}.get(
        field, ()
    )
    assert all(name in problem["msg"] for name in offered)


def test_a_prediction_gives_a_picture_and_the_metrics_of_every_stage(answer: dict[str, Any]) -> None:
    assert answer["status"] == "succeeded"
    (picture,) = pictures(answer)
    assert picture.format == "PNG"
    assert picture.width == picture.height
    assert all(answer["metrics"][stage]["seconds"] > 0 for stage in STAGES)
    assert answer["metrics"]["predict_time"] >= sum(answer["metrics"][stage]["seconds"] for stage in STAGES)


def test_the_log_has_progress_that_platforms_read(answer: dict[str, Any]) -> None:
    lines = [line for line in answer["logs"].splitlines() if line.endswith("generate")]
    assert lines[-1].startswith("100%|")
    assert f"| {PICTURE['num_inference_steps']}/{PICTURE['num_inference_steps']} generate" in lines[-1]


def test_it_paints_into_an_image(server: Server) -> None:
    """Two pictures, as jpg, from an image and a mask; whole numbers may come as 1.0, which JSON does not tell from
    1."""
    image, mask = Image.new("RGB", (256, 256), "white"), Image.new("L", (256, 256), 0)
    mask.paste(255, (64, 64, 192, 192))
    inputs = {
        "prompt": "a red shirt",
        "image": png(image),
        "mask": png(mask),
        "num_outputs": 2.0,
        "num_inference_steps": 2.0,
    }
    result = server.predict({**inputs, "adetailer": False, "scale": 1, "output_format": "jpg"}).json()
    assert result["status"] == "succeeded", result["error"]
    assert [picture.format for picture in pictures(result)] == ["JPEG", "JPEG"]


@pytest.mark.parametrize("ratio", ASPECT_RATIOS)
def test_every_shape_and_format_is_the_picture_that_the_package_draws_itself(
    server: Server, service: Service, ratio: str
) -> None:
    """Over HTTP as in this process; every ratio once, the formats in turn, png to the byte."""
    kind = OUTPUT_FORMATS[list(ASPECT_RATIOS).index(ratio) % 3]
    inputs = {
        "prompt": PROMPT,
        "aspect_ratio": ratio,
        "num_inference_steps": 1,
        "seed": 4,
        "adetailer": False,
        "scale": 1.0,
        "output_format": kind,
    }
    result = server.predict(inputs).json()
    assert result["status"] == "succeeded", result["error"]
    (picture,) = pictures(result)
    assert (picture.format, picture.size) == (
        {"webp": "WEBP", "jpg": "JPEG", "png": "PNG"}[kind],
        service.profile.canvas.size(ratio, "1"),
    )
    (file,) = service.predict(inputs, lambda name, value: None)
    assert np.array_equal(np.asarray(picture), np.asarray(Image.open(file)))


def test_four_outputs_are_four_pictures_in_order(server: Server) -> None:
    inputs = {
        "prompt": PROMPT,
        "num_inference_steps": 2,
        "seed": 4,
        "adetailer": False,
        "scale": 1,
        "output_format": "png",
    }
    together = pictures(server.predict({**inputs, "num_outputs": 4}).json())
    third = pictures(server.predict({**inputs, "seed": 6}).json())[0]
    assert len(together) == 4 and np.abs(np.asarray(together[2]).astype(int) - np.asarray(third)).max() <= 1


def test_a_cancel_in_the_step_loop_stops_it_at_once(server: Server) -> None:
    prediction = server.new_id()
    result: dict[str, Any] = {}
    inputs = {**PICTURE, "num_inference_steps": 50, "num_outputs": 4}
    waiting = threading.Thread(target=lambda: result.update(server.predict(inputs, prediction).json()))
    waiting.start()
    deadline = time.monotonic() + 60
    while not server.health()["predictions"]["running"]:
        time.sleep(0.02)
    while "/50 generate" not in requests.put(
        f"{server.url}/predictions/{prediction}", json={"input": inputs}, timeout=30
    ).json().get("logs", ""):
        assert time.monotonic() < deadline, "no step was begun"
        time.sleep(0.05)
    assert requests.post(f"{server.url}/predictions/{prediction}/cancel", timeout=10).ok
    begin = time.monotonic()
    waiting.join(30)
    assert result["status"] == "canceled"
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    ("field", "inputs"),
    [
        ("prompt", {"prompt": "  \n"}),
        ("width", {"aspect_ratio": "custom", "width": 257, "height": 512}),
        ("height", {"aspect_ratio": "custom", "width": 512}),
        ("image", {"image": data_url(b"root:x:0:0", "text/plain")}),
        ("image", {"image": png(Image.new("1", (8001, 5000)))}),
        ("mask", {"mask": png(Image.new("L", (64, 64)))}),
        ("images", {"images": [png(Image.new("RGB", (64, 64)))] * 2}),
        ("scheduler", {"sampler": "UniPC", "scheduler": "Karras"}),
        ("negative_prompt", {"negative_prompt": "a hat"}),
        ("adetailer_args", {"adetailer_args": '{"ad_use_vae": true}'}),
        ("adetailer_args", {"adetailer_args": "{"}),
        ("adetailer_args", {"adetailer_args": '{"ad_mask_select": "left"}'}),
        ("adetailer_args", {"adetailer_args": '{"ad_model": "eyes_yolov8n.pt"}'}),
        ("upscaler", {"upscaler": "4x-none"}),
        ("face_enhance", {"face_enhance": True}),
        ("adetailer_args", {"adetailer_args": '{"ad_restore_face": true}'}),
        ("adetailer_args", {"adetailer_args": '{"ad_model": "mediapipe_face_full"}'}),
        ("adetailer_args", {"adetailer_args": '{"ad_model_classes": "zebra"}'}),
        ("adetailer_args_hands", {"adetailer_args_hands": '{"ad_confidense": 0.5}'}),
        ("adetailer_args_hands", {"adetailer_args_hands": "[{}, {}, {}, {}]"}),
        ("mask", {"image": png(Image.new("RGB", (64, 64))), "mask": png(Image.new("L", (64, 32)))}),
    ],
)
def test_what_only_the_package_can_judge_is_refused_with_one_clear_line(
    server: Server, field: str, inputs: dict[str, Any]
) -> None:
    response = server.predict({"prompt": "a fox", **inputs})
    assert response.status_code == 422
    (problem,) = response.json()["detail"]
    assert problem["loc"] == ["body", "input", field]
    assert "\n" not in problem["msg"]
    assert not any(secret in response.text for secret in (str(ROOT), str(server.temporary), "/tmp", "root:x"))


@pytest.mark.parametrize(("given", "words"), WRONG)
def test_every_unit_that_is_refused_is_refused_over_http_in_the_same_words(
    server: Server, given: object, words: str
) -> None:
    response = server.predict({"prompt": "a fox", "adetailer_args": json.dumps(given)})
    assert response.status_code == 422
    (problem,) = response.json()["detail"]
    assert problem["loc"] == ["body", "input", "adetailer_args"]
    assert words in problem["msg"] and "\n" not in problem["msg"]


def test_the_next_prediction_is_right_and_nothing_stays_behind(server: Server, answer: dict[str, Any]) -> None:
    """After everything above: the same inputs give the same picture."""
    again = server.predict(PICTURE).json()
    assert [picture.tobytes() for picture in pictures(again)] == [picture.tobytes() for picture in pictures(answer)]
    assert server.comes_to_rest()
