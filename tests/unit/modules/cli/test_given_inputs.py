"""What a user writes after scripts/predict."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from backend.api.input_schema import InputSchema
from backend.core.errors import InputError
from backend.core.texts import MAX_TEXT
from modules.cli.given_inputs import PictureSource, with_files_read, with_prompt_named

SCHEMA = InputSchema()
TEXT = "a fox\nSteps: 20, Sampler: Euler, Seed: 5"


def test_words_without_a_name_are_the_prompt() -> None:
    assert with_prompt_named(["a cat", "seed=3", "2 = two"]) == ["prompt=a cat", "seed=3", "prompt=2 = two"]


@pytest.mark.parametrize(
    ("text", "value"), [("on", True), ("yes", True), ("off", False), ("no", False), ("TRUE", True)]
)
def test_switches_are_words(text: str, value: bool) -> None:
    assert SCHEMA.parse([f"adetailer={text}"]) == {"adetailer": value}


def test_a_text_may_lie_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes("\ufeffa fox\r\nin snow \n".encode())
    texts = [f"prompt=@{file}", "ad_prompt=@@home", f"image=@{file}", "output_format=@x"]
    assert with_files_read(texts, SCHEMA) == [
        "prompt=a fox\r\nin snow",
        "ad_prompt=@home",
        f"image=@{file}",
        "output_format=@x",
    ]


@pytest.mark.parametrize("name", ["prompt", "negative_prompt", "adetailer_args", "upscaler"])
def test_a_file_that_is_no_text_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{name}: cannot read 'nothing': No such file or directory; write {name}=@@"):
        with_files_read([f"{name}=@nothing"], SCHEMA)
    binary, large = tmp_path / "binary", tmp_path / "large"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        with_files_read([f"{name}=@{binary}"], SCHEMA)
    large.write_bytes(b"a" * 10**7)
    (text,) = with_files_read([f"{name}=@{large}"], SCHEMA)
    assert len(text) < 5 * MAX_TEXT
    with pytest.raises(InputError, match=f"{name}: is .* characters long; at most 20000"):
        SCHEMA.validate({"prompt": "x"} | SCHEMA.parse([text]))


def save(image: Image.Image, file: Path) -> None:
    """With the parameters as WebUIs write them."""
    if file.suffix == ".png":
        chunks = PngInfo()
        chunks.add_text("parameters", TEXT)
        image.save(file, pnginfo=chunks)
        return
    import piexif.helper

    comment = piexif.helper.UserComment.dump(TEXT, encoding="unicode")
    image.save(file, exif=piexif.dump({"Exif": {piexif.ExifIFD.UserComment: comment}}))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.txt"])
def test_pictures_of_a_webui_are_read(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if file.suffix == ".txt":
        file.write_text(TEXT)
    else:
        save(Image.new("RGB", (8, 8)), file)
    source = PictureSource(file, SCHEMA)
    assert source.text == TEXT
    source.checked({"seed": 3})
    with pytest.raises(InputError, match="promt"):
        source.checked({"promt": "x"})


def test_a_picture_that_says_nothing_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for file, problem in (("a.png", "does not say how it was made"), ("b.png", "No such file")):
        with pytest.raises(InputError, match=problem) as error:
            PictureSource(tmp_path / file, SCHEMA)
        assert str(error.value).startswith("--from: ")


@pytest.mark.parametrize(
    "record",
    ["[1]", "5", '{"request": 5, "seed": 1}', '{"request": {"prompt": "x"}, "seed": "1"}', '{"a":' * 50_000, "[" * 50_000]
    + [f'{{"request": {{"prompt": "x", {odd}}}, "seed": 1, "model": {{"name": "m"}}}}' for odd in (
        '"hires": [1]', '"adetailer": {"a": 1}', '"adetailer": [5]', '"stage_options": [1]', '"stage_options": "x"',
        '"aspect_ratio": []',
    )],
)  # fmt: skip
def test_a_record_that_is_not_ours_is_one_line(record: str, tmp_path: Path) -> None:
    chunks = PngInfo()
    chunks.add_text("cog-flux-adetailer", record)
    Image.new("RGB", (8, 8)).save(tmp_path / "odd.png", pnginfo=chunks)
    with pytest.raises(InputError) as caught:
        PictureSource(tmp_path / "odd.png", SCHEMA).checked({})
    assert "\n" not in str(caught.value)
