"""Weights in prompts, as Stable Diffusion WebUI reads them."""

from __future__ import annotations

import time

import pytest

from modules.families.stable_diffusion.emphasis import edits, segments

# the examples in the WebUI's own documentation of its parser, and of its wiki
EXAMPLES = [
    ("normal text", [("normal text", 1.0)]),
    ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    (r"\(literal\]", [("(literal]", 1.0)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            ("a ", 1.0), ("house", 1.573), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
            ("sky", 1.4641), (".", 1.1),
        ],
    ),
    ("((word))", [("word", 1.21)]),
    ("[word]", [("word", 1 / 1.1)]),
    ("(word:1.5)", [("word", 1.5)]),
    ("(word:0.25)", [("word", 0.25)]),
    ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)]),
    ("10:30, a) b] :2)", [("10:30, a) b] :2)", 1.0)]),
    ("", [("", 1.0)]),
]  # fmt: skip
LONG = {
    "open": "(" * 20_000,
    "words": "(a" * 10_000,
    "crossed": "([" * 5_000 + ")]" * 5_000,
    "nested": "(" * 10_000 + ")" * 10_000,
    "colons": "(:" * 10_000,
    "spaces": " " * 20_000,
    "edits": "[" * 10_000 + ":" * 10_000,
    "edit": "[" + ":" * 19_999,
    "weights": "(a:9999)" * 2_500,
}


@pytest.mark.parametrize(("prompt", "parts"), EXAMPLES)
def test_weights_are_those_of_the_webui(prompt: str, parts: list[tuple[str, float]]) -> None:
    found = segments(prompt)
    assert [part.text for part in found] == [text for text, _ in parts]
    assert [part.weight for part in found] == pytest.approx([weight for _, weight in parts])


def test_a_break_begins_a_chunk_inside_of_brackets_too() -> None:
    assert [(part.text, part.breaks) for part in segments("a BREAK b, BREAKFAST")] == [
        ("a ", False),
        (" b, BREAKFAST", True),
    ]
    assert [(part.text, part.weight, part.breaks) for part in segments("(a BREAK b:1.2)")] == [
        ("a ", 1.2, False),
        (" b", 1.2, True),
    ]


def test_weights_have_a_limit() -> None:
    assert [part.weight for part in segments("(a:99999)(b:-50)")] == [10.0, -10.0]
    assert segments("(" * 9_000 + "a")[0].weight == 10.0


@pytest.mark.parametrize("prompt", LONG.values(), ids=LONG)
def test_no_prompt_takes_long(prompt: str) -> None:
    begin = time.process_time()
    segments(prompt)
    edits(prompt)
    assert time.process_time() - begin < 5


def test_what_changes_during_the_steps_elsewhere_is_found() -> None:
    assert edits("a [cat:dog:0.5] and [red|blue], [weak]") == ["[cat:dog:0.5]", "[red|blue]"]
