"""Prompts in every order and wording: what they say, what is kept from training, and how they are held against the usual caption."""

from __future__ import annotations

import random

import torch
from transformers import T5TokenizerFast

from training.data.captions import COLOUR_WORDS, HAIR_WORDS
from training.data.figures import Figures
from training.data.held_out_wordings import SKELETONS, TEMPLATES, held_out_wordings, is_held_out_wording, skeleton
from training.data.scene import BACKGROUND_COLOURS, HAIR_COLOURS, SHIRT_COLOURS, Scene, sample_training_scene
from training.data.things import Things
from training.data.vocabulary import MAX_TOKENS, copy_small_letters, in_capitals, sample_caption, sample_reworded
from training.data.wordings import MARK, background_first, plain, reworded, spans, usual
from training.models.rewording import Tokens, alignment, marked_word_by_word


def portraits(seed: int, count: int) -> list[Scene]:
    rng, scenes = random.Random(seed), []
    while len(scenes) < count:
        scene = sample_training_scene(rng)
        if len(scene.people) == 1:
            scenes.append(scene)
    return scenes


def pairs(seed: int, count: int) -> list[tuple[str, str, Scene]]:
    """Portraits in some wording and in the usual one, marked."""
    rng = random.Random(seed)
    return [(*reworded(rng, scene), scene) for scene in portraits(seed, count)]


def words(marked: str) -> dict[str, str]:
    """What is said, by its meaning, in small letters and usual words."""
    return {name: usual(said.lower()) for name, said in MARK.findall(marked)}


# What a wording says


def test_a_wording_says_what_the_usual_caption_says_and_nothing_else() -> None:
    for worded, usual_caption, _ in pairs(1, 400):
        said, meant = words(worded), words(usual_caption)
        said.setdefault("hair", meant.get("hair", ""))  # "a blonde woman"
        assert {name: word for name, word in said.items() if word} == meant, (worded, usual_caption)


def test_every_colour_is_the_one_of_the_picture() -> None:
    for worded, _, scene in pairs(2, 400):
        said, person = words(worded), scene.people[0]
        for name, words_for, drawn in (
            ("hair_colour", HAIR_WORDS, person.hair_colour),
            ("shirt_colour", COLOUR_WORDS, person.shirt),
            ("background_colour", COLOUR_WORDS, scene.background),
        ):
            assert name not in said or said[name] in words_for.get(drawn, (drawn,)), worded


def test_a_colour_stands_beside_its_noun() -> None:
    """At most two words and a sign lie between "red" and "hair", in whatever order they come; only "a blonde woman" goes without."""
    apart = {"is", "are", "the"}
    for worded, _, _ in pairs(3, 600):
        places = spans(worded)
        for noun in ("hair", "shirt", "background"):
            if noun in places and f"{noun}_colour" in places:
                (a, b), (c, d) = sorted((places[noun], places[f"{noun}_colour"]))
                assert (
                    set(plain(worded)[b:c].lower().replace(":", " ").replace("=", " ").replace("-", " ").split())
                    <= apart
                ), worded


def test_glasses_beards_and_hats_are_told_of_those_who_have_them() -> None:
    for worded, _, scene in pairs(4, 400):
        said, person = words(worded), scene.people[0]
        assert (
            ("glasses" not in said or person.glasses)
            and ("beard" not in said or person.beard)
            and ("hat" not in said or person.hat)
        )


def test_wordings_come_in_every_order_and_case() -> None:
    texts = [plain(worded) for worded, _, _ in pairs(5, 600)]
    shapes = [skeleton(text) for text in texts]
    firsts = {shape.split()[0] for shape in shapes if shape}
    assert {"KIND", "HAIR", "SHIRT", "BACKGROUND", "on"} <= firsts
    assert (
        sum(text.isupper() for text in texts) > 40
        and sum(text[0].isupper() and not text.isupper() for text in texts) > 60
    )
    assert len(set(shapes)) > 250
    assert (
        any("BACKGROUND" not in shape for shape in shapes)
        and any("SHIRT" not in shape for shape in shapes)
        and any(shape == "KIND" for shape in shapes)
    )


def test_the_background_of_a_group_moves_to_the_front() -> None:
    rng = random.Random(6)
    worded, as_usual = background_first(rng, "two people, a man and a girl, waving, red background") or ("", "")
    assert plain(as_usual) == "two people, a man and a girl, waving, red background"
    assert plain(worded).lower().endswith("two people, a man and a girl, waving")
    assert words(worded)["background_colour"] == "red"
    assert background_first(rng, "two people, a man and a girl") is None


# What is kept from training


