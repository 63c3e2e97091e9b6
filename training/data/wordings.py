"""Puts a portrait into words in any order: tags, sentences, key and value, with the background anywhere.

:mod:`training.data.captions` writes prompts in their usual form, with the background last; this module writes them as
everybody else does. Every wording comes with the usual caption that says the same. The words of both are marked with
what they mean, so that the text encoders can learn to read both alike (:mod:`training.models.rewording`). The wordings
in :mod:`training.data.held_out_wordings` are never written here.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from training.data.captions import (
    COLOUR_WORDS,
    EXPRESSION_WORDS,
    FRAMING_WORDS,
    HAIR_WORDS,
    KIND_WORDS,
    SHIRT_NOUNS,
    SKIN_WORDS,
    pick,
)
from training.data.held_out_wordings import is_held_out_wording
from training.data.scene import Person, Scene

MARK = re.compile(r"\[(\w+) ([^\]]+)\]")
Spans = dict[str, tuple[int, int]]
"""Where in a text each marked word is."""

BACKGROUND_NOUNS = ("background", "background", "background", "backdrop", "wall", "bg")
SYNONYMS = {
    **dict.fromkeys(("hoodie", "pullover", "jumper"), "sweater"),
    **dict.fromkeys(("blouse", "jacket", "tee", "tshirt"), "shirt"),
    **dict.fromkeys(("wall", "bg", "backdrop"), "background"),
    **dict.fromkeys(("female",), "woman"),
    **dict.fromkeys(("male", "gentleman", "dude"), "man"),
    "haired": "hair",
    "brunette": "brown",
    "grinning": "smiling",
    "frowning": "serious",
    "crying": "sad",
}
"""Words that people type, and the one of the usual captions that says the same."""
ADJECTIVES = {"blonde": "blonde", "blond": "blond", "ginger": "ginger", "brown": "brunette"}
"""Colours that say without a noun that the hair is meant."""
BEFORE = (
    "on {a}:",
    "on {a},",
    "in front of {a}:",
    "in front of {a},",
    "against {a},",
    "{bare}:",
    "{bare},",
    "{a},",
    "{a} with",
    "{a} and",
    "{noun} is {colour},",
)
BETWEEN = (" on {a}", " in front of {a}", " against {a}", " before {a}", ", {bare},", " ({bare})")
AFTER = (
    ", {bare}",
    ", {bare}",
    ", {a}",
    " on {a}",
    " in front of {a}",
    " against {a}",
    ". {bare}",
    ", {noun} is {colour}",
    ", the {noun} is {colour}",
)
HAIR_CLAUSES = (
    " with {bare}",
    " with {bare}",
    " who has {bare}",
    ", {bare}",
    " having {bare}",
    ", with {bare}",
    ", {noun} is {colour}",
)
SHIRT_CLAUSES = (
    " in {a}",
    " wearing {a}",
    ", wearing {a}",
    " who wears {a}",
    " dressed in {a}",
    " with {a}",
    ", {bare}",
    " in {bare}",
    ", {noun} is {colour}",
)
EXTRA_CLAUSES = (", {bare}", " with {bare}", " and {bare}")


def usual(word: str) -> str:
    return SYNONYMS.get(word, word)


def or_synonym(rng: random.Random, word: str) -> str:
    """The word, or now and then one that says the same."""
    return (
        rng.choice([other for other, meant in SYNONYMS.items() if meant == word] or [word])
        if rng.random() < 0.25
        else word
    )


def mark(meaning: str, words: str) -> str:
    """The words with their meaning: ``[shirt_colour navy]``."""
    return f"[{meaning} {words}]" if words else ""


def plain(marked: str) -> str:
    return MARK.sub(r"\2", marked)


def spans(marked: str) -> Spans:
    """Where each meaning's words are in the plain text."""
    found: Spans = {}
    removed = 0
    for match in MARK.finditer(marked):
        name, words = match.groups()
        start = match.start() - removed
        found[name] = (start, start + len(words))
        removed += len(match.group()) - len(words)
    return found


def in_usual_words(marked: str) -> str:
    return MARK.sub(lambda match: f"[{match[1]} {usual(match[2])}]", marked)


def with_article(marked: str) -> str:
    return f"{'an' if plain(marked)[0] in 'aeiou' else 'a'} {marked}"


