"""What the page shows of a run, from its files."""

from __future__ import annotations

from pathlib import Path

from modules.app.service import Service
from modules.webui.history import Entry
from modules.webui.results import details, headline, stage_rows

TWO_FACES = '{"ad_mask_k": 1, "ad_inpaint_width": 256, "ad_steps": 1, "ad_use_steps": true}'


def test_a_picture_tells_what_was_found_and_what_was_skipped(service: Service, tmp_path: Path) -> None:
    inputs = {
        "prompt": "two people: a man with a beard, a woman in a red shirt",
        "seed": 0,
        "num_inference_steps": 6,
        "adetailer_args": TWO_FACES,
    }
    folder = tmp_path / "run"
    folder.mkdir()
    metrics: dict[str, object] = {}
    (file,) = service.predict_into(folder, inputs, metrics.__setitem__)
    entry = Entry(folder, {"pictures": [file.name], "metrics": metrics, "seconds": 1.5, "model": "embedded"})
    known = details(entry, 0)
    assert known.before is None and "Steps: 6" in known.parameters
    assert known.boxes is not None
    _, boxes = known.boxes
    assert len(boxes) >= 2 and all(0 <= x1 < x2 <= 512 and 0 <= y1 < y2 <= 512 for (x1, y1, x2, y2), _ in boxes)
    assert sum(label.endswith("redrawn") for _, label in boxes) == 1
    assert "**Unit 1** found" in known.found and "not among the first 1 by Area (ad_mask_k)" in known.found
    assert headline(entry).startswith("**1 picture** in 1.5 s by embedded")
    rows = {row[0]: row for row in stage_rows(metrics)}
    assert {"generate", "adetailer", "\u2003denoise"} <= rows.keys()


def test_metrics_of_a_server_are_the_same_rows() -> None:
    flat = {"generate.seconds": 3.0, "generate.peak_bytes": 2 * 10**9, "outputs.seconds": 1.0, "seed": 4}
    nested = {
        "generate": {"decode": {"seconds": 0.5}, "seconds": 3.0, "peak_bytes": 2 * 10**9},
        "outputs": {"seconds": 1.0},
        "seed": 4,
    }
    rows = [["generate", 3.0, "75%", "2.0 GB"], ["\u2003decode", 0.5, "12%", ""], ["outputs", 1.0, "25%", ""]]
    assert stage_rows({**flat, "generate.decode.seconds": 0.5}) == stage_rows(nested) == rows


def test_a_run_that_failed_says_why(tmp_path: Path) -> None:
    assert headline(Entry(tmp_path, {"state": "failed", "error": "memory is full"})) == "**failed** memory is full"
