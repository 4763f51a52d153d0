"""A server that is left running: clients that leave, mistakes, kills, the end."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.command_line import cli
from tests.serving import metric, serving, tiny_arguments, until

CHAT: list[Any] = [{"role": "user", "content": "why?"}]


def test_who_leaves_frees_the_work_and_no_mistake_fills_the_log(served_model: Path) -> None:
    long = {"prompt": "abc", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    with serving(*tiny_arguments(served_model)) as server:
        for body in ({**long, "stream": False}, long):
            host, port = server.url.removeprefix("http://").split(":")
            data = json.dumps({**body, "prompt": "a secret"}).encode()
            head = (
                f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\n"
            )
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)
                until(lambda: metric(server, "urial_requests_active") == 1)
            until(lambda: metric(server, "urial_requests_active") == 0)
            until(lambda: metric(server, 'urial_sequences_running{model="tiny"}') == 0)
        assert metric(server, "urial_requests_dropped_total") == 2
        assert metric(server, "urial_generated_tokens_total") < 2 * 1900
        assert server.ask("/v1/completions", {"prompt": "a", "top_p": 7})[0] == 400
        assert server.ask("/v1/completions", {"prompt": "a" * 9000})[0] == 400
        assert server.end() == 0
        assert server.log == [f"ready: {server.url}\n"]


def test_prompts_are_logged_where_that_is_asked_for(served_model: Path) -> None:
    with serving(*tiny_arguments(served_model), "--log-prompts") as server:
        server.ask("/v1/completions", {"prompt": "a secret", "max_tokens": 1, "new_field": 1})
        server.end()
        until(lambda: "new_field" in "".join(server.log))
        assert "a secret" in "".join(server.log)


def test_the_end_of_a_server(served_model: Path) -> None:
    """What runs is finished, in time; a full queue and a missing key are refused before."""
    key = {"Authorization": "Bearer secret"}
    limits = ("--api-key", "secret", "--max-queue", 0, "--max-batch", 1)
    with serving(*tiny_arguments(served_model), *limits) as server, ThreadPoolExecutor(4) as pool:
        assert server.ask("/v1/models")[0] == 401 and server.ask("/health")[0] == 200
        assert server.ask("/v1/models", None, Authorization="Bearer secre")[0] == 401
        long = {"prompt": "abc", "max_tokens": 1500, "ignore_eos": True, "temperature": 0}
        running = pool.submit(server.ask, "/v1/completions", long, **key)
        while b"urial_requests_active 1.0" not in server.ask("/metrics", **key)[1]:
            assert not running.done(), running.result()
        statuses = set[tuple[int, ...]]()
        while not running.done() and (429, 429) not in statuses:  # a full server looks at neither
            bodies = ({"prompt": "a", "max_tokens": 1}, b"{")
            statuses.add(tuple(server.ask("/v1/completions", b, **key)[0] for b in bodies))
        assert (429, 429) in statuses
        assert statuses <= {(200, 400), (200, 429), (429, 400), (429, 429)}
        told = server.ask("/metrics", **key)[1].decode()
        assert 'urial_http_requests_total{path="/v1/completions",status="429"}' in told
        assert server.end() == 0
        status, answer = running.result()
        assert status == 200 and answer["usage"]["completion_tokens"] == 1500


def test_what_is_not_installed_is_named(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urial_engine.cli.serve.find_spec", lambda name: None)
    told = cli("serve", tiny_model(), code=1).stderr
    assert "serve needs fastapi" in told and "urial-engine[server]" in told


def test_a_killed_server_has_its_prompts_again(served_model: Path, tmp_path: Path) -> None:
    """--prompt, --prefix-dir, --model, --cors and --deadline, each seen from outside."""
    (tmp_path / "brief.txt").write_text("Be short. " * 20)
    arguments = (
        *(
            *tiny_arguments(served_model),
            "--model",
            f"other={served_model}",
            "--cors",
            "http://page",
        ),
        *("--prompt", tmp_path / "brief.txt", "--prefix-dir", tmp_path / "kept"),
    )
    chat = {"messages": CHAT, "max_tokens": 8, "temperature": 0, "urial_prompt": "brief"}
    answers, sources = [], []
    for _ in range(2):
        with serving(*arguments) as server:
            answers += [server.ask("/v1/chat/completions", {**chat, "model": "other"})[1]]
            prompts = {one["name"]: one for one in server.ask("/v1/prompts")[1]["prompts"]}
            sources.append([one["source"] for one in prompts["brief"]["models"].values()])
            assert [m["id"] for m in server.ask("/v1/models")[1]["data"]] == ["tiny", "other"]
            page = {"Origin": "http://page"}
            with urlopen(Request(f"{server.url}/v1/models", headers=page)) as answer:
                assert answer.headers["Access-Control-Allow-Origin"] == "http://page"
            server.process.kill()
    assert sources == [["computed", "restored"], ["restored"] * 2]
    texts = {one["choices"][0]["message"]["content"] for one in answers}
    assert len(texts) == 1
    limits = ("--deadline", 0.05, "--max-new-tokens", 1990)
    with serving(*tiny_arguments(served_model), *limits) as server:
        slow = {"prompt": "a", "max_tokens": 1900, "ignore_eos": True}
        assert server.ask("/v1/completions", slow)[0] == 504


def test_listening_to_the_world_without_a_key_is_told(served_model: Path) -> None:
    with serving(*tiny_arguments(served_model), "--host", "0.0.0.0") as server:
        assert "--host 0.0.0.0 without --api-key" in server.log[0]
    with serving(*tiny_arguments(served_model), "--host", "::1") as server:
        assert len(server.log) == 1


def test_what_a_client_does_not_say_fits_the_limits(served_model: Path) -> None:
    with serving(*tiny_arguments(served_model), "--max-new-tokens", 5) as server:
        status, answer = server.ask("/generate", {"inputs": "a", "parameters": {"details": True}})
        assert (status, answer["details"]["generated_tokens"]) == (200, 5)
        assert (
            server.ask("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 6}})[0] == 422
        )
        status, shift = server.ask("/v1/token_shift", {"queries": ["a"]})
        assert (status, shift["summary"]["tokens"]) == (200, 5)
