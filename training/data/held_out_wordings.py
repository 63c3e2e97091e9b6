"""Wordings of prompts that training never saw, as whole templates, to measure with.

A wording is known by its skeleton: what is named in which order, and the words between. Training writes no caption
with the skeleton of one of these, whatever its colours and whatever else it mentions.
"""

from __future__ import annotations

import random
import re

from training.data.captions import SHIRT_NOUNS, article
from training.data.held_out import sample_held_out
from training.data.scene import KINDS

TEMPLATES = (
    "on {a_background} background: a {kind}, {hair} hair, {shirt} shirt",
    "PORTRAIT, {kind}, {shirt} SHIRT, {background} BACKGROUND, {hair} HAIR",
    "{background} background, {expression} {kind}, {hair} hair, {shirt} shirt",
    "{shirt} shirt, {hair} hair, {expression} {kind}, {background} background",
    "{background} backdrop, {shirt} t-shirt, {hair} hair, {kind}",
    "a {kind} in front of {a_background} wall, {hair} hair, dressed in {a_shirt} sweater",
    "a {expression} {kind} who wears {a_shirt} top and has {hair} hair, the background is {background}",
    "{a_background} background and a {kind} with {hair} hair wearing {a_shirt} shirt",
)
NAMES = {
    **dict.fromkeys((*KINDS, "lady", "guy", "female", "male", "gentleman", "dude"), "KIND"),
    **dict.fromkeys(("hair", "haired"), "HAIR"),
    **dict.fromkeys((*SHIRT_NOUNS, "hoodie", "pullover", "jumper", "blouse", "jacket", "tee", "tshirt"), "SHIRT"),
    **dict.fromkeys(("background", "backdrop", "wall", "bg"), "BACKGROUND"),
}
JOINTS = (
    "on",
    "in",
    "front",
    "of",
    "with",
    "wearing",
    "wears",
    "dressed",
    "who",
    "has",
    "and",
    "is",
    "against",
    "before",
    "having",
    ":",
    "=",
)
FRAMING = re.compile(r"\b((close-?up|portrait|picture|shot|drawing|illustration|face) of|t(?=-shirt))\b")


def skeleton(text: str) -> str:
    """What a caption names, in its order, with the words between; colours, commas, framings and extras do not count."""
    words = re.findall(r"[a-z]+|[:=]", FRAMING.sub("", text.lower()))
    return " ".join(NAMES.get(word, word) for word in words if word in NAMES or word in JOINTS)


def filled(template: str, kind: str, expression: str, colours: dict[str, str]) -> str:
    """The template with its words; a list of tags that begins in capitals is in capitals as a whole."""
    articled = {f"a_{name}": article(colour) for name, colour in colours.items()}
    text = template.format(kind=kind, expression=expression, **colours, **articled)
    return text.upper() if text.split(",")[0].isupper() else text


SKELETONS = frozenset(
    skeleton(filled(template, "man", "sad", dict.fromkeys(("hair", "shirt", "background"), "red")))
    for template in TEMPLATES
)


def is_held_out_wording(text: str) -> bool:
    return skeleton(text) in SKELETONS


def held_out_wordings(count: int = 120, seed: int = 13) -> list[tuple[str, dict[str, str]]]:
    """Prompts in every held-out wording in turn, of held-out combinations, each with the colours that it names."""
    rng = random.Random(seed)
    prompts: list[tuple[str, dict[str, str]]] = []
    while len(prompts) < count:
        person, background = sample_held_out(rng)
        template = TEMPLATES[len(prompts) % len(TEMPLATES)]
        colours = {"background": background, "hair": person.hair_colour, "shirt": person.shirt}
        prompts.append((filled(template, person.kind, person.expression, colours), colours))
    return prompts
