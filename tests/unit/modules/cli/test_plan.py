"""``scripts/plan`` as it is called, and the tables in ``docs/memory.md`` that commands write."""

from __future__ import annotations

import json
import resource
import shlex
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
from support.model_specs import FLUX_DEV, KNOWN
from support.slow import sampled

from backend.core.settings import ROOT
from backend.memory_management import MemoryPlan
from backend.planning.card_tables import card_table
from bench.memory import placement_simulation
from bench.memory.placement_simulation import PREDICTIONS, Row, markdown, simulate
from modules.cli.plan import main
from modules.families.registry import known_models

COMMAND = ["scripts/plan", "--vram", "24GB", "--ram", "64GB", "--model", "flux-dev", "--size", "1024x1024"]
EXACT = [*COMMAND, "--weight-precision", "bf16"]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def written(name: str, page: str = "docs/memory.md") -> str:
    """The table between the marks on a page."""
    return (ROOT / page).read_text().split(f"<!-- {name} -->\n")[1].split("\n<!-- end -->")[0]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return simulate()


def test_the_plan_for_people() -> None:
    result = run(*EXACT)
    assert result.returncode == 0 and result.stderr == ""
    for expected in ("LOW_VRAM", "transformer", "of 57 blocks stay", "14.4 GB inference", "RTX 4090"):
        assert expected in result.stdout


def test_json_holds_the_fields_of_the_plan_by_name() -> None:
    plan = json.loads(run(*EXACT, "--json").stdout)
    assert list(plan) == [field.name for field in fields(MemoryPlan)]
    transformer = plan["placements"]["transformer"]
    assert plan["state"] == "LOW_VRAM" and list(transformer) == ["kind", "dtype", "tiled", "kept_blocks"]
    assert transformer["kind"] == "partial" and 40 < transformer["kept_blocks"] < 57
    assert plan["predicted_peak_bytes"] <= 24 * 10**9


def test_reference_pictures_take_memory_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    def plan(number: int) -> dict[str, Any]:
        options = ["--card", "RTX 4090", "--model", "flux2-klein", "--no-adetailer", "--scale", "1"]
        assert main([*options, "--references", str(number), "--json"]) == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    none, five = plan(0), plan(5)
    assert five["predicted_peak_bytes"] - none["predicted_peak_bytes"] > 0.5e9
    assert five["predicted_seconds"] > 3 * none["predicted_seconds"]
    for model, most in (("flux2-klein", 5), ("flux-dev", 0), ("flux-kontext-dev", 0)):
        assert main(["--card", "RTX 4090", "--model", model, "--references", "6"]) != 0
        assert f"--references: must be from 0 to {most} for {model}, not 6" in capsys.readouterr().err


@pytest.mark.parametrize("weight_precision", ["auto", "exact", "nf4"])
def test_it_answers_within_a_second(weight_precision: str) -> None:
    """Seconds of the processor, because other work on the machine says nothing about the command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run(*COMMAND, "--quality", weight_precision).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_it_needs_only_the_standard_library() -> None:
    """``-S`` leaves out the installed packages; what is imported all the same is told on stderr."""
    program = (
        "import atexit, runpy, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    result = run(sys.executable, "-S", "-c", program, *COMMAND)
    imported = {name.partition(".")[0] for name in result.stderr.split()}
    assert "transformer" in result.stdout
    assert "backend" in imported and not imported & {"torch", "numpy", "diffusers", "PIL"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vram", "3GB", "--size", "4096x4096", "--outputs", "4"], "num_outputs: "),
        (["--vram", "much"], "'much' is not an amount such as 24GB"),
        (["--vram", "24GB", "--size", "1024"], "not a size such as 1024x1024"),
        (["--vram", "24GB", "--scale", "9"], "must be from 1 to 8"),
        ([], "--vram is needed"),
        (["--vram", "24GB", "--finish", "99x99", "--hires", "99x99"], "leave out --size and --hires"),
        (
            ["--vram", "24GB", "--finish", "7740x5160", "--ram", "1GB"],
            "the pictures take 7.2 GB beside the models; run it again with --finish ",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], message: str) -> None:
    result = run("scripts/plan", *arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert message in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr


EIGHT_CARDS = ("RTX 4060", "RTX 3060", "RTX 4080", "RTX 3090", "A100 40GB", "L40S", "H100", "H200")
"""Of 8, 12, 16, 24, 40, 48, 80 and 141 GB."""


@pytest.mark.parametrize("model", [name for name in known_models() if name != "flux-fill-dev"])  # flux-dev's sizes
@pytest.mark.parametrize("card", sampled(EIGHT_CARDS, 2))
def test_every_card_has_a_plan_for_every_model_in_machines_of_16_32_and_64_gb(
    card: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for ram in ("16GB", "32GB", "64GB"):
        plan = planned(["--card", card, "--ram", ram, "--model", model, "--json"], capsys)
        waiting = sum(
            KNOWN[model].components[name].size(placement["dtype"])
            for name, placement in plan["placements"].items()
            if placement["kind"] != "resident"
        )
        assert plan["pin_bytes"] <= min(waiting, int(ram[:2]) * 10**9 // 2)
        assert plan["reread_bytes"] == 0, "no card needs more weights than the smallest of these machines holds"


@pytest.mark.parametrize("vram", ["24GB", "80GB"])
def test_fill_and_kontext_fit_where_flux_dev_does(vram: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fill encodes a picture first; Kontext reads twice as many tokens of pictures in every step."""
    dev, fill, kontext = (
        planned(["--vram", vram, "--model", model, "--no-adetailer", "--scale", "1", "--json"], capsys)
        for model in ("flux-dev", "flux-fill-dev", "flux-kontext-dev")
    )
    assert fill["placements"]["transformer"] == dev["placements"]["transformer"]
    assert dev["predicted_seconds"] <= fill["predicted_seconds"] < 1.05 * dev["predicted_seconds"]
    assert 1.9 * dev["predicted_seconds"] < kontext["predicted_seconds"] < 2.6 * dev["predicted_seconds"]
    assert kontext["predicted_peak_bytes"] <= int(vram[:2]) * 10**9


