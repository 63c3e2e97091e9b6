"""The gateway: its routes, and how it starts and ends."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from backend.api.input_schema import InputSchema
from backend.api.openapi import openapi
from backend.core.errors import InputError
from modules.gateway.bodies import Bodies
from modules.gateway.cog_server import CogOptions
from modules.gateway.envelope import check_id, envelope_of
from modules.gateway.fetcher import Fetcher
from modules.gateway.folders import PredictionFolders
from modules.gateway.inputs import InputValidator
from modules.gateway.memory import give_back
from modules.gateway.predictions import Answer, Predictions, Running
from modules.gateway.refusal import Refusal, Unavailable
from modules.gateway.supervisor import BUSY, Supervisor
from modules.gateway.webhooks import Webhooks

logger = logging.getLogger(__name__)

IDLE_SECONDS = 10.0
"""For the headers of a request, and between two requests on one connection."""
CANCEL_SECONDS = 10.0
"""At the end, for the predictions that are cancelled and for the last webhooks."""
RETRY_STARTING = 5
_PASSED_ON = ("traceparent", "tracestate")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class GatewayOptions:
    """``grace_seconds`` is how long predictions may go on after SIGTERM; after ``stall_seconds`` without progress Cog's
    server is started again; ``private`` allows pictures from private networks."""

    cog: CogOptions
    grace_seconds: float
    stall_seconds: float
    private: bool = False


class Gateway:
    """One listening socket, one Cog server behind it."""

    def __init__(self, options: GatewayOptions, scratch: Path) -> None:
        self._options = options
        source = options.cog.predictor.read_text()
        self._openapi = json.dumps(openapi(source))
        self._bodies, self._webhooks = Bodies(), Webhooks()
        self._folders = PredictionFolders()
        schema = InputSchema(source)
        self._predictions = Predictions(options.cog.slots, self._webhooks, self._folders, schema.secrets)
        self._inputs = InputValidator(schema, Fetcher(options.private), scratch)
        self._supervisor = Supervisor(options.cog, scratch, self._predictions, self._inputs, options.stall_seconds)
        self._closing = False

    async def serve(self, listener: socket.socket) -> None:
        """Until SIGTERM or SIGINT. Raises :class:`modules.gateway.supervisor.SetupFailedError`, and
        :class:`backend.core.errors.UserError` where Cog's folder cannot be used."""
        self._folders.prepare()
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        supervisor = asyncio.create_task(self._supervisor.run())
        logging.getLogger("aiohttp.server").addFilter(_is_ours)
        runner = web.AppRunner(
            self._app(), access_log=None, handler_cancellation=True, keepalive_timeout=IDLE_SECONDS, shutdown_timeout=1
        )
        await self._webhooks.start()
        await self._predictions.start()
        await runner.setup()
        await web.SockSite(runner, listener, backlog=512).start()
        stop = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({supervisor, stop}, return_when=asyncio.FIRST_COMPLETED)
            await self._finish()
        finally:
            stop.cancel()
            supervisor.cancel()
            await asyncio.wait({supervisor})
            await runner.cleanup()
            await self._predictions.stop()
        if not supervisor.cancelled():
            supervisor.result()

    async def _finish(self) -> None:
        """Lets what runs come to its end within the grace period, cancels the rest, and sends the last webhooks."""
        self._closing = True
        running = {one.task for one in self._predictions.running.values()}
        if running and self._supervisor.ready:
            await asyncio.wait(running, timeout=self._options.grace_seconds)
            for prediction in list(self._predictions.running):
                self._predictions.cancel(prediction)
            await asyncio.wait(running, timeout=CANCEL_SECONDS)
        await self._webhooks.stop(CANCEL_SECONDS)

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[_answers_problems])
        app.router.add_get("/", self._root)
        app.router.add_get("/health-check", self._health)
        app.router.add_get("/openapi.json", self._schema)
        app.router.add_post("/predictions", self._predict)
        app.router.add_put("/predictions/{id}", self._predict)
        app.router.add_post("/predictions/{id}/cancel", self._cancel)
        return app

    async def _root(self, request: web.Request) -> web.Response:
        paths = {
            "openapi_url": "/openapi.json",
            "healthcheck_url": "/health-check",
            "predictions_url": "/predictions",
            "predictions_idempotent_url": "/predictions/{prediction_id}",
            "predictions_cancel_url": "/predictions/{prediction_id}/cancel",
        }
        version = self._supervisor.health.get("version", {}).get("python_sdk", "")
        return web.json_response({"cog_version": version, **paths})

    async def _schema(self, request: web.Request) -> web.Response:
        return web.Response(text=self._openapi, content_type="application/json")

    async def _health(self, request: web.Request) -> web.Response:
        """Cog's answer, and what only the gateway knows."""
        health, running = self._supervisor.health, len(self._predictions.running)
        status = health["status"] if not self._supervisor.ready else BUSY if self._full() else "READY"
        own = {
            "predictions": {"running": running, "limit": self._predictions.limit},
            "seconds_without_progress": round(self._supervisor.silent_seconds(), 1),
            "restarts": self._supervisor.restarts,
        }
        return web.json_response({**health, "status": status, **own})

    def _full(self) -> bool:
        return len(self._predictions.running) >= self._predictions.limit

    async def _predict(self, request: web.Request) -> web.StreamResponse:
        path_id = request.match_info.get("id", "")
        if path_id:
            check_id(path_id, ("path", "id"))
        if "text/event-stream" in request.headers.get("Accept", ""):
            raise Refusal(
                406, "there are no streamed answers; leave out Accept: text/event-stream", ("header", "Accept")
            )
        begun = await self._begin(request, path_id)
        give_back()
        if isinstance(begun, Answer):
            return _response(begun)
        if _responds_async(request):
            return web.json_response({"id": begun.id, "status": "starting"}, status=202)
        return _response(await self._awaited(begun))

    async def _begin(self, request: web.Request, path_id: str) -> Running | Answer:
        """The prediction that the request asks for, or the state of one that runs already."""
        async with self._bodies.json(request) as body:
            envelope = envelope_of(body, path_id)
            known = self._predictions.running.get(path_id)
            if known is not None:  # a PUT that is sent again
                return await self._predictions.state(known)
            self._check_ready()
            self._predictions.check_room()
            inputs = await self._inputs.validated(envelope.inputs)
            self._check_ready()
            headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
            return self._predictions.begin(envelope, inputs, headers)

    def _check_ready(self) -> None:
        if self._closing:
            raise Unavailable(503, "The server is ending; send the request to another one, or later", RETRY_STARTING)
        if not self._supervisor.ready:
            raise Unavailable(503, "Setup has not finished yet", RETRY_STARTING)

    async def _awaited(self, prediction: Running) -> Answer:
        """The answer; a client that goes away cancels the prediction."""
        try:
            return await asyncio.shield(prediction.task)
        except asyncio.CancelledError:
            self._predictions.cancel(prediction.id)
            raise

    async def _cancel(self, request: web.Request) -> web.Response:
        found = self._predictions.cancel(check_id(request.match_info["id"], ("path", "id")))
        return web.json_response({}, status=200 if found else 404)


@web.middleware
async def _answers_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals as JSON, and the same form for paths and methods that do not exist."""
    try:
        return await handler(request)
    except (Refusal, Unavailable) as problem:
        response = problem.response()
    except InputError as error:
        response = Refusal.of_input(error).response()
    except web.HTTPException as error:
        response = Refusal(error.status, error.reason, ("path",)).response()
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
    give_back()  # only now: an error keeps what it is about
    return response


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a record of aiohttp is not about a request that is no HTTP, which it answers with 400."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _responds_async(request: web.Request) -> bool:
    """By RFC 7240: names of any case, which may have parameters, in one header or several."""
    preferences = ",".join(request.headers.getall("Prefer", [])).split(",")
    return any(re.split("[;=]", one)[0].strip().lower() == "respond-async" for one in preferences)


def _response(answer: Answer) -> web.Response:
    response = web.Response(body=answer.content, status=answer.status, content_type=answer.content_type)
    if answer.status in (409, 503):
        response.headers["Retry-After"] = str(RETRY_STARTING)
    return response
