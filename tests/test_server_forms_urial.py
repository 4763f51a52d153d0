"""Answers in URIAL's form: those of `Engine.answer`, ended by their fence.

The model says the same after each line's end: the next token depends on the last one alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from tests.fixtures import random_weights, tiny_config, write_tokenizer, write_weights
from tests.serving import Server, serving, tiny_arguments
from tests.test_server_forms import CHATS, COMPLETIONS, ask, chat, stream
from tests.test_server_forms_tgi import ask as ask_tgi
from tests.test_server_forms_tgi import stream as stream_tgi
from urial_engine.engine import Engine
from urial_engine.outputs import StreamEvent
from urial_engine.prompt import FENCE, UrialPrompt
from urial_engine.sampling import SamplingParams
from urial_engine.server.answers import Answer, Piece
from urial_engine.weights import HEAD

SAYS = ["Ċ", "ĊĠ", "T", "i", "ts", ".", "Ċ`", "``", "ĊĊ", "#", "Ġm", "or", "e"]
QUERY = "Name a bird."
PROMPT = UrialPrompt("# Query:\n```\nHi!\n```\n\n# Answer:\n```\nHello.\n```\n")
LONG = SamplingParams(max_tokens=40)


@pytest.fixture(scope="module")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers that add nothing; a token is a place of the hidden state, and the head says the next
    one. Each pair of letters is a token."""
    folder = tmp_path_factory.mktemp("parrot")
    settings = tiny_config(vocab_size=9700, max_position_embeddings=1024)
    write_tokenizer(folder, 9700)
    find = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id
    weights = random_weights(settings)
    for name, values in weights.items():
        values[:] = 0 if "o_proj" in name or "down_proj" in name else values
        values[:] = 1 if "norm" in name else values
    embedding, head = weights["model.embed_tokens.weight"], weights[HEAD]
    embedding[:], head[:] = np.eye(32)[31], 0
    for place, token in enumerate(SAYS):
        embedding[find(token)] = np.eye(32)[place]
    for place, token in enumerate([*SAYS[1:], "Ċ"]):
        head[find(token), place] = 9
    head[find("e"), 31] = 9
    (folder / "config.json").write_text(json.dumps(settings))
    write_weights(folder, weights)
    return folder


@pytest.fixture(scope="module")
def server(parrot: Path) -> Iterator[Server]:
    with serving(*tiny_arguments(parrot)) as one:
        one.ask("/v1/prompts/birds", {"text": PROMPT.text}, method="PUT")
        yield one


@pytest.fixture(scope="module")
def engine(parrot: Path) -> Iterator[Engine]:
    with Engine(parrot, threads=1, prefix=PROMPT) as one:
        yield one


def test_a_chat_is_an_answer(server: Server, engine: Engine) -> None:
    body = {"messages": chat(QUERY), "urial_prompt": "birds", "temperature": 0, "max_tokens": 40}
    body |= {"logprobs": True}
    (out,) = engine.generate([PROMPT.render(QUERY)], LONG)
    assert out.outputs[0].text.startswith("\n Tits.\n```\n\n# more\n\n Tits.")
    (wanted,) = engine.answer([QUERY], LONG)
    found = ask(server, CHATS, **body)
    choice = found["choices"][0]
    assert choice["message"]["content"] == wanted == " Tits."
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", FENCE)
    told = choice["logprobs"]["content"]
    assert [entry["token_id"] for entry in told] == out.outputs[0].token_ids[: len(told)]
    assert found["usage"]["completion_tokens"] == len(told) < 9
    assert found["usage"]["prompt_tokens"] == len(out.prompt_token_ids)
    chunks = stream(server, CHATS, **body, stream_options={"include_usage": True})
    deltas = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert "".join(one["delta"]["content"] for one in deltas) == wanted
    assert [entry for one in deltas for entry in one["logprobs"]["content"]] == told
    assert (deltas[-1]["finish_reason"], deltas[-1]["stop_reason"]) == ("stop", FENCE)
    assert chunks[-1]["usage"]["completion_tokens"] == len(told)


def test_samples_are_answers(server: Server) -> None:
    body = {"messages": chat(QUERY), "urial_prompt": "birds", "n": 3, "max_tokens": 40}
    found = ask(server, CHATS, **body, temperature=0.1)["choices"]
    assert [choice["message"]["content"] for choice in found] == [" Tits."] * 3


def test_a_text_of_tgi_in_the_form_is_answered_in_it(server: Server, engine: Engine) -> None:
    own = {"max_new_tokens": 40, "urial_prompt": "birds"}
    found = ask_tgi(server, PROMPT.render(QUERY), **own, details=True)
    assert found["generated_text"] == " Tits."
    assert found["details"]["finish_reason"] == "stop_sequence"
    *events, last = stream_tgi(server, PROMPT.render(QUERY), **own, details=True)
    assert "".join(event["token"]["text"] for event in (*events, last)) == " Tits."
    assert last["generated_text"] == " Tits."
    assert last["details"]["generated_tokens"] == last["index"] == len(events) + 1
    assert found["details"]["generated_tokens"] == last["index"]
    text = "# Answer:\n"  # in no form: what follows it is told as it is
    (out,) = engine.generate([text], LONG)
    assert ask_tgi(server, text, **own)["generated_text"] == out.outputs[0].text


def test_a_completion_is_told_as_it_is(server: Server, engine: Engine) -> None:
    text = PROMPT.render(QUERY)
    (out,) = engine.generate([text], LONG)
    body = {"prompt": text, "urial_prompt": "birds", "temperature": 0, "max_tokens": 40}
    assert ask(server, COMPLETIONS, **body)["choices"][0]["text"] == out.outputs[0].text


def test_the_end_of_an_answer_has_a_token() -> None:
    """Where nothing was said before the fence, too: TGI's events each have one."""
    answer = Answer(UrialPrompt(""))
    texts = enumerate(("", "``", "`\n\n"))
    events = [StreamEvent(0, text, [7 + i], None, False, None, None, 0) for i, text in texts]
    told = [piece for event in events for piece in answer.push(Piece.of(event, None))]
    assert [[token.id for token in piece.tokens] for piece in told] == [[7], [8]]
    assert answer.ended and (told[-1].text, told[-1].stop_reason) == ("", FENCE)