def test_there_are_at_least_six_held_out_wordings_and_all_are_different() -> None:
    assert len(SKELETONS) == len(TEMPLATES) >= 6


def test_a_held_out_wording_is_known_by_what_it_names_in_which_order() -> None:
    assert is_held_out_wording("on a pink background: a girl, brown hair, white shirt")
    assert is_held_out_wording("On a navy background: a smiling lady, glasses, long blonde hair, white sweater")
    assert is_held_out_wording("PORTRAIT, MAN, RED SHIRT, GREEN BACKGROUND, BLACK HAIR")
    assert not is_held_out_wording("a girl, brown hair, white shirt, on a pink background")


def test_the_held_out_wordings_are_never_written_for_training() -> None:
    rng = random.Random(7)
    assert not any(is_held_out_wording(plain(worded)) for worded, _, _ in pairs(7, 3000))
    assert not any(is_held_out_wording(sample_caption(rng, "portraits")[0]) for _ in range(3000))


def test_held_out_prompts_are_of_held_out_combinations_in_every_wording_alike() -> None:
    prompts = held_out_wordings(48)
    assert [skeleton(text) for text, _ in prompts[: len(TEMPLATES)]] == [
        skeleton(text) for text, _ in prompts[len(TEMPLATES) : 2 * len(TEMPLATES)]
    ]
    assert {skeleton(text) for text, _ in prompts} == SKELETONS
    for text, asked in prompts:
        assert (
            asked["background"] in BACKGROUND_COLOURS
            and asked["hair"] in HAIR_COLOURS
            and asked["shirt"] in SHIRT_COLOURS
        )
        assert all(colour in text.lower() for colour in asked.values()) and len(set(asked.values())) == 3
    assert prompts == held_out_wordings(48)


# How a wording is held against the usual caption


def test_marks_leave_the_text_as_it_is() -> None:
    text = "a half-body portrait of two people: a man, red hair"
    marked = marked_word_by_word(text)
    assert plain(marked) == text
    assert [text[start:end] for start, end in spans(marked).values()] == [
        "a",
        "half",
        "body",
        "portrait",
        "of",
        "two",
        "people",
        "a",
        "man",
        "red",
        "hair",
    ]


def row(*meanings: str) -> Tokens:
    filled = [*meanings, "end", *["pad"] * (MAX_TOKENS - 1 - len(meanings))]
    return Tokens([hash(meaning) % 1000 for meaning in filled], filled)


def test_a_word_becomes_the_same_word_of_the_usual_caption_wherever_it_is() -> None:
    worded, as_usual = (
        row("background_colour", "background", "join ,", "kind"),
        row("kind", "join ,", "background_colour", "background"),
    )
    shares, counts = alignment(worded, as_usual)
    assert [int(shares[i].argmax()) for i in range(5)] == [2, 3, 1, 0, 4]
    assert torch.allclose(shares.sum(1), torch.ones(MAX_TOKENS))
    assert counts[0] > counts[2] > counts[MAX_TOKENS - 1] > 0


def test_a_usual_caption_stays_what_it_is() -> None:
    same = row("kind", "join ,", "hair_colour", "hair", "join ,", "shirt")
    assert torch.equal(alignment(same, same)[0], torch.eye(MAX_TOKENS))


def test_a_word_in_several_pieces_keeps_their_order() -> None:
    shares, _ = alignment(row("shirt", "shirt", "shirt", "kind"), row("kind", "shirt", "shirt", "shirt"))
    assert [int(shares[i].argmax()) for i in range(3)] == [1, 2, 3]


def test_words_in_capitals_begin_as_what_they_are_in_small_letters() -> None:
    tokenizer = T5TokenizerFast(
        vocab=[
            ("<pad>", 0.0),
            ("</s>", 0.0),
            ("<unk>", 0.0),
            ("▁red", -1.0),
            ("▁Red", -1.0),
            ("▁RED", -1.0),
            ("▁A", -1.0),
        ],
        extra_ids=0,
    )
    embedding, ids = torch.nn.Embedding(len(tokenizer), 4), tokenizer.get_vocab()
    before = embedding.weight.detach().clone()
    assert in_capitals(tokenizer) == ["▁RED"]
    copy_small_letters(embedding, tokenizer, in_capitals(tokenizer))
    assert torch.equal(embedding.weight[ids["▁RED"]], before[ids["▁red"]])
    assert torch.equal(embedding.weight[ids["▁Red"]], before[ids["▁Red"]])


def test_figures_and_things_are_said_in_other_words_too() -> None:
    rng = random.Random(8)
    assert {type(sample_reworded(rng)[2]) for _ in range(60)} == {Scene, Figures, Things}
