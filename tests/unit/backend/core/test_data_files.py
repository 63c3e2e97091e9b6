"""A file with data is read up to a limit, and nothing but a file is opened."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.damaged_files import DAMAGES

from backend.core.data_files import MAX_DEPTH, DataError, parse_json, read_json, read_limited, require_regular


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_json_object_is_told_in_a_line(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a": {"b": [1, 2, 3]}}')
    assert read_json(file) == {"a": {"b": [1, 2, 3]}}
    DAMAGES[damage](file)
    with pytest.raises((DataError, FileNotFoundError)) as caught:
        read_json(file)
    assert "\n" not in str(caught.value)


def test_the_limit_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(10))
    assert read_limited(tmp_path / "a", 10) == bytes(10) and require_regular(tmp_path / "a") == 10
    with pytest.raises(DataError, match="is larger than"):
        read_limited(tmp_path / "a", 9)


def test_depth_is_counted_in_lists_and_objects() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    assert parse_json(nested(MAX_DEPTH))
    with pytest.raises(DataError, match=f"nested more than {MAX_DEPTH} deep"):
        parse_json(nested(MAX_DEPTH + 1))


def test_a_byte_order_mark_is_taken() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
