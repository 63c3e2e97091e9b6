"""The page: its parts, and what happens when somebody uses them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import gradio as gr

from modules.webui.actions import Actions, Fill, Parts
from modules.webui.fields import component
from modules.webui.offered import FIRST, Offered
from modules.webui.results import PEAK, SECONDS, SHARE, STAGE
from modules.webui.runs import Runs
from modules.webui.source import FINISH, IMAGE, INPAINT, TABS, TEXT

TITLE = "cog-flux-adetailer"
CSS = """
.gradio-container {max-width: 1500px !important}
#status {min-height: 4.5em}
#plan textarea {font-family: monospace; white-space: pre; overflow-x: auto}
footer, button[aria-label="Share"], button[title="Share"] {display: none !important}
"""
SYSTEM_FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
MONOSPACE_FONTS = ["ui-monospace", "Consolas", "monospace"]
HINTS = {
    IMAGE: "The prompt redraws the picture; *Prompt strength* says how much of it.",
    INPAINT: "Paint over what the prompt should replace.",
    FINISH: "The picture keeps its own pixels. Faces are found and repainted, then it is upscaled.",
}


def theme() -> gr.Theme:
    """Gradio's own, with the fonts of the system: others would be fetched from Google."""
    return gr.themes.Default(primary_hue="indigo", font=SYSTEM_FONTS, font_mono=MONOSPACE_FONTS)


