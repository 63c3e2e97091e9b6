"""Names of this package's own invention do not come back: the field has a word for each."""

from __future__ import annotations

import re
import subprocess

import pytest

from backend.core.settings import ROOT

CODE = ("*.py", "scripts", "cog.yaml", "config_optimized.json", "pyproject.toml", ":!tests/tooling/test_words.py")
DOCS = ("*.md",)
SEARCHED = (*CODE, *DOCS)

WORDS = {
    r"residence": "placement, placed model",
    r"\b(arrive|depart)\(": "load, unload",
    r"\bswapped\b": "model offload",
    r"\bgrouped\(|[\"'](grouped|sequential)[\"']|\bdef sequential": "block offload, layer offload",
    r"narrow_?storage|store_narrow|\bnarrowed\b": "weight quantization",
    r"\bwiden(s|ed|ing)?\b": "dequantize",
    r"\bladders?\b": "OOM fallback",
    r"\brungs?\b": "strategy",
    r"\bclimb": "run",
    r"leaner": "downgrade",
    r"\.settle\(|\bdef settle\b": "synchronize",
    r"\bcomputers?\b|\bcomputing\(": "device runtime, activate()",
    r"DrawingService|drawing service|\bclass Drawing\b": "diffusion service",
    r"\bnoised\b": "add_noise",
    r"[Ee]nlarg": "upscale",
    r"\bdisturb": "overlap",
    r"\bRepaint\b": "InpaintJob",
    r"\bspoken\b": "open_vocabulary",
    r"(?<!open_)(?<!open-)[Vv]ocabular": "class set",
    r"\bbrought\b": "uploads_dir",
    r"start_for_life": "start_process",
    r"\breadable\(": "format_bytes",
    r"foret(ell|old)": "predict",
    r"whole way|way of a (picture|request|prediction)": "end to end, the life of a prediction",
    r"model_parts": "base_model",
    r"[\"']tile_size[\"']": "upscale_tile_size",
    r"[\"']quality[\"']|settings\.quality": "weight_precision",
}
"""What the code once said, as a regular expression, and what it says now."""

ELSEWHERE = {
    "training/": ("ocabular", "widen"),  # the words of the captions; embeddings with more rows
    "tests/tooling/test_training_wordings.py": ("ocabular",),
    "tests/tooling/test_training_models.py": ("ocabular",),
    **dict.fromkeys(
        (
            "backend/core/settings.py",
            "tests/unit/backend/core/test_settings.py",
            "docs/configuration.md",
            "CHANGELOG.md",
        ),
        ("model_parts", "tile_size", "quality"),  # the old names are still read
    ),
}
"""Where a word stands for something else."""


@pytest.mark.parametrize("old", WORDS)
def test_the_fields_word_is_used(old: str) -> None:
    command = ["git", "grep", "--untracked", "-nP", old, "--", *SEARCHED]
    search = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert search.returncode in (0, 1), search.stderr
    found = [line for line in search.stdout.splitlines() if not stands_for_something_else(line, old)]
    assert found == [], f"{WORDS[old]}:\n" + "\n".join(found)


def stands_for_something_else(line: str, old: str) -> bool:
    return any(line.startswith(path) and any(word in old for word in words) for path, words in ELSEWHERE.items())


def test_a_word_that_comes_back_is_found() -> None:
    assert all(re.compile(old) for old in WORDS)
    assert re.search(next(old for old in WORDS if "rung" in old), "the third rung")
