"""Predictions in their turn: one computes, the others wait in order, and each has its own files, metrics and context."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import pytest

from backend.core.cancellation import Check
from backend.core.errors import InputError
from modules.app import prediction_queue
from modules.app.prediction_queue import PredictionQueue
from modules.app.service import Report, Service
from modules.request.uploads import Uploads

CLIENT: ContextVar[str] = ContextVar("client")


class StepService:
    """In place of the real service: a prediction is as many steps as its inputs say, each a hundredth of a second."""

    def __init__(self, folder: Path) -> None:
        self.outputs, self.uploads = folder / "outputs", Uploads(folder / "uploads")
        self.outputs.mkdir()
        self.uploads.folder.mkdir()
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.threads: set[int] = set()
        self.clients: list[str] = []

    def predict_into(self, directory: Path, inputs: Mapping[str, Any], report: Report, check: Check) -> list[Path]:
        assert self.begun == self.ended, "two predictions compute at once"
        name = inputs["prompt"]
        self.begun.append(name)
        self.threads.add(threading.get_ident())
        self.clients.append(CLIENT.get("nobody"))
        try:
            for step in range(inputs.get("steps", 1)):
                time.sleep(0.01)
                report("steps", step + 1)
                check()
            if name == "broken":
                raise ValueError("broken")
            file = directory / "out-0.webp"
            file.write_text(name)
            return [file]
        finally:
            self.ended.append(name)


@pytest.fixture
def service(tmp_path: Path) -> StepService:
    return StepService(tmp_path)


@pytest.fixture
def queue(service: StepService) -> PredictionQueue:
    return PredictionQueue(lambda: cast(Service, service))


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


def nothing(name: str, value: float) -> None:
    """Takes the metrics that a test does not look at."""


async def until(condition: Callable[[], object]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never happened")


def test_they_compute_one_after_the_other_in_order_and_in_one_thread(
    queue: PredictionQueue, service: StepService
) -> None:
    names = [str(number) for number in range(8)]

    async def work() -> None:
        files = await asyncio.gather(*(queue.predict({"prompt": name}, nothing) for name in names))
        assert [file.read_text() for (file,) in files] == names

    run(work)
    assert service.begun == names and len(service.threads) == 1


def test_the_set_up_runs_in_the_thread_that_computes(service: StepService) -> None:
    def start() -> Service:
        service.threads.add(threading.get_ident())
        return cast(Service, service)

    async def work() -> None:
        await PredictionQueue(start).predict({"prompt": "one"}, nothing)

    run(work)
    assert len(service.threads) == 1


def test_each_says_how_long_it_waited_and_gets_its_own_metrics(queue: PredictionQueue) -> None:
    first: dict[str, float] = {}
    second: dict[str, float] = {}

    async def work() -> None:
        await asyncio.gather(
            queue.predict({"prompt": "first", "steps": 10}, first.__setitem__),
            queue.predict({"prompt": "second", "steps": 2}, second.__setitem__),
        )

    run(work)
    assert first["queue_seconds"] < second["queue_seconds"] and second["queue_seconds"] >= 0.1
    assert (first["steps"], second["steps"]) == (10, 2)


def test_each_computes_in_the_context_of_its_client(queue: PredictionQueue, service: StepService) -> None:
    """By which Cog's server knows whose logs and metrics it gets."""

    async def client(name: str) -> None:
        CLIENT.set(name)
        await queue.predict({"prompt": name}, nothing)

    async def work() -> None:
        await asyncio.gather(client("ann"), client("bob"))

    run(work)
    assert service.clients == ["ann", "bob"]


def test_a_waiting_one_is_canceled_at_once_and_never_begins(queue: PredictionQueue, service: StepService) -> None:
    async def work() -> None:
        running = asyncio.create_task(queue.predict({"prompt": "running", "steps": 50}, nothing))
        waiting = asyncio.create_task(queue.predict({"prompt": "waiting"}, nothing))
        await until(lambda: service.begun)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled() and not running.done()
        await running

    run(work)
    assert service.begun == ["running"]


