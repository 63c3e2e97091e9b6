"""Trains the language model that rewrites short prompts: ``python -m training.models.prompt_upsampler --out DIR``.

A small Llama. It reads a few words, or any caption, about a scene and learns to write the scene's full caption, in the
one form that the transformer follows best. What the words leave open is drawn at random, as in the pictures; glasses,
beards and hats are never added. Combinations that are held out appear in no sample.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backend.llm.language_model import TransformersModel
from training.data.captions import NUMBER_WORDS, article, caption
from training.data.scene import Person, Scene, sample_training_scene
from training.evaluation.terse import ASKED, terse, terse_prompts
from training.models.muon import Muon
from training.models.precision import fast_products

logger = logging.getLogger(__name__)

VOCABULARY = 640
CONTEXT = 160
"""Tokens of the longest prompt and answer together."""
TEMPLATE = "{{ bos_token }}{{ messages[-1]['content'] | lower | trim }}{{ '\\n' }}"
"""An instruction before the user's words is not for this model: it knows only one task. A bare newline at a
template's end is dropped."""
FRAMINGS = {"close-up": "a close-up of", "portrait": "a portrait of", "half-body": "a half-body portrait of"}
NAMED = (*ASKED, "length", "expression", "glasses", "beard", "hat")


def sample_words(rng: random.Random, scene: Scene) -> str:
    """What a person might type for the scene: a few words, or a caption."""
    if rng.random() < 0.3:
        return caption(scene, rng).lower()
    people = [
        terse(rng, person, scene.background, rng.sample(NAMED, rng.choice((0, 1, 2, 2, 3, 3, 4))))
        for person in scene.people
    ]
    words = rng.choice((" and ", ", ")).join(people)
    return f"{scene.framing} {words}" if rng.random() < 0.1 else words


def full_caption(scene: Scene, words: str) -> str:
    """The scene in full, by the words' leave: what is never added is told only where they name it."""
    named = any(
        f in words
        for f in ("close-up", "closeup", "face of", "half-body", "upper body", "medium shot", "wide portrait")
    )
    people = [full_person(person, words, len(scene.people)) for person in scene.people]
    background = f"{scene.background} background"
    if len(people) == 1:
        return f"{FRAMINGS[scene.framing if named else 'portrait']} {article(people[0])}, {background}"
    return f"{NUMBER_WORDS[len(people)]} people: {' and '.join(article(person) for person in people)}, {background}"


def full_person(person: Person, words: str, people: int) -> str:
    """One of so many people; of three only what fits into the text encoder's 40 tokens."""
    subject = person.kind if people == 3 else f"{person.expression} {person.kind}"
    told = ["no hair" if person.hair_length == "bald" else f"{person.hair_length} {person.hair_colour} hair"]
    told += [
        extra
        for extra, there in (
            ("glasses", person.glasses and "glasses" in words),
            ("a beard", person.beard and "beard" in words),
            (f"a {person.hat} hat", person.hat and any(word in words for word in (" hat", " cap"))),
        )
        if there
    ]
    return f"{subject} with {', '.join(told)}, {person.shirt} shirt"


def sample_pair(rng: random.Random) -> tuple[str, str]:
    """Words and the full caption of the same scene."""
    scene = sample_training_scene(rng)
    words = sample_words(rng, scene)
    return words, full_caption(scene, f" {words}")


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Bytes, merged to the words of the captions, so that it can spell what they never say."""
    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    corpus = (text for _ in range(10_000) for text in sample_pair(rng))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=CONTEXT
    )
    fast.chat_template = TEMPLATE
    return fast


def build(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=144,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def batch_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: random.Random, size: int
) -> torch.Tensor:
    """Cross-entropy of the answers' tokens; the words before them are given."""
    pairs = [sample_pair(rng) for _ in range(size)]
    given = [tokenizer(f"{words}\n").input_ids for words, _ in pairs]
    answers = [tokenizer(f"{answer}</s>", add_special_tokens=False).input_ids for _, answer in pairs]
    length = max(len(words) + len(answer) for words, answer in zip(given, answers, strict=True))
    ids = torch.full((size, length), tokenizer.pad_token_id)
    labels = torch.full((size, length), -100)
    for row, (words, answer) in enumerate(zip(given, answers, strict=True)):
        ids[row, : len(words) + len(answer)] = torch.tensor(words + answer)
        labels[row, len(words) : len(words) + len(answer)] = torch.tensor(answer)
    with fast_products():  # padding is at the end, where a causal model does not look before
        logits = model(input_ids=ids).logits
    return functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())


def colours_kept(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seeds: range = range(100, 102)) -> float:
    """The share of the colours named in held-out words that the answers name for the same thing."""
    writer, kept, asked = TransformersModel(model.eval(), tokenizer), 0, 0
    for seed in seeds:
        for words, colours in terse_prompts(seed):
            prompt = tokenizer.apply_chat_template([{"role": "user", "content": words}], tokenize=False)
            answer = writer.complete(prompt, CONTEXT, seed).text
            kept += sum(f"{colour} {name}" in answer for name, colour in colours.items())
            asked += len(colours)
    return kept / asked


def train(out: Path, steps: int, size: int, seed: int) -> None:
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(seed)
    model = build(tokenizer).train()
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizer = Muon(matrices, [(others, 4e-3)], matrix_rate=0.01)
    rng, begin = random.Random(seed + 1), time.monotonic()
    for step in range(1, steps + 1):
        loss = batch_loss(model, tokenizer, rng, size)
        loss.backward()
        optimizer.step(min(1.0, step / 50) * max(0.01, min(1.0, (1 - step / steps) / 0.6)))
        if step % 25 == 0:
            logger.info("step %d of %d, %.0f s, loss %.3f", step, steps, time.monotonic() - begin, loss.item())
    logger.info("colours kept of held-out words: %.1f%%", 100 * colours_kept(model, tokenizer))
    save(model, tokenizer, out)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """In half precision, written beside the destination and renamed."""
    building = out.with_name(f".{out.name}.part")
    shutil.rmtree(building, ignore_errors=True)
    model.half().save_pretrained(building)
    tokenizer.save_pretrained(building)
    config = building / "config.json"  # where it was made says nothing about the model
    kept = {key: value for key, value in json.loads(config.read_text()).items() if key != "_name_or_path"}
    config.write_text(json.dumps(kept, indent=2) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    building.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.out, arguments.steps, arguments.batch, arguments.seed)


if __name__ == "__main__":
    main()
