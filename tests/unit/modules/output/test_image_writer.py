"""Pictures become files that WebUI users can read, and that tell us everything."""

from __future__ import annotations

import json
import re
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import piexif
import piexif.helper
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin
from sd_parsers import ParserManager
from sd_parsers.data import PromptInfo

from backend.core.texts import says_something
from backend.core.timeline import Timeline
from modules.output.image_writer import ModelInfo, parameters_text, read_parameters, write_pictures
from modules.pipeline.base import ImageBatch, Picture, no_progress
from modules.request.adetailer_unit import AdetailerUnit
from modules.request.image_request import OUTPUT_FORMATS, ImageRequest

MODEL = ModelInfo("flux1-dev", "0123456789", "cog-flux-adetailer 1.0.0")
EVERY_FORMAT = pytest.mark.parametrize("output_format", OUTPUT_FORMATS)


def noise(side: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def picture(
    parameters: Mapping[str, object] = MappingProxyType({}), image: Image.Image | None = None, seed: int = 7
) -> Picture:
    return Picture(image or noise(), seed, parameters)


def request(prompt: str = "a red fox", **inputs: Any) -> ImageRequest:
    return ImageRequest(**{"prompt": prompt, "width": 1344, "height": 768, "seed": 7, **inputs})


def write(directory: Path, wanted: ImageRequest, *pictures: Picture, timeline: Timeline | None = None) -> list[Path]:
    return write_pictures(
        ImageBatch(pictures or (picture(),), timeline or Timeline(), no_progress), wanted, directory, MODEL
    )


@pytest.fixture(scope="module")
def parse() -> Iterator[Any]:
    """sd-parsers' reader. It remembers the last EXIF by the image's id, so an image must live until the last test
    that uses it ends."""
    images: list[Image.Image] = []

    def read(path: Path) -> PromptInfo:
        images.append(Image.open(path))
        found = ParserManager().parse(images[-1])
        assert found is not None
        return found

    yield read
    for image in images:
        image.close()


class TestText:
    def test_is_exactly_what_webui_writes(self) -> None:
        parameters = {
            "ADetailer model": "face_yolov8n.pt",
            "ADetailer confidence": 0.3,
            "ADetailer prompt": 'a "kind" face, smiling',
        }
        assert parameters_text(request(), Picture(noise(), 7, parameters), MODEL) == (
            "a red fox\n"
            "Steps: 28, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Distilled CFG Scale: 3.5, Seed: 7, Size: "
            "1344x768, "
            "Model hash: 0123456789, Model: flux1-dev, ADetailer model: face_yolov8n.pt, ADetailer confidence: 0.3, "
            'ADetailer prompt: "a \\"kind\\" face, smiling", Version: cog-flux-adetailer 1.0.0'
        )

    def test_has_the_strength_only_when_an_image_was_given(self) -> None:
        assert "Denoising strength" not in parameters_text(request(), picture(), MODEL)
        assert "Model: flux1-dev, Denoising strength: 0.6, Version" in parameters_text(
            request(image=noise(), prompt_strength=0.6), picture(), MODEL
        )

    def test_a_stage_can_correct_a_field_in_its_place_or_leave_it_out(self) -> None:
        text = parameters_text(request(), picture({"Sampler": "Heun", "Distilled CFG Scale": None}), MODEL)
        assert "Steps: 28, Sampler: Heun, Schedule type: Simple, CFG scale: 1, Seed: 7" in text

    def test_has_no_hash_where_none_is_known(self) -> None:
        assert "Size: 1344x768, Model: flux1-dev, Version" in parameters_text(
            request(), picture(), replace(MODEL, hash10="")
        )

    def test_has_a_line_for_a_negative_prompt(self) -> None:
        text = parameters_text(request(), picture({"Negative prompt": "blur, noise"}), MODEL)
        assert text.startswith("a red fox\nNegative prompt: blur, noise\nSteps: 28")
        assert text.count("Negative prompt") == 1

    @given(value=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
    @example('a, "b": c\nd\\')
    def test_any_value_comes_back_through_webuis_own_expression(self, value: str) -> None:
        """sd-parsers knows no quotes; WebUI finds its fields with this expression."""
        line = parameters_text(request(), picture({"Hires prompt": value}), MODEL).rpartition("\n")[2]
        found = dict(re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', line))
        read = found["Hires prompt"]
        assert (json.loads(read) if read.startswith('"') else read).strip() == value.strip()
        assert (found["Steps"], found["Version"]) == ("28", MODEL.version)

    @pytest.mark.parametrize("key", ["_boxes", "Hashes", "Resources", "with: colon", "x"])
    def test_has_no_private_or_misleading_field(self, key: str) -> None:
        assert "secret" not in parameters_text(request(), picture({key: "secret"}), MODEL)

    def test_has_no_list(self) -> None:
        assert "ADetailer boxes" not in parameters_text(request(), picture({"ADetailer boxes": [1, 2]}), MODEL)


class TestReaders:
    @EVERY_FORMAT
    def test_sd_parsers_reads_the_text(self, tmp_path: Path, output_format: str, parse: Any) -> None:
        prompt = 'a sign that says "hello, 世界" 🦊\nsecond line: Steps: 3'
        (path,) = write(
            tmp_path, request(prompt, output_format=output_format), picture({"Hires upscale": 1.5}, seed=11)
        )
        found = parse(path)
        (sampler,) = found.samplers
        assert [each.value for each in sampler.prompts] == [prompt] and not sampler.negative_prompts
        assert (sampler.name, sampler.model.name, sampler.model.hash) == ("Euler", "flux1-dev", "0123456789")
        assert sampler.parameters == {"scheduler": "Simple", "cfg_scale": "1", "seed": "11", "steps": "28"}
        assert found.metadata["Hires upscale"] == "1.5" and found.metadata["Size"] == "1344x768"

    @EVERY_FORMAT
    def test_the_words_negative_prompt_do_not_cut_the_prompt(
        self, tmp_path: Path, output_format: str, parse: Any
    ) -> None:
        prompt = "a fox\nNegative prompt: a dog\nNegative prompt: a cat"
        (path,) = write(tmp_path, request(prompt, output_format=output_format))
        (sampler,) = parse(path).samplers
        assert [each.value for each in sampler.prompts] == ["a fox\nNegative prompt : a dog\nNegative prompt : a cat"]
        assert read_parameters(path)[1]["request"]["prompt"] == prompt

    def test_a_png_has_no_chunk_that_other_programs_claim(self, tmp_path: Path) -> None:
        (path,) = write(tmp_path, request(output_format="png"))
        with Image.open(path) as image:
            assert set(image.info) == {"parameters", "cog-flux-adetailer"}

    @pytest.mark.parametrize("output_format", ["webp", "jpg"])
    def test_webuis_own_reader_reads_the_text(self, tmp_path: Path, output_format: str) -> None:
        """A1111 and Forge read the comment with these two calls of piexif."""
        prompt = "hello, 世界 🦊\nsecond line"
        (path,) = write(tmp_path, request(prompt, output_format=output_format))
        with Image.open(path) as image:
            tags = piexif.load(image.info["exif"])
        text = piexif.helper.UserComment.load(tags["Exif"][piexif.ExifIFD.UserComment])
        assert text == parameters_text(request(prompt), picture(), MODEL)
        assert tags["Exif"][piexif.ExifIFD.MakerNote].startswith(b"cog-flux-adetailer\0{")

    @pytest.mark.parametrize("output_format", ["webp", "jpg"])
    def test_both_tags_are_of_the_type_that_exif_demands(self, tmp_path: Path, output_format: str) -> None:
        (path,) = write(tmp_path, request(output_format=output_format))
        with Image.open(path) as image:
            exif = image.info["exif"].removeprefix(b"Exif\0\0")
        for tag in (0x927C, 0x9286):
            assert struct.pack(">HH", tag, 7) in exif


class TestRoundTrip:
    @EVERY_FORMAT
    def test_everything_comes_back(self, tmp_path: Path, output_format: str) -> None:
        timeline = Timeline()
        with timeline.span("generate"), timeline.span("denoise"):
            time.sleep(0.001)
        wanted = request(output_format=output_format, image=noise(32), adetailer=(AdetailerUnit(prompt="å"),))
        finished = picture(
            {"_boxes": [[1.0, 2.0, 3.0, 4.0]], "ADetailer model": "face", "_score": np.float32(0.5)}, seed=8
        )
        with timeline.span("outputs"):
            (path,) = write(tmp_path, wanted, finished, timeline=timeline)
        text, record = read_parameters(path)
        assert text == parameters_text(wanted, finished, MODEL)
        assert record["request"]["width"] == 1344
        assert record["request"]["image"] == "32x32" and record["request"]["mask"] is None
        assert record["request"]["adetailer"][0]["prompt"] == "å"
        assert (
            record["model"] == {"name": MODEL.name, "hash10": MODEL.hash10, "version": MODEL.version}
            and record["seed"] == 8
        )
        assert set(record["seconds"]) == {"generate", "generate.denoise"} and record["seconds"]["generate"] > 0
        assert record["parameters"] == {"_boxes": [[1.0, 2.0, 3.0, 4.0]], "_score": 0.5}

    @EVERY_FORMAT
    @settings(max_examples=40)
    @given(prompt=st.text(min_size=1).filter(says_something))
    def test_any_prompt_comes_back(
        self, tmp_path_factory: pytest.TempPathFactory, output_format: str, prompt: str
    ) -> None:
        wanted = request(prompt, output_format=output_format)
        (path,) = write(tmp_path_factory.mktemp("any"), wanted, finished := picture(image=Image.new("RGB", (8, 8))))
        text, record = read_parameters(path)
        assert text == parameters_text(wanted, finished, MODEL)
        assert record["request"]["prompt"] == prompt

    @EVERY_FORMAT
    def test_what_no_text_can_hold_is_replaced_there_and_kept_in_the_record(
        self, tmp_path: Path, output_format: str
    ) -> None:
        prompt = "half \ud83e and zero \0 and whole \ud83e\udd8a"
        (path,) = write(tmp_path, request(prompt, output_format=output_format))
        text, record = read_parameters(path)
        assert text.startswith("half \ufffd and zero  and whole 🦊\n")
        assert record["request"]["prompt"] == "half \ufffd and zero \0 and whole 🦊"

    @EVERY_FORMAT
    def test_a_very_long_prompt_costs_a_jpg_its_notes_and_never_the_picture(
        self, tmp_path: Path, output_format: str
    ) -> None:
        for prompt, negative, more, text_fits, record_fits in (
            ("x" * 20_000, "y" * 10_000, "", True, False),
            ("x" * 20_000, "", "z" * 20_000, False, True),
            ("世" * 20_000, "", "z" * 20_000, False, False),
        ):
            wanted = request(prompt, negative_prompt=negative, output_format=output_format)
            (path,) = write(tmp_path, wanted, picture({"Hires prompt": more}))
            text, record = read_parameters(path)
            assert bool(text) is (text_fits or output_format != "jpg")
            assert bool(record) is (record_fits or output_format != "jpg")

    @EVERY_FORMAT
    def test_a_picture_of_someone_else_has_its_comment_and_no_record(self, tmp_path: Path, output_format: str) -> None:
        path = tmp_path / f"other.{output_format}"
        exif = Image.Exif()
        exif[0x8769] = {0x9286: b"ASCII\0\0\0hello", 0x927C: b"Nikon\0"}
        noise().save(path, exif=exif)
        assert read_parameters(path) == ("" if output_format == "png" else "hello", {})

    def test_a_file_that_is_no_picture_is_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "out-0.webp"
        path.write_bytes(b"no picture")
        with pytest.raises(OSError):
            read_parameters(path)


class TestFiles:
    @EVERY_FORMAT
    def test_names_carry_the_index_and_nothing_else_is_left(self, tmp_path: Path, output_format: str) -> None:
        paths = write(
            tmp_path, request(output_format=output_format, num_outputs=3), *(picture(seed=seed) for seed in (7, 8, 9))
        )
        assert [path.name for path in paths] == [f"out-{index}.{output_format}" for index in range(3)]
        assert sorted(tmp_path.iterdir()) == paths
        assert [read_parameters(path)[0].split(", ")[5] for path in paths] == ["Seed: 7", "Seed: 8", "Seed: 9"]

    def test_png_is_lossless_and_ignores_the_quality(self, tmp_path: Path) -> None:
        (path,) = write(tmp_path, request(output_format="png", output_quality=0))
        with Image.open(path) as image:
            assert image.format == "PNG" and image.tobytes() == noise().tobytes()

    @pytest.mark.parametrize("output_format", ["webp", "jpg"])
    def test_more_quality_is_more_bytes_and_less_error(self, tmp_path: Path, output_format: str) -> None:
        sizes, errors = [], []
        for quality in (0, 40, 80, 100):
            (path,) = write(tmp_path, request(output_format=output_format, output_quality=quality))
            sizes.append(path.stat().st_size)
            with Image.open(path) as image:
                errors.append(np.abs(np.asarray(image, float) - np.asarray(noise(), float)).mean())
        assert sizes == sorted(set(sizes)) and errors == sorted(set(errors), reverse=True)

    @pytest.mark.parametrize(("asked", "whole"), [(94, False), (95, True), (100, True)])
    def test_a_jpg_of_high_quality_keeps_the_colour_of_every_pixel(
        self, tmp_path: Path, asked: int, whole: bool
    ) -> None:
        (path,) = write(tmp_path, request(output_format="jpg", output_quality=asked))
        with Image.open(path) as image:
            assert (JpegImagePlugin.get_sampling(image) == 0) is whole  # 0 is 4:4:4

    @EVERY_FORMAT
    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_a_failure_or_a_cancellation_leaves_no_file(
        self, tmp_path: Path, output_format: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second picture fails after half of its bytes are written; what was there before stays."""
        (tmp_path / "mine.txt").touch()
        broken = noise()

        def save(path: Path, *args: object, **options: object) -> None:
            path.write_bytes(b"half")
            raise error

        monkeypatch.setattr(broken, "save", save)
        with pytest.raises(error):
            write(tmp_path, request(output_format=output_format), picture(), picture(image=broken), picture())
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_a_failing_rename_takes_the_finished_files_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rename = Path.replace

        def second_fails(path: Path, target: Path) -> Path:
            if target.name == "out-1.webp":
                raise OSError("disk full")
            return rename(path, target)

        monkeypatch.setattr(Path, "replace", second_fails)
        with pytest.raises(OSError, match="disk full"):
            write(tmp_path, request(), picture(), picture())
        assert not list(tmp_path.iterdir())

    def test_a_missing_directory_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            write(tmp_path / "missing", request())
        assert not list(tmp_path.iterdir())
