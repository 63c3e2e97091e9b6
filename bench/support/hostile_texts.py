"""Texts that nobody would write on purpose, by what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

from backend.core.texts import MAX_TEXT

TEXTS: Mapping[str, str] = MappingProxyType(
    {
        "zero bytes": "a man\0with\0a hat",
        "lone surrogates": "a man \ud83d with \udc00 a hat",
        "control characters": "a man\x01\x1b[31m with\r\n\t\x7f a hat",
        "right to left": "a man \u202e\u200f with a hat\u2066",
        "emoji": "\U0001f469\u200d\U0001f9b0" * 4_000,
        "combining marks": "e" + "\u0301" * (MAX_TEXT - 1),
        "one word": "a" * MAX_TEXT,
        "brackets": "(" * MAX_TEXT,
        "marks": "[SEP]" * (MAX_TEXT // 5),
        "spaces": " " * (MAX_TEXT - 1) + "a",
        "templates": "{{7*7}} ${HOME} %s {0.__class__}",
    }
)
"""For any text input; each is at most as long as one may be."""
UNITS: Mapping[str, str] = MappingProxyType(
    {
        "deep": "[" * 10_000 + "]" * 10_000,
        "deep objects": '{"ad_prompt":' * 1_000 + "1" + "}" * 1_000,
        "a level too many": '{"ad_prompt": ' + "[" * 17 + "]" * 17 + "}",
        "twice": '{"ad_prompt": "a", "ad_prompt": "b"}',
        "not a number": '{"ad_confidence": NaN}',
        "infinite": '{"ad_confidence": 1e999}',
        "digits": '{"ad_mask_k": ' + "9" * 5_000 + "}",
        "long name": '{"' + "x" * 10_000 + '": 1}',
        "odd name": '{"a\\n\\u0000\\ud800": 1}',
        "filled in": json.dumps({"ad_prompt": "[PROMPT]" * 2_000}),
        "too long": json.dumps({"ad_prompt": "x" * MAX_TEXT}),
        "impact": json.dumps({"ad_prompt": "[LAB] face: a man"}),
    }
)
"""For the inputs that take ADetailer units as JSON."""
INFOTEXTS: Mapping[str, str] = MappingProxyType(
    {
        "quotes": "a man\nSteps: 20, " + '"' * 19_000,
        "names": "a man\nSteps: 20, " + "a: " * 6_000,
        "two lines": "a man\nSteps: 20\nSteps: 20, Sampler: Euler",
        "infinite": "a man\nSteps: 20, CFG scale: 1e999, Size: 99999x1, Seed: -5, Hires upscale: nan",
        "units": "a man\nSteps: 1, ADetailer model: x, ADetailer confidence: [, ADetailer model 2nd: " + "x" * 9_000,
        "lines behind": "a man\nSteps: 20, Seed: 1\n" + "Template: x\n" * 1_500,
    }
)
"""For the prompt, where a WebUI's parameters fill the other inputs."""