@pytest.mark.parametrize("card", EIGHT_CARDS)
@pytest.mark.parametrize("request_of", [["--size", "4096x4096", "--outputs", "4"], ["--hires", "6144x6144"]])
def test_advice_works_when_it_is_followed(card: str, request_of: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    planned(["--card", card, "--ram", "16GB", "--json", *request_of], capsys)


def test_a_large_picture_that_is_finished_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """On a card of 24 GB with 32 GB beside it: 40 megapixels, upscaled to 144."""
    arguments = ["--card", "RTX 4090", "--ram", "32GB", "--json"]
    small, large = (
        planned([*arguments, "--finish", one, "--scale", "1.9"], capsys) for one in ("1024x1024", "7740x5160")
    )
    assert small["picture_bytes"] < 0.2e9 and 6e9 < large["picture_bytes"] < 7e9
    assert large["predicted_seconds"] > small["predicted_seconds"]
    assert large["predicted_peak_bytes"] <= 24e9


def planned(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The plan, or that of the command which the only line of the refusal advises."""
    if main(arguments) == 0:
        plan: dict[str, Any] = json.loads(capsys.readouterr().out)
        return plan
    (refusal,) = capsys.readouterr().err.splitlines()
    advised = shlex.split(refusal.partition("; run it again with ")[2])
    assert advised, refusal
    assert main([*arguments, *advised]) == 0, refusal
    return dict(json.loads(capsys.readouterr().out))


def test_a_reader_that_ends_early_is_no_error() -> None:
    result = run("bash", "-c", f"{shlex.join(COMMAND)} | true; exit ${{PIPESTATUS[0]}}")
    assert (result.returncode, result.stderr) == (141, "")


def test_amounts() -> None:
    plans = [
        json.loads(run("scripts/plan", "--vram", vram, "--json").stdout)
        for vram in ("24GiB", "25769803776", "24.0 gib")
    ]
    assert plans[0] == plans[1] == plans[2] and plans[0]["inference_bytes"] == 24 * 2**30 * 6 // 10


def test_the_table_of_cards_in_the_document_is_current() -> None:
    assert card_table(FLUX_DEV) == written("cards"), "write it again with: scripts/plan --table"


@pytest.mark.parametrize("card", ["RTX 4090", "RTX 3090"])
def test_the_tables_of_one_card_in_the_document_are_current(card: str) -> None:
    command = ["scripts/plan", "--table", "--card", card]
    assert run(*command).stdout.strip() == written(card, "docs/card-24gb.md"), f"write it again with: {command}"


def test_the_simulation_in_the_document_is_current(rows: list[Row]) -> None:
    assert markdown(rows) == written("simulation", "bench/results/memory.md"), (
        "write it again with: python -m bench.memory.placement_simulation"
    )


def test_where_component_offload_or_the_webui_rule_runs_our_plan_is_at_least_as_fast(rows: list[Row]) -> None:
    running = [row for row in rows if row.component_offload.runs]
    assert {(row.gigabytes, row.precision) for row in running} >= {(24, "bf16"), (24, "fp8"), (16, "fp8")}
    for row in running:
        assert row.our_plan.seconds < row.component_offload.seconds, row
    for row in rows:
        if row.our_plan.runs and row.gigabytes < 48 and row.webui_rule.runs:
            assert row.our_plan.seconds <= row.webui_rule.seconds * 1.05, row


def test_with_rounding_our_plan_is_the_fastest_on_24_16_12_and_8_gb(rows: list[Row]) -> None:
    small = [row for row in rows if row.gigabytes <= 24]
    assert len(small) == 5 * 2 * 4
    for row in small:
        assert row.our_plan_rounded.seconds < min(row.component_offload.seconds, row.webui_rule.seconds), row


def test_with_partial_no_plan_is_slower_and_on_small_cards_it_hides_most_copies(rows: list[Row]) -> None:
    for row in rows:
        assert row.our_plan.runs == row.without_partial.runs
        assert row.our_plan.seconds <= row.without_partial.seconds + 0.1 * PREDICTIONS, row  # plans compare by tenths
    held = [row for row in rows if "held" in row.card]
    assert len(held) == 2 * 4
    for row in held:
        limit = {"bf16": 1.15, "fp8": 1.05}[row.precision]
        assert row.our_plan.seconds <= limit * row.everything_resident.seconds, row


def test_our_plan_runs_everywhere_and_keeps_its_models_on_large_cards(
    rows: list[Row],
) -> None:
    assert all(row.our_plan.runs and row.our_plan_rounded.runs for row in rows)
    uploaded_once = sum(component.size() for component in placement_simulation.MODELS["bf16"].components.values())
    assert all(row.our_plan.moved_bytes <= uploaded_once for row in rows if row.gigabytes >= 48)