def test_a_running_one_is_canceled_within_a_step_and_its_place_is_free_only_then(
    queue: PredictionQueue, service: StepService, caplog: pytest.LogCaptureFixture
) -> None:
    metrics: dict[str, float] = {}

    async def work() -> None:
        running = asyncio.create_task(queue.predict({"prompt": "running", "steps": 1000}, metrics.__setitem__))
        following = asyncio.create_task(queue.predict({"prompt": "following"}, nothing))
        await until(lambda: metrics.get("steps", 0) > 2)
        running.cancel()
        begin = time.monotonic()
        await asyncio.wait([running])
        assert running.cancelled() and time.monotonic() - begin < 1 and service.ended[0] == "running"
        await following

    run(work)
    gc.collect()  # only then asyncio complains of an error that nobody has looked at
    assert service.ended == ["running", "following"] and metrics["steps"] < 1000 and caplog.messages == []


def test_one_that_fails_stops_no_other(queue: PredictionQueue) -> None:
    async def work() -> None:
        broken, good = await asyncio.gather(
            queue.predict({"prompt": "broken"}, nothing),
            queue.predict({"prompt": "good"}, nothing),
            return_exceptions=True,
        )
        assert isinstance(broken, ValueError) and isinstance(good, list)

    run(work)


def test_each_keeps_its_files_until_it_ends_and_only_those(queue: PredictionQueue, service: StepService) -> None:
    def sent(name: str) -> Path:
        file = service.uploads.folder / name
        file.touch()
        return file

    async def work() -> None:
        first = asyncio.create_task(queue.predict({"prompt": "1", "image": sent("first"), "steps": 5}, nothing))
        second = asyncio.create_task(queue.predict({"prompt": "2", "image": sent("second"), "steps": 20}, nothing))
        third = asyncio.create_task(queue.predict({"prompt": "3", "image": sent("third")}, nothing))
        await first
        assert sorted(file.name for file in service.uploads.folder.iterdir()) == ["second", "third"]
        third.cancel()
        await asyncio.wait([third])
        assert [file.name for file in service.uploads.folder.iterdir()] == ["second"]
        await second

    run(work)
    assert list(service.uploads.folder.iterdir()) == []


def test_a_file_of_the_machine_is_refused_before_its_turn(queue: PredictionQueue, service: StepService) -> None:
    async def work() -> None:
        running = asyncio.create_task(queue.predict({"prompt": "running", "steps": 20}, nothing))
        await until(lambda: service.begun)
        with pytest.raises(InputError, match="^image: must be sent"):
            await queue.predict({"prompt": "x", "image": Path("/etc/hostname")}, nothing)
        assert not running.done() and Path("/etc/hostname").exists()
        await running

    run(work)


class TestOutputs:
    @pytest.fixture(autouse=True)
    def _not_for_a_minute(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(prediction_queue, "READ_SECONDS", 0.5)
        yield

    def test_they_stay_until_the_server_has_read_them(self, queue: PredictionQueue, service: StepService) -> None:
        async def work() -> None:
            (file,) = await queue.predict({"prompt": "picture"}, nothing)
            await asyncio.sleep(0.1)
            assert file.read_text() == "picture"
            await until(lambda: not list(service.outputs.iterdir()))

        begin = time.monotonic()
        run(work)
        assert time.monotonic() - begin < 0.5

    def test_they_are_deleted_also_when_nobody_reads_them(self, queue: PredictionQueue, service: StepService) -> None:
        async def work() -> None:
            await queue.predict({"prompt": "picture"}, nothing)
            await until(lambda: not list(service.outputs.iterdir()))

        run(work)

    @pytest.mark.parametrize("steps", [1, 1000])
    def test_nothing_is_left_of_a_canceled_one(self, queue: PredictionQueue, service: StepService, steps: int) -> None:
        """Also when the picture is finished before the cancel arrives."""

        async def work() -> None:
            canceled = asyncio.create_task(queue.predict({"prompt": "picture", "steps": steps}, nothing))
            await until(lambda: service.begun)
            time.sleep(0.05)  # blocks the loop: the prediction goes on meanwhile
            canceled.cancel()
            await asyncio.wait([canceled])
            await until(lambda: not list(service.outputs.iterdir()))

        run(work)
