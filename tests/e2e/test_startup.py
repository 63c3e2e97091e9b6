"""From process start to ready: what is imported when, and where the time goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from support.processes import Server

from backend.core.settings import ROOT
from backend.core.timeline import Timeline, process_began
from backend.core.timeline_export import ROW, write_timeline
from modules.app.environment import SPIN_COUNT
from modules.app.service import Service, since_launch

PHASES = ("environment", "torch", "imports", "plan", "stages", "models", "warm_up")
LIGHT_SECONDS = 1.0


def test_the_inputs_are_known_within_a_second_and_without_anything_heavy() -> None:
    """``import predict`` and the schema, the best of three because the machine may be busy. CPU time is what the
    import itself takes."""
    code = """
import sys, time
begin = time.process_time()
import predict
from backend.api.input_schema import PREDICTOR_FILE
from backend.api.openapi import openapi
openapi(PREDICTOR_FILE.read_text())
heavy = {"torch", "diffusers", "transformers", "ultralytics", "numpy", "PIL"} & set(sys.modules)
print(time.process_time() - begin, *heavy)
"""
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
        ).stdout.split()
        for _ in range(3)
    ]
    assert min(float(run[0]) for run in runs) < LIGHT_SECONDS
    assert [run[1:] for run in runs] == [[], [], []]


def test_the_module_that_starts_everything_brings_no_torch_by_itself() -> None:
    code = "import sys, modules.app.service; print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
        ).stdout
        == "set()\n"
    )


def test_a_process_knows_when_it_began() -> None:
    before = time.time()
    code = (
        "import time; from backend.core.timeline import process_began; print(time.time() - (time.perf_counter() - "
        "process_began()))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert before - 0.05 <= float(process.stdout) <= time.time()
    assert process_began(os.getppid()) <= process_began()


def test_what_went_before_the_first_span_is_counted() -> None:
    timeline = since_launch(served=True)
    timeline.passed("environment")
    with timeline.span("torch"):
        pass
    server, environment, torch = timeline.spans
    assert [span.name for span in timeline.spans] == ["server", "environment", "torch"]
    assert (
        server.start == 0
        and environment.start == pytest.approx(server.seconds)
        and torch.start >= environment.start + environment.seconds
    )
    assert timeline.seconds == pytest.approx(sum(span.seconds for span in timeline.spans), abs=0.05)
    assert [span.name for span in since_launch(served=False).spans] == []


def test_the_set_up_has_every_phase_and_each_model_and_stage_within(service: Service) -> None:
    spans = service.timeline.spans
    assert tuple(span.name for span in spans if span.depth == 0) == PHASES
    inner = {span.path for span in spans if span.depth == 1}
    assert {f"models.{name}" for name in service.models.names()} | {
        f"stages.{name}" for name in service.extensions.enabled
    } <= inner


def test_the_phases_are_written_as_a_trace_and_as_a_chart(service: Service, tmp_path: Path) -> None:
    write_timeline(service.timeline, tmp_path / "start.json")
    write_timeline(service.timeline, tmp_path / "start.png")
    events = json.loads((tmp_path / "start.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    phases = [span for span in spans if "." not in span["args"]["path"]]
    assert [span["name"] for span in phases] == list(PHASES)
    ends = [span["ts"] + span["dur"] for span in phases]
    assert [span["ts"] for span in phases[1:]] == pytest.approx(ends[:-1], abs=max(50_000, ends[-1] // 100)), "a gap"
    assert ends[-1] > phases[-1]["ts"]
    with Image.open(tmp_path / "start.png") as chart:
        assert chart.height > ROW * len(spans)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_server_prints_its_phases_and_gives_them_as_data(server: Server) -> None:
    log = server.log.read_text()
    (line,) = [line for line in log.splitlines() if "set-up as JSON: " in line]
    seconds = json.loads(json.loads(line)["fields"]["message"].partition("set-up as JSON: ")[2])
    for phase in ("server", *PHASES):
        assert phase in log
    assert [
        phase for phase in ("server", "environment", "torch", "models") if not seconds[f"{phase}.seconds"] > 0
    ] == []
    assert "adetailer" in log[log.index("extension  ") :]


def test_the_server_prints_which_techniques_are_applied(server: Server) -> None:
    log = server.log.read_text()
    assert "+ channels last: vae" in log and "- TensorFloat-32" in log


def test_spans_that_have_passed_have_a_place_in_metrics_and_table() -> None:
    timeline = Timeline(begin=time.perf_counter() - 2)
    timeline.passed("environment")
    assert timeline.metrics()["environment.seconds"] == pytest.approx(2, abs=0.9)
    assert timeline.table().splitlines()[1].startswith("environment")


def test_waiting_threads_leave_their_core_soon() -> None:
    """OpenMP itself tells what it goes by when torch loads it."""
    code = (
        "from backend.core.settings import Settings; from modules.app.service import start; "
        "start(Settings(model='embedded', device='cuda'))"
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment = {**kept, "OMP_DISPLAY_ENV": "verbose"}
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in process.stderr