@dataclass(frozen=True)
class Thing:
    """A noun with its colour, as it is told: "crimson sweater"."""

    name: str
    colour: str
    noun: str
    detail: str = ""  # how long the hair is

    @property
    def bare(self) -> str:
        marked = (
            mark(f"{self.name}_detail", self.detail),
            mark(f"{self.name}_colour", self.colour),
            mark(self.name, self.noun),
        )
        return " ".join(part for part in marked if part)

    def put(self, form: str) -> str:
        words = {"colour": mark(f"{self.name}_colour", self.colour), "noun": mark(self.name, self.noun)}
        return form.format(bare=self.bare, a=with_article(self.bare), **words)


@dataclass(frozen=True)
class Told:
    """What is told of a portrait; None or empty is left to chance in the picture."""

    subject: str  # marked: "[expression happy] [kind girl]"
    framing: str
    hair: Thing | None
    shirt: Thing | None
    background: Thing | None
    extras: tuple[str, ...]  # marked: glasses, a beard, skin, a hat

    @property
    def things(self) -> list[Thing]:
        return [thing for thing in (self.hair, self.shirt, self.background) if thing]


def tell_extras(rng: random.Random, person: Person) -> tuple[str, ...]:
    extras = [
        (person.glasses, 0.7, mark("glasses", "glasses")),
        (person.beard, 0.7, mark("beard", "beard")),
        (person.hat is not None, 0.85, f"{mark('hat_colour', str(person.hat))} {mark('hat', 'hat')}"),
        (True, 0.1, mark("skin", pick(rng, SKIN_WORDS, person.skin))),
    ]
    return tuple(words for there, share, words in extras if there and rng.random() < share)


def tell(rng: random.Random, scene: Scene) -> Told:
    """Chooses what is told of a portrait, and the words for it. Two or three things may be left out."""
    person = scene.people[0]
    subject = mark("kind", or_synonym(rng, pick(rng, KIND_WORDS, person.kind)))
    if person.hair_length == "bald" and rng.random() < 0.8:
        subject = f"{mark('bald', 'bald')} {subject}"
    if rng.random() < 0.5:
        subject = f"{mark('expression', or_synonym(rng, pick(rng, EXPRESSION_WORDS, person.expression)))} {subject}"
    length = person.hair_length if rng.random() < 0.35 else ""
    hair = Thing("hair", pick(rng, HAIR_WORDS, person.hair_colour), "hair", length)
    shirt = Thing("shirt", pick(rng, COLOUR_WORDS, person.shirt), or_synonym(rng, rng.choice(SHIRT_NOUNS)))
    background = Thing("background", pick(rng, COLOUR_WORDS, scene.background), "background")
    share = rng.choice((0.5, 0.85, 1.0, 1.0))
    told = [
        thing if rng.random() < share else None
        for thing in (None if person.hair_length == "bald" else hair, shirt, background)
    ]
    # untold, it is a portrait: in a close-up a shirt that was asked for may not be seen
    framing = scene.framing if scene.framing != "portrait" or rng.random() < 0.4 else ""
    return Told(subject, framing, told[0], told[1], told[2], tell_extras(rng, person) if rng.random() < 0.75 else ())


def plain_form(told: Told) -> str:
    """The marked caption in the form that the transformer was trained on, with the background last."""
    framing = FRAMING_WORDS[told.framing or "portrait"][0]
    text = f"{framing} {with_article(told.subject)}"
    looks = [told.hair.bare] if told.hair else []
    text += f" with {looks[0]}" if looks else ""
    return in_usual_words(
        ", ".join([text, *told.extras, *(thing.bare for thing in (told.shirt, told.background) if thing)])
    )


def other_noun(rng: random.Random, background: Thing) -> Thing:
    return Thing(background.name, background.colour, rng.choice(BACKGROUND_NOUNS))


def as_tags(rng: random.Random, told: Told) -> str:
    """A list in any order, with commas, spaces or slashes between its parts."""
    things = [other_noun(rng, thing) if thing.name == "background" else thing for thing in told.things]
    tags = [told.subject, *(thing.bare for thing in things), *told.extras]
    rng.shuffle(tags)
    if told.framing or rng.random() < 0.3:
        tags.insert(
            rng.choice((0, 0, len(tags))), (told.framing or "portrait").replace("half-body", "half-body portrait")
        )
    return rng.choice((", ", ", ", ", ", ", ", ",", " ", " / ", "; ", "\n")).join(tags)


