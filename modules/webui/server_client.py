"""A running server, for the page: that of ``scripts/serve``, or Cog's own."""

from __future__ import annotations

import base64
import json
import mimetypes
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any

import requests

from backend.api.input_schema import InputSchema
from backend.core.cancellation import Canceled
from backend.core.errors import InputError, UserError
from modules.webui.client import Drawn, Watch

LOOK_SECONDS = 0.5
"""Between two looks at a prediction."""
ANSWER_SECONDS = 30
_PROGRESS = re.compile(r"^\s*\d+%\|.*\| (\d+)/(\d+) (\w+)\s*$", re.M)
_DATA_URL = re.compile(r"data:image/(\w+);base64,(.*)", re.S)
_REFUSALS = (400, 404, 409, 413, 415, 422, 503)


class ServerClient:
    """A :class:`modules.webui.client.Client` by HTTP. Raises :class:`UserError` where no server answers."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.schema = InputSchema()
        health = self._get("/health-check")
        offered = self._get("/openapi.json")["components"]["schemas"]["Input"]["properties"]
        if missing := self.schema.properties.keys() - offered.keys():
            raise UserError(f"--server: {url} has no inputs {', '.join(sorted(missing))}; it is of another version")
        logs = (health.get("setup") or {}).get("logs", "")
        self.plan = logs or "The server does not say."
        self.model = self.url

    @property
    def checks(self) -> None:
        """It is not known before the server is asked."""

    def predict(self, inputs: Mapping[str, Any], folder: Path, watch: Watch) -> Drawn:
        name = secrets.token_hex(12)
        body = {"input": {key: _sendable(value) for key, value in inputs.items()}}
        ended = Event()
        canceler = Thread(target=self._follow, args=(name, watch, ended), daemon=True)
        canceler.start()
        try:
            response = requests.put(f"{self.url}/predictions/{name}", json=body, timeout=None)
        except requests.RequestException as error:
            raise UserError(f"--server: the connection to {self.url} broke ({type(error).__name__})") from None
        finally:
            ended.set()
            canceler.join()
        watch.check()
        return self._drawn(response, folder)

    def close(self) -> None:
        """The server goes on."""

    def _get(self, path: str) -> dict[str, Any]:
        try:
            response = requests.get(f"{self.url}{path}", timeout=ANSWER_SECONDS)
            answer: dict[str, Any] = response.json()
        except (requests.RequestException, ValueError):
            raise UserError(f"--server: no Cog server answers at {self.url}") from None
        return answer

    def _follow(self, name: str, watch: Watch, ended: Event) -> None:
        """Tells the progress in the server's log, and passes a cancellation on."""
        while not ended.wait(LOOK_SECONDS):
            try:
                watch.check()
            except Canceled:
                requests.post(f"{self.url}/predictions/{name}/cancel", timeout=ANSWER_SECONDS)
                return
            # without inputs: a prediction that has ended meanwhile is not begun anew
            answer = requests.put(f"{self.url}/predictions/{name}", json={}, timeout=ANSWER_SECONDS)
            if answer.status_code == 202 and (lines := _PROGRESS.findall(answer.json().get("logs", ""))):
                done, total, stage = lines[-1]
                watch.progress(stage, int(done), int(total))

    @staticmethod
    def _drawn(response: requests.Response, folder: Path) -> Drawn:
        try:
            answer = response.json()
        except ValueError:
            raise UserError(f"--server: answers {response.status_code} without saying why") from None
        if response.status_code in _REFUSALS:
            raise _refusal(answer)
        if answer.get("status") == "canceled":
            raise Canceled
        if answer.get("status") != "succeeded":
            raise UserError(str(answer.get("error") or answer))
        pictures = [_written(url, folder / f"out-{number}") for number, url in enumerate(answer["output"])]
        return Drawn(pictures, [], answer.get("metrics") or {})


def _refusal(answer: Mapping[str, Any]) -> UserError:
    detail = answer.get("detail")
    if isinstance(detail, list) and detail:
        return InputError(str(detail[0]["loc"][-1]), str(detail[0]["msg"]))
    return UserError(str(detail or answer.get("error") or json.dumps(answer)))


def _sendable(value: Any) -> Any:
    if isinstance(value, list):
        return [_sendable(one) for one in value]
    if not isinstance(value, Path):
        return value
    kind = mimetypes.guess_type(value.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(value.read_bytes()).decode()}"


def _written(url: str, stem: Path) -> Path:
    """The picture of a ``data:`` URL, as a file beside ``stem``."""
    match = _DATA_URL.fullmatch(url)
    if match is None:
        raise UserError("--server: sends its pictures elsewhere; start it without --upload-url")
    file = stem.with_suffix(f".{match[1].replace('jpeg', 'jpg')}")
    file.write_bytes(base64.b64decode(match[2]))
    return file
