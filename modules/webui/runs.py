"""Predictions of all users in their turn, in one thread, whoever looks on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from backend.core.cancellation import Canceled, Cancellation
from backend.core.errors import InputError, UserError
from modules.webui.client import Drawn, Start
from modules.webui.history import (
    CANCELED,
    FAILED,
    RUNNING,
    SUCCEEDED,
    WAITING,
    Entry,
    History,
    keep_pictures,
    write_record,
    write_thumbnail,
)

MOST_WAITING = 16
"""Runs that may run or wait."""
PREVIEW_SECONDS = 0.4
"""Between two previews."""
PREVIEW_SIDE = 384


@dataclass
class Run:
    """One prediction while it waits and runs. Its thread writes, and the page reads."""

    session: str
    folder: Path
    inputs: Mapping[str, Any]
    state: str = WAITING
    stage: str = ""
    done: int = 0
    total: int = 0
    error: str = ""
    preview_file: Path | None = None
    arrived: float = field(default_factory=time.time)
    stage_began: float = 0.0
    cancellation: Cancellation = field(default_factory=Cancellation)
    _previewed: float = 0.0
    _previews: list[Path] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def finished(self) -> bool:
        return self.state not in (WAITING, RUNNING)

    def check(self) -> None:
        self.cancellation.check()

    def progress(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.stage, self.stage_began = stage, time.monotonic()
        self.done, self.total = done, total

    def wants_preview(self) -> bool:
        return time.monotonic() - self._previewed >= PREVIEW_SECONDS

    def preview(self, pictures: list[Image.Image]) -> None:
        """Shows the pictures side by side. Every preview has a name of its own, else the browser shows the last one."""
        width, height = pictures[0].size
        sheet = Image.new("RGB", (width * len(pictures), height))
        for number, picture in enumerate(pictures):
            sheet.paste(picture, (number * width, 0))
        factor = max(1, PREVIEW_SIDE // max(width, height))
        large = sheet.resize((sheet.width * factor, sheet.height * factor), Image.Resampling.BICUBIC)
        file = self.folder / f"preview-{time.monotonic_ns()}.webp"
        large.save(file, quality=80)
        self.preview_file, self._previewed = file, time.monotonic()
        self._previews.append(file)

    def forget_previews(self) -> None:
        """Not earlier: the last ones may be on their way to the browser."""
        self.preview_file = None
        for file in self._previews:
            file.unlink(missing_ok=True)


class Runs:
    """Everything that was asked for and has not finished. ``start`` makes the client, in the thread that computes."""

    def __init__(self, start: Start, history: History) -> None:
        self._thread = ThreadPoolExecutor(1, "predictions")
        self.client = self._thread.submit(start).result()
        self.history = history
        self._lock = Lock()
        self._runs: list[Run] = []
        self._stage_seconds: dict[str, float] = {}

    def submit(self, session: str, inputs: Mapping[str, Any]) -> Run:
        """Queues a prediction. Raises :class:`UserError` where too many wait, and :class:`InputError` for a picture
        that is gone."""
        with self._lock:
            if len(self._runs) >= MOST_WAITING:
                raise UserError(f"{MOST_WAITING} predictions run or wait already; try again in a minute")
            folder = self.history.new_run(session)
            try:
                run = Run(session, folder, keep_pictures(inputs, folder))
            except InputError:
                shutil.rmtree(folder)
                raise
            self._runs.append(run)
        self._thread.submit(self._compute, run)
        return run

    def find(self, name: object) -> Run | None:
        """An unfinished run by its name."""
        return next((run for run in self._runs if run.name == name), None)

    def latest(self, session: str) -> Run | None:
        """The unfinished run that a session began last."""
        return next((run for run in reversed(self._runs) if run.session == session), None)

    def before(self, run: Run) -> int:
        """How many are computed before it."""
        with self._lock:
            return self._runs.index(run) if run in self._runs else 0

    def seconds_left(self, run: Run) -> float | None:
        """The rest of the stage at its own pace, and the stages that follow as long as they took last time. None while
        nothing is known."""
        if not run.done or run.total <= run.done:
            return None
        left = (time.monotonic() - run.stage_began) / run.done * (run.total - run.done)
        stages = list(self._stage_seconds)
        following = stages[stages.index(run.stage) + 1 :] if run.stage in stages else []
        return left + sum(self._stage_seconds[name] for name in following)

    def close(self) -> None:
        """Cancels everything and waits for its end."""
        for run in list(self._runs):
            run.cancellation.cancel()
        self._thread.shutdown()
        self.client.close()

    def _compute(self, run: Run) -> None:
        drawn, began = Drawn([], [], {}), time.time()
        try:
            run.check()
            run.state = RUNNING
            drawn = self.client.predict(run.inputs, run.folder, run)
            self._stage_seconds = _stages(drawn.metrics)
            write_thumbnail(drawn.pictures[0], run.folder)
            state = SUCCEEDED
        except Canceled:
            state = CANCELED
        except UserError as error:
            state, run.error = FAILED, str(error)
        except BaseException as error:
            state, run.error = FAILED, f"an error of the program ({type(error).__name__}); its log says more"
            raise
        finally:
            self._finish(run, state, drawn, began)

    def _finish(self, run: Run, state: str, drawn: Drawn, began: float) -> None:
        secrets = self.client.schema.secrets
        record = {
            "state": state,
            "error": run.error,
            "inputs": {name: value for name, value in run.inputs.items() if name not in secrets},
            "pictures": drawn.pictures,
            "before": drawn.before,
            "metrics": drawn.metrics,
            "began": began,
            "seconds": round(time.time() - began, 2),
            "model": self.client.model,
        }
        run.forget_previews()
        write_record(run.folder, record)
        with self._lock:
            run.state = state
            self._runs.remove(run)

    def entry(self, run: Run) -> Entry | None:
        """What is on the disk of a finished run."""
        return self.history.entry(run.session, run.name)


def _stages(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The seconds of the stages, in order, without their parts."""
    return {
        name.removesuffix(".seconds"): value
        for name, value in metrics.items()
        if name.endswith(".seconds") and name.count(".") == 1
    }
