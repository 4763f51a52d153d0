"""Requests that were made by hand: what a parser, a limit or a client that leaves could trip on.

Each says which statuses are right for it, where that is more than the document says.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.fuzzing_shots import JSON, Shot, request

ROUTE = "/v1/completions"
CHAT, GENERATE = "/v1/chat/completions", "/generate"
OK = frozenset({200})
BAD = frozenset({400})
INVALID = frozenset({422})
BIG = 10_000_000  # bytes
DEEP = 100_000  # brackets
CHUNKED = {**JSON, "Transfer-Encoding": "chunked"}
SHORT: dict[str, Any] = {"prompt": "abc", "max_tokens": 2}
LONG: dict[str, Any] = {"prompt": "abc", "max_tokens": 32, "ignore_eos": True, "stream": True}


def nasties() -> Iterator[Shot]:
    yield from _texts()
    yield from _values()
    yield from _headers()
    yield from _connections()
    yield from _broken()


def _body(name: str, body: bytes, allowed: frozenset[int], path: str = ROUTE) -> Shot:
    return Shot(name, f"POST {path}", path, ((0, request("POST", path, body)),), allowed=allowed)


def _post(name: str, allowed: frozenset[int], path: str = ROUTE, **fields: Any) -> Shot:
    body = {**(SHORT if path == ROUTE else {}), **fields}
    return _body(name, json.dumps(body).encode(), allowed, path)


def _texts() -> Iterator[Shot]:
    """Bytes that are no JSON, or JSON that is no text."""
    open_, closed = b'{"prompt": "abc", "max_tokens": 2, "extra": ', b"}"
    yield _body("no body", b"", BAD)
    yield _body("invalid UTF-8", b"\xff\xfe\xfd", BAD)
    yield _body("invalid UTF-8 in a string", b'{"prompt": "a\xc3\x28", "max_tokens": 1}', BAD)
    yield _body("UTF-16", json.dumps(SHORT).encode("utf-16"), BAD | OK)
    yield _body("a byte-order mark", b"\xef\xbb\xbf" + json.dumps(SHORT).encode(), BAD | OK)
    yield _body("half a character", b'{"prompt": "\\ud800", "max_tokens": 2}', OK)
    yield _body("halves the wrong way round", b'{"prompt":"\\udc00\\ud800","max_tokens":2}', OK)
    yield _body("half a character in a name", b'{"prompt":"a","max_tokens":1,"\\ud800":1}', BAD)
    yield _body("a null byte in a string", b'{"prompt": "a\\u0000b", "max_tokens": 2}', OK)
    yield _body("a null byte in the body", b'{"prompt": "a\0b", "max_tokens": 2}', BAD)
    yield _body("open brackets", b"[" * DEEP, BAD)
    yield _body("brackets", b"[" * DEEP + b"]" * DEEP, BAD)
    yield _body("objects", b'{"a":' * DEEP + b"1" + b"}" * DEEP, BAD)
    yield _body("brackets in a field", open_ + b"[" * DEEP + b"]" * DEEP + closed, BAD)
    yield _body("a few brackets in a field", open_ + b"[" * 900 + b"]" * 900 + closed, BAD | OK)
    yield _body("an integer of 5,000 digits", open_ + b"9" * 5000 + closed, BAD)
    yield _body("and as a token", b'{"prompt": [' + b"9" * 5000 + b"]}", BAD)
    yield _body("not a number", b'{"prompt": "a", "temperature": NaN}', BAD)
    yield _body("infinity", b'{"prompt": "a", "top_p": Infinity}', BAD)
    yield _body("too large a number", b'{"prompt": "a", "temperature": 1e999}', BAD)
    yield _body("minus zero", b'{"prompt": "a", "temperature": -0, "max_tokens": 1}', OK)
    yield _body("and as a float", b'{"prompt": "a", "top_p": 1, "min_p": -0.0}', OK)
    yield _body("infinity where nobody looks", open_ + b"-Infinity" + closed, BAD | OK)
    yield _body("doubled names", b'{"prompt": 1, "prompt": "a", "max_tokens": 1}', OK)
    yield _body("two values", json.dumps(SHORT).encode() * 2, BAD)
    for name, body in (("null", b"null"), ("a list", b"[]"), ("a string", b'"prompt"')):
        yield _body(name, body, BAD)
        yield _body(f"{name} for TGI", body, INVALID, GENERATE)


def _values() -> Iterator[Shot]:
    """JSON as it should be, and in it what no model can do."""
    for number in (0, -1, 10**9, 2**64, 10**30, 1.5, "7", True, [1]):
        yield _post(f"max_tokens {number}", BAD, max_tokens=number)
        yield _post(f"n {number}", BAD, n=number, temperature=0.5)
        parameters = {"max_new_tokens": number}
        yield _post(f"for TGI {number}", INVALID, GENERATE, inputs="a", parameters=parameters)
    for number in (-1, 2**64, 2**70, 0.5, "1"):
        yield _post(f"seed {number}", BAD, seed=number)
    for token in (-1, 2**31, 10**6, 2**70, True, 1.5, "1", None, [[1]]):
        yield _post(f"token {token!r}", BAD, prompt=[5, token])
    for prompt in ([], [[]], [[], [1]], [[[1]]], ["a", [1]], [1, "a"], None, {}, 7):
        yield _post(f"prompt {prompt}", BAD, prompt=prompt)
    yield _post("a token 1.0", BAD | OK, prompt=[5, 1.0])
    yield _post("an empty prompt", BAD | OK, prompt="")  # may have a BOS
    yield _post("several", BAD | OK, prompt=[""] * 3)
    yield _post("many prompts", BAD, prompt=["a"] * 20_000)
    yield _post("a long prompt", BAD, prompt="a" * 1_000_000)
    yield _post("a long stop string", OK, stop="x" * 1_000_000)
    yield _post("many stops", BAD, stop=["x"] * 10_000)
    yield _post("an empty stop", BAD, stop=[""])
    yield _post("many stop tokens", BAD, stop_token_ids=list(range(10_000)))
    yield _post("biases", BAD, logit_bias={"x": 1, "-1": 2, "9" * 400: 3})
    yield _post("a bias that is none", BAD, logit_bias={"5": "much"})
    yield _post("all log-probabilities", BAD, prompt_logprobs=10**6)
    yield _post("a stream with n", OK, stream=True, n=4, temperature=1)
    yield _post("no time", frozenset({504}), deadline=1e-9)
    yield _post("time that never ends", BAD, deadline=1e300)
    yield _post("a name of 100 kB", OK, **{"f" * 100_000: 1})
    yield _post("a model of 100 kB", frozenset({404}), model="m" * 100_000)
    yield _post("no messages", BAD, CHAT, messages=[])
    yield _post("many messages", BAD, CHAT, messages=[{"role": "user", "content": "a"}] * 20_000)
    for content in ("b" * 10**6, [{"type": "image_url"}], [[]], {}, 7):
        message = {"role": "user", "content": content}
        yield _post(f"content {str(content)[:40]}", BAD, CHAT, messages=[message])
    template = {"role": "user", "content": "{{ 1 / 0 }}{% for a in b %}"}
    yield _post("a template in a text", OK, CHAT, messages=[template], max_tokens=1)
    yield _post("an unknown role", BAD, CHAT, messages=[{**template, "role": "root"}])
    yield _post("queries", BAD, "/v1/token_shift", queries=["a"] * 1000)
    yield _post("pairs that are none", BAD, "/v1/score", prompt=["a"], continuation=["b", "c"])
    yield _post("tokens that are none", BAD, "/detokenize", tokens=[10**6])


def _ask(
    name: str, allowed: frozenset[int], headers: Mapping[str, str], body: bytes | None = None
) -> Shot:
    body = json.dumps(SHORT).encode() if body is None else body
    wire = request("POST", ROUTE, body, headers)
    return Shot(name, f"POST {ROUTE}", ROUTE, ((0, wire),), allowed=allowed)


def _headers() -> Iterator[Shot]:
    """A good body, or one that is too long, and something odd about the head."""
    body = json.dumps(SHORT).encode()
    yield _ask("no content type", OK | BAD, {})
    for kind in (
        "text/plain",
        "application/xml",
        "multipart/form-data",
        "application/json; charset=x",
    ):
        yield _ask(f"content of type {kind}", OK | BAD, {"Content-Type": kind})
    packed = gzip.compress(body, mtime=0)
    yield _ask("gzip", BAD, {**JSON, "Content-Encoding": "gzip"}, packed)
    yield _ask("a range", OK, {**JSON, "Range": "bytes=0-1", "Expect": "nothing"})
    yield _ask("10 MB", frozenset({413}), JSON, b'{"prompt": "' + b"a" * BIG + b'"}')
    chunks = b"".join(b"%x\r\n%b\r\n" % (1 << 16, b"a" * (1 << 16)) for _ in range(BIG >> 16))
    yield _ask("10 MB in chunks", frozenset({413}), CHUNKED, chunks + b"0\r\n\r\n")
    small = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    yield _ask("a byte a chunk", OK, CHUNKED, small + b"0\r\n\r\n")
    yield _ask("trailers", OK, CHUNKED, b"%x\r\n%b\r\n0\r\nX: y\r\n\r\n" % (len(body), body))
    for path in (
        "/v1/completion",
        "/%ff%fe",
        "/../../etc/passwd",
        "/v1//completions",
        "/" + "a" * 9000,
    ):
        wire = request("GET", path)
        yield Shot(
            f"GET {path[:30]}", "", path, ((0, wire),), allowed=frozenset({404}), unrouted=True
        )
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"):
        wire = request(method, ROUTE)
        yield Shot(f"{method}", "", ROUTE, ((0, wire),), allowed=frozenset({405}), unrouted=True)


def _connections() -> Iterator[Shot]:
    """What clients do on a connection beside sending a request and reading the answer."""
    route, body = f"POST {ROUTE}", json.dumps(SHORT).encode()
    whole = request("POST", ROUTE, body)
    kept = whole.replace(b"Connection: close\r\n", b"")
    yield Shot(
        "HTTP/1.0", route, ROUTE, ((0, request("POST", ROUTE, body, version="1.0")),), allowed=OK
    )
    yield Shot("three at once", route, ROUTE, ((0, kept * 2 + whole),), answers=3, allowed=OK)
    slow = [(0.005, whole[i : i + 1]) for i in range(len(whole))]
    yield Shot("a byte at a time", route, ROUTE, tuple(slow), allowed=OK)
    stream = request("POST", ROUTE, json.dumps(LONG).encode())
    for name in ("leaves a stream", "leaves another"):
        yield Shot(name, route, ROUTE, ((0, stream),), answers=0, then="leave")
    yield Shot("closes its half", route, ROUTE, ((0, whole),), answers=None, then="half-close")
    cut = ((0, whole[:-5]),)
    yield Shot(
        "less than it said", route, ROUTE, cut, answers=None, then="half-close", malformed=True
    )


def _broken() -> Iterator[Shot]:
    """What is not HTTP. The protocol's parser refuses it, or cuts the connection."""
    for name, wire in {
        "no HTTP": b"hello?\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        "an unknown method": request("BREW", ROUTE),
        "HTTP/9.9": request("GET", "/health", version="9.9"),
        "a null byte in the head": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        "a negative length": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        "two lengths": b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "a length and chunks": request(
            "POST", ROUTE, b"0\r\n\r\n", {**CHUNKED, "Content-Length": "5"}
        ),
        "chunks that are none": request("POST", ROUTE, b"zz\r\nab\r\n", CHUNKED),
    }.items():
        yield _raw(name, wire, then="half-close")
    for name, headers in {
        "a header of 1 MB": {"X": "a" * 1_000_000},
        "20,000 headers": {f"X-{i}": "a" for i in range(20_000)},
    }.items():
        wire = request("GET", "/health", b"", headers)
        yield _raw(name, wire, path="/health", allowed=BAD)


def _raw(name: str, wire: bytes, path: str = "/", **how: Any) -> Shot:
    parts = ((0, wire),)
    return Shot(name, "", path, parts, answers=None, malformed=True, unrouted=True, **how)