class Page:
    """Makes the parts in the order in which they are seen, then connects them."""

    def __init__(self, runs: Runs, offered: Offered, fill: Fill) -> None:
        self._offered, self._plan = offered, runs.client.plan
        self.fields: dict[str, Any] = {}
        with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(600, 7200)) as self.blocks:
            # the browser's own, so nothing is hidden by the key; it has to be the same after a restart
            self.session = gr.BrowserState("", storage_key=f"{TITLE}-session", secret=TITLE)
            self.tab, self.run, self.entry = gr.State(TEXT), gr.State(""), gr.State("")
            gr.Markdown(f"### {runs.client.model}")
            with gr.Row():
                with gr.Column(scale=5, min_width=320):
                    self._sources()
                    self._form()
                with gr.Column(scale=6, min_width=320):
                    self._results()
            self._connect(Actions(runs, offered, fill, self._parts()))

    def _sources(self) -> None:
        with gr.Tabs(elem_id="tabs") as self.tabs:
            self.tab_items = [gr.Tab(title, id=title) for title in TABS]
            _, image, inpaint, finish = self.tab_items
            with image:
                self.image = _picture("image", HINTS[IMAGE])
            with inpaint:
                gr.Markdown(HINTS[INPAINT])
                self.editor = gr.ImageEditor(
                    type="pil",
                    show_label=False,
                    sources=("upload", "clipboard"),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(colors=["#ff3860"], color_mode="fixed", default_size=40),
                    format="png",
                    height=420,
                    elem_id="editor",
                )
            with finish:
                self.finish = _picture("finish", HINTS[FINISH])

    def _form(self) -> None:
        properties = self._offered.properties
        for name in FIRST[:2]:
            self._field(name)
        with gr.Row():
            # usable once the page knows its session and the run that goes on, which it would overwrite later
            self.generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=3, interactive=False)
            self.cancel = gr.Button("Cancel", variant="stop", elem_id="cancel", scale=1)
        self._field(FIRST[2])
        with gr.Row():
            for name in FIRST[3:]:
                self._field(name)
        self.groups = []
        for title, names in self._offered.groups.items():
            with gr.Accordion(title, open=False) as group:
                self.groups.append(group)
                for name in names:
                    self._field(name)
        with gr.Accordion("Fill the form from a picture", open=True):
            self.dropped = gr.File(
                label="Drop a picture that was made here or by a WebUI",
                file_types=["image", ".txt"],
                height=140,
                elem_id="dropped",
            )
            self.filled = gr.Markdown(elem_id="filled")
        assert self.fields.keys() <= properties.keys()

    def _field(self, name: str) -> None:
        if name in self._offered.properties:
            self.fields[name] = component(name, self._offered.properties[name])

    def _results(self) -> None:
        self.status = gr.Markdown("", elem_id="status")
        self.preview = gr.Image(
            label="Preview",
            type="filepath",
            interactive=False,
            visible=False,
            height=420,
            buttons=[],
            elem_id="preview",
        )
        self.gallery = gr.Gallery(
            label="Pictures", columns=2, height=480, object_fit="contain", preview=True, elem_id="pictures"
        )
        with gr.Row():
            self.again = gr.Button("Use again", size="sm", elem_id="again")
            self.file = gr.DownloadButton("Download", size="sm", elem_id="download")
        with gr.Tabs():
            with gr.Tab("Before and after"):
                self.slider = gr.ImageSlider(label="Before and after the detail pass", elem_id="slider", max_height=520)
            with gr.Tab("Detail pass"):
                self.boxes = gr.AnnotatedImage(label="What was found", elem_id="boxes", height=420)
                self.found = gr.Markdown(elem_id="found")
            with gr.Tab("Time and memory"):
                self.chart = gr.BarPlot(x=STAGE, y=SECONDS, sort=None, height=220, title="Seconds", elem_id="chart")
                self.table = gr.Dataframe(headers=[STAGE, SECONDS, SHARE, PEAK], interactive=False, elem_id="stages")
            with gr.Tab("Parameters"):
                self.parameters = gr.Textbox(
                    label="In the file", lines=6, interactive=False, buttons=["copy"], elem_id="parameters"
                )
            with gr.Tab("Memory plan"):
                gr.Textbox(self._plan, label="Memory plan", lines=16, interactive=False, elem_id="plan")
        self.history = gr.Gallery(
            label="History",
            columns=6,
            height=220,
            allow_preview=False,
            fit_columns=False,
            object_fit="cover",
            buttons=[],
            elem_id="history",
        )

    def _parts(self) -> Parts:
        here = {field.name: getattr(self, field.name) for field in fields(Parts)}
        return Parts(**{**here, "groups": tuple(self.groups)})

    def _connect(self, actions: Actions) -> None:
        parts, hidden = actions.parts, {"show_progress": "hidden", **PRIVATE}
        given = [self.tab, self.image, self.editor, self.finish, *self.fields.values()]
        for item in self.tab_items:
            item.select(_saying(str(item.id)), None, self.tab, queue=False, **hidden)
        watch = {"fn": actions.watch, "inputs": [self.session, self.run]}
        watch |= {"outputs": [self.preview, self.history, *parts.result]}
        watch |= {"show_progress_on": [self.status], "concurrency_limit": None, **PRIVATE}
        submit = {"fn": actions.submit, "inputs": [self.session, *given], "outputs": [self.run]}
        submit |= {"validator": actions.check, "concurrency_limit": 4, **hidden}
        triggers = [self.generate.click, self.fields["prompt"].submit]
        # before the other, after whose refusal nothing else is called
        gr.on(triggers, actions.explain, given, [self.status, *self.groups], queue=False, **hidden)
        gr.on(triggers, **submit).success(**watch)
        self.cancel.click(actions.cancel, self.run, None, queue=False, **PRIVATE)
        opened = [self.session, self.run, self.history, self.generate]
        self.blocks.load(actions.open, self.session, opened, **hidden).then(**watch)
        self.history.select(actions.select, self.session, parts.result, queue=False, **hidden)
        shown = [self.session, self.entry]
        self.gallery.select(actions.select_picture, shown, parts.details, queue=False, **hidden)
        self.again.click(actions.use_again, shown, parts.form, queue=False, **PRIVATE)
        self.dropped.upload(actions.use_file, self.dropped, [self.dropped, *parts.form], queue=False, **PRIVATE)


PRIVATE: dict[str, Any] = {"api_visibility": "private"}
"""Events are the page's own. The API is that of scripts/serve."""


def _picture(name: str, hint: str) -> gr.Image:
    gr.Markdown(hint)
    return gr.Image(
        show_label=False,
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        height=320,
        elem_id=f"source-{name}",
    )


def _saying(value: str) -> Callable[[], str]:
    return lambda: value


def static_folder(folder: Path) -> None:
    """Files in it are served as they are, in place of copies."""
    gr.set_static_paths([folder])
