"""What happens when somebody uses the page: from values of components to runs, and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from backend.core.errors import InputError, UserError
from modules.webui.fields import given, shown
from modules.webui.history import RUNNING, Entry, History
from modules.webui.offered import Offered
from modules.webui.results import SECONDS, STAGE, Details, details, headline, stage_rows
from modules.webui.runs import Run, Runs
from modules.webui.source import FINISH, IMAGE, INPAINT, TEXT, source_inputs

Fill = Callable[[Path], tuple[dict[str, Any], list[str]]]
"""From a picture to the inputs that made it, and what could not be honoured. Raises :class:`UserError`."""
LOOK_SECONDS = 0.15
"""Between two looks at a run."""
SOURCES = 3
"""Components before those of the form: the pictures of the tabs."""


class Actions:
    """One for all users; what belongs to one comes from the page."""

    def __init__(self, runs: Runs, offered: Offered, fill: Fill) -> None:
        self.runs, self.offered, self.fill = runs, offered, fill
        self.names = list(offered.form)
        self._nothing_new = (gr.skip(),) * 9

    def inputs(self, tab: str, *values: Any) -> dict[str, Any]:
        """The inputs that the page holds. Raises :class:`InputError`."""
        pairs = zip(self.names, values[SOURCES:], strict=True)
        inputs = {name: given(self.runs.client.schema, name, value) for name, value in pairs}
        inputs |= source_inputs(tab, *values[:SOURCES])
        return {name: value for name, value in inputs.items() if value is not None}

    def check(self, session: str, tab: str, *values: Any) -> list[dict[str, Any]]:
        """For every component that is sent whether it is right; a wrong one gets its line."""
        places = ["session", "tab", *SOURCE_PARTS, *self.names]
        field, message = self._problem(tab, *values) or ("", "")
        place = tab if field in SOURCE_INPUTS and field not in self.names else field
        return [gr.validate(one != place, message * (one == place)) for one in places]

    def explain(self, tab: str, *values: Any) -> list[Any]:
        """The line of the status for a wrong input, and its group opened."""
        field, message = self._problem(tab, *values) or ("", "")
        opened = [gr.update(open=True) if field in names else gr.skip() for names in self.offered.groups.values()]
        return [f"**{field}**: {message}" if field else "", *opened]

    def _problem(self, tab: str, *values: Any) -> tuple[str, str] | None:
        client = self.runs.client
        try:
            inputs = self.inputs(tab, *values)
            inputs.setdefault("prompt", "")
            if client.checks:
                client.checks.request(inputs)
            else:
                client.schema.validate(inputs)
        except InputError as error:
            return error.field, error.problem
        return None

    def submit(self, session: str, tab: str, *values: Any) -> tuple[str, str]:
        """Queues a prediction; returns the session and the name of the run."""
        if not History.is_session(session):  # Enter in the prompt, before ``open`` has ended
            raise gr.Error("the page is still opening: try again", duration=10)
        try:
            return session, self.runs.submit(session, self.inputs(tab, *values)).name
        except UserError as error:
            raise gr.Error(str(error), duration=10) from None

    def open(self, session: str) -> tuple[str, str, list[str], dict[str, Any]]:
        """What a page begins with: its session, the run that goes on, the history, and its button."""
        usable = gr.update(interactive=True)
        if not History.is_session(session):
            return History.new_session(), "", [], usable
        run = self.runs.latest(session)
        return session, run.name if run else "", self._thumbnails(session), usable

    def cancel(self, name: str) -> None:
        if run := self.runs.find(name):
            run.cancellation.cancel()

    async def watch(self, session: str, name: str, progress: gr.Progress = gr.Progress()) -> AsyncIterator[Any]:  # noqa: B008
        """The updates of the result while the run goes on, and at its end."""
        run = self.runs.find(name)
        if run is None:  # none was begun, or it has ended before the page asked
            entry = self.runs.history.entry(session, name)
            # outputs of a generator that yields nothing would be emptied
            yield self._ended(session, entry, "") if entry else (gr.skip(),) * 3 + self._nothing_new
            return
        seen: tuple[str, Path | None] = ("", None)
        while not run.finished:
            if run.total:
                progress((run.done, run.total), desc=self._told(run), unit="steps")
            # the bar lies over the status and says the same
            now = ("" if run.total else self._told(run), run.preview_file)
            if now != seen:
                seen = now
                yield (now[0], *_preview(now[1]), *self._nothing_new[1:])
            await asyncio.sleep(LOOK_SECONDS)
        yield self._ended(session, self.runs.entry(run), run.error)

    def _ended(self, session: str, entry: Entry | None, error: str) -> tuple[Any, ...]:
        """The updates at the end of a run; ``error`` counts where it has left nothing."""
        result = (gr.update(visible=True), *self._nothing_new[1:])
        if entry and entry.pictures:
            result = self._result(entry)
        text = headline(entry) if entry else error
        return (text, gr.update(value=None, visible=False), self._thumbnails(session), *result)

    def _told(self, run: Run) -> str:
        if run.state != RUNNING:
            before = self.runs.before(run)
            return f"Waiting, {before} before it" if before else "Beginning"
        left = self.runs.seconds_left(run)
        estimate = f", about {left:.0f} s left" if left is not None else ""
        return f"{run.stage or 'inputs'}{estimate}"

    def _thumbnails(self, session: str) -> list[str]:
        return [str(entry.thumbnail) for entry in self.runs.history.entries(session)]

    def select(self, session: str, event: gr.SelectData) -> tuple[Any, ...]:
        """Shows a run of the history."""
        entries = self.runs.history.entries(session)
        if event.index >= len(entries):  # the list in another tab is older
            return (gr.skip(), *self._nothing_new)
        entry = entries[event.index]
        return (headline(entry), *self._result(entry))

    def select_picture(self, session: str, name: str, event: gr.SelectData) -> tuple[Any, ...]:
        """Shows the details of one picture of the run."""
        entry = self.runs.history.entry(session, name)
        if entry is None or event.index >= len(entry.pictures):
            return self._nothing_new[2:]
        return self._details(entry, details(entry, event.index))

    def _result(self, entry: Entry) -> tuple[Any, ...]:
        pictures = gr.update(value=[str(file) for file in entry.pictures], selected_index=0, visible=True)
        return (pictures, entry.name, *self._details(entry, details(entry, 0)))

    def _details(self, entry: Entry, known: Details) -> tuple[Any, ...]:
        rows = stage_rows(entry.record["metrics"])
        stages = [(row[0], row[1]) for row in rows if not str(row[0]).startswith("\u2003")]
        chart = gr.update(value=pd.DataFrame(stages, columns=[STAGE, SECONDS]), sort=[name for name, _ in stages])
        return (known.before, known.boxes, known.found, chart, rows, known.parameters, str(known.file))

    def use_again(self, session: str, name: str) -> tuple[Any, ...]:
        """Fills the form with the inputs of a run."""
        entry = self.runs.history.entry(session, name)
        if entry is None:
            return ("There is no run to use again.", gr.skip(), gr.skip(), gr.skip(), *self._unchanged)
        inputs = {
            name: entry.folder / value if isinstance(value, str) and value.startswith(f"input-{name}") else value
            for name, value in entry.record["inputs"].items()
        }
        return self._fill(inputs, "The form is filled with the inputs of this run.")

    def use_file(self, file: str) -> tuple[Any, ...]:
        """Fills the form from what a picture says of itself, and makes room for another one."""
        try:
            inputs, notices = self.fill(Path(file))
        except UserError as error:
            return (None, f"**{error}**", gr.skip(), gr.skip(), gr.skip(), *self._unchanged)
        lines = [f"The form is filled from {Path(file).name}.", *(f"- {notice}" for notice in notices)]
        return (None, *self._fill(inputs, "\n".join(lines)))

    def _fill(self, inputs: dict[str, Any], text: str) -> tuple[Any, ...]:
        properties = self.offered.properties
        values = [shown(properties[name], inputs.get(name)) for name in self.names]
        image = inputs.get("image")
        tab = TEXT if image is None else FINISH if inputs.get("prompt_strength") == 0 else IMAGE
        return (text, gr.update(selected=tab), tab, image and str(image), *values)

    @property
    def _unchanged(self) -> list[Any]:
        return [gr.skip()] * len(self.names)


def _preview(file: Path | None) -> tuple[Any, ...]:
    """The preview in place of the gallery, once there is one; the history stays."""
    if file is None:
        return (gr.skip(), gr.skip(), gr.skip())
    return (gr.update(value=str(file), visible=True), gr.skip(), gr.update(visible=False))


SOURCE_PARTS = (IMAGE, INPAINT, FINISH)
"""The components that hold the pictures of the tabs, by the tab."""
SOURCE_INPUTS = ("image", "mask")
