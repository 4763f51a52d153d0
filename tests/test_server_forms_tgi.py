"""What TGI's API tells of an answer, to the last figure, is what `Engine` gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Server, serving, tiny_arguments, tiny_engine, tiny_server
from urial_engine.engine import Engine
from urial_engine.outputs import Logprobs
from urial_engine.sampling import SamplingParams

Object = dict[str, Any]


server, engine = tiny_server, tiny_engine


def ask(server: Server, inputs: str, path: str = "/generate", **parameters: Any) -> Any:
    own = {"max_new_tokens": 12, **parameters}
    status, answer = server.ask(path, {"inputs": inputs, "parameters": own})
    assert status == 200, answer
    return answer


def stream(server: Server, inputs: str, **parameters: Any) -> list[Any]:
    *events, end = ask(server, inputs, "/generate_stream", **parameters).decode().split("\n\n")
    assert end == ""
    return [json.loads(event.removeprefix("data: ")) for event in events]


def refused(server: Server, inputs: str = "abc", **parameters: Any) -> str:
    status, answer = server.ask("/generate", {"inputs": inputs, "parameters": parameters})
    assert (status, answer["error_type"]) == (422, "validation")
    return str(answer["error"])


def figures(ids: list[int], known: list[Logprobs] | None) -> list[tuple[int, float, int]]:
    each = zip(ids, known or [], strict=True)
    return [(token, one[token].logprob, one[token].rank) for token, one in each]


def told(tokens: list[Object]) -> list[tuple[int, float, int]]:
    return [(token["id"], token["logprob"], token["rank"]) for token in tokens]


def test_every_figure(server: Server, engine: Engine) -> None:
    (wanted,) = engine.generate(
        ["some text"], SamplingParams(max_tokens=12, logprobs=3, prompt_logprobs=0)
    )
    (sample,) = wanted.outputs
    found = ask(server, "some text", details=True, decoder_input_details=True, top_n_tokens=3)
    details = found["details"]
    assert found["generated_text"] == sample.text
    assert told(details["tokens"]) == figures(sample.token_ids, sample.logprobs)
    assert "".join(token["text"] for token in details["tokens"]) == sample.text
    likeliest = [
        sorted(((i, p.logprob) for i, p in one.items()), key=lambda pair: -pair[1])[:3]
        for one in sample.logprobs or []
    ]
    assert [[(t["id"], t["logprob"]) for t in top] for top in details["top_tokens"]] == likeliest
    prefill = [(one["id"], one["logprob"]) for one in details["prefill"]]
    ids, prompt = wanted.prompt_token_ids, wanted.prompt_logprobs or []
    assert prefill == [(i, p and p[i].logprob) for i, p in zip(ids, prompt, strict=True)]
    events = stream(server, "some text", details=True, top_n_tokens=3)
    assert [event["token"] for event in events] == details["tokens"]
    assert [event["top_tokens"] for event in events] == details["top_tokens"]
    assert [event["index"] for event in events] == [*range(1, 13)]
    assert events[-1]["generated_text"] == sample.text
    assert events[-1]["details"] == {
        "finish_reason": "length", "generated_tokens": 12, "seed": None, "input_length": len(ids)
    }  # fmt: skip


def test_details_are_for_who_asks(server: Server) -> None:
    assert set(ask(server, "abc")) == {"generated_text"}
    assert set(ask(server, "abc", details=None, stop=None, do_sample=None)) == {"generated_text"}
    assert stream(server, "abc")[-1]["details"] is None
    assert "tokens" in ask(server, "abc", decoder_input_details=True)["details"]


def test_the_door_of_both(server: Server) -> None:
    body = {"inputs": "abc", "parameters": {"max_new_tokens": 5, "details": True}}
    whole = ask(server, "abc", max_new_tokens=5, details=True)
    assert server.ask("/", body) == (200, [whole])
    status, data = server.ask("/", {**body, "stream": True})
    assert (status, data.count(b"data: ")) == (200, 5)
    assert json.loads(data.split(b"data: ")[-1])["generated_text"] == whole["generated_text"]


def test_stops_stand_in_the_text(server: Server, engine: Engine) -> None:
    (wanted,) = engine.generate(["abc"], SamplingParams(max_tokens=12))
    text = wanted.outputs[0].text
    for how in (ask, stream):
        found = how(server, "abc", stop=["\0", text[4:6]], details=True)
        last = found[-1] if how is stream else found
        assert last["generated_text"] == text[:6]
        assert last["details"]["finish_reason"] == "stop_sequence"
    found = ask(server, "abc", stop=[text[4:6]], return_full_text=True)
    assert found["generated_text"] == "abc" + text[:6]


def test_samples_and_their_seeds(server: Server, engine: Engine) -> None:
    warped = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.2}
    for own in ({"seed": 5}, {}):
        found = ask(server, "abc", details=True, **warped, **own)
        seed = found["details"]["seed"]
        params = SamplingParams(max_tokens=12, seed=seed, **warped)
        assert found["generated_text"] == engine.generate(["abc"], params)[0].outputs[0].text
        assert own.get("seed", seed) == seed
    assert ask(server, "abc", details=True, do_sample=False)["details"]["seed"] is None
    found = ask(server, "abc", details=True, do_sample=True, seed=7)
    params = SamplingParams(max_tokens=12, seed=7, temperature=1)
    assert found["generated_text"] == engine.generate(["abc"], params)[0].outputs[0].text


def test_the_best_of_several(server: Server, engine: Engine) -> None:
    found = ask(server, "abc", details=True, do_sample=True, best_of=4)
    seed = found["details"]["seed"]
    params = SamplingParams(max_tokens=12, temperature=1, seed=seed, n=4, logprobs=0)
    samples = engine.generate(["abc"], params)[0].outputs
    mean = [one.cumulative_logprob / len(one.token_ids) for one in samples]
    order = sorted(samples, key=lambda one: mean[one.index], reverse=True)
    sequences = [{"generated_text": found["generated_text"], **found["details"]}]
    sequences += sequences[0].pop("best_of_sequences")
    assert [one["generated_text"] for one in sequences] == [one.text for one in order]
    for one, own in zip(sequences, order, strict=True):
        assert told(one["tokens"]) == figures(own.token_ids, own.logprobs)
    assert refused(server, best_of=17, do_sample=True).startswith("best_of=17: at most 16")
    assert "greedy samples are all equal" in refused(server, best_of=2)
    assert "with a seed" in refused(server, best_of=2, do_sample=True, seed=1)


def test_long_inputs_are_cut_at_the_front(server: Server, engine: Engine) -> None:
    ids = engine.tokenizer.encode("some text that is long")
    (wanted,) = engine.generate([ids[-6:]], SamplingParams(max_tokens=12))
    found = ask(server, "some text that is long", truncate=6, decoder_input_details=True)
    assert [one["id"] for one in found["details"]["prefill"]] == ids[-6:]
    assert found["generated_text"] == wanted.outputs[0].text
    whole = ask(server, "some text that is long", truncate=len(ids), decoder_input_details=True)
    assert [one["id"] for one in whole["details"]["prefill"]] == ids
    assert "urial_prompt" in refused(server, truncate=6, urial_prompt="default")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("typical_p", 0.5), ("watermark", True), ("grammar", {"type": "json", "value": {}})),
        *(("adapter_id", "a"), ("stop_sequences", ["a"]), ("num_return_sequences", 2)),
        *(("min_new_tokens", 3), ("response_format", {"type": "json"}), ("num_beams", 2)),
    ],
)
def test_what_is_not_there_is_refused_by_name(server: Server, name: str, value: Any) -> None:
    assert f"parameters.{name} is not implemented" in refused(server, **{name: value})


def test_what_changes_nothing_is_taken(server: Server) -> None:
    harmless = {"typical_p": None, "watermark": False, "stop_sequences": [], "num_beams": 1}
    assert ask(server, "abc", **harmless) == ask(server, "abc")


def test_an_error_in_a_stream(served_model: Path) -> None:
    with serving(*tiny_arguments(served_model), "--deadline", 0.2) as server:
        stream(server, "abc", max_new_tokens=2)  # the first of a server takes longer
        events = stream(server, "abc", max_new_tokens=2000)
    assert events[0]["token"]["id"] > 0
    assert events[-1]["error_type"] == "generation" and "deadline" in events[-1]["error"]
    assert len(events) > 2 and all("error" not in event for event in events[:-1])
