"""From a request to finished pictures, on the real embedded models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.pictures import PROMPT
from support.predictions import pixels, predicted

from backend.core.errors import InputError
from backend.core.version import name_and_version
from modules.app.service import Service
from modules.output.image_writer import read_parameters


@pytest.fixture(scope="module")
def source(service: Service) -> Image.Image:
    return predicted(service, seed=3, num_inference_steps=12, scale=1, adetailer=False)[0][0]


def test_a_prediction_runs_every_stage_and_times_it(service: Service) -> None:
    images, metrics, files = predicted(service, seed=3)
    assert [file.name for file in files] == ["out-0.png"] and images[0].size == (512, 512)
    for stage in (
        "inputs",
        "generate",
        "generate.denoise",
        "generate.decode",
        "adetailer",
        "adetailer.detect",
        "upscale",
        "outputs",
    ):
        assert metrics[f"{stage}.peak_bytes"] > 0
    for stage, parts in {"generate": ("denoise", "decode"), "adetailer": ("detect",)}.items():
        seconds = [metrics[f"{stage}.{part}.seconds"] for part in parts]
        assert min(seconds) > 0 and metrics[f"{stage}.seconds"] >= sum(seconds) - 0.001
    assert metrics["model_bytes_moved"] == 0


def test_stages_that_are_not_wanted_do_not_run(service: Service) -> None:
    images, metrics, _ = predicted(service, adetailer=False, scale=1)
    assert images[0].size == (256, 256)
    assert not any(name.startswith(("adetailer", "upscale")) for name in metrics)


def test_the_same_request_gives_the_same_files(service: Service) -> None:
    """Pixel by pixel and with the same parameters; of a file only the seconds that it took may differ."""

    def written() -> list[tuple[str, np.ndarray, str, dict[str, Any]]]:
        files = predicted(service, seed=11, num_outputs=2, num_inference_steps=2, scale=1.25)[2]
        read = [(file.name, pixels(Image.open(file)), *read_parameters(file)) for file in files]
        return [(name, image, text, {**record, "seconds": {}}) for name, image, text, record in read]

    first = written()
    predicted(service, seed=12, scale=1, adetailer=False)
    again = written()
    assert [name for name, *_ in first] == ["out-0.png", "out-1.png"] and not np.array_equal(first[0][1], first[1][1])
    for (name, image, *parameters), (same_name, same_image, *same_parameters) in zip(first, again, strict=True):
        assert np.array_equal(image, same_image) and (name, parameters) == (same_name, same_parameters)


def test_four_outputs_are_the_pictures_of_four_seeds(service: Service) -> None:
    images, _, files = predicted(service, num_outputs=4, seed=20, scale=1, adetailer=False)
    assert [file.name for file in files] == [f"out-{index}.png" for index in range(4)]
    alone = predicted(service, seed=22, scale=1, adetailer=False)[0][0]
    assert np.abs(pixels(images[2]) - pixels(alone)).max() <= 1


def test_the_file_says_how_it_was_made(service: Service) -> None:
    _, _, files = predicted(service, seed=5)
    text, record = read_parameters(files[0])
    assert (
        text.startswith(PROMPT)
        and text.endswith(f"Version: {name_and_version()}")
        and "Seed: 5," in text
        and "Size: 256x256" in text
        and "ADetailer model: " in text
        and "Postprocess upscale by: 2" in text
    )
    assert record


def test_image_to_image_keeps_what_strength_leaves(service: Service, source: Image.Image, tmp_path: Path) -> None:
    source.save(tmp_path / "source.png")
    changes = {"image": tmp_path / "source.png", "scale": 1, "adetailer": False, "seed": 8, "num_inference_steps": 10}
    little, much = (predicted(service, prompt_strength=strength, **changes)[0][0] for strength in (0.2, 0.9))
    assert np.abs(pixels(little) - pixels(source)).mean() < np.abs(pixels(much) - pixels(source)).mean()


def test_inpainting_leaves_what_the_mask_leaves(service: Service, source: Image.Image, tmp_path: Path) -> None:
    mask = Image.new("L", source.size)
    mask.paste(255, (0, 128, 256, 256))
    source.save(tmp_path / "source.png")
    mask.save(tmp_path / "mask.png")
    given = {"image": tmp_path / "source.png", "mask": tmp_path / "mask.png", "prompt_strength": 1.0, "scale": 1}
    result = predicted(service, adetailer=False, **given)[0][0]
    changed = np.abs(pixels(result) - pixels(source)).max(axis=2)
    assert changed[:112].max() == 0 and changed[140:].mean() > 2
    every_stage = predicted(service, enable_hr=True, hr_scale=1, denoising_strength=0.9, **given)[0][0]
    changed = np.abs(pixels(every_stage) - pixels(source)).max(axis=2)
    assert changed[:112].max() == 0 and not np.array_equal(pixels(every_stage), pixels(result))


def test_a_failed_prediction_leaves_no_file_and_the_next_one_is_right(service: Service) -> None:
    with pytest.raises(InputError, match="prompt: is empty"):
        predicted(service, prompt=" ")
    assert list(service.outputs.iterdir()) == []
    assert len(predicted(service, scale=1, adetailer=False)[0]) == 1


def test_files_of_the_prediction_before_are_deleted(service: Service) -> None:
    before = predicted(service, scale=1, adetailer=False)[2][0]
    after = predicted(service, scale=1, adetailer=False)[2][0]
    assert after.exists() and not before.exists()
