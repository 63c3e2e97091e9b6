"""The predictions that Cog's server computes or that wait for it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from modules.gateway.envelope import Envelope
from modules.gateway.folders import PredictionFolders
from modules.gateway.refusal import Unavailable
from modules.gateway.webhooks import Webhooks

logger = logging.getLogger(__name__)

SLOT_SECONDS = 10.0
"""Cog's server frees a slot a moment after its answer. For so long it is asked again."""
MAX_ERROR_BYTES = 1_000_000
_DEAD = ("Worker crashed", "Failed to send request")
"""Begin of the errors with which Cog's server says that its worker has died."""
ENDED = "The process that computes has ended and is started again; send the request again"


@dataclass(frozen=True)
class Answer:
    """What a client gets."""

    status: int
    content: bytes
    content_type: str = "application/json"


@dataclass
class Running:
    """A prediction in Cog's server. ``task`` ends with its answer."""

    id: str
    began: float = field(default_factory=time.monotonic)
    task: asyncio.Task[Answer] = field(init=False)


class Predictions:
    """Passes predictions on to Cog's server, as many at a time as it has slots, and knows when each ends.

    Cog's server is always asked to answer when the prediction has ended, also where the client does not wait for it.
    """

    def __init__(
        self, limit: int, webhooks: Webhooks, folders: PredictionFolders, secrets: Collection[str] = ()
    ) -> None:
        """``secrets`` are the inputs that no answer may repeat."""
        self.limit = limit
        self.url = ""
        """Of Cog's server."""
        self.last_seconds = 1.0
        """How long the last prediction took."""
        self.running: dict[str, Running] = {}
        self.worker_died = asyncio.Event()
        """Set by an answer that says so; the supervisor need not wait for its next look."""
        self._webhooks, self._folders, self._secrets = webhooks, folders, frozenset(secrets)

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=aiohttp.ClientTimeout(total=None)
        )

    async def stop(self) -> None:
        await self._session.close()

    def check_room(self) -> None:
        """Raises :class:`Unavailable` where as many predictions run and wait as may."""
        if len(self.running) >= self.limit:
            raise Unavailable(409, f"At capacity: {self.limit} predictions run or wait already", self.last_seconds)

    def begin(self, envelope: Envelope, inputs: Mapping[str, Any], headers: Mapping[str, str]) -> Running:
        """Raises :class:`Unavailable` where it cannot begin."""
        self.check_room()
        if envelope.id in self.running:
            raise Unavailable(409, "A prediction with this id is running", self.last_seconds)
        self._folders.make(envelope.id)
        body: dict[str, Any] = {"input": inputs}
        address = ""
        if envelope.webhook:
            address = self._webhooks.open(envelope.webhook, envelope.events)
            body |= {"webhook": address, "webhook_events_filter": envelope.events}
        prediction = self.running[envelope.id] = Running(envelope.id)
        prediction.task = asyncio.create_task(self._run(envelope.id, json.dumps(body).encode(), headers, address))
        return prediction

    def cancel(self, prediction: str) -> bool:
        """Whether there is such a prediction; it ends within one step."""
        if prediction not in self.running:
            return False
        self._folders.cancel(prediction)
        return True

    async def state(self, prediction: Running) -> Answer:
        """What Cog's server knows about a running prediction, or its answer."""
        with suppress(aiohttp.ClientError):  # the prediction's own answer says so
            while prediction.id in self.running:
                # without inputs: a prediction that has ended meanwhile is refused, and not begun anew
                async with self._session.put(f"{self.url}/predictions/{prediction.id}", json={}) as answer:
                    if answer.status == 202:
                        return Answer(202, _without(self._secrets, await answer.read()))
                await asyncio.sleep(0.02)
        return await asyncio.shield(prediction.task)

    async def _run(self, prediction: str, content: bytes, headers: Mapping[str, str], address: str) -> Answer:
        """The answer to the body ``content``; ``address`` is that of its webhook, "" where there is none."""
        began, failure = time.monotonic(), None
        try:
            answer = await self._ask(prediction, content, headers)
            self.last_seconds = time.monotonic() - began
            if answer.status != 200:  # a prediction that never began has no webhook
                failure = _failure(prediction, "Cog's server has refused the prediction")
        except (aiohttp.ClientError, OSError) as error:
            logger.warning("prediction %s: the connection to Cog's server broke (%s)", prediction, error)
            failure = _failure(prediction, ENDED)
            answer = Answer(503, json.dumps(failure).encode())
        finally:
            del self.running[prediction]
            self._folders.delete(prediction)
            if address:
                self._webhooks.close(address, failure)
        return answer

    async def _ask(self, prediction: str, content: bytes, headers: Mapping[str, str]) -> Answer:
        deadline = time.monotonic() + SLOT_SECONDS
        given = {**headers, "Content-Type": "application/json"}
        while True:
            async with self._session.put(
                f"{self.url}/predictions/{prediction}", data=content, headers=given
            ) as response:
                answer = Answer(response.status, await response.read(), response.content_type)
            if _says_dead(answer):
                self.worker_died.set()
                raise aiohttp.ServerDisconnectedError("its worker has died")
            if answer.status != 409 or time.monotonic() > deadline:
                return answer
            await asyncio.sleep(0.02)


def _without(names: Collection[str], state: bytes) -> bytes:
    """The state of a prediction without these inputs, which Cog's server repeats."""
    content = json.loads(state)
    content["input"] = {name: value for name, value in content.get("input", {}).items() if name not in names}
    return json.dumps(content).encode()


def _failure(prediction: str, error: str) -> dict[str, str]:
    return {"id": prediction, "status": "failed", "error": error, "logs": ""}


def _says_dead(answer: Answer) -> bool:
    if len(answer.content) > MAX_ERROR_BYTES or b'"error"' not in answer.content:
        return False
    error = json.loads(answer.content).get("error")
    return isinstance(error, str) and error.startswith(_DEAD)