def as_keys(rng: random.Random, told: Told) -> str:
    """Key and value: "hair: brown, shirt: red, background: green, woman"."""
    link = rng.choice((": ", ": ", " = ", "="))
    pairs = [
        f"{mark(thing.name, thing.noun)}{link}{mark(f'{thing.name}_colour', thing.colour)}" for thing in told.things
    ]
    rng.shuffle(pairs)
    parts = [*pairs, *told.extras]
    parts.insert(rng.choice((0, 0, len(parts))), told.subject)
    return rng.choice((", ", ", ", "; ", " ")).join(parts)


def person_clauses(rng: random.Random, told: Told) -> tuple[str, list[str]]:
    """Who it is, and what is said of the person, each with the words that join it, in any order."""
    subject, clauses = told.subject, []
    if told.hair and told.hair.colour in ADJECTIVES and rng.random() < 0.3:  # a blonde woman
        subject = f"{mark('hair_colour', ADJECTIVES[told.hair.colour])} {subject}"
    elif told.hair and rng.random() < 0.15:
        colour = mark("hair_colour", told.hair.colour)
        subject = f"{colour}{rng.choice(('-', ' '))}{mark('hair', 'haired')} {subject}"
    elif told.hair:
        clauses.append(told.hair.put(rng.choice(HAIR_CLAUSES)))
    if told.shirt:
        clauses.append(told.shirt.put(rng.choice(SHIRT_CLAUSES)))
    clauses += [rng.choice(EXTRA_CLAUSES).format(bare=extra) for extra in told.extras]
    rng.shuffle(clauses)
    return subject, joined(rng, clauses)


def joined(rng: random.Random, clauses: Sequence[str]) -> list[str]:
    """Now and then two clauses are joined by "and"."""
    if len(clauses) < 2 or rng.random() < 0.6:
        return list(clauses)
    *first, last = clauses
    return [*first, f" and {last.lstrip(', ').removeprefix('and ')}"]


def as_clauses(rng: random.Random, told: Told) -> str:
    """A sentence, with the background at its beginning, in its middle or at its end."""
    subject, clauses = person_clauses(rng, told)
    subject = subject if rng.random() < 0.25 else with_article(subject)
    if told.framing or rng.random() < 0.4:
        subject = f"{rng.choice([words for words in FRAMING_WORDS[told.framing or 'portrait'] if words])} {subject}"
    if not told.background:
        return subject + "".join(clauses)
    background, place = other_noun(rng, told.background), rng.random()
    if place < 0.45:
        return f"{background.put(rng.choice(BEFORE))} {subject}{''.join(clauses)}"
    if place < 0.7 and clauses:
        clauses.insert(rng.randrange(len(clauses)), background.put(rng.choice(BETWEEN)))
        return subject + "".join(clauses)
    return subject + "".join(clauses) + background.put(rng.choice(AFTER))


def in_case(rng: random.Random, marked: str) -> str:
    """In capitals, or with a capital at the beginning, or as it is; the marks stay."""
    chance = rng.random()
    if chance < 0.14:
        return MARK.sub(
            lambda match: f"[{match[1]} {match[2].upper()}]",
            re.sub(r"(?<!\[)\b\w+(?![^\[]*\])", lambda match: match[0].upper(), marked),
        )
    if chance < 0.34:
        return re.sub(r"^(\[\w+ )?(\w)", lambda match: (match[1] or "") + match[2].upper(), marked)
    return marked


def reworded(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """A portrait in some wording and in the plain form, both marked."""
    while True:
        told = tell(rng, scene)
        form = rng.choices((as_tags, as_keys, as_clauses), (45, 8, 47))[0]
        marked = in_case(rng, form(rng, told))
        if is_held_out_wording(plain(marked)):
            continue
        if told.hair and "hair_detail" not in spans(marked):
            told = replace(told, hair=replace(told.hair, detail=""))
        return marked, plain_form(told)


def background_first(rng: random.Random, caption: str) -> tuple[str, str] | None:
    """A caption of several people or of figures with the background moved to the front, and as it was, both marked."""
    found = re.fullmatch(r"(?s)(.+?)(?:, | on | in front of )(?:an? )?(\w+) (?:background|backdrop)", caption)
    if not found:
        return None
    numbers = itertools.count()
    body = re.sub(r"\w+", lambda match: mark(f"word{next(numbers)}", match[0]), found[1])
    background = Thing("background", found[2], "background")
    before = rng.choice([form for form in BEFORE if "{bare}" in form or "{a}" in form])
    return in_case(rng, f"{other_noun(rng, background).put(before)} {body}"), f"{body}, {background.bare}"
