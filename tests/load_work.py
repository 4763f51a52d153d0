"""Requests for a loaded server, and what each is answered when nothing else runs."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from urial_engine import Engine, SamplingParams, UrialPrompt
from urial_engine.prompt_stream import AnswerStream

WORDS = re.findall(
    r"\w+",
    "the river a city small old bread water number seven light why does music count stone green "
    "letter train how many people know winter answer history of and with under before machine",
)
PROMPT = UrialPrompt.default()
BAD: tuple[tuple[str, Any, int], ...] = (
    ("/v1/completions", {"prompt": "a", "top_p": 7}, 400),
    ("/v1/completions", {"prompt": "a", "n": 10**9}, 400),
    ("/v1/completions", {"prompt": [10**6]}, 400),
    ("/v1/completions", {"prompt": "a", "model": "none"}, 404),
    ("/v1/completions", b'{"prompt": "a', 400),
    ("/v1/completions", b'{"prompt": "\xff\xfe"}', 400),
    ("/v1/completions", b" " * (3 << 20), 413),
    ("/v1/completions", {"prompt": "why " * 20_000}, 400),
    ("/v1/chat/completions", {"messages": []}, 400),
    ("/v1/chat/completions", b"[" * 100_000, 400),
    ("/v1/completions", {"prompt": "count", "max_tokens": 500, "deadline": 1e-3}, 504),
    ("/generate", {"inputs": "a", "parameters": {"temperature": 0}}, 422),
    ("/v1/score", {"prompt": "a", "continuation": ["b", "c"]}, 400),
    ("/nothing", {}, 404),
)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, how the engine itself is asked the same, and what that answers alone."""

    path: str
    body: dict[str, Any]
    prompt: str | list[int]
    params: SamplingParams | list[int]  # or the ids that are scored
    wanted: tuple[Any, ...] = ()
    tokens: int = 0  # generated
    compared: tuple[int, ...] = ()  # them, where they are ranked in a second context

    def got(self, answer: Any) -> tuple[Any, ...]:
        """What is compared, of the answer to it."""
        if self.path == "/generate":
            return (answer["generated_text"],)
        if self.path == "/v1/score":
            (one,) = answer["results"]
            return tuple(one["logprob"])
        choices = answer["choices"]
        texts = [c["text"] if "text" in c else c["message"]["content"] for c in choices]
        return (*texts, *_ranks(choices))

    def streamed(self, events: Sequence[Any]) -> tuple[Any, ...]:
        """The same, of a stream."""
        if self.path == "/generate":
            return (events[-1]["generated_text"],)
        choices = [choice for event in events for choice in event["choices"]]
        return (*self._texts(events), *_ranks(choices))

    def left_at(self, events: Sequence[Any]) -> int | None:
        """How many tokens these are about, the first of a stream; None where they are others."""
        texts = self._texts(events)
        wanted = self.wanted[: len(texts)]
        if not all(full.startswith(text) for full, text in zip(wanted, texts, strict=True)):
            return None
        share = len("".join(texts)) / max(len("".join(wanted)), 1)
        return round(share * self.tokens)

    def _texts(self, events: Sequence[Any]) -> list[str]:
        """Of each sample, as far as it has come."""
        if self.path == "/generate":
            tokens = [event["token"] for event in events]
            return ["".join(token["text"] for token in tokens if not token["special"])]
        texts = dict.fromkeys(range(self.body.get("n", 1)), "")
        for event in events:
            for choice in event["choices"]:
                part = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
                texts[choice["index"]] += part
        return [texts[index] for index in sorted(texts)]


def asks(engine: Engine, count: int, seed: int) -> list[Ask]:
    """Of all kinds and lengths. The engine has PROMPT as its prefix."""
    random_ = random.Random(seed)
    makers = (_completion, _chat, _samples, _generate, _chat, _score, _completion, _chat)
    made = [_compared(engine, random_)]
    made += [makers[i % len(makers)](engine, random_) for i in range(1, count)]
    return [_alone(engine, ask) for ask in made]


