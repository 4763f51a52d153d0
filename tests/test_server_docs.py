"""Every page that shows how a client is used does what it says, on a real server."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest

from tests.serving import Server
from tests.test_readme import README, blocks

DOCS = README.parent / "docs"
PLACE = "http://127.0.0.1:8000"


@pytest.mark.parametrize("page", ["server.md", "tools/openai.md", "tools/tgi.md"])
def test_pages_in_python(server: Server, capsys: pytest.CaptureFixture[str], page: str) -> None:
    code = "\n".join(blocks("python", DOCS / page))
    exec(code.replace(PLACE, server.url).replace('model="default"', 'model="smol"'), {})
    told = capsys.readouterr().out.splitlines()
    assert len(told) >= code.count("print(") and any(told)


def test_curl(server: Server) -> None:
    _, lines = blocks("sh", DOCS / "tools/curl.md")
    whole, stream, scores = (curl(server, line) for line in lines.splitlines())
    answer = json.loads(whole)["choices"][0]
    assert "Paris" in answer["text"] and answer["finish_reason"] == "length"
    *events, done, end = stream.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    pieces = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    assert "".join(piece["text"] for piece in pieces).strip()
    (score,) = json.loads(scores)["results"]
    assert score["tokens"] == [" blue", "."] and 1 < score["rank"][0] < 50


def curl(server: Server, line: str) -> str:
    words = shlex.split(line.replace(PLACE, server.url))
    assert words[0] == "curl"
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
