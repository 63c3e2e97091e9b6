"""The OpenAPI document of Cog's server: ``python -m backend.api.openapi`` writes it.

Cog's server checks a request only against ``.cog/openapi_schema.json``. In an image ``cog build`` writes that file;
everywhere else this module does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backend.api.input_schema import PREDICTOR_FILE, REF, Schema, read_inputs, refuse_joined_strings, title
from backend.core.files import write_atomic
from backend.core.settings import ROOT
from backend.core.version import version

SCHEMA_FILE = ROOT / ".cog" / "openapi_schema.json"  # where Cog's server looks, relative to its working directory


def openapi(source: str) -> Schema:
    """The whole document that ``/openapi.json`` answers with, as ``cog build`` writes it for a predictor that returns
    ``list[Path]``. ``source`` is the text of ``predict.py``."""
    refuse_joined_strings(source)
    inputs, choices = read_inputs(source)
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": version()},
        "paths": _paths(),
        "components": {
            "schemas": {
                "Input": inputs,
                "Output": {"title": "Output", "type": "array", "items": {"type": "string", "format": "uri"}},
                **choices,
                **_prediction_schemas(),
                **_error_schemas(),
            }
        },
    }


def write_schema(path: Path = SCHEMA_FILE) -> None:
    """Writes the document for ``predict.py``. A server that starts meanwhile reads the old or the new one, never a
    part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(openapi(PREDICTOR_FILE.read_text()), indent=2))


def _prediction_schemas() -> dict[str, Schema]:
    moments = {name: _text(title(name), format="date-time") for name in ("created_at", "started_at", "completed_at")}
    response = {
        "input": _ref("Input"),
        "output": _ref("Output"),
        "id": _text("Id"),
        "version": _text("Version"),
        **moments,
        "status": _text("Status"),
        "error": _text("Error"),
        "logs": _text("Logs"),
        "metrics": {"title": "Metrics", "type": "object"},
    }
    states = ["starting", "processing", "succeeded", "canceled", "failed"]
    return {
        "PredictionRequest": _object("PredictionRequest", {"id": _text("Id"), "input": _ref("Input")}),
        "PredictionResponse": _object("PredictionResponse", response),
        "Status": {"title": "Status", "description": "An enumeration.", "enum": states, "type": "string"},
    }


def _error_schemas() -> dict[str, Schema]:
    location = {"title": "Location", "type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}
    error = {"loc": location, "msg": _text("Message"), "type": _text("Error Type")}
    detail = {"title": "Detail", "type": "array", "items": _ref("ValidationError")}
    return {
        "HTTPValidationError": _object("HTTPValidationError", {"detail": detail}),
        "ValidationError": _object("ValidationError", error, required=list(error)),
    }


def _paths() -> dict[str, Schema]:
    invalid = _response(_ref("HTTPValidationError"), "Validation Error")
    predict = {
        "summary": "Predict",
        "description": "Run a single prediction on the model",
        "operationId": "predict_predictions_post",
        "requestBody": {"content": {"application/json": {"schema": _ref("PredictionRequest")}}},
        "responses": {"200": _response(_ref("PredictionResponse")), "422": invalid},
    }
    cancel = {
        "summary": "Cancel",
        "operationId": "cancel_predictions__prediction_id__cancel_post",
        "parameters": [{"required": True, "schema": _text("Prediction Id"), "name": "prediction_id", "in": "path"}],
        "responses": {"200": _response({}), "422": invalid},
    }
    health = {
        "summary": "Healthcheck",
        "operationId": "healthcheck_health_check_get",
        "responses": {"200": _response({})},
    }
    root = {"summary": "Root", "operationId": "root__get", "responses": {"200": _response({})}}
    return {
        "/": {"get": root},
        "/health-check": {"get": health},
        "/predictions": {"post": predict},
        "/predictions/{prediction_id}/cancel": {"post": cancel},
    }


def _ref(name: str) -> Schema:
    return {"$ref": REF + name}


def _text(label: str, **more: str) -> Schema:
    return {"title": label, "type": "string", **more}


def _object(label: str, properties: Schema, **more: Any) -> Schema:
    return {"title": label, "type": "object", "properties": properties, **more}


def _response(schema: Schema, description: str = "Successful Response") -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


if __name__ == "__main__":
    write_schema()
