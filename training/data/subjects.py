"""What the generator learns to draw, and in which words: portraits, whole figures, faces and hands as the detail pass
sees them, and things and landscapes without people."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

from PIL import Image

from training.data import captions, figure_captions, thing_captions
from training.data.drawing import draw_scene
from training.data.figure_drawing import draw_figures
from training.data.figures import SHAPES, Figures, sample_hand, sample_training_figures
from training.data.scene import ASPECTS, LANDSCAPES, Scene, sample_near_face, sample_training_scene
from training.data.thing_drawing import draw_things
from training.data.things import Things, sample_things
from training.data.wordings import background_first, plain, reworded

Subject = Scene | Figures | Things
Size = tuple[int, int]


def draw_subject(subject: Subject) -> Image.Image:
    if isinstance(subject, Things):
        return draw_things(subject)
    return draw_scene(subject) if isinstance(subject, Scene) else draw_figures(subject).image


def _usual_caption(subject: Subject, rng: random.Random) -> str:
    if isinstance(subject, Things):
        return thing_captions.caption(subject, rng)
    return captions.caption(subject, rng) if isinstance(subject, Scene) else figure_captions.caption(subject, rng)


def caption(subject: Subject, rng: random.Random) -> str:
    """One of many true captions; a quarter begin with a capital."""
    text = _usual_caption(subject, rng)
    return text[0].upper() + text[1:] if rng.random() < 0.25 else text


def in_other_words(subject: Subject, rng: random.Random) -> tuple[str, str] | None:
    """A caption in any wording and the usual one that says the same, both marked; None if there is no other."""
    if isinstance(subject, Scene) and len(subject.people) == 1 and subject.background not in LANDSCAPES:
        return reworded(rng, subject)
    return background_first(rng, caption(subject, rng))


def any_caption(subject: Subject, rng: random.Random, other: float) -> str:
    """A caption as people write it; ``other`` is the share of those that are not in the usual form."""
    words = in_other_words(subject, rng) if other and rng.random() < other else None
    return plain(words[0]) if words else caption(subject, rng)


SUBJECTS: Mapping[str, tuple[Callable[[random.Random, Size], Subject], tuple[Size, ...]]] = MappingProxyType(
    {
        "portraits": (sample_training_scene, ASPECTS),
        "figures": (sample_training_figures, SHAPES),
        "faces": (sample_near_face, ASPECTS[:1]),
        "hands": (sample_hand, SHAPES[:1]),
        "things": (sample_things, SHAPES[:5]),
    }
)
"""By name how a subject is sampled, and in which picture sizes, the square first."""
