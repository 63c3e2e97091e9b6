"""Prompts with combinations of hair, shirt and background that training never saw, to measure with."""

from __future__ import annotations

import random

from training.data.captions import NUMBER_WORDS, article
from training.data.scene import BACKGROUND_COLOURS, LANDSCAPES, Person, is_held_out, sample_person
from training.data.things import BACKGROUNDS, THINGS

PROMPTS = 40
THING_TEMPLATES = (
    "{thing}",
    "{a_thing}",
    "{thing}, {colour}, {background} background",
    "{a_background} background with {a_colour} {thing}",
    "{THING}, {BACKGROUND} BACKGROUND",
    "{background} wall, {a_colour} {thing}",
)
"""Ways to ask for a thing; training writes those with a colour or a background in other orders."""
LANDSCAPE_TEMPLATES = ("{thing}", "{a_thing}", "{THING}")


def held_out_prompts(seed: int = 5) -> list[tuple[str, dict[str, str]]]:
    """The prompts, each with the colours that it names."""
    rng = random.Random(seed)
    prompts: list[tuple[str, dict[str, str]]] = []
    while len(prompts) < PROMPTS:
        person, background = sample_held_out(rng)
        prompts.append(
            (
                sentence(rng, person, background),
                {"background": background, "hair": person.hair_colour, "shirt": person.shirt},
            )
        )
    return prompts


def sample_held_out(rng: random.Random) -> tuple[Person, str]:
    """A person and a background of a combination that is held out, in three different colours, with hair that no hat
    covers."""
    while True:
        person, background = sample_person(rng), rng.choice(list(BACKGROUND_COLOURS))
        # a colour that the picture's other parts do not share, so that the measure means what it says
        distinct = len({person.hair_colour, person.shirt, background}) == 3
        if is_held_out(person, background) and person.hair_length != "bald" and not person.hat and distinct:
            return person, background


def sentence(rng: random.Random, person: Person, background: str) -> str:
    extras = [word for word, there in (("glasses", person.glasses), ("a beard", person.beard)) if there]
    listed = "".join(f", {extra}" for extra in extras)
    subject = f"{person.expression} {person.kind}"
    hair = f"{person.hair_length} {person.hair_colour} hair"
    return rng.choice(
        (
            f"a portrait of a {subject} with {hair}{listed}, {person.shirt} shirt, {background} background",
            f"portrait of a {subject}, {hair}{listed}, wearing a {person.shirt} sweater, {background} backdrop",
            f"a {subject} with {hair}{listed} in a {person.shirt} t-shirt on a {background} background",
            f"{subject}, {person.shirt} top, {hair}{listed}, {background} background",
        )
    )


def held_out_figures(seed: int = 9) -> list[tuple[str, dict[str, str]]]:
    """Prompts for whole figures: one person of a held-out combination, or several who all do the same. Each with
    what it names."""
    rng = random.Random(seed)
    prompts: list[tuple[str, dict[str, str]]] = []
    while len(prompts) < PROMPTS:
        person, background = sample_held_out(rng)
        count = 1 + len(prompts) % 4
        pose = rng.choice(("waving", "standing", "pointing", "arms raised", "hands on hips"))
        asked = {"people": str(count), "background": background}
        if count == 1:
            asked["shirt"] = person.shirt
            one = article(f"{person.expression} {person.kind} with {person.hair_colour} hair in a {person.shirt} shirt")
            text = f"{one}, {pose}, full body, {background} background"
        else:
            text = f"{NUMBER_WORDS[count]} people {pose}, full body, {background} background"
        prompts.append((text, asked))
    return prompts


def held_out_things(count: int = 60, seed: int = 21) -> list[tuple[str, dict[str, str]]]:
    """Prompts for every thing and landscape in turn, each with what it names."""
    rng = random.Random(seed)
    prompts: list[tuple[str, dict[str, str]]] = []
    kinds = (*THINGS, *LANDSCAPES)
    while len(prompts) < count:
        kind, turn = kinds[len(prompts) % len(kinds)], len(prompts) // len(kinds)
        if kind in LANDSCAPES:
            words = {"thing": kind, "a_thing": article(kind), "THING": kind.upper()}
            prompts.append((LANDSCAPE_TEMPLATES[turn % len(LANDSCAPE_TEMPLATES)].format(**words), {"kind": kind}))
            continue
        colour = rng.choice(list(THINGS[kind]))
        background = rng.choice([name for name in BACKGROUNDS if name != colour])
        template = THING_TEMPLATES[turn % len(THING_TEMPLATES)]
        words = {"thing": kind, "colour": colour, "background": background}
        more = {f"a_{name}": article(word) for name, word in words.items()}
        text = template.format(**words, **more, **{name.upper(): word.upper() for name, word in words.items()})
        named = {name: words[name] for name in ("colour", "background") if name in template.lower()}
        prompts.append((text, {"kind": kind, **named}))
    return prompts
