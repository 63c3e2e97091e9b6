"""Puts a scene into words, in the many ways in which people write prompts.

What a caption does not mention is left to chance in the picture, so a short prompt is as good as a long one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from training.data.scene import LANDSCAPES, Person, Scene

KIND_WORDS = {
    "woman": ("woman", "woman", "woman", "lady", "young woman"),
    "man": ("man", "man", "man", "guy", "young man"),
    "girl": ("girl", "girl", "little girl"),
    "boy": ("boy", "boy", "little boy"),
}
HAIR_WORDS = {
    "blonde": ("blonde", "blonde", "blond", "golden"),
    "red": ("red", "red", "ginger"),
    "gray": ("gray", "grey", "silver"),
    "black": ("black", "black", "dark"),
}
COLOUR_WORDS = {
    "gray": ("gray", "grey"),
    "teal": ("teal", "teal", "turquoise"),
    "purple": ("purple", "purple", "violet"),
    "red": ("red", "red", "red", "crimson"),
    "blue": ("blue", "blue", "blue", "navy"),
}
EXPRESSION_WORDS = {
    "smiling": ("smiling", "smiling", "happy", "cheerful"),
    "serious": ("serious", "serious", "neutral"),
    "laughing": ("laughing",),
    "sad": ("sad", "unhappy"),
    "surprised": ("surprised", "shocked"),
}
SKIN_WORDS = {
    "pale": ("pale skin",),
    "light": ("light skin", "fair skin"),
    "tan": ("tan skin", "tanned skin"),
    "brown": ("brown skin",),
    "dark": ("dark skin",),
}
FRAMING_WORDS = {
    "close-up": ("a close-up of", "a close-up portrait of", "the face of", "a closeup of"),
    "portrait": (
        "a portrait of",
        "a portrait of",
        "portrait of",
        "an illustration of",
        "a picture of",
        "a drawing of",
        "",
    ),
    "half-body": ("a half-body portrait of", "an upper body picture of", "a medium shot of", "a wide portrait of"),
}
LANDSCAPE_WORDS: dict[str, tuple[str, ...]] = {
    "mountain landscape": ("in the mountains", "in front of mountains", "mountains in the background"),
    "beach": ("at the beach", "on a beach", "beach in the background"),
    "city at night": ("in a city at night", "in front of a city at night", "city at night in the background"),
}
SHIRT_NOUNS = ("shirt", "shirt", "shirt", "t-shirt", "sweater", "top")
NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}


def pick(rng: random.Random, words: dict[str, tuple[str, ...]], key: str) -> str:
    return rng.choice(words.get(key, (key,)))


def article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def hair_phrase(rng: random.Random, person: Person, tell_length: bool) -> str:
    if person.hair_length == "bald":
        return rng.choice(("a bald head", "no hair"))
    colour = pick(rng, HAIR_WORDS, person.hair_colour)
    if not tell_length:
        return f"{colour} hair"
    return rng.choice(
        (
            f"{person.hair_length} {colour} hair",
            f"{person.hair_length} {colour} hair",
            f"{colour} {person.hair_length} hair",
        )
    )


def join(parts: Sequence[str], rng: random.Random) -> str:
    """Parts as a list in prose: "a, b and c", or with commas alone."""
    if len(parts) < 2 or rng.random() < 0.5:
        return ", ".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def describe_person(rng: random.Random, person: Person, thorough: float) -> str:
    """One person in words; ``thorough`` is the share of the attributes that are mentioned."""

    def tell(share: float = 1.0) -> bool:
        return rng.random() < thorough * share

    subject = pick(rng, KIND_WORDS, person.kind)
    looks: list[str] = []
    if person.hair_length == "bald":
        if tell():
            if rng.random() < 0.5:
                subject = f"bald {subject}"
            else:
                looks.append(hair_phrase(rng, person, False))
    elif tell():
        looks.append(hair_phrase(rng, person, tell()))
    if tell():
        subject = f"{pick(rng, EXPRESSION_WORDS, person.expression)} {subject}"
    if person.beard and tell():
        if rng.random() < 0.3:
            subject = f"bearded {subject}"
        else:
            looks.append(rng.choice(("a beard", "beard")))
    if tell(0.3):
        looks.append(pick(rng, SKIN_WORDS, person.skin))
    worn: list[str] = []
    if person.glasses and tell():
        worn.append("glasses")
    if person.hat and tell():
        hat = f"{person.hat} {rng.choice(('hat', 'hat', 'cap'))}"
        worn.append(hat if rng.random() < 0.4 else article(hat))
    if tell():
        shirt = f"{pick(rng, COLOUR_WORDS, person.shirt)} {rng.choice(SHIRT_NOUNS)}"
        worn.append(shirt if rng.random() < 0.4 else article(shirt))
    rng.shuffle(looks)
    rng.shuffle(worn)
    if rng.random() < 0.4:  # a list of tags
        tags = looks + worn
        rng.shuffle(tags)
        return ", ".join([subject, *tags])
    text = subject
    if looks:
        text += f" with {join(looks, rng)}"
    if worn:
        text += f"{rng.choice((' wearing', ', wearing', ' in'))} {join(worn, rng)}"
    return text


def background_phrase(rng: random.Random, background: str) -> str:
    if background in LANDSCAPES:
        return pick(rng, LANDSCAPE_WORDS, background)
    colour = pick(rng, COLOUR_WORDS, background)
    return rng.choice(
        (f"{colour} background", f"{colour} background", f"{article(colour)} background", f"{colour} backdrop")
    )


def enumeration(people: Sequence[str]) -> str:
    """ "a man, a woman and a girl" """
    return " and ".join([", ".join(article(person) for person in people[:-1]), article(people[-1])])


def caption(scene: Scene, rng: random.Random) -> str:
    """One of many true captions of the scene."""
    # several people in full detail would not fit into the prompt's 40 tokens
    thorough = rng.choice((0.45, 0.75, 0.9, 1.0, 1.0) if len(scene.people) == 1 else (0.4, 0.55, 0.7))
    people = [describe_person(rng, person, thorough) for person in scene.people]
    background = background_phrase(rng, scene.background)
    framing = pick(rng, FRAMING_WORDS, scene.framing)
    if len(people) == 1:
        subject = people[0]
        text = f"{framing} {article(subject)}" if framing and rng.random() < 0.85 else (framing + " " + subject).strip()
    else:
        group = f"{NUMBER_WORDS[len(people)]} people"
        listed = enumeration(people)
        text = rng.choice((f"{group}: {listed}", f"{group}, {listed}", listed, f"{framing} {group}, {listed}".strip()))
    if rng.random() < max(thorough, 0.6):
        joint = rng.choice((", ", ", ", " on ", " in front of ") if scene.background not in LANDSCAPES else (", ", " "))
        if joint.strip() in ("on", "in front of") and not background.startswith(("a ", "an ")):
            background = article(background)
        text += joint + background
    if rng.random() < 0.06:
        text = rng.choice(("flat illustration, ", "vector art, ", "high quality, ")) + text
    return text
