"""The benchmark for a GPU, on a machine that need not have one: the same code with the embedded models and emulated
cards."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from safetensors.torch import load_file

from backend.core.settings import ROOT
from bench.gpu.__main__ import main
from bench.gpu.checkpoint import BLOCK, FLUX_DEV, TINY, build, write_checkpoint, write_weights
from bench.gpu.denoising import GRAPHS, TECHNIQUES
from bench.gpu.ground import Ground, Row, can_be_imported, without_libraries
from bench.gpu.measures import MEASURES, caps, fallback
from bench.gpu.timing import attempted

CPU = torch.device("cpu")
GROUND = Ground(
    CPU, "embedded", ROOT / "weights" / "embedded" / "flux", 64, 1, (160_000_000, 80_000_000, 20_000_000), runs=1
)


def test_the_shapes_are_those_of_flux_dev() -> None:
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in build(name, sizes).parameters()) for name, sizes in FLUX_DEV.items()}
    assert counts == {
        "transformer": 11_901_408_320,
        "vae": 83_819_683,
        "text_encoder": 123_060_480,
        "text_encoder_2": 4_762_310_656,
    }


def test_random_weights_are_a_folder_that_diffusers_draws_from(tmp_path: Path) -> None:
    size = write_checkpoint(tmp_path, TINY)
    assert size == sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    pipeline = FluxPipeline.from_pretrained(
        tmp_path, torch_dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a fox", width=64, height=64, num_inference_steps=1).images[0].size == (64, 64)


def test_weights_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    write_checkpoint(tmp_path, TINY)
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}


def test_random_weights_are_random_everywhere_and_small(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_weights(file, {"a": torch.Size([3]), "b": torch.Size([BLOCK // 1000, 2003])})
    tensors = load_file(file)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == {
        "a": (torch.bfloat16, (3,)),
        "b": (torch.bfloat16, (BLOCK // 1000, 2003)),
    }
    rows = tensors["b"].float()
    assert rows.abs().max() < 0.0201 and rows.std(dim=1).min() > 0.009
    assert not torch.equal(rows.flatten()[: 2**20], rows.flatten()[BLOCK - 3 :][: 2**20])


def test_where_there_is_no_room_for_the_weights_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no room for .* GB in"):
        write_weights(tmp_path / "model.safetensors", {"a": torch.Size([2**40, 1024])})


def test_the_carried_wheels_are_pinned_and_with_what_a_machine_for_torch_has_all_that_is_needed() -> None:
    script = (ROOT / "bench" / "gpu" / "run.sh").read_text()
    (listed,) = re.findall(r"for name in (.*?); do", script, re.DOTALL)
    carried = set(re.findall(r"[a-z][a-z0-9-]*", listed))
    there = requirements_of("torch", "torchvision", "transformers", "accelerate", "requests") | {"zipp"}
    assert requirements_of("diffusers", "pydantic", "spandrel") <= carried | there
    pinned = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert carried <= pinned


def requirements_of(*names: str) -> set[str]:
    """The distributions and all that they need, in turn."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found.add(name)
            needed = map(Requirement, distribution(name).requires or ())
            waiting += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def measured() -> Callable[[str], list[Row]]:
    """The rows of a measure, which is made once."""
    return cache(lambda name: list(MEASURES[name](GROUND)))


@pytest.mark.parametrize("name", ["copies", "loading", "steps"])
def test_a_measure_gives_numbers(measured: Callable[[str], list[Row]], name: str) -> None:
    rows = measured(name)
    assert rows and all(
        isinstance(row, Row) and row.measure in (name, "decode") and math.isfinite(row.value) and row.value > 0
        for row in rows
    )


def test_every_attention_kernel_has_a_row_or_the_reason_why_it_has_no_figure() -> None:
    rows = list(MEASURES["attention"](GROUND))
    assert {row.name for row in rows} == {"_native_math", "native"}
    assert all(row.value > 0 or math.isnan(row.value) and row.note for row in rows)
    assert [row.note for row in rows].count("the fastest") == 1


