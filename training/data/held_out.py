"""Prompts with combinations of hair, shirt and background that training never saw, to measure with."""

from __future__ import annotations

import random

from training.data.captions import NUMBER_WORDS, article
from training.data.scene import BACKGROUND_COLOURS, Person, is_held_out, sample_person

PROMPTS = 40


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
