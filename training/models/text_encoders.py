"""Trains the text encoders on captions alone: ``python -m training.models.text_encoders --out DIR [--start DIR]``.

The T5 encoder learns to say, for every person of a caption, which colour belongs to which noun. The transformer that is
trained on top of it then finds "shirt: blue" in the embeddings and need not learn grammar from pictures.

With ``--start`` trained encoders learn the words that are new in the captions. What they say of portraits is held where
it was, so the transformer that was trained on top of them still understands.
"""

from __future__ import annotations

import argparse
import copy
import logging
import random
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from training.data.figures import FULL_BODY, GARMENTS, HAND_CLOSE_UP, LOWER_COLOURS, POSES
from training.data.held_out import held_out_prompts
from training.data.scene import (
    BACKGROUND_COLOURS,
    EXPRESSIONS,
    FRAMINGS,
    HAIR_COLOURS,
    HAT_COLOURS,
    KINDS,
    LANDSCAPES,
    SHIRT_COLOURS,
    SKIN_TONES,
    Scene,
)
from training.data.subjects import Subject, any_caption
from training.data.thing_captions import sunset
from training.data.things import THINGS, Things
from training.data.vocabulary import (
    MAX_TOKENS,
    copy_small_letters,
    in_capitals,
    same_ids,
    sample_caption,
    sample_subject,
    train_tokenizers,
    widen_embedding,
    widen_tokenizers,
)
from training.models.muon import Muon
from training.models.precision import fast_products

logger = logging.getLogger(__name__)

PEOPLE = 4
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "hair_colour": tuple(HAIR_COLOURS),
    "hair_length": ("short", "long", "bald"),
    "skin": tuple(SKIN_TONES),
    "expression": EXPRESSIONS,
    "shirt": tuple(SHIRT_COLOURS),
    "glasses": ("False", "True"),
    "beard": ("False", "True"),
    "hat": ("None", *HAT_COLOURS),
}
STANCE: dict[str, tuple[str, ...]] = {
    "pose": POSES,
    "lower": GARMENTS,
    "lower_colour": tuple(dict.fromkeys(LOWER_COLOURS.values())),
}
"""What is asked of figures beside that."""
BACKGROUNDS = (*BACKGROUND_COLOURS, *LANDSCAPES)
SHOWN = ("people", *THINGS, *LANDSCAPES)
THING_COLOURS = tuple(dict.fromkeys(name for colours in THINGS.values() for name in colours))
LIGHT = ("day", "sunset")
OTHER_WORDS = 0.4
"""Share of captions that are not in the usual form."""
VIEWS = (*FRAMINGS, FULL_BODY, HAND_CLOSE_UP)
IGNORED = -100
HELD = 20.0
"""How much a change of what is said of portraits counts beside a wrong answer; changes are in shares of the
embeddings' spread."""


def questions() -> list[int]:
    """The number of answers of each question: every attribute of four people; then the background, how many there are,
    the view, what is shown, its colour and its light."""
    return [len(values) for values in (*ATTRIBUTES.values(), *STANCE.values())] * PEOPLE + [
        len(BACKGROUNDS),
        PEOPLE,
        len(VIEWS),
        len(SHOWN),
        len(THING_COLOURS),
        len(LIGHT),
    ]


def answers_of_things(things: Things) -> list[int]:
    return [
        *[IGNORED] * ((len(ATTRIBUTES) + len(STANCE)) * PEOPLE),
        BACKGROUNDS.index(things.background) if things.background else IGNORED,
        len(things.places) - 1 if things.places else IGNORED,
        IGNORED,
        SHOWN.index(things.kind),
        THING_COLOURS.index(things.colour) if things.colour else IGNORED,
        LIGHT.index("sunset" if sunset(things) else "day") if things.kind in LANDSCAPES else IGNORED,
    ]


def answers(subject: Subject) -> list[int]:
    if isinstance(subject, Things):
        return answers_of_things(subject)
    scene, stances = (subject, ()) if isinstance(subject, Scene) else (subject.scene, subject.stances)
    labels: list[int] = []
    for index in range(PEOPLE):
        for name, values in ATTRIBUTES.items():
            labels.append(
                values.index(str(getattr(scene.people[index], name))) if index < len(scene.people) else IGNORED
            )
        told = (
            {
                "pose": stances[index].pose,
                "lower": stances[index].lower,
                "lower_colour": LOWER_COLOURS[stances[index].lower_colour],
            }
            if index < len(stances)
            else {}
        )
        labels += [values.index(told[name]) if told else IGNORED for name, values in STANCE.items()]
    return [
        *labels,
        BACKGROUNDS.index(scene.background),
        len(scene.people) - 1,
        VIEWS.index(scene.framing),
        SHOWN.index("people"),
        IGNORED,
        IGNORED,
    ]


