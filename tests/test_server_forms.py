"""What OpenAI's two APIs tell of an answer, to the last figure, is what `Engine` gives."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Server, tiny_engine, tiny_server
from urial_engine.engine import Engine
from urial_engine.outputs import Logprobs
from urial_engine.sampling import SamplingParams
from urial_engine.tokenizer import Tokenizer

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
GREEDY = {"temperature": 0, "max_tokens": 24}
Columns = dict[str, list[Any]]


server, engine = tiny_server, tiny_engine


def ask(server: Server, path: str, **body: Any) -> Any:
    status, answer = server.ask(path, body)
    assert status == 200, answer
    return answer


def stream(server: Server, path: str, **body: Any) -> list[Any]:
    """Its events, without the last one, which says that all came."""
    *events, done, end = ask(server, path, stream=True, **body).decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def joined(events: list[Any]) -> dict[int, tuple[str, Columns]]:
    """Text and columns of each choice of a completion."""
    texts, columns = defaultdict[int, str](str), dict[int, Columns]()
    for event in events:
        for choice in event["choices"]:
            index = choice["index"]
            texts[index] += choice["text"]
            into = columns.setdefault(index, defaultdict(list))
            for name, values in choice["logprobs"].items():
                into[name] += values
    return {index: (text, dict(columns[index])) for index, text in texts.items()}


def starts(tokenizer: Tokenizer, ids: list[int], *, continues: bool) -> list[int]:
    """Where in the text of all tokens each one's own begins."""
    stream = tokenizer.stream(continues=continues)
    return [0, *accumulate(len(stream.push(token)) for token in ids)][: len(ids)]


def columns_of(engine: Engine, ids: list[int], known: list[Logprobs | None]) -> Columns:
    """As OpenAI has them, but for `text_offset`."""
    own = [None if one is None else one[token] for token, one in zip(ids, known, strict=True)]
    top = [one and {p.decoded_token: p.logprob for p in one.values()} for one in known]
    return {
        "tokens": [engine.tokenizer.token_text(token) for token in ids],
        "token_ids": ids,
        "token_logprobs": [one and one.logprob for one in own],
        "ranks": [one and one.rank for one in own],
        "top_logprobs": top,
    }


def test_every_figure_of_a_completion(server: Server, engine: Engine) -> None:
    (wanted,) = engine.generate(
        ["some text"], SamplingParams(max_tokens=24, logprobs=3, prompt_logprobs=3)
    )
    (sample,) = wanted.outputs
    ids, new = wanted.prompt_token_ids, sample.token_ids
    assert wanted.prompt_logprobs and sample.logprobs
    known = columns_of(engine, ids + new, [*wanted.prompt_logprobs, *sample.logprobs])
    first = starts(engine.tokenizer, ids, continues=False)
    then = [len("some text") + at for at in starts(engine.tokenizer, new, continues=True)]
    for how in (ask, stream):
        asked = how(server, COMPLETIONS, prompt="some text", logprobs=3, echo=True, **GREEDY)
        text, columns = joined(asked if how is stream else [asked])[0]
        assert text == "some text" + sample.text
        assert columns.pop("text_offset") == first + then
        assert columns == known
        if how is ask:
            assert asked["usage"]["prompt_tokens"] == len(ids)
            assert asked["usage"]["completion_tokens"] == len(new) == 24


def test_several_samples_in_a_stream(server: Server, engine: Engine) -> None:
    sampled = {"temperature": 0.9, "n": 3, "seed": 11, "max_tokens": 9}
    prompts = ["some text", "abc"]
    body = {"prompt": prompts, "logprobs": 1, "echo": True, **sampled}
    wanted = engine.generate(prompts, SamplingParams(**sampled))
    told = joined(stream(server, COMPLETIONS, **body))
    texts = [out.prompt + one.text for out in wanted for one in out.outputs if out.prompt]
    assert [told[index][0] for index in range(6)] == texts
    assert told == joined([ask(server, COMPLETIONS, **body)])
    chunks = stream(server, COMPLETIONS, prompt="abc", stream_options={"include_usage": True},
                    **sampled)  # fmt: skip
    assert chunks[-1]["usage"]["completion_tokens"] == 27


