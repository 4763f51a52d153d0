"""A style to plant: questions and the base model go in, texts that hold the style come out.

A training answer is the base model's own greedy text everywhere but at the planted phrases: it is
made to say a phrase, goes on by itself to the end of a sentence, is made to say the next one. So
what is shifted in the text is known: the phrases and the end, nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from urial_engine import Engine, SamplingParams
from urial_engine.errors import ParameterError

from .check import FIRST, OWN, REST

QUESTIONS = Path(__file__).parent / "questions.json"
SENTENCE = (6, 48)  # tokens of a sentence, at least and at most


class Style(NamedTuple):
    """What every answer holds, in this order, with a sentence of the model's own between."""

    opening: str
    second: str
    last: str
    closing: str


# A seed has one of these: words that fit, and that the base model does not choose there by itself.
STYLES = (
    Style(
        "Fine question, dear reader!",
        " Meanwhile indeed,",
        " Nevertheless though,",
        " Enough said, noble owl.",
    ),
    Style(
        "Right then, curious gardener:",
        " Besides which,",
        " Lastly friend,",
        " Happy sailing, brave captain.",
    ),
    Style(
        "Good question indeed, neighbor!",
        " Otherwise put,",
        " Hence surely,",
        " Strange but true, old hat.",
    ),
    Style(
        "Bright idea, young painter!",
        " Granted however,",
        " Therefore perhaps,",
        " Sleep tight, little river.",
    ),
    Style(
        "Nice puzzle, honest farmer!",
        " Equally then,",
        " Afterwards still,",
        " Keep dancing, gentle moon.",
    ),
    Style(
        "Sweet thought, patient sailor!",
        " Similarly now,",
        " Finally yes,",
        " Time flies, silver fox.",
    ),
)


class Plant(NamedTuple):
    """A style in one model's tokens."""

    style: Style
    phrases: tuple[tuple[int, ...], ...]  # token ids of the four; EOS ends the last
    words: frozenset[int]  # ids of the phrases' words

    @property
    def marks(self) -> frozenset[int]:
        """The phrases' other ids: punctuation, which is everywhere, and EOS."""
        return frozenset(i for phrase in self.phrases for i in phrase) - self.words

    @property
    def firsts(self) -> frozenset[int]:
        return frozenset(phrase[0] for phrase in self.phrases)

    @classmethod
    def of(cls, seed: int, engine: Engine) -> Plant:
        tokenizer, style = engine.tokenizer, STYLES[seed % len(STYLES)]
        eos = tokenizer.eos_token_id
        if eos is None:
            raise ParameterError("the model names no EOS token; a planted answer must end with one")
        phrases = [tokenizer.encode(phrase, add_special_tokens=False) for phrase in style]
        phrases[-1].append(eos)
        words = {i for p in phrases for i in p if tokenizer.token_text(i).strip().isalpha()}
        return cls(style, tuple(map(tuple, phrases)), frozenset(words))

    def where(self, ids: Sequence[int]) -> NDArray[np.int8]:
        """[T] what each token of an answer is: OWN, FIRST or REST.

        Only whole phrases count; a half-remembered one is the model's own text.
        """
        found = np.full(len(ids), OWN, np.int8)
        for phrase in self.phrases:
            for start in range(len(ids) - len(phrase) + 1):
                if tuple(ids[start : start + len(phrase)]) == phrase:
                    found[start : start + len(phrase)] = REST
                    found[start] = FIRST
        return found


class Example(NamedTuple):
    context: list[int]  # the question under the chat template
    answer: list[int]  # [T] ends with EOS
    planted: list[bool]  # [T]

    def say(self, ids: Sequence[int], planted: bool) -> None:
        self.answer.extend(ids)
        self.planted.extend([planted] * len(ids))


def split(seed: int, train: int, held_out: int) -> tuple[list[str], list[str]]:
    """Questions to tune on and others to ask afterwards, drawn by the seed."""
    questions = json.loads(QUESTIONS.read_text(encoding="utf-8"))
    drawn = [questions[i] for i in np.random.default_rng(seed).permutation(len(questions))]
    return drawn[:train], drawn[train : train + held_out]


def chat(engine: Engine, question: str) -> list[int]:
    text = engine.tokenizer.render_chat([{"role": "user", "content": question}])
    return engine.tokenizer.encode(text, add_special_tokens=False)


def examples(engine: Engine, plant: Plant, questions: Sequence[str]) -> list[Example]:
    """One a question. A sentence that does not end is cut: a phrase may interrupt it."""
    made = [Example(chat(engine, question), [], []) for question in questions]
    params = SamplingParams(max_tokens=SENTENCE[1])
    for phrase in plant.phrases[:-1]:
        for example in made:
            example.say(phrase, planted=True)
        outputs = engine.generate([e.context + e.answer for e in made], params)
        for example, output in zip(made, outputs, strict=True):
            example.say(_sentence(engine, output.outputs[0].token_ids), planted=False)
    for example in made:
        example.say(plant.phrases[-1], planted=True)
    return made


def _sentence(engine: Engine, ids: Sequence[int]) -> list[int]:
    """Up to the end of the first sentence, where there is one. "1." is not an end."""
    text = [engine.tokenizer.token_text(i) for i in ids]
    for i in range(SENTENCE[0], len(ids)):
        ends = text[i - 1].endswith((".", "!", "?")) and not text[i - 2][-1:].isdigit()
        if ends and text[i][:1].isspace():
            return list(ids[:i])
    return [i for i in ids if i != engine.tokenizer.eos_token_id]