def build_encoders(
    clip_tokenizer: CLIPTokenizer, t5_tokenizer: T5TokenizerFast
) -> tuple[CLIPTextModel, T5EncoderModel]:
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            projection_dim=128,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=clip_tokenizer.bos_token_id,
            eos_token_id=clip_tokenizer.eos_token_id,
            pad_token_id=clip_tokenizer.pad_token_id,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer),
            d_model=192,
            d_kv=32,
            d_ff=512,
            num_layers=4,
            num_heads=6,
            feed_forward_proj="gated-gelu",
            relative_attention_num_buckets=32,
            relative_attention_max_distance=64,
            dropout_rate=0.0,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )
    return clip, t5


class Readout(nn.Module):
    """One attention hop from a learnt question to the token embeddings, then the answer: what the transformer can do
    too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        counts = questions()
        self.query = nn.Parameter(torch.randn(len(counts), width) * 0.02)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in counts)

    def forward(self, embeddings: torch.Tensor) -> list[torch.Tensor]:
        found, _ = self.attention(
            self.query.expand(len(embeddings), -1, -1), embeddings, embeddings, need_weights=False
        )
        return [head(found[:, i]) for i, head in enumerate(self.heads)]


def answer_loss(logits: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    return torch.stack(
        [
            functional.cross_entropy(guess, labels[:, i], ignore_index=IGNORED)
            for i, guess in enumerate(logits)
            if (labels[:, i] != IGNORED).any()
        ]
    ).mean()


@torch.no_grad()
def colours_named(
    t5: T5EncoderModel, readout: Readout, tokenizer: T5TokenizerFast, seeds: range = range(100, 110)
) -> dict[str, float]:
    """The share of held-out prompts in which the embeddings say the first person's hair and shirt and the
    background."""
    prompts = [prompt for seed in seeds for prompt in held_out_prompts(seed)]
    ids = tokenizer(
        [text for text, _ in prompts], padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    logits, attributes = readout(t5(ids)[0]), [*ATTRIBUTES, *STANCE]
    questions_asked = {
        "hair": (attributes.index("hair_colour"), list(HAIR_COLOURS)),
        "shirt": (attributes.index("shirt"), list(SHIRT_COLOURS)),
        "background": (len(attributes) * PEOPLE, list(BACKGROUNDS)),
    }
    right: dict[str, float] = {}
    for noun, (question, colours) in questions_asked.items():
        named = [colours[answer] for answer in logits[question].argmax(1)]
        right[noun] = sum(name == asked[noun] for name, (_, asked) in zip(named, prompts, strict=True)) / len(prompts)
    return right


class Captions:
    """Batches of captions as both encoders' tokens, with the answers that are right."""

    def __init__(self, clip: CLIPTokenizer, t5: T5TokenizerFast, seed: int) -> None:
        self.clip, self.t5, self.rng = clip, t5, random.Random(seed)

    def sample(self, count: int, subject: str | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """CLIP's and T5's tokens, each ``count`` x 40, and ``count`` x questions."""
        shown = [sample_subject(self.rng, subject) for _ in range(count)]
        texts = [any_caption(one, self.rng, OTHER_WORDS) for one in shown]
        ids = [
            tokenizer(
                texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
            ).input_ids
            for tokenizer in (self.clip, self.t5)
        ]
        return ids[0], ids[1], torch.tensor([answers(one) for one in shown])


def drift(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """The mean square of the change, as a share of the old one's variance."""
    return functional.mse_loss(new.float(), old) / old.var()


def open_encoders(folder: Path) -> tuple[CLIPTextModel, T5EncoderModel]:
    return (
        CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32, trust_remote_code=False),
        T5EncoderModel.from_pretrained(folder / "text_encoder_2", torch_dtype=torch.float32, trust_remote_code=False),
    )


def widened(
    encoders: tuple[CLIPTextModel, T5EncoderModel], clip_tokens: int, t5_tokens: int
) -> tuple[CLIPTextModel, T5EncoderModel]:
    """Copies with embeddings for as many tokens."""
    clip, t5 = copy.deepcopy(encoders)
    for model, count in ((clip, clip_tokens), (t5, t5_tokens)):
        model.set_input_embeddings(widen_embedding(model.get_input_embeddings(), count))
        model.config.vocab_size = count
    return clip, t5


def make_optimizer(encoders: nn.Module, heads: list[nn.Parameter], slower: float) -> Muon:
    inner = {
        name
        for name, p in encoders.named_parameters()
        if p.ndim == 2 and "embed" not in name and "shared" not in name and "bias" not in name
    }
    matrices = [p for name, p in encoders.named_parameters() if name in inner]
    # this bias alone says which word comes before which, and it has to grow from 0.07 to about 3 before a colour finds
    # its noun: at the others' rate that takes longer than the whole training
    places = [p for name, p in encoders.named_parameters() if "relative_attention_bias" in name]
    others = [
        p for name, p in encoders.named_parameters() if name not in inner and "relative_attention_bias" not in name
    ]
    return Muon(matrices, [(heads, 2e-3), (others, 2e-3), (places, 0.05 * slower)], matrix_rate=0.005 * slower)


def teach(
    clip: CLIPTextModel,
    t5: T5EncoderModel,
    captions: Captions,
    steps: int,
    held: tuple[CLIPTextModel, T5EncoderModel] | None,
) -> Readout:
    """Trains both encoders to answer; ``held`` are those whose embeddings of portraits are kept. Returns T5's
    readout."""
    readout = Readout(192)
    pooled_heads = nn.ModuleList(nn.Linear(128, count) for count in questions())
    heads = [*readout.parameters(), *pooled_heads.parameters()]
    optimizer = make_optimizer(nn.ModuleList([clip, t5]), heads, slower=1.0 if held is None else 0.2)
    begin = time.monotonic()
    for step in range(1, steps + 1):
        clip_ids, t5_ids, labels = captions.sample(64)
        # Flux passes no attention mask to either encoder
        with fast_products():
            embeddings, pooled = t5(t5_ids)[0], clip(clip_ids).pooler_output
        loss = answer_loss(readout(embeddings.float()), labels)
        total = loss + answer_loss([head(pooled.float()) for head in pooled_heads], labels)
        if held is not None:
            clip_ids, t5_ids, _ = captions.sample(32, "portraits")
            with torch.no_grad():
                old_pooled, old_embeddings = held[0](clip_ids).pooler_output, held[1](t5_ids)[0]
            moved = (drift(t5(t5_ids)[0], old_embeddings), drift(clip(clip_ids).pooler_output, old_pooled))
            total = total + HELD * (moved[0] + moved[1])
        total.backward()
        optimizer.step(min(1.0, step / 50) * max(0.01, min(1.0, (1 - step / steps) / 0.6)))
        if step % 50 == 0:
            logger.info(
                "step %d of %d, %.0f s, t5 loss %.3f, all %.3f",
                step,
                steps,
                time.monotonic() - begin,
                loss.item(),
                total.item(),
            )
            if held is not None:
                logger.info("portraits moved by %.4f and %.4f", *(one.item() for one in moved))
    return readout


def train(out: Path, start: Path | None, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    held = None
    if start is None:
        clip_tokenizer, t5_tokenizer = train_tokenizers(seed)
        clip_tokenizer.save_pretrained(out / "tokenizer")
        t5_tokenizer.save_pretrained(out / "tokenizer_2")
    else:
        logger.info("new words: %s", ", ".join(widen_tokenizers(start, out, seed)))
    clip_tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer", trust_remote_code=False)
    t5_tokenizer = T5TokenizerFast.from_pretrained(out / "tokenizer_2", trust_remote_code=False)
    captions = Captions(clip_tokenizer, t5_tokenizer, seed + 1)
    if start is None:
        clip, t5 = build_encoders(clip_tokenizer, t5_tokenizer)
    else:
        texts = [sample_caption(random.Random(number), "portraits")[0] for number in range(500)]
        for tokenizer, name in ((clip_tokenizer, "tokenizer"), (t5_tokenizer, "tokenizer_2")):
            assert same_ids(type(tokenizer).from_pretrained(start / name, trust_remote_code=False), tokenizer, texts), (
                "a new word changed the tokens of old ones"
            )
        held = open_encoders(start)
        clip, t5 = widened(held, len(clip_tokenizer), len(t5_tokenizer))
    readout = teach(clip, t5, captions, steps, held)
    if start is None:
        copy_small_letters(t5.get_input_embeddings(), t5_tokenizer, in_capitals(t5_tokenizer))
    logger.info("colours named right in held-out prompts: %s", colours_named(t5, readout, t5_tokenizer))
    clip.save_pretrained(out / "text_encoder")
    t5.save_pretrained(out / "text_encoder_2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="folder with trained encoders, which learn new words")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.out, arguments.start, arguments.steps, arguments.seed)


if __name__ == "__main__":
    main()
