"""A table of prompts: CSV, JSONL or a list of dicts -> rows whose inputs are checked before any picture is made.

Columns are named after the inputs; the column ``id`` names the row's files. An empty cell leaves the input out. A file
(``image``, ``mask``) is given as a path relative to the table's folder, several (``images``) as ``a.png|b.png``, or in
JSONL as a list. Cells are separated by commas, semicolons or tabs, whichever the line of names has most of.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.api.input_schema import InputSchema
from backend.core.data_files import DataError, read_limited
from backend.core.errors import InputError, nearest
from backend.core.files import is_safe_name
from backend.core.texts import bounded, json_from, shortened

ID = "id"
MAX_ID = 1000
MAX_TABLE = 2**26
"""Bytes of a table."""
SEPARATORS = (",", ";", "\t")
BETWEEN_FILES = "|"
"""In a cell that names several."""
_DECIMAL_COMMA = re.compile(r"^\s*([+-]?\d+),(\d+)\s*$")

Check = Callable[[Mapping[str, Any]], object]
"""Raises :class:`InputError` for inputs that cannot be honoured, whatever their types and ranges."""


@dataclass(frozen=True)
class Row:
    """One row of a table. ``id`` is any text.

    ``inputs`` are checked, with defaults and a seed. A row that cannot be made says why in ``problem``; ``inputs`` is
    then what could be read of it.
    """

    id: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def stem(self) -> str:
        """What the names of its files begin with: the id, or what of it can name a file and a hash of it."""
        if is_safe_name(self.id):
            return self.id
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", self.id[:60]).strip("-.")
        return f"{words or 'row'}-{hashlib.sha256(self.id.encode()).hexdigest()[:8]}"

    @property
    def digest(self) -> str:
        """A hash of the inputs: rows with different inputs have different ones."""
        return hashlib.sha256(json.dumps(self.inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_table(path: Path, schema: InputSchema, check: Check | None = None) -> list[Row]:
    """The rows of a ``.csv``, ``.tsv`` or ``.jsonl`` file. ``check`` sees the inputs of every row that are of the right
    types.

    Raises :class:`InputError` for a file that cannot be read, a column that is not an input, a repeated id, and a table
    without rows. Whatever is wrong with a single row is its ``problem``.
    """
    readers = {".csv": _csv_records, ".tsv": _csv_records, ".jsonl": _jsonl_records}
    if path.suffix.lower() not in readers:
        raise InputError("table", f"must be a .csv, .tsv or .jsonl file, not '{path.name}'")
    try:
        text = read_limited(path, MAX_TABLE).decode("utf-8-sig")  # spreadsheets write a byte order mark
    except FileNotFoundError as error:
        raise InputError("table", f"cannot read '{path}': {error.strerror}") from None
    except DataError as problem:
        raise InputError("table", f"'{path}' {problem}") from None
    except UnicodeDecodeError:
        raise InputError("table", f"'{path.name}' is not UTF-8 text; save it as UTF-8") from None
    return _rows(readers[path.suffix.lower()](text, schema), schema, path.parent, check)


def rows_of(dicts: Iterable[Mapping[str, Any]], schema: InputSchema, folder: Path = Path()) -> list[Row]:
    """The rows of a list of dicts with typed values; their file paths are relative to ``folder``. Raises as
    :func:`read_table`."""
    records = [_Record(dict(values)) for values in dicts]
    for record in records:
        _check_columns(record.values, schema)
    return _rows(records, schema, folder)


@dataclass(frozen=True)
class _Record:
    """A row as read: typed values by column, and what is wrong with it."""

    values: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def _csv_records(text: str, schema: InputSchema) -> list[_Record]:
    names = text.lstrip().partition("\n")[0]
    separator = max(SEPARATORS, key=names.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True, delimiter=separator)
    try:
        _check_columns(reader.fieldnames or (), schema)
        return [_csv_record(_with_points(cells, schema, separator), schema) for cells in reader if _is_filled(cells)]
    except csv.Error as error:
        raise InputError("table", f"is not valid CSV in line {reader.line_num}: {error}") from None


def _is_filled(cells: Mapping[str, Any]) -> bool:
    """Whether any cell has a text; spreadsheets save what lies below a table as lines of separators."""
    return any(text if isinstance(text, str | None) else any(text) for text in cells.values())


def _with_points(cells: Mapping[str, Any], schema: InputSchema, separator: str) -> Mapping[str, Any]:
    """The cells with a point in their numbers: spreadsheets that separate cells by semicolons write a decimal comma."""
    if separator == ",":
        return cells
    numbers = (name for name in cells if schema.properties.get(name, {}).get("type") == "number")
    return {**cells, **{name: _DECIMAL_COMMA.sub(r"\1.\2", cells[name] or "") for name in numbers}}


def _csv_record(cells: Mapping[str, Any], schema: InputSchema) -> _Record:
    own = {ID: cells[ID]} if cells.get(ID) else {}
    if "" in cells:
        return _Record(own, "has more cells than there are columns; put text that has the separator in quotes")
    given = {name: text for name, text in cells.items() if text and name != ID}
    values, problem = dict(own), ""
    for name, text in given.items():
        try:
            values |= schema.parse(_as_texts(name, text, schema))
        except InputError as error:
            problem = problem or str(error)
    return _Record(values, problem)


def _as_texts(name: str, text: str, schema: InputSchema) -> list[str]:
    """A cell as :meth:`InputSchema.parse` takes it."""
    if name in schema.file_lists:
        return [f"{name}=@{file.strip()}" for file in text.split(BETWEEN_FILES)]
    return [f"{name}={'@' if name in schema.files else ''}{text}"]


def _jsonl_records(text: str, schema: InputSchema) -> list[_Record]:
    records: list[_Record] = []
    for line in filter(str.strip, text.splitlines()):
        try:
            values = json_from(line)
        except ValueError as problem:
            records.append(
                _Record(problem=str(problem).replace("is not valid JSON", "is not JSON:").replace("::", ":"))
            )
            continue
        if isinstance(values, dict):
            _check_columns(values, schema)
            records.append(_Record(values))
        else:
            records.append(_Record(problem="is not a JSON object"))
    return records


def _check_columns(names: Iterable[str], schema: InputSchema) -> None:
    seen: set[str] = set()
    for name in names:
        if name != ID and name not in schema.properties:
            raise InputError(name, f"is a column, but not an input{nearest(name, [ID, *schema.properties])}")
        if name in seen:
            raise InputError(name, "is the name of two columns")
        seen.add(name)


def _rows(records: Sequence[_Record], schema: InputSchema, folder: Path, check: Check | None = None) -> list[Row]:
    rows = [_row(number, record, schema, folder, check) for number, record in enumerate(records, 1)]
    if not rows:
        raise InputError("table", "has no rows")
    places: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        if row.stem in places:
            raise InputError(
                ID,
                f"'{shortened(row.id)}' is the id of rows {places[row.stem]} and {number}; ids name the files, so they "
                "must differ",
            )
        places[row.stem] = number
    return rows


def _row(number: int, record: _Record, schema: InputSchema, folder: Path, check: Check | None) -> Row:
    values = {name: value for name, value in record.values.items() if value is not None}
    name = bounded(str(values.pop(ID, ""))[: MAX_ID + 1]).strip() or f"{number:05}"
    public = {column: value for column, value in values.items() if column not in schema.secrets}
    if len(name) > MAX_ID:
        return Row(f"{number:05}", public, f"{ID}: has more than {MAX_ID} characters; shorten it")
    if record.problem:
        return Row(name, public, record.problem)
    for column, value in values.items():
        if column in schema.files and isinstance(value, str | Path):
            values[column] = folder / value
        if column in schema.file_lists and isinstance(value, list):
            values[column] = [folder / file if isinstance(file, str | Path) else file for file in value]
    # without a seed a row takes one from its id, so that a table gives the same pictures every time
    values.setdefault("seed", zlib.crc32(name.encode()))
    try:
        inputs = schema.validate(values)
        if check:
            check(inputs)
        return Row(name, inputs)
    except InputError as error:
        return Row(name, {column: values[column] for column in (*public, "seed")}, str(error))
