"""Requests that are drawn: from the server's document by schemathesis, and from good bodies of
which parts are changed, so that many get past the checks of form."""

from __future__ import annotations

import copy
import json
import random
import re
import zlib
from collections.abc import Iterator
from itertools import chain, count, islice, zip_longest
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.core import NotSet

from tests.fuzzing_shots import Shot, request

if TYPE_CHECKING:
    from tests.serving import Server

PROMPT = "# Query:\n```\nhi\n```\n\n# Answer:\n```\nHello!\n```\n"
NAMES = ("fuzz", "fuzz-0", "fuzz-1", "fuzz-2", "fuzz-3")  # of prompts that are put
LEAVE = 0.05  # of the clients, as soon as an answer begins
TURNS = [
    {"role": "user", "content": "why?"},
    {"role": "assistant", "content": "So."},
    {"role": "user", "content": [{"type": "text", "text": "and how?"}]},
]
COMPLETION, CHAT = "POST /v1/completions", "POST /v1/chat/completions"
UNMAKE = "DELETE /v1/prompts/{name}"  # not of the prompt that good bodies name
# How often each route is asked, and bodies that it takes.
WEIGHTS = {
    COMPLETION: 6, CHAT: 6, "POST /generate": 3, "POST /generate_stream": 2, "POST /": 2,
    "POST /v1/score": 3, "POST /v1/token_shift": 2, "POST /tokenize": 2, "POST /detokenize": 1,
    "PUT /v1/prompts/{name}": 1, "POST /v1/prompts/{name}/pin": 1,
    "DELETE /v1/prompts/{name}/pin": 1, UNMAKE: 1,
}  # fmt: skip
TGI: list[Any] = [
    {"inputs": "abc", "parameters": {"max_new_tokens": 4}},
    {"inputs": "abc", "parameters": {"max_new_tokens": 3, "top_n_tokens": 2, "seed": 7}},
    {"inputs": "abc", "parameters": {"max_new_tokens": 4, "do_sample": True, "stop": ["e"]}},
]
GOOD: dict[str, list[Any]] = {
    COMPLETION: [
        {"prompt": "abc", "max_tokens": 4},
        {"prompt": [1, 40, 41], "max_tokens": 3, "logprobs": 2},
        {"prompt": ["abc", "de"], "max_tokens": 3, "n": 2, "temperature": 0.7, "stream": True},
        {"prompt": [[40, 41], [42]], "max_tokens": 0, "echo": True, "logprobs": 1},
        {"prompt": "hi", "max_tokens": 5, "urial_prompt": "fuzz", "temperature": 0},
        {"prompt": "hi", "max_tokens": 4, "compare_with": {"urial_prompt": "fuzz"}},
    ],
    CHAT: [
        {"messages": TURNS[:1], "max_tokens": 4},
        {"messages": TURNS, "max_tokens": 4, "stream": True, "n": 2},
        {"messages": TURNS, "max_completion_tokens": 3, "logprobs": True, "top_logprobs": 2},
        {"messages": TURNS, "max_tokens": 4, "urial_prompt": "fuzz", "stream": True},
        {"messages": TURNS[:1], "max_tokens": 4, "compare_with": {"urial_prompt": "raw"}},
    ],
    "POST /generate": [
        *TGI,
        {"inputs": "abc", "parameters": {"max_new_tokens": 2, "decoder_input_details": True}},
        {"inputs": "ab", "parameters": {"max_new_tokens": 2, "best_of": 2, "temperature": 0.5}},
    ],
    "POST /generate_stream": TGI,
    "POST /": [*TGI, {**TGI[0], "stream": True}],
    "POST /v1/score": [
        {"prompt": "ab", "continuation": "cd"},
        {"prompt": ["ab", [40, 41]], "continuation": ["cd", [42]], "top_k": 2},
    ],
    "POST /v1/token_shift": [
        {"queries": ["why?"], "max_tokens": 4, "base_prompt": "fuzz", "aligned_prompt": "raw"},
        {"queries": ["a", "b"], "answers": ["cd", "ef"], "base_prompt": "raw", "max_tokens": 4},
    ],
    "POST /tokenize": [{"prompt": "abc"}, {"messages": TURNS[:1]}],
    "POST /detokenize": [{"tokens": [40, 41, 42]}],
    "PUT /v1/prompts/{name}": [{"text": PROMPT}, {"text": f"Be short. {PROMPT}"}],
    "POST /v1/prompts/{name}/pin": [{}],
}
# Other values of the fields of all bodies that generate, which they take.
USUAL: dict[str, list[Any]] = {
    "temperature": [0.3, 1, 2.0], "top_p": [0.5, 1], "top_k": [3, 0], "seed": [0, 2**63],
    "repetition_penalty": [1.1, 0.9], "frequency_penalty": [0.5], "stop": [["a"], ["b", "cd"]],
}  # fmt: skip
OPENAI: dict[str, list[Any]] = {
    "n": [1, 2], "presence_penalty": [0.5, -1], "min_p": [0.1], "min_tokens": [0, 2],
    "stop_token_ids": [[40], []], "ignore_eos": [True], "prompt_logprobs": [0, 3], "user": ["x"],
    "include_stop_str_in_output": [True], "stream": [True], "deadline": [30.0, 0.001],
    "stream_options": [{"include_usage": True}], "repetition_penalty_scope": ["output"],
    "urial_prompt": ["fuzz"], "max_tokens": [1, 8],
}  # fmt: skip


class Raw(str):
    """Stands in a body as it is, whether that is JSON or not."""


