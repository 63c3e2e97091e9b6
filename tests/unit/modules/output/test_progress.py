"""Progress on a terminal is a bar; in a log it is a line for every further tenth, which hosted platforms read."""

from __future__ import annotations

import io
import re

from modules.output.progress import Bar, ProgressBars

REPLICATE = re.compile(r"^\s*(?P<percentage>\d+)%\s*\|.+?\|\s*(?P<current>\d+)\/(?P<total>\d+)")
"""How Replicate's client finds progress in a log."""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def logged(total: int, done: list[int]) -> list[str]:
    log = io.StringIO()
    with ProgressBars(log) as progress:
        for count in done:
            progress("generate", count, total)
    return log.getvalue().splitlines()


def test_a_log_has_a_line_a_tenth_however_many_steps_there_are() -> None:
    assert len(logged(1000, list(range(1, 1001)))) == 11
    assert len(logged(4, [1, 2, 3, 4])) == 4


def test_a_line_is_what_hosted_platforms_read() -> None:
    lines = logged(28, list(range(1, 29)))
    found = [REPLICATE.match(line) for line in lines]
    assert all(found) and all(line.endswith(" generate") for line in lines)
    assert [(int(one["current"]), int(one["total"])) for one in found if one][-1] == (28, 28)
    assert lines[-1].startswith("100%|")


def test_a_stage_that_starts_over_is_shown_again_and_another_stage_has_its_own_lines() -> None:
    assert [line.split("| ")[1] for line in logged(2, [1, 2, 1, 2])] == [f"{step}/2 generate" for step in (1, 2, 1, 2)]
    log = io.StringIO()
    with ProgressBars(log) as progress:
        progress("generate", 1, 1)
        progress("upscale", 1, 1)
    assert [line.rsplit(" ", 1)[1] for line in log.getvalue().splitlines()] == ["generate", "upscale"]


def test_a_terminal_has_one_bar_a_stage_that_ends_where_it_was() -> None:
    terminal = Terminal()
    with ProgressBars(terminal) as progress:
        for step in range(1, 5):
            progress("generate", step, 4)
        progress("upscale", 2, 2)
    shown = terminal.getvalue()
    assert shown.count("\n") == 2 and shown.endswith("\n")
    generate, upscale = (line.rsplit("\r", 1)[1] for line in shown.split("\n")[:2])
    assert generate.startswith("generate: 100%") and "4/4" in generate and upscale.startswith("upscale: 100%")


def test_bytes_are_shown_with_their_unit() -> None:
    log = io.StringIO()
    with Bar("2 of 3 files", unit="B", stream=log) as bar:
        bar.show(12_000_000_000, 24_000_000_000)
    assert log.getvalue() == " 50%|██████████          | 12.0G/24.0G 2 of 3 files\n"