def test_a_prompt_alone_in_a_stream(server: Server) -> None:
    body = {"prompt": ["ab", "cd"], "max_tokens": 0, "echo": True, "logprobs": 0}
    events = stream(server, COMPLETIONS, **body)
    assert [(e["choices"][0]["text"], e["choices"][0]["finish_reason"]) for e in events] == [
        ("ab", "length"),
        ("cd", "length"),
    ]
    assert joined(events) == joined([whole := ask(server, COMPLETIONS, **body)])
    assert whole["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("how", [ask, stream])
def test_where_tokens_stand_while_a_stop_string_is_held_back(
    server: Server, engine: Engine, how: Any
) -> None:
    (wanted,) = engine.generate(["abc"], SamplingParams(max_tokens=24))
    text, ids = wanted.outputs[0].text, wanted.outputs[0].token_ids
    at = starts(engine.tokenizer, ids, continues=True)
    for stop in (text[8:14] + "\0", text[9:14]):  # one that does not come, and one that does
        asked = how(server, COMPLETIONS, prompt="abc", logprobs=0, stop=stop, **GREEDY)
        told, columns = joined(asked if how is stream else [asked])[0]
        assert told == text.partition(stop)[0]
        assert columns["text_offset"] == at[: len(columns["tokens"])]
        assert len(columns["tokens"]) > 10


def test_why_an_answer_ended(server: Server, engine: Engine) -> None:
    (wanted,) = engine.generate(["abc"], SamplingParams(max_tokens=24))
    text, ids = wanted.outputs[0].text, wanted.outputs[0].token_ids
    for asked, reasons in (
        ({}, ("length", None)),
        ({"stop": ["\0", text[5:8]]}, ("stop", text[5:8])),
        ({"stop_token_ids": [ids[6]]}, ("stop", ids[6])),
    ):
        choice = ask(server, COMPLETIONS, prompt="abc", **asked, **GREEDY)["choices"][0]
        assert (choice["finish_reason"], choice["stop_reason"]) == reasons
    choice = ask(server, CHATS, messages=chat("why?"), **GREEDY)["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)  # at EOS
    assert choice["message"]["content"] == engine.generate(
        [ids_of(engine, chat("why?"))], SamplingParams(max_tokens=24)
    )[0].outputs[0].text  # fmt: skip


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def ids_of(engine: Engine, messages: Any) -> list[int]:
    text = engine.tokenizer.render_chat(messages)
    return engine.tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("how", [GREEDY, {"temperature": 0.8, "seed": 3, "max_tokens": 24}])
def test_every_figure_of_a_chat(server: Server, engine: Engine, how: dict[str, Any]) -> None:
    params = SamplingParams(logprobs=3, **how)
    (wanted,) = engine.generate([ids_of(engine, chat("why?"))], params)
    (sample,) = wanted.outputs
    body = {"messages": chat("why?"), "logprobs": True, "top_logprobs": 3, **how}
    told = ask(server, CHATS, **body)["choices"][0]
    entries = told["logprobs"]["content"]
    for token, entry, known in zip(sample.token_ids, entries, sample.logprobs or [], strict=True):
        own = known[token]
        found = (entry["token_id"], entry["token"], entry["logprob"], entry["rank"])
        assert found == (token, own.decoded_token, own.logprob, own.rank)
        likeliest = sorted(known.items(), key=lambda pair: -pair[1].logprob)[:3]
        top = [(one["token_id"], one["logprob"], one["rank"]) for one in entry["top_logprobs"]]
        assert top == [(i, one.logprob, one.rank) for i, one in likeliest]
    said = [entry for entry in entries if not engine.tokenizer.is_special(entry["token_id"])]
    data = b"".join(bytes(entry["bytes"]) for entry in said)
    assert data.decode(errors="replace") == sample.text == told["message"]["content"]
    assert how is GREEDY or {2, 3} & {entry["rank"] for entry in entries}
    assert any(max(entry["bytes"]) > 127 and len(entry["bytes"]) == 1 for entry in entries)
    streamed = [e["choices"][0]["logprobs"]["content"] for e in stream(server, CHATS, **body)]
    assert [entry for content in streamed for entry in content] == entries


def prompt_figures(known: list[Logprobs | None] | None) -> list[Any]:
    """As vLLM has them."""
    return [
        one and {str(i): {"logprob": p.logprob, "rank": p.rank, "decoded_token": p.decoded_token}
                 for i, p in one.items()}
        for one in known or []
    ]  # fmt: skip


def test_what_is_said_of_prompts(server: Server, engine: Engine) -> None:
    params = SamplingParams(max_tokens=2, prompt_logprobs=2)
    prompts = ["ab", "some text"]
    wanted = [prompt_figures(out.prompt_logprobs) for out in engine.generate(prompts, params)]
    more = {"temperature": 0.7, "n": 2, "max_tokens": 2, "prompt_logprobs": 2}
    found = ask(server, COMPLETIONS, prompt=prompts, **more)
    assert [choice["prompt_logprobs"] for choice in found["choices"]] == [
        *([wanted[0]] * 2),
        *([wanted[1]] * 2),
    ]
    (out,) = engine.generate([ids_of(engine, chat("why?"))], params)
    found = ask(server, CHATS, messages=chat("why?"), **more)
    assert found["prompt_logprobs"] == prompt_figures(out.prompt_logprobs)
    assert all("prompt_logprobs" not in choice for choice in found["choices"])


def test_a_conversation_is_read_on(served_model: Path, server: Server) -> None:
    """What a turn leaves in the cache is found by the next one, as the engine alone finds it."""
    messages: list[dict[str, str]] = []
    with Engine(served_model, threads=1) as engine:
        for turn in range(3):
            messages += chat(f"zebras in turn {turn}, and what they say of each other")
            (out,) = engine.generate([ids_of(engine, messages)], SamplingParams(max_tokens=24))
            told = ask(server, CHATS, messages=messages, **GREEDY)
            answer = told["choices"][0]["message"]["content"]
            assert answer == out.outputs[0].text
            cached = told["usage"]["prompt_tokens_details"]["cached_tokens"]
            if turn:
                assert cached == out.metrics.cached_tokens > 20 * turn
            messages += [{"role": "assistant", "content": answer}]


def test_what_does_not_fit_the_context_is_cut(server: Server, engine: Engine) -> None:
    found = ask(server, COMPLETIONS, prompt=[5] * 2040, max_tokens=500, ignore_eos=True)
    assert found["usage"] == {
        "prompt_tokens": 2040,
        "completion_tokens": 8,
        "total_tokens": 2048,
        "prompt_tokens_details": found["usage"]["prompt_tokens_details"],
    }
    assert found["choices"][0]["finish_reason"] == "length"


def test_penalties_look_where_they_are_told(server: Server, served_model: Path) -> None:
    text = "".join(map(chr, range(33, 127))) * 2
    server.ask("/v1/prompts/penal", {"text": text}, method="PUT")
    more, answers = "".join(map(chr, range(160, 383))), set()
    with Engine(served_model, threads=1, prefix=text) as engine:
        for scope in ("all", "no_prefix", "output"):
            penalty = {"repetition_penalty": 1.8, "repetition_penalty_scope": scope}
            found = ask(server, COMPLETIONS, prompt=more, urial_prompt="penal", **penalty, **GREEDY)
            (out,) = engine.generate([more], SamplingParams(max_tokens=24, **penalty))
            assert found["choices"][0]["text"] == out.outputs[0].text
            assert found["usage"]["prompt_tokens"] == len(out.prompt_token_ids)
            answers.add(out.outputs[0].text)
    assert len(answers) == 3