def test_stages_whose_libraries_lack_something_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lacking.py").write_text("import none_such")
    monkeypatch.syspath_prepend(tmp_path)
    assert not can_be_imported("lacking") and not can_be_imported("none_such")
    assert can_be_imported("spandrel") and can_be_imported("ultralytics")
    assert without_libraries() == ()


def test_every_technique_has_a_row_on_a_gpu() -> None:
    techniques = {**TECHNIQUES, **GRAPHS}
    names = " ".join(name + mode for name, (_, modes) in techniques.items() for mode in modes)
    assert all(word in names for word in ("bf16, eager", "compiled blocks", "one graph", "fp8", "go_fast"))
    for settings, _ in techniques.values():
        GROUND.settings(**settings)


def test_a_part_that_fails_is_a_row_and_the_next_one_is_measured(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> Iterator[Row]:
        yield Row("steps", "first", 1, "s")
        raise RuntimeError("no kernel\nfor this card")

    rows = [
        *attempted(GROUND, "steps", "a technique", fails),
        *attempted(GROUND, "steps", "another", lambda: [Row("steps", "b", 2, "s")]),
    ]
    assert [row.name for row in rows] == ["first", "a technique: failed", "b"]
    assert rows[1].note == "RuntimeError: no kernel"
    assert "in fails" in caplog.text and "for this card" in caplog.text


def test_where_the_time_ends_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpu.json"
    command = ["bench.gpu", "--small", "--only", "copies", "--seconds", "0", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 0
    [row] = json.loads(out.read_text())["rows"]
    assert row["name"] == "left out" and "time" in row["note"]


def test_a_measure_whose_time_ends_keeps_its_rows_and_says_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu.json"
    monkeypatch.setattr("bench.gpu.__main__.PROCESSES", {("copies",): 0.5})
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--small", "--only", "copies", "--out", str(out)])
    assert main() == 0
    assert json.loads(out.read_text())["rows"][-1]["name"] == "left out"
    assert "most recent call first" in out.with_suffix(".log").read_text()


def test_ours_is_measured_beside_stock_diffusers(measured: Callable[[str], list[Row]]) -> None:
    for name in ("loading", "steps"):
        names = [row.name for row in measured(name)]
        assert any("ours" in one for one in names) and any("stock" in one for one in names)


@pytest.mark.slow
def test_cards_of_other_sizes_show_what_was_predicted() -> None:
    rows = {row.name: row for row in caps(GROUND, "bf16")}
    for card in ("0.16 GB", "0.08 GB"):
        peak, moved = rows[f"{card}, bf16: peak"], rows[f"{card}, bf16: moved when warm"]
        assert peak.limit is not None and 0.7 < peak.value / peak.limit < 1.1
        assert peak.value <= float(card.split()[0])
        assert (moved.value == 0) == ("all resident" in peak.note)
    assert rows["0.02 GB, bf16: bytes missing"].value > 0


@pytest.mark.slow
def test_the_ladder_ends_with_the_picture() -> None:
    [row] = fallback(replace(GROUND, caps=(120_000_000, 20_000_000)), outputs=1, scale=1)
    assert row.value == 1


@pytest.mark.slow
def test_the_picture_of_all_stages_can_be_looked_at(tmp_path: Path) -> None:
    rows = list(MEASURES["picture"](replace(GROUND, pictures=tmp_path)))
    assert all("adetailer" in row.note and "upscale" in row.note for row in rows)
    [file] = tmp_path.iterdir()
    assert file.stem == "eager" and Image.open(file).width >= 256


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--small", "--only", "copies", "--out", str(out)])
    assert main() == 0
    assert "| copies | host to device, pageable |" in capsys.readouterr().out
    assert [row["measure"] for row in json.loads(out.read_text())["rows"]] == ["copies"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.gpu"])
    with pytest.raises(SystemExit) as end:
        main()
    told = str(end.value.code)  # Python prints such a text and exits with 1
    assert told.startswith("error: torch finds no CUDA device") and "\n" not in told
