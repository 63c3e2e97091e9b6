"""The document that Cog's server checks requests against."""

from __future__ import annotations

import json
from pathlib import Path

from jsonschema import Draft7Validator

from backend.api.input_schema import PREDICTOR_FILE
from backend.api.openapi import openapi, write_schema
from backend.core.version import version

SOURCE = PREDICTOR_FILE.read_text()


def test_the_document_is_whole() -> None:
    document = openapi(SOURCE)
    assert document["info"]["version"] == version()
    assert {"/", "/health-check", "/predictions", "/predictions/{prediction_id}/cancel"} == set(document["paths"])
    text = json.dumps(document)
    for name in document["components"]["schemas"]:
        Draft7Validator.check_schema(document["components"]["schemas"][name])
    for part in text.split('"$ref": "#/components/schemas/')[1:]:
        assert part.split('"')[0] in document["components"]["schemas"]


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    write_schema(tmp_path / ".cog" / "schema.json")
    assert json.loads((tmp_path / ".cog" / "schema.json").read_text()) == openapi(SOURCE)
    assert [path.name for path in (tmp_path / ".cog").iterdir()] == ["schema.json"]
