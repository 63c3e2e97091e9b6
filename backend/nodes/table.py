"""A table of prompts: CSV, JSONL or a list of dicts -> rows whose inputs are checked before anything is drawn.

Columns are names of inputs, and ``id``, which names the row's files. An empty cell leaves the input out. A file
(``image``, ``mask``) is given as a path, relative to the table's folder.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.api.input_schema import InputSchema
from backend.core.errors import InputError, nearest
from backend.core.files import MAX_NAME_BYTES, is_safe_name

ID = "id"


@dataclass(frozen=True)
class Row:
    """One row of a table.

    ``inputs`` are checked, with their defaults and a seed. A row that cannot be drawn says why in ``problem``; its
    inputs are then what could be read of it.
    """

    id: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def digest(self) -> str:
        """Tells rows with different inputs apart."""
        return hashlib.sha256(json.dumps(self.inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_table(path: Path, schema: InputSchema) -> list[Row]:
    """The rows of a ``.csv`` or ``.jsonl`` file.

    Raises :class:`InputError` for a file that cannot be read, a column that is no input, an id that is there twice, and
    a table without rows. What is wrong with one row is its ``problem``.
    """
    readers = {".csv": _csv_records, ".jsonl": _jsonl_records}
    if path.suffix.lower() not in readers:
        raise InputError("table", f"must be a .csv or .jsonl file, not '{path.name}'")
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark at the beginning
    except OSError as error:
        raise InputError("table", f"cannot read '{path}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError("table", f"'{path.name}' is not text in UTF-8; save it as such") from None
    return _rows(readers[path.suffix.lower()](text, schema), schema, path.parent)


def rows_of(dicts: Iterable[Mapping[str, Any]], schema: InputSchema, folder: Path = Path()) -> list[Row]:
    """The rows of a list of dicts with typed values; ``folder`` is where their files lie. Raises as
    :func:`read_table`."""
    records = [_Record(dict(values)) for values in dicts]
    for record in records:
        _check_columns(record.values, schema)
    return _rows(records, schema, folder)


@dataclass(frozen=True)
class _Record:
    """A row as it was read: typed values by column, and what is wrong with it."""

    values: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def _csv_records(text: str, schema: InputSchema) -> list[_Record]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
    try:
        _check_columns(reader.fieldnames or (), schema)
        return [_csv_record(cells, schema) for cells in reader]
    except csv.Error as error:
        raise InputError("table", f"is no CSV in line {reader.line_num}: {error}") from None


def _csv_record(cells: Mapping[str, Any], schema: InputSchema) -> _Record:
    own = {ID: cells[ID]} if cells.get(ID) else {}
    if "" in cells:
        return _Record(own, "has more cells than there are columns; put texts with commas into quotes")
    given = {name: text for name, text in cells.items() if text and name != ID}
    try:
        return _Record(
            own | schema.parse(f"{name}={'@' if _is_file(schema, name) else ''}{text}" for name, text in given.items())
        )
    except InputError as error:
        return _Record(own, str(error))


def _jsonl_records(text: str, schema: InputSchema) -> list[_Record]:
    records: list[_Record] = []
    for line in filter(str.strip, text.splitlines()):
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            records.append(_Record(problem=f"is not JSON: {error.msg} at character {error.colno}"))
            continue
        if isinstance(values, dict):
            _check_columns(values, schema)
            records.append(_Record(values))
        else:
            records.append(_Record(problem="is no JSON object"))
    return records


def _check_columns(names: Iterable[str], schema: InputSchema) -> None:
    seen: set[str] = set()
    for name in names:
        if name != ID and name not in schema.properties:
            raise InputError(name, f"is a column, but not an input{nearest(name, [ID, *schema.properties])}")
        if name in seen:
            raise InputError(name, "is the name of two columns")
        seen.add(name)


def _is_file(schema: InputSchema, name: str) -> bool:
    return schema.properties[name].get("format") == "uri"


def _rows(records: Sequence[_Record], schema: InputSchema, folder: Path) -> list[Row]:
    rows = [_row(number, record, schema, folder) for number, record in enumerate(records, 1)]
    if not rows:
        raise InputError("table", "has no rows")
    places: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        if row.id in places:
            raise InputError(
                ID,
                f"'{row.id}' is that of rows {places[row.id]} and {number}; files are named after it, so give each "
                "its own",
            )
        places[row.id] = number
    return rows


def _row(number: int, record: _Record, schema: InputSchema, folder: Path) -> Row:
    values = {name: value for name, value in record.values.items() if value is not None}
    name = str(values.pop(ID, f"{number:05}")).strip()
    if not is_safe_name(name):
        return Row(
            name,
            values,
            f"{ID}: '{name}' cannot name a file; use letters, digits, '.', '-' and '_', at most {MAX_NAME_BYTES}",
        )
    if record.problem:
        return Row(name, values, record.problem)
    for column, value in values.items():
        if _is_file(schema, column) and isinstance(value, str | Path):
            values[column] = folder / value
    # without a seed of its own a row takes one from its name, so that the table gives the same pictures every time
    values.setdefault("seed", zlib.crc32(name.encode()))
    try:
        return Row(name, schema.validate(values))
    except InputError as error:
        return Row(name, values, str(error))
