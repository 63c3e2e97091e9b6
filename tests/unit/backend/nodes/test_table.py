"""Tables as spreadsheets write them, ids of any text, and rows that are checked before models load."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from backend.api.input_schema import InputSchema
from backend.core.errors import InputError
from backend.core.files import is_safe_name
from backend.nodes.table import Row, read_table, rows_of
from modules.cli.given_inputs import check_inputs

SCHEMA = InputSchema()


def table(folder: Path, text: str, name: str = "table.csv") -> list[Row]:
    (folder / name).write_bytes(text.encode())
    return read_table(folder / name, SCHEMA, check_inputs)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_the_separator_is_recognized(separator: str, line_end: str, tmp_path: Path) -> None:
    lines = ["id,prompt,seed".replace(",", separator), f'a{separator}"x{separator} y, z; w"{separator}3']
    (row,) = table(tmp_path, "\ufeff" + line_end.join(lines) + line_end)
    assert (row.id, row.inputs["prompt"], row.inputs["seed"]) == ("a", f"x{separator} y, z; w", 3)


@pytest.mark.parametrize(
    ("text", "guidance"),
    [
        ("prompt;guidance_scale\na, b;3,5", 3.5),
        ("prompt;guidance_scale\na, b; 3,50 ", 3.5),
        ("prompt;guidance_scale\na, b;3.5", 3.5),
        ("prompt\tguidance_scale\na, b\t2,25", 2.25),
    ],
)
def test_numbers_of_spreadsheets_with_decimal_commas_are_read(text: str, guidance: float, tmp_path: Path) -> None:
    (row,) = table(tmp_path, text)
    assert (row.problem, row.inputs["prompt"], row.inputs["guidance_scale"]) == ("", "a, b", guidance)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "prompt,images\nx,b.png| c d.png\ny,\n"),
        ("a.csv", "prompt;images\nx;b.png|c d.png\ny;\n"),
        ("a.jsonl", '{"prompt": "x", "images": ["b.png", "c d.png"]}\n{"prompt": "y"}\n'),
    ],
)
def test_a_cell_names_several_files_beside_the_table(name: str, text: str, tmp_path: Path) -> None:
    for file in ("b.png", "c d.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / file)
    both, none = table(tmp_path, text, name)
    assert both.inputs["images"] == [tmp_path / "b.png", tmp_path / "c d.png"] and not none.inputs["images"]
    (tmp_path / "c d.png").write_text("no picture")
    assert table(tmp_path, text, name)[0].problem.startswith("images: file 2: is not an image that can be read")


@pytest.mark.parametrize("cell", ["3,5,1", "1.000,5", ",5", "three"])
def test_what_is_no_number_stays_a_problem(cell: str, tmp_path: Path) -> None:
    assert table(tmp_path, f"prompt;guidance_scale\na;{cell}")[0].problem.startswith("guidance_scale: ")


@pytest.mark.parametrize("name", ["a.tsv", "a.CSV"])
def test_tables_have_these_endings(name: str, tmp_path: Path) -> None:
    assert table(tmp_path, "id\tprompt\n1\tx\n", name)[0].inputs["prompt"] == "x"


def test_lines_without_text_are_no_rows(tmp_path: Path) -> None:
    """Spreadsheets save what lies below a table as lines of separators."""
    rows = table(tmp_path, "id,prompt,scale\na,x,1\n,,\n\nb,y,1\n,,,,\n")
    assert [(row.id, row.problem) for row in rows] == [("a", ""), ("b", "")]


def test_a_row_with_a_wrong_cell_keeps_the_others(tmp_path: Path) -> None:
    (row,) = table(tmp_path, "id,prompt,seed,num_inference_steps\na,x,7,many\n")
    assert row.problem.startswith("num_inference_steps: ") and row.inputs == {"prompt": "x", "seed": 7}


def test_spaces_around_a_value_mean_nothing(tmp_path: Path) -> None:
    (row,) = table(tmp_path, "prompt,adetailer,num_inference_steps,scale\nx, off , 2 ,1 \n")
    assert not row.problem and row.inputs["adetailer"] is False and row.inputs["num_inference_steps"] == 2


ODD_IDS = ["a b/c", "../../x", "ä", "日本", ".", "con.", "x" * 900, 'a"b', "a\u202eb", " spaces ", "a\nb"]


def test_an_id_is_any_text_and_its_files_have_a_safe_name() -> None:
    rows = rows_of([{"id": name, "prompt": "x"} for name in ODD_IDS], SCHEMA)
    assert [row.id for row in rows] == [name.strip() for name in ODD_IDS]
    assert not any(row.problem for row in rows)
    stems = {row.stem for row in rows}
    assert len(stems) == len(rows) and all(is_safe_name(f"{stem}-0.webp") for stem in stems)
    assert rows_of([{"id": "plain-1", "prompt": "x"}], SCHEMA)[0].stem == "plain-1"


def test_an_id_has_a_limit_and_is_there_once() -> None:
    (row,) = rows_of([{"id": "x" * 1001, "prompt": "x"}], SCHEMA)
    assert row.problem == "id: has more than 1000 characters; shorten it"
    with pytest.raises(InputError, match="'a b' is the id of rows 1 and 2"):
        rows_of([{"id": "a b", "prompt": "x"}] * 2, SCHEMA)


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ("image=missing.png", "image: there is no file 'missing.png'"),
        ("image=text.png", "image: is not an image"),
        ('adetailer_args={"ad_x": 1}', "adetailer_args: unknown argument 'ad_x'"),
        ("adetailer_args_hands=[[", "adetailer_args_hands: is not valid JSON"),
        ("prompt= ", "prompt: is empty"),
        ("negative_prompt=" + "x" * 20_001, "negative_prompt: is 20001 characters long"),
        ("image=picture.png", ""),
    ],
)
def test_every_row_is_checked_before_models_load(cells: str, problem: str, tmp_path: Path) -> None:
    import re

    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    (tmp_path / "text.png").write_text("x")
    name, _, value = cells.partition("=")
    cell = value.replace('"', '""')
    names = "prompt" if name == "prompt" else f"prompt,{name}"
    (row,) = table(tmp_path, f'{names}\n{"" if name == "prompt" else "x,"}"{cell}"\n')
    assert re.match(problem, row.problem) if problem else not row.problem
    assert "\n" not in row.problem


@pytest.mark.parametrize(
    "line", ["[" * 10_000, "{" * 3, '{"seed": ' + "9" * 5_000 + "}", '{"prompt": "a", "prompt": "b"}', "1", "\x00"]
)
def test_a_line_that_is_no_row_is_a_problem_of_that_row(line: str, tmp_path: Path) -> None:
    rows = table(tmp_path, line + '\n{"prompt": "x"}\n', "table.jsonl")
    assert [bool(row.problem) for row in rows] == [True, False]
