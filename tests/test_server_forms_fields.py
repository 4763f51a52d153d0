"""Fields: what is refused by its name, what is taken, how much one request may ask for."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Message

from tests.serving import Server, serving, tiny_arguments, until
from urial_engine.engine import Engine
from urial_engine.prompt import UrialPrompt
from urial_engine.server import general, schema
from urial_engine.server.app import create_app
from urial_engine.server.metrics import Metrics
from urial_engine.server.models import Models, Served
from urial_engine.server.openai_forms import ChatForm, CompletionForm
from urial_engine.server.replies import json_in_parts, to_json
from urial_engine.server.state import Limits, State
from urial_engine.server.worker import Worker

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
PROMPT: dict[str, Any] = {"prompt": "abc", "max_tokens": 2}
FEW: dict[str, Any] = {"max_tokens": 2}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "why?"}], **FEW}
# Values that would change the answer, where a list of something would not.
CHANGES = {
    "skip_special_tokens": False,
    "add_generation_prompt": False,
    "response_format": {"type": "json_object"},
    "modalities": ["text", "audio"],
    "tool_choice": "required",
    "function_call": {"name": "f"},
}
NULLS = ("stream", "stream_options", "n", "seed", "temperature", "stop", "guided_json")
HARMLESS = {
    "skip_special_tokens": True,
    "response_format": {"type": "text"},
    "logit_bias": {},
    "use_beam_search": False,
    "bad_words": [],
    "best_of": 1,
    **dict.fromkeys(NULLS),
}


@pytest.fixture(scope="module")
def server(served_model: Path) -> Iterator[Server]:
    with serving(*tiny_arguments(served_model), "--max-queue", 8, "--max-batch", 4) as one:
        yield one


@pytest.fixture(scope="module")
def engine(served_model: Path) -> Iterator[Engine]:
    with Engine(served_model, threads=1) as one:
        yield one


def refused(server: Server, path: str, param: str | None, **body: Any) -> str:
    status, answer = server.ask(path, body)
    assert (status, answer["error"]["param"]) == (400, param), answer
    return str(answer["error"]["message"])


@pytest.mark.parametrize(
    ("path", "body", "names"),
    [(COMPLETIONS, PROMPT, schema.COMPLETIONS), (CHATS, CHAT, schema.CHATS)],
)
def test_what_is_not_there_is_refused_by_name(
    server: Server, path: str, body: dict[str, Any], names: tuple[str, ...]
) -> None:
    for name in names:
        value = CHANGES.get(name, [{"a": 1}])
        message = refused(server, path, name, **body, **{name: value})
        assert message == f"{name} is not implemented; leave it out"


def test_the_same_within_what_is_sent(server: Server) -> None:
    said = [{"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}, *CHAT["messages"]]
    refused(server, CHATS, "messages.tool_calls", messages=said)
    options = {"continuous_usage_stats": True}
    refused(server, CHATS, "stream_options.continuous_usage_stats", **CHAT, stream_options=options)
    refused(server, COMPLETIONS, "add_special_tokens", **PROMPT, add_special_tokens=False)
    refused(server, CHATS, "add_special_tokens", **CHAT, add_special_tokens=True)


def test_what_changes_nothing_is_taken(server: Server) -> None:
    own = {"echo": None, "suffix": None, "add_special_tokens": True}
    assert server.ask(COMPLETIONS, {**PROMPT, **HARMLESS, **own})[0] == 200
    own = {"tools": [], "tool_choice": "auto", "function_call": "none", "modalities": ["text"]}
    own |= {"logprobs": None, "top_logprobs": None, "add_special_tokens": False, "echo": False}
    own |= {"add_generation_prompt": True, "max_completion_tokens": 2}
    assert server.ask(CHATS, {**CHAT, **HARMLESS, **own})[0] == 200


def test_what_nobody_knows_is_told_once(server: Server) -> None:
    part = {"type": "text", "text": "why?", "colour": "red"}
    message = {"role": "user", "content": [part], "name": "Ann"}
    for _ in range(2):
        assert server.ask(CHATS, {"messages": [message], "verbosity": "low", **FEW})[0] == 200
        assert server.ask("/tokenize", {"prompt": "a", "verbose": True})[0] == 200
    assert server.ask(COMPLETIONS, {**PROMPT, "the_last": 1})[0] == 200
    until(lambda: "the_last" in server.log[-1])
    names = ("verbosity", "messages.name", "messages.content.colour", "verbose", "the_last")
    told = [f"the field {name!r} is not known here, and is passed over\n" for name in names]
    assert server.log[-5:] == told
    assert all(server.log.count(line) == 1 for line in told)


def test_best_of_is_n(server: Server) -> None:
    for path, body in ((COMPLETIONS, PROMPT), (CHATS, CHAT)):
        for n, best_of, status in ((1, 1, 200), (2, 2, 200), (2, 1, 400), (1, 2, 400)):
            found, answer = server.ask(path, {**body, "n": n, "best_of": best_of})
            assert found == status, answer
        refused(server, path, "best_of", **body, best_of=3)


def test_how_much_one_request_may_ask_for(server: Server) -> None:
    message = refused(server, COMPLETIONS, "n", prompt=["a"] * 5, n=3, max_tokens=1)
    assert message == "15 samples in one request; at most 12 fit"
    assert server.ask(COMPLETIONS, {"prompt": ["a"] * 4, "n": 3, "max_tokens": 1})[0] == 200
    ids = {"prompt": [7] * 2000, "max_tokens": 1, "n": 12}
    for asked in ({"prompt_logprobs": 10}, {"echo": True, "logprobs": 10}):
        message = refused(server, COMPLETIONS, "prompt_logprobs", **ids, **asked)
        assert message.startswith("264000 log-probabilities of prompts: at most 262144")
    refused(server, COMPLETIONS, "logprobs", **PROMPT, logprobs=21)
    for path, body in ((COMPLETIONS, PROMPT), (CHATS, CHAT)):
        refused(server, path, "prompt_logprobs", **body, prompt_logprobs=0, stream=True)


def test_an_error_in_a_stream(server: Server) -> None:
    body = {"prompt": "abc", "max_tokens": 2000, "ignore_eos": True, "deadline": 0.25}
    status, data = server.ask(COMPLETIONS, {**body, "stream": True})
    *chunks, last, end = data.decode().split("\n\n")
    assert (status, end) == (200, "") and len(chunks) > 2
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "deadline"


def test_tokens_of_texts(server: Server, engine: Engine) -> None:
    tokenizer, text = engine.tokenizer, "some <s> text \N{SNOWMAN}"
    messages = CHAT["messages"]
    chat = tokenizer.encode(tokenizer.render_chat(messages), add_special_tokens=False)
    for body, ids in (
        ({"prompt": text}, tokenizer.encode(text)),
        ({"prompt": text, "add_special_tokens": True}, tokenizer.encode(text)),
        (
            {"prompt": text, "add_special_tokens": False},
            tokenizer.encode(text, add_special_tokens=False),
        ),
        ({"messages": messages, "add_special_tokens": False}, chat),
    ):
        status, found = server.ask("/tokenize", body)
        texts = [tokenizer.token_text(token) for token in ids]
        assert (status, found["tokens"], found["token_strs"]) == (200, ids, texts)
        assert (found["count"], found["max_model_len"]) == (len(ids), 2048)
        wanted = tokenizer.decode(ids, skip_special_tokens=False)
        assert server.ask("/detokenize", {"tokens": ids}) == (200, {"prompt": wanted})
    refused(server, "/tokenize", None, prompt="a", messages=messages)
    refused(server, "/tokenize", None)
    refused(server, "/tokenize", "add_special_tokens", messages=messages, add_special_tokens=True)
    refused(server, "/tokenize", "add_generation_prompt", messages=messages,
            add_generation_prompt=False)  # fmt: skip
    most = general.MOST_TOKENS
    refused(server, "/detokenize", "tokens", tokens=[7] * (most + 1))
    refused(server, "/tokenize", "prompt", prompt="~" * (most + 1))
    status, found = server.ask("/tokenize", {"prompt": "~" * (most - 1)})
    assert (status, found["count"]) == (200, most)
    found = server.ask("/detokenize", {"tokens": found["tokens"][1:]})
    assert found == (200, {"prompt": "~" * (most - 1)})


async def post(app: ASGIApp, path: str, body: Any) -> int:
    """The status, without a server between."""
    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": path}
    sent: list[Message] = []
    bodies = iter([{"type": "http.request", "body": json.dumps(body).encode()}])

    async def receive() -> Message:
        return next(bodies, None) or await asyncio.Future()

    async def send(message: Message) -> None:
        sent.append(dict(message))

    await app({**scope, "query_string": b"", "headers": headers}, receive, send)
    return int(sent[0]["status"])


def test_what_takes_long_is_made_beside_the_loop(
    served_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody else waits for the loop: what has many figures is not written in it."""
    threads = list[bool]()

    def watch(kind: type, name: str) -> None:
        own = getattr(kind, name)

        def watched(*given: Any, **more: Any) -> Any:
            threads.append(threading.current_thread() is threading.main_thread())
            return own(*given, **more)

        monkeypatch.setattr(kind, name, watched)

    for kind, name in ((CompletionForm, "echo"), (CompletionForm, "choice"), (ChatForm, "choice")):
        watch(kind, name)

    async def asked(engine: Engine) -> list[list[bool]]:
        worker = Worker(8)
        models = Models([Served("tiny", engine)], {"default": UrialPrompt("# Query")})
        app = create_app(State(models, worker, Limits(), Metrics()))
        found = list[list[bool]]()
        for path, body in (
            (COMPLETIONS, {**PROMPT, "echo": True, "logprobs": 1}),
            (COMPLETIONS, {"prompt": [7] * 900, "echo": True, "logprobs": 2, "max_tokens": 0}),
            (COMPLETIONS, {**PROMPT, "max_tokens": 150, "ignore_eos": True, "logprobs": 20}),
            (CHATS, CHAT),
            (CHATS, {**CHAT, "prompt_logprobs": 200}),
        ):
            threads.clear()
            assert await post(app, path, body) == 200
            found.append([*threads])
        await worker.close()
        return found

    with Engine(served_model, threads=1) as engine:
        small, echo, many, chat, prompt = asyncio.run(asked(engine))
    assert (small, chat) == ([True, True], [True])
    assert (echo, many, prompt) == ([False, False], [False], [False])


def test_a_prompt_that_is_too_long_has_its_own_code(server: Server) -> None:
    for path, body in (
        (COMPLETIONS, {"prompt": [7] * 2048}),
        (CHATS, {"messages": [{"role": "user", "content": "~" * 2048}]}),
    ):
        status, answer = server.ask(path, body)
        error = answer["error"]
        assert (status, error["type"]) == (400, "invalid_request_error")
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
        assert "in a context of 2048" in error["message"]
    assert server.ask("/generate", {"inputs": "~" * 2048})[1]["error_type"] == "validation"


def test_json_in_parts_is_the_same() -> None:
    row = {"a": [1.5, None, True], "b": {}, '"': [], "\ud800": "\udc00 \N{SNOWMAN}"}
    value = {"a": [row, {"b": [[row], {"c": {"d": [row, {"e": [row]}]}}]}], "": "", "n": 7}
    for one in (value, {}, [], "a", None, [[[[[[[[1]]]]]]]]):
        assert json_in_parts(one) == to_json(one)
