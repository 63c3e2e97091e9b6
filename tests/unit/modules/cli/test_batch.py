"""A table of prompts: rows that are checked, pictures that are made once, and a manifest that says what became of
each."""

from __future__ import annotations

import csv
import io
import json
import logging
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.model_specs import FLUX_DEV
from support.tables import BROKEN, ENVIRONMENT, entries, pixels, run_command, table_of_sixteen

from backend.api.input_schema import InputSchema
from backend.core.errors import InputError
from backend.memory_management import Workload, plan_memory
from backend.nodes.images import ImageGenerateNode, Outcome, Report, clearing_helps
from backend.nodes.result_log import MANIFEST, Manifest
from backend.nodes.table import Row, read_table, rows_of
from backend.planning.costs import DeviceMemory
from modules.app import service as startup
from modules.app.service import Service
from modules.cli.batch import RowsBar, main
from modules.output.image_writer import read_parameters
from modules.pipeline.base import no_progress


@pytest.fixture(scope="module")
def schema() -> InputSchema:
    return InputSchema()


@pytest.fixture(scope="module")
def made(service: Service, schema: InputSchema, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the whole table, made in one go in this process."""
    folder = tmp_path_factory.mktemp("made")
    rows = read_table(table_of_sixteen(folder), schema)
    manifest = Manifest(folder)
    node = ImageGenerateNode(partial(service.predict, progress=no_progress))
    for outcome in node.run(manifest.begin(rows, resume=False)):
        manifest.deliver(outcome)
    return folder


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> Command:
    """``scripts/batch`` in this process: its exit code, and what it prints and tells. Where it would load models, the
    test fails."""
    monkeypatch.setattr(startup, "start_process", lambda *_, **__: pytest.fail("models are loaded"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    caplog.set_level(logging.WARNING, "modules.app.service")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def test_of_sixteen_rows_with_three_broken_ones_13_are_drawn_and_three_reported(made: Path) -> None:
    told = entries(made)
    assert len(told) == 16 and len(pixels(made)) == 13
    failed = {name: entry["error"] for name, entry in told.items() if entry["status"] == "failed"}
    assert tuple(sorted(failed)) == BROKEN
    assert failed["row-05"] == "num_inference_steps: must be from 1 to 50, not 99"
    assert failed["row-08"] == "image: there is no file 'missing.png'"
    assert failed["row-13"].startswith("width: must be a multiple of 32")


def test_the_manifest_says_of_every_picture_what_it_is(made: Path) -> None:
    for name, entry in entries(made).items():
        if entry["status"] == "done":
            ((file, size),) = entry["files"].items()
            assert file == f"{name}-0.png" and (made / file).stat().st_size == size
            assert entry["seconds"] >= entry["stages"]["generate"] > 0 and entry["peak_bytes"] > 0
            text, record = read_parameters(made / file)
            assert record["seed"] == entry["seed"] and text.startswith(entry["prompt"])


def test_a_table_that_is_killed_and_resumed_gives_the_same_pictures_and_none_twice(
    made: Path, service: Service, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table, out = table_of_sixteen(tmp_path), tmp_path / "out"
    process = run_command(table, "-o", out)
    deadline = time.monotonic() + 300
    while not (out / MANIFEST).exists() or (out / MANIFEST).read_text().count("\n") < 8:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {
        path.name: path.stat().st_mtime_ns for path in out.glob("*.png") if path.name in str(Manifest(out).entries())
    }
    assert 5 <= len(before) < 13

    monkeypatch.setattr(startup, "start_process", lambda *_, **__: service)
    code, printed, told = command(table, "-o", out, "--resume")
    assert code == 1 and printed == f"13 of 16 rows are done, 3 failed: see {out / MANIFEST}\n"
    assert all((out / name).stat().st_mtime_ns == moment for name, moment in before.items())
    assert pixels(out) == pixels(made)
    assert entries(out).keys() == entries(made).keys()
    assert all(f"{name}: " in told for name in BROKEN)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_without_resume_a_folder_that_holds_a_table_is_left_alone(made: Path, command: Command) -> None:
    before = (made / MANIFEST).read_bytes()
    assert command(made / "table.csv", "-o", made) == (
        2,
        "",
        f"error: -o: '{made}' already holds a {MANIFEST}; continue with --resume, or choose another folder\n",
    )
    assert (made / MANIFEST).read_bytes() == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("table.csv", "promt,seed\na,1\n", "promt: is a column, but not an input (did you mean 'prompt'?)"),
        (
            "table.jsonl",
            '{"prompt": "a"}\n{"prompt": "b", "sed": 3}\n',
            "sed: is a column, but not an input (did you mean 'seed'?)",
        ),
        ("table.csv", "prompt,seed,prompt\na,1,b\n", "prompt: is the name of two columns"),
        (
            "table.csv",
            "id,prompt\nx,a\nx,b\n",
            "id: 'x' is the id of rows 1 and 2; ids name the files, so they must differ",
        ),
        ("table.csv", "prompt\n", "table: has no rows"),
        ("table.csv", 'prompt\n"a\n', "table: is not valid CSV in line 1: unexpected end of data"),
        ("table.txt", "prompt\na\n", "table: must be a .csv, .tsv or .jsonl file, not 'table.txt'"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_before_the_first_picture(
    schema: InputSchema, tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        read_table(tmp_path / name, schema)
    assert str(caught.value) == message


def test_the_command_refuses_a_wrong_column_at_once(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("prompt,sead\na,1\n")
    process = run_command(tmp_path / "table.csv", "-o", tmp_path / "out")
    assert process.communicate(timeout=60) == (
        "",
        "error: sead: is a column, but not an input (did you mean 'seed'?)\n",
    )
    assert process.returncode == 2 and not (tmp_path / "out").exists()


def test_what_is_wrong_with_one_row_is_its_own_problem(schema: InputSchema, tmp_path: Path) -> None:
    (tmp_path / "table.jsonl").write_text(
        '{"prompt": "a", "seed": 3}\n{broken\n[1]\n{"prompt": "b", "seed": "x"}\n\n{"id": "../up", "prompt": "c"}\n'
    )
    problems = [row.problem for row in read_table(tmp_path / "table.jsonl", schema)]
    assert problems[0] == ""
    assert problems[1].startswith("is not JSON: ")
    assert problems[2] == "is not a JSON object"
    assert problems[3] == "seed: must be a whole number, not 'x'"
    assert problems[4] == ""  # its files have another name


def test_csv_jsonl_and_dicts_mean_the_same(schema: InputSchema, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"id": "a", "prompt": "one, two", "seed": 7, "adetailer": False, "scale": 1.5, "image": "x.png"},
        {"id": "b", "prompt": "c"},
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    (tmp_path / "t.csv").write_text("\ufeff" + text.getvalue(), encoding="utf-8")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = rows_of(records, schema, tmp_path)
    assert rows == read_table(tmp_path / "t.csv", schema) == read_table(tmp_path / "t.jsonl", schema)
    assert rows[0].inputs["image"] == tmp_path / "x.png" and rows[0].inputs["num_outputs"] == 1


def test_a_row_without_a_name_or_seed_always_has_the_same(schema: InputSchema) -> None:
    once, again = (
        rows_of([{"prompt": "a"}, {"prompt": "a"}], schema),
        rows_of([{"prompt": "a"}, {"prompt": "a"}], schema),
    )
    assert once == again and [row.id for row in once] == ["00001", "00002"]
    assert once[0].inputs["seed"] != once[1].inputs["seed"]


def made_of(row: Row, *pictures: bytes) -> Outcome:
    return Outcome(row, pictures, ".png")


def test_only_what_is_done_in_full_with_the_same_inputs_is_skipped(schema: InputSchema, tmp_path: Path) -> None:
    rows = rows_of([{"id": name, "prompt": name} for name in "abcdef"], schema)
    manifest = Manifest(tmp_path)
    assert manifest.begin(rows, resume=True) == rows
    for row in rows[:4]:
        manifest.deliver(made_of(row, b"12345", b"6789"))
    manifest.deliver(Outcome(rows[4], error="failed"))
    with manifest.path.open("a") as opened:
        opened.write('{"id": "f", "status": "do')  # a kill in the middle of a line
    (tmp_path / "b-1.png").write_bytes(b"67")
    (tmp_path / "c-0.png").unlink()
    rows[3] = replace(rows[3], inputs={**rows[3].inputs, "prompt": "another"})
    assert [row.id for row in manifest.begin(rows, resume=True)] == ["b", "c", "d", "e", "f"]
    assert [entry["id"] for entry in manifest.entries()] == ["a"]


def test_a_failure_that_nobody_foresaw_is_told_and_does_not_stop_the_others(
    schema: InputSchema, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def make(inputs: Mapping[str, Any], report: Report) -> list[Path]:
        if inputs["prompt"] == "bad":
            raise RuntimeError("no\nsuch luck")
        (tmp_path / "p.webp").write_bytes(b"p")
        return [tmp_path / "p.webp"]

    cleared: list[int] = []
    outcomes = list(
        ImageGenerateNode(make, lambda: cleared.append(1)).run(
            rows_of([{"prompt": p} for p in ("a", "bad", "b")], schema)
        )
    )
    assert [outcome.error for outcome in outcomes] == ["", "RuntimeError: no", ""]
    assert outcomes[0].files == {"00001-0.webp": b"p"}
    assert len(cleared) == 3 and "such luck" in caplog.text


@pytest.mark.parametrize(("gigabytes", "helps"), [(24, True), (8, True), (48, False), (80, False)])
def test_memory_is_cleared_between_rows_only_where_models_and_pictures_contend(gigabytes: int, helps: bool) -> None:
    plan = plan_memory(
        DeviceMemory("cuda", gigabytes * 10**9, capability=(8, 9)),
        FLUX_DEV,
        Workload(1024, 1024, detail_crop=1024, scale=2),
    )
    assert clearing_helps(plan) == helps


def test_progress_in_a_log_is_a_line_a_row_with_the_time_that_is_left(schema: InputSchema) -> None:
    log, rows = io.StringIO(), rows_of([{"prompt": "a"}, {"prompt": "b"}], schema)
    with RowsBar(total=4, done=2, stream=log) as bar:
        bar.count(made_of(rows[0], b"x"))
        bar.count(Outcome(rows[1], error="prompt: is odd"))
    lines = log.getvalue().splitlines()
    assert lines[0].startswith("rows:  75%") and "3/4 [" in lines[0] and "<" in lines[0]
    assert lines[1] == "00002: prompt: is odd" and "4/4 [" in lines[2]


def test_what_the_installed_models_cannot_do_is_told_before_any_is_loaded(command: Command, tmp_path: Path) -> None:
    table, out = tmp_path / "table.jsonl", tmp_path / "out"
    (tmp_path / "broken.png").write_bytes(b"no picture")
    wrong = {
        "upscaler": {"upscaler": "4x-Ultrasharp"},
        "detector": {"adetailer_args": '{"ad_model": "face_yolov8n.pt"}'},
        "classes": {"adetailer_args": '{"ad_model_classes": "cat"}'},
        "size": {"aspect_ratio": "custom", "width": 272, "height": 256},
        "negative": {"negative_prompt": "a hat"},
        "image": {"image": "broken.png"},
        "unit": {"adetailer_args": '{"ad_confidence": 7}'},
    }
    table.write_text("\n".join(json.dumps({"id": name, "prompt": "a woman", **row}) for name, row in wrong.items()))
    code, printed, told = command(table, "-o", out)  # there is no row to load models for
    assert code == 1 and "0 of 7 rows are done, 7 failed" in printed
    errors = {name: entry["error"] for name, entry in entries(out).items()}
    assert errors["upscaler"].startswith("upscaler: '4x-Ultrasharp' is not installed")
    assert errors["detector"].startswith("adetailer_args: ad_model 'face_yolov8n.pt' is not installed")
    assert "'cat' is none of its classes" in errors["classes"]
    assert errors["size"].startswith("width: must be a multiple of 32")
    assert errors["negative"].startswith("negative_prompt: Flux has none")
    assert errors["image"].startswith("image: is not an image")
    assert "ad_confidence" in errors["unit"]
    assert all(f"{name}: " in told for name in wrong)
