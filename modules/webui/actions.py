"""What happens when somebody uses the page: from values of components to runs, and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
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


Updates = dict[Any, Any]
"""New values by the component; those that are not named stay."""


@dataclass(frozen=True)
class Parts:
    """The components that actions change. ``entry`` holds the name of the run that is shown; ``groups`` are the folded
    parts of the form, ``fields`` its inputs by name."""

    session: gr.BrowserState
    run: gr.State
    entry: gr.State
    tab: gr.State
    tabs: gr.Tabs
    image: gr.Image
    groups: tuple[gr.Accordion, ...]
    fields: Mapping[str, Any]
    generate: gr.Button
    dropped: gr.File
    filled: gr.Markdown
    status: gr.Markdown
    preview: gr.Image
    gallery: gr.Gallery
    history: gr.Gallery
    file: gr.DownloadButton
    slider: gr.ImageSlider
    boxes: gr.AnnotatedImage
    found: gr.Markdown
    chart: gr.BarPlot
    table: gr.Dataframe
    parameters: gr.Textbox

    @property
    def details(self) -> list[Any]:
        """What shows one picture of a run."""
        return [self.slider, self.boxes, self.found, self.chart, self.table, self.parameters, self.file]

    @property
    def result(self) -> list[Any]:
        """What shows a run."""
        return [self.status, self.gallery, self.entry, *self.details]

    @property
    def form(self) -> list[Any]:
        """What the inputs of a run fill."""
        return [self.filled, self.tabs, self.tab, self.image, *self.fields.values()]


def as_updates(values: Updates) -> Updates:
    """The same, with every plain value as an update.

    Gradio 6.31 replaces a component by a new one at every update, also where it is skipped, and keeps that one for as
    long as the page is open if a plain value follows: 0.1 MiB a prediction.
    """
    return {
        part: value if isinstance(value, dict) and "__type__" in value else gr.update(value=value)
        for part, value in values.items()
    }


class Actions:
    """One for all users; what belongs to one comes from the page."""

    def __init__(self, runs: Runs, offered: Offered, fill: Fill, parts: Parts) -> None:
        self.runs, self.offered, self.fill, self.parts = runs, offered, fill, parts
        self.names = list(offered.form)

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

    def explain(self, tab: str, *values: Any) -> Updates:
        """The line of the status for a wrong input, and its group opened."""
        field, message = self._problem(tab, *values) or ("", "")
        groups = zip(self.parts.groups, self.offered.groups.values(), strict=True)
        opened = {group: gr.update(open=True) for group, names in groups if field in names}
        return as_updates({self.parts.status: f"**{field}**: {message}" if field else "", **opened})

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

    def submit(self, session: str, tab: str, *values: Any) -> Updates:
        """Queues a prediction; the page then knows the name of its run."""
        if not History.is_session(session):  # Enter in the prompt, before ``open`` has ended
            raise gr.Error("the page is still opening: try again", duration=10)
        try:
            return {self.parts.run: self.runs.submit(session, self.inputs(tab, *values)).name}
        except UserError as error:
            raise gr.Error(str(error), duration=10) from None

    def open(self, session: str) -> Updates:
        """What a page begins with: its session, the run that goes on, the history, and its button."""
        known = History.is_session(session)
        run = self.runs.latest(session) if known else None
        return {
            self.parts.session: session if known else History.new_session(),
            self.parts.run: run.name if run else "",
            self.parts.history: self._thumbnails(session) if known else [],
            self.parts.generate: gr.update(interactive=True),
        }

    def cancel(self, name: str) -> None:
        if run := self.runs.find(name):
            run.cancellation.cancel()

    async def watch(self, session: str, name: str, progress: gr.Progress = gr.Progress()) -> AsyncIterator[Updates]:  # noqa: B008
        """The updates of the result while the run goes on, and at its end."""
        run = self.runs.find(name)
        if run is None:  # none was begun, or it has ended before the page asked
            entry = self.runs.history.entry(session, name)
            # outputs of a generator that yields nothing would be emptied
            yield self._ended(session, entry, "") if entry else self._nothing_new
            return
        seen: tuple[str, Path | None] = ("", None)
        while not run.finished:
            if run.total:
                progress((run.done, run.total), desc=self._told(run), unit="steps")
            # the bar lies over the status and says the same
            now = ("" if run.total else self._told(run), run.preview_file)
            if now != seen:
                seen = now
                yield as_updates({self.parts.status: now[0], **self._previewed(now[1])})
            await asyncio.sleep(LOOK_SECONDS)
        yield self._ended(session, self.runs.entry(run), run.error)

    def _previewed(self, file: Path | None) -> Updates:
        """The preview in place of the gallery, once there is one."""
        if file is None:
            return {}
        preview = gr.update(value=str(file), visible=True)
        return {self.parts.preview: preview, self.parts.gallery: gr.update(visible=False)}

    def _ended(self, session: str, entry: Entry | None, error: str) -> Updates:
        """The updates at the end of a run; ``error`` counts where it has left nothing."""
        shown: Updates = {self.parts.status: error, self.parts.gallery: gr.update(visible=True)}
        if entry:
            shown = shown | {self.parts.status: headline(entry)}
        if entry and entry.pictures:
            shown = shown | self._result(entry)
        hidden = gr.update(value=None, visible=False)
        return as_updates({**shown, self.parts.preview: hidden, self.parts.history: self._thumbnails(session)})

    def _told(self, run: Run) -> str:
        if run.state != RUNNING:
            before = self.runs.before(run)
            return f"Waiting, {before} before it" if before else "Beginning"
        left = self.runs.seconds_left(run)
        estimate = f", about {left:.0f} s left" if left is not None else ""
        return f"{run.stage or 'inputs'}{estimate}"

    def _thumbnails(self, session: str) -> list[str]:
        return [str(entry.thumbnail) for entry in self.runs.history.entries(session)]

    def select(self, session: str, event: gr.SelectData) -> Updates:
        """Shows a run of the history."""
        entries = self.runs.history.entries(session)
        if event.index >= len(entries):  # the list in another tab is older
            return self._nothing_new
        return as_updates(self._result(entries[event.index]))

    def select_picture(self, session: str, name: str, event: gr.SelectData) -> Updates:
        """Shows the details of one picture of the run."""
        entry = self.runs.history.entry(session, name)
        if entry is None or event.index >= len(entry.pictures):
            return {self.parts.found: gr.skip()}
        return as_updates(self._details(entry, details(entry, event.index)))

    @property
    def _nothing_new(self) -> Updates:
        """Of outputs among which is the status. Gradio takes no empty dictionary."""
        return {self.parts.status: gr.skip()}

    def _result(self, entry: Entry) -> Updates:
        pictures = gr.update(value=[str(file) for file in entry.pictures], selected_index=0, visible=True)
        return {
            self.parts.status: headline(entry),
            self.parts.gallery: pictures,
            self.parts.entry: entry.name,
            **self._details(entry, details(entry, 0)),
        }

    def _details(self, entry: Entry, known: Details) -> Updates:
        rows = stage_rows(entry.record["metrics"])
        stages = [(row[0], row[1]) for row in rows if not str(row[0]).startswith("\u2003")]
        chart = gr.update(value=pd.DataFrame(stages, columns=[STAGE, SECONDS]), sort=[name for name, _ in stages])
        return {
            self.parts.slider: known.before,
            self.parts.boxes: known.boxes,
            self.parts.found: known.found,
            self.parts.chart: chart,
            self.parts.table: rows,
            self.parts.parameters: known.parameters,
            self.parts.file: str(known.file),
        }

    def use_again(self, session: str, name: str) -> Updates:
        """Fills the form with the inputs of a run."""
        entry = self.runs.history.entry(session, name)
        if entry is None:
            return as_updates({self.parts.filled: "There is no run to use again."})
        inputs = {
            name: entry.folder / value if isinstance(value, str) and value.startswith(f"input-{name}") else value
            for name, value in entry.record["inputs"].items()
        }
        return as_updates(self._filled(inputs, "The form is filled with the inputs of this run."))

    def use_file(self, file: str) -> Updates:
        """Fills the form from what a picture says of itself, and makes room for another one."""
        try:
            inputs, notices = self.fill(Path(file))
        except UserError as error:
            return as_updates({self.parts.dropped: None, self.parts.filled: f"**{error}**"})
        lines = [f"The form is filled from {Path(file).name}.", *(f"- {notice}" for notice in notices)]
        return as_updates({self.parts.dropped: None, **self._filled(inputs, "\n".join(lines))})

    def _filled(self, inputs: dict[str, Any], text: str) -> Updates:
        properties, image = self.offered.properties, inputs.get("image")
        tab = TEXT if image is None else FINISH if inputs.get("prompt_strength") == 0 else IMAGE
        fields = {field: shown(properties[name], inputs.get(name)) for name, field in self.parts.fields.items()}
        return {
            self.parts.filled: text,
            self.parts.tabs: gr.update(selected=tab),
            self.parts.tab: tab,
            self.parts.image: image and str(image),
            **fields,
        }


SOURCE_PARTS = (IMAGE, INPAINT, FINISH)
"""The components that hold the pictures of the tabs, by the tab."""
SOURCE_INPUTS = ("image", "mask")