# Values that no field, or only few, may have.
STRANGE: list[Any] = [
    *(None, True, -1, 0, 1.5, 10**9, 2**63, 2**70, "", "7", "\0", [], {}, [[]], [""], [None]),
    *(Raw("1e999"), Raw("NaN"), Raw("-Infinity"), Raw("-0"), Raw("9" * 5000), Raw("01"), Raw("")),
    *("\ud800", "\U0010ffff" * 3, "a" * 100_000, ["a"] * 3000, list(range(-2, 400)), {"a": {}}),
    *(5e-324, -1e300, [1e9], [1, True, 2.0], Raw("[" * 500 + "]" * 500), Raw('"\\ud83d"')),
]


def prepare(server: Server) -> None:
    """The prompt that good bodies name."""
    status, answer = server.ask("/v1/prompts/fuzz", {"text": PROMPT}, method="PUT")
    assert status == 200, answer


def drawn(document: Any, most: int, number: int) -> Iterator[Shot]:
    """So many: of three one by its document, which costs some milliseconds each."""
    own = changed(random.Random(number))
    theirs = of_document(document, most // 3, number)
    in_turn = chain.from_iterable(zip(theirs, own, own, strict=False))
    return islice(chain(in_turn, own), most)


def of_document(document: Any, most: int, number: int) -> list[Shot]:
    """Valid and invalid by its schemas, about as many of each, the routes in turn."""
    each = []
    every: Any = schemathesis.openapi.from_dict(document).get_all_operations()
    for result in every:
        operation = result.ok()
        weight = WEIGHTS.get(operation.label, 0)
        share = max(most * weight // sum(WEIGHTS.values()) // 2, 1)
        each.append(_cases(operation, GenerationMode.POSITIVE, share, number))
        if operation.body or operation.query:  # a path alone is never wrong
            each.append(_cases(operation, GenerationMode.NEGATIVE, share, number))
    in_turn = chain.from_iterable(zip_longest(*each))
    return [shot for shot in in_turn if shot][:most]


def _cases(operation: Any, mode: GenerationMode, most: int, number: int) -> list[Shot]:
    """Drawn, and nothing else: there is nothing to shrink, and no health to check."""
    found: list[Shot] = []

    @seed(number)
    @settings(
        max_examples=most,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(operation.as_strategy(generation_mode=mode))
    def draw(case: Case) -> None:
        found.append(_shot_of(case, f"{mode.value} {len(found)} of {operation.label}"))

    draw()
    return found


def _shot_of(case: Case, name: str) -> Shot:
    method, path, body = case.operation.method.upper(), case.formatted_path, case.body
    if method == "PUT":  # under no more names than there is room for
        path = f"/v1/prompts/{NAMES[zlib.crc32(path.encode()) % len(NAMES)]}"
    data = body if isinstance(body, bytes) else None
    if not isinstance(body, bytes | NotSet):
        data = json.dumps(body).encode()
    query = f"?{urlencode(case.query, doseq=True)}" if case.query else ""
    wire = request(method, path + query, data)
    slash = "%2F" in path or (path != "/" and path.endswith("/"))  # another route, or none
    return Shot(name, case.operation.label, path, ((0, wire),), unrouted=slash)


def changed(chance: random.Random) -> Iterator[Shot]:
    """For ever: a good body, of which nothing, one part or several are something else."""
    for place in count():
        (route,) = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
        method, _, path = route.partition(" ")
        others = NAMES[1:] if route == UNMAKE else (*NAMES, *NAMES[:1] * 3)
        path = path.replace("{name}", chance.choice(others))
        data = written(_changed(route, chance)) if route in GOOD else None
        leaves = chance.random() < LEAVE
        yield Shot(
            f"changed {place} of {route}",
            route,
            path,
            ((0, request(method, path, data)),),
            answers=0 if leaves else 1,
            then="leave" if leaves else "read",
        )


def _changed(route: str, chance: random.Random) -> Any:
    body = _one_of(GOOD[route], chance)
    other = {**USUAL, **OPENAI} if route in (COMPLETION, CHAT) else USUAL
    fields = body if route in (COMPLETION, CHAT) else body.get("parameters")
    if fields is not None:
        for name in chance.sample(sorted(other), chance.randint(0, 2)):
            fields[name] = _one_of(other[name], chance)
    for _ in range(chance.choices((0, 1, 2), (6, 5, 1))[0]):
        _spoil(body, chance)
    return body


def _one_of(values: list[Any], chance: random.Random) -> Any:
    """Of its own, since parts of it may be changed."""
    return copy.deepcopy(chance.choice(values))


def _spoil(body: Any, chance: random.Random) -> None:
    """One place of it is dropped, doubled, or something else."""
    places = list(_places(body))
    holder, key = chance.choice(places) if places else (body, "text")
    how = chance.randrange(8)
    if how == 0 and key in holder:
        del holder[key]
    elif how == 1 and isinstance(holder, list):
        holder += [holder[key]] * chance.choice((1, 100, 3000))
    elif how == 2 and isinstance(holder, dict):
        holder[f"unknown-{chance.randrange(9)}"] = _one_of(STRANGE, chance)
    else:
        holder[key] = _one_of(STRANGE, chance)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where something stands, at any depth."""
    keys: list[Any] = [*range(len(value))][:5] if isinstance(value, list) else [*value]
    for key in keys:
        yield value, key
        if isinstance(value[key], list | dict):
            yield from _places(value[key])


def written(body: Any) -> bytes:
    """As JSON, but for what is raw."""

    def marked(value: Any) -> Any:
        if isinstance(value, Raw):
            return f"raw:{value.encode().hex()}:"
        if isinstance(value, dict):
            return {name: marked(one) for name, one in value.items()}
        return [marked(one) for one in value] if isinstance(value, list) else value

    text = json.dumps(marked(body))
    return re.sub(r'"raw:([0-9a-f]*):"', lambda m: bytes.fromhex(m[1]).decode(), text).encode()