def _alone(engine: Engine, ask: Ask) -> Ask:
    if isinstance(ask.params, list):
        (score,) = engine.score([ask.prompt], [ask.params])
        return replace(ask, wanted=tuple(score.logprob.tolist()))
    (output,) = engine.generate([ask.prompt], ask.params)
    wanted: list[Any] = [sample.text for sample in output.outputs]
    if isinstance(ask.prompt, str):
        wanted = [PROMPT.clean(text) for text in wanted]
    if "compare_with" in ask.body:
        (score,) = engine.score([ask.body["prompt"]], [output.outputs[0].token_ids])
        wanted += score.rank.tolist()
        ask = replace(ask, compared=tuple(output.outputs[0].token_ids))
    tokens = sum(len(sample.token_ids) for sample in output.outputs)
    if isinstance(ask.prompt, str):
        tokens = _to_its_end(engine, ask)
    return replace(ask, wanted=tuple(wanted), tokens=tokens)


def _to_its_end(engine: Engine, ask: Ask) -> int:
    """Tokens until nothing of a chat's answer is to come, though the model would go on."""
    assert isinstance(ask.params, SamplingParams)
    answer, tokens = AnswerStream(PROMPT), 0
    for event in engine.stream(ask.prompt, ask.params):
        answer.push(event.text)
        tokens += len(event.token_ids)
        if answer.ended:
            break
    return tokens


def _ranks(choices: Sequence[Any]) -> list[int]:
    """Of each token under a second context, where that was asked for."""
    return [one["rank"] for choice in choices for one in choice.get("shift", ())]


def _text(random_: random.Random) -> str:
    """Most are short, some long."""
    return " ".join(random_.choices(WORDS, k=random_.choice((3, 8, 20, 40, 90, 400))))


def _length(random_: random.Random) -> int:
    return random_.choice((4, 16, 48, 96, 160))


def _completion(engine: Engine, random_: random.Random) -> Ask:
    text, most = _text(random_), _length(random_)
    body = {"prompt": text, "max_tokens": most, "temperature": 0}
    params = SamplingParams(max_tokens=most)
    return Ask("/v1/completions", body, engine.tokenizer.encode(text), params)


def _compared(engine: Engine, random_: random.Random) -> Ask:
    """Each token with its rank after the URIAL prompt."""
    ask = _completion(engine, random_)
    return replace(ask, body={**ask.body, "compare_with": {"urial_prompt": "default"}})


def _samples(engine: Engine, random_: random.Random) -> Ask:
    text, seed = _text(random_), random_.randrange(1 << 31)
    own = {"max_tokens": _length(random_) // 2, "temperature": 0.8, "top_p": 0.9, "n": 2}
    own |= {"seed": seed, "stop": ["."]}
    params = SamplingParams(**own)
    body = {"prompt": text, **own}
    return Ask("/v1/completions", body, engine.tokenizer.encode(text), params)


def _generate(engine: Engine, random_: random.Random) -> Ask:
    text, most = _text(random_), _length(random_)
    body = {"inputs": text, "parameters": {"max_new_tokens": most, "repetition_penalty": 1.1}}
    params = SamplingParams(max_tokens=most, repetition_penalty=1.1)
    return Ask("/generate", body, engine.tokenizer.encode(text), params)


def _chat(engine: Engine, random_: random.Random) -> Ask:
    query, most = " ".join(random_.choices(WORDS, k=8)), _length(random_)
    body = {"messages": [{"role": "user", "content": query}], "urial_prompt": "default"}
    body |= {"max_tokens": most, "temperature": 0}
    params = SamplingParams(max_tokens=most, stop=PROMPT.stop)
    return Ask("/v1/chat/completions", body, PROMPT.render(query), params)


def _score(engine: Engine, random_: random.Random) -> Ask:
    ids = [engine.tokenizer.encode(_text(random_)) for _ in range(2)]
    body = {"prompt": ids[0], "continuation": ids[1]}
    return Ask("/v1/score", body, *ids)
