"""Real clients against a real server: what they get is what `Engine` gives, bit for bit."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from huggingface_hub import InferenceClient

from tests.serving import Server, tiny_engine, tiny_server
from urial_engine.engine import Engine
from urial_engine.sampling import SamplingParams

PROMPTS = [f"text {i} " * (1 + i % 5) for i in range(24)]
CHAT: list[Any] = [{"role": "user", "content": "why?"}]


server, engine = tiny_server, tiny_engine


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def texts(engine: Engine, prompts: list[str], **params: Any) -> list[str]:
    return [out.outputs[0].text for out in engine.generate(prompts, SamplingParams(**params))]


def test_completions_of_many_clients(client: openai.OpenAI, engine: Engine) -> None:
    def ask(prompt: str) -> str:
        found = client.completions.create(model="tiny", prompt=prompt, max_tokens=12, temperature=0)
        return found.choices[0].text

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, PROMPTS)) == texts(engine, PROMPTS, max_tokens=12)
    several = client.completions.create(
        model="tiny", prompt=PROMPTS[:3], max_tokens=9, temperature=0.8, n=2, seed=5
    )
    wanted = engine.generate(
        PROMPTS[:3], SamplingParams(max_tokens=9, temperature=0.8, n=2, seed=5)
    )
    assert [c.index for c in several.choices] == list(range(6))
    assert [c.text for c in several.choices] == [s.text for out in wanted for s in out.outputs]


def test_a_stream_is_the_whole_answer(client: openai.OpenAI, engine: Engine) -> None:
    (wanted,) = texts(engine, ["abc"], max_tokens=20)
    chunks = list(
        client.completions.create(
            model="tiny", prompt="abc", max_tokens=20, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert "".join(c.choices[0].text for c in chunks if c.choices) == wanted
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 20


def test_the_async_client(server: Server, engine: Engine) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            calls = [
                client.completions.create(model="tiny", prompt=p, max_tokens=5, temperature=0)
                for p in PROMPTS[:8]
            ]
            return [found.choices[0].text for found in await asyncio.gather(*calls)]

    assert asyncio.run(ask()) == texts(engine, PROMPTS[:8], max_tokens=5)


def test_chats(client: openai.OpenAI, engine: Engine) -> None:
    ids = engine.tokenizer.encode(engine.tokenizer.render_chat(CHAT), add_special_tokens=False)
    (wanted,) = engine.generate([ids], SamplingParams(max_tokens=10, logprobs=2))
    found = client.chat.completions.create(
        model="tiny", messages=CHAT, max_tokens=10, temperature=0, logprobs=True, top_logprobs=2
    )
    choice = found.choices[0]
    assert choice.message.content == wanted.outputs[0].text
    assert choice.logprobs is not None and choice.logprobs.content is not None
    own = [(token, one[token]) for token, one in zip(
        wanted.outputs[0].token_ids, wanted.outputs[0].logprobs or [], strict=True
    )]  # fmt: skip
    assert [entry.logprob for entry in choice.logprobs.content] == [o.logprob for _, o in own]
    assert [len(entry.top_logprobs) for entry in choice.logprobs.content] == [2] * len(own)
    stream = client.chat.completions.create(
        model="tiny", messages=CHAT, max_tokens=10, temperature=0, stream=True
    )
    assert "".join(c.choices[0].delta.content or "" for c in stream) == wanted.outputs[0].text


def test_ranks_under_a_second_context_as_they_come(server: Server, engine: Engine) -> None:
    body = {"messages": CHAT, "max_tokens": 8, "temperature": 0, "urial_prompt": "raw"}
    status, found = server.ask(
        "/v1/chat/completions", {**body, "compare_with": {"urial_prompt": "chat"}}
    )
    assert status == 200
    chat = engine.tokenizer.encode(engine.tokenizer.render_chat(CHAT), add_special_tokens=False)
    shift = found["choices"][0]["shift"]
    (score,) = engine.score([chat], [[one["token_id"] for one in shift]])
    for name, values in (("rank", score.rank), ("ties", score.ties), ("logprob", score.logprob)):
        assert [one[name] for one in shift] == values.tolist()
    assert "".join(one["text"] for one in shift) == found["choices"][0]["message"]["content"]


def test_the_prompt_in_the_answer(client: openai.OpenAI, engine: Engine) -> None:
    """As lm-eval asks: the log-probabilities of a prompt that is echoed."""
    found = client.completions.create(
        model="tiny", prompt="some text", max_tokens=0, echo=True, logprobs=1, temperature=0
    )
    logprobs = found.choices[0].logprobs
    assert found.choices[0].text == "some text" and logprobs is not None
    ids = engine.tokenizer.encode("some text")
    (score,) = engine.score([ids[:1]], [ids[1:]], top_k=1)
    assert logprobs.token_logprobs == [None, *score.logprob.tolist()]


def test_tgi(server: Server, engine: Engine) -> None:
    client = InferenceClient(server.url)
    (wanted,) = engine.generate(["abc"], SamplingParams(max_tokens=6, logprobs=0))
    whole = client.text_generation(
        "abc", details=True, decoder_input_details=True, max_new_tokens=6
    )
    assert whole.generated_text == wanted.outputs[0].text
    assert [token.id for token in whole.details.tokens] == wanted.outputs[0].token_ids
    assert [token.id for token in whole.details.prefill] == wanted.prompt_token_ids
    assert whole.details.finish_reason == "length"
    told = list(client.text_generation("abc", details=True, stream=True, max_new_tokens=6))
    assert [one.token.id for one in told] == wanted.outputs[0].token_ids
    assert told[-1].generated_text == wanted.outputs[0].text
    assert server.ask("/info")[1]["router"] == "urial-engine"


def test_scores_and_shifts(server: Server, engine: Engine) -> None:
    pair = {"prompt": ["ab", "cd"], "continuation": ["efg", "hi"], "top_k": 2}
    found = server.ask("/v1/score", pair)[1]["results"]
    for own, score in zip(found, engine.score(["ab", "cd"], ["efg", "hi"], 2), strict=True):
        assert own["rank"] == score.rank.tolist() and own["logprob"] == score.logprob.tolist()
        assert own["top_ids"] == score.top_ids.tolist()
    status, shift = server.ask(
        "/v1/token_shift", {"queries": ["why?", "how?"], "max_tokens": 7, "base_prompt": "raw"}
    )
    assert status == 200 and len(shift["rows"]["base_rank"]) == 14 == shift["summary"]["tokens"]


def test_a_prompt_that_cannot_be_pinned_changes_nothing(server: Server) -> None:
    def names() -> list[str]:
        return [prompt["name"] for prompt in server.ask("/v1/prompts")[1]["prompts"]]

    server.ask("/v1/prompts/good", {"text": "Be short. " * 20}, method="PUT")
    before, long = names(), {"text": "far too long " * 2000}
    for name in ("good", "new"):
        assert server.ask(f"/v1/prompts/{name}", long, method="PUT")[0] == 400
    assert names() == before
    chat = {"messages": CHAT, "max_tokens": 3, "urial_prompt": "good"}
    assert server.ask("/v1/chat/completions", chat)[0] == 200


def test_prompts_are_pinned_and_let_go(server: Server) -> None:
    path = "/v1/prompts/mine"
    status, found = server.ask(path, {"text": "Be short. " * 20}, method="PUT")
    assert (status, found["models"]["tiny"]["state"]) == (200, "pinned")
    chat = {"messages": CHAT, "max_tokens": 3, "urial_prompt": "mine"}
    used = server.ask("/v1/chat/completions", chat)[1]["usage"]
    assert used["prompt_tokens_details"]["cached_tokens"] > 50
    status, found = server.ask(f"{path}/pin", method="DELETE")
    assert (status, found["models"]["tiny"]["state"]) == (200, "cold")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", b"{", 400),
        ("/v1/completions", b"\xff\xfe", 400),
        ("/v1/completions", b"[" * 50_000, 400),
        ("/v1/completions", b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}", 400),
        ("/v1/completions", b'{"prompt": "a", "temperature": NaN}', 400),
        ("/v1/completions", b'{"prompt": "' + b"a" * (3 << 20) + b'"}', 413),
        ("/v1/completions", {"prompt": "a", "n": 99, "temperature": 1}, 400),
        ("/v1/completions", {"prompt": "a", "model": "other"}, 404),
        ("/v1/completions", {"prompt": "a" * 9000}, 400),
        ("/v1/completions", {"prompt": [1, 999_999]}, 400),
        ("/v1/completions", {"prompt": "\ud800", "max_tokens": 2, "echo": True}, 200),
        ("/v1/chat/completions", {"messages": []}, 400),
        ("/v1/chat/completions", {"messages": CHAT, "urial_prompt": "none"}, 400),
        ("/v1/chat/completions", {"messages": CHAT, "tools": [{}]}, 400),
        ("/generate", {"inputs": "a", "parameters": {"typical_p": 0.5}}, 422),
        ("/detokenize", {"tokens": [1, 999_999]}, 400),
        ("/v1/score", {"prompt": [], "continuation": []}, 400),
        ("/nothing", {}, 404),
    ],
)
def test_what_is_wrong_is_said(server: Server, path: str, body: Any, status: int) -> None:
    found, answer = server.ask(path, body)
    assert (found, isinstance(answer, dict)) == (status, True), answer
    assert status == 200 or answer["error"]


def test_an_empty_text_after_a_prompt(server: Server) -> None:
    server.ask("/v1/prompts/bare", {"text": "Be short. " * 20}, method="PUT")
    body = {"prompt": "", "echo": True, "max_tokens": 2, "urial_prompt": "bare", "logprobs": 1}
    status, found = server.ask("/v1/completions", body)
    assert status == 200 and len(found["choices"][0]["logprobs"]["tokens"]) == 2


def test_streams_lose_nothing_while_prompts_come_and_go(
    client: openai.OpenAI, server: Server, engine: Engine
) -> None:
    """Another thread makes steps too, while it pins."""
    wanted = texts(engine, PROMPTS, max_tokens=40)

    def ask(prompt: str) -> str:
        chunks = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=40, temperature=0, stream=True
        )
        return "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(24) as pool:
        asked = [pool.submit(ask, prompt) for prompt in PROMPTS]
        rounds = 0
        while not all(one.done() for one in asked) or rounds < 2:
            server.ask("/v1/prompts/moving", {"text": f"{rounds} " * 90}, method="PUT")
            server.ask("/v1/prompts/moving/pin", method="DELETE")
            rounds += 1
        assert [one.result() for one in asked] == wanted


def test_counts_and_health(server: Server) -> None:
    assert server.ask("/health")[0] == server.ask("/ready")[0] == 200
    text = server.ask("/metrics")[1].decode()
    for name in ("urial_generated_tokens_total", "urial_sequences_waiting", "urial_first_token"):
        assert name in text
