"""Answers to requests that are not passed on, in the forms that Cog's server uses."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from backend.core.errors import InputError

MAX_NAME = 100
"""Characters of a client's own name that are shown."""


class Refusal(Exception):
    """A request that is not passed on. ``where`` is the place of the problem, such as ``("body", "input", "width")``;
    ``close`` ends the connection after the answer."""

    def __init__(self, status: int, problem: str, where: Sequence[str] = ("body",), close: bool = False) -> None:
        super().__init__(problem)
        self.status, self.problem, self.where, self.close = status, problem, tuple(where), close

    @classmethod
    def of_input(cls, error: InputError) -> Refusal:
        return cls(422, error.problem, ("body", "input", error.field) if error.field else ("body", "input"))

    def response(self) -> web.Response:
        where = [part[:MAX_NAME] for part in self.where]
        detail = [{"loc": where, "msg": self.problem, "type": "value_error"}]
        response = web.json_response({"detail": detail}, status=self.status)
        if self.close:
            response.force_close()
        return response


class Unavailable(Exception):
    """A request that may be sent again after ``seconds``: 409 where the queue is full, 503 where nothing is ready."""

    def __init__(self, status: int, problem: str, seconds: float) -> None:
        super().__init__(problem)
        self.status, self.problem, self.seconds = status, problem, max(1, round(seconds))

    def response(self) -> web.Response:
        body = {"error": self.problem, "status": "failed"}
        return web.json_response(body, status=self.status, headers={"Retry-After": str(self.seconds)})
