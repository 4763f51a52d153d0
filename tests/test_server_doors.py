"""Who may ask, and what one client can take from the others."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from huggingface_hub import InferenceClient

from tests.command_line import cli
from tests.serving import Server, metric, serving, tiny_arguments, until
from urial_engine.server.app import WORK

CHAT: list[Any] = [{"role": "user", "content": "why?"}]
SMALL = ("--kv-cache-gib", 0.004)  # about three contexts of the tiny model


def test_keys_and_names(served_model: Path) -> None:
    with serving(*tiny_arguments(served_model)) as server:
        port = server.url.rpartition(":")[2]
        for host in (f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}", "127.0.0.1"):
            assert server.ask("/v1/models", Host=host)[0] == 200
        status, told = server.ask("/v1/prompts/x", {"text": "a"}, method="PUT", Host="evil.example")
        assert status == 403 and "evil.example" in told["error"]["message"]
    with serving(*tiny_arguments(served_model), "--api-key", "secret") as server:
        for given, status in (("bearer secret", 200), ("Bearer secret ", 200), ("secret", 401)):
            found = server.ask("/v1/models", Authorization=given, Host="any.example")[0]
            assert found == status, given
    assert "is empty" in cli("serve", served_model, "--api-key", "", code=1).output


def test_a_client_that_knows_one_model_only(server: Server) -> None:
    client = InferenceClient(server.url)
    found = client.chat_completion(CHAT, max_tokens=3)
    assert found.model == "tiny" and found.choices[0].message.content


@pytest.fixture(scope="module")
def server(served_model: Path) -> Any:
    with serving(*tiny_arguments(served_model), *SMALL) as one:
        yield one


def test_pins_leave_room_for_a_context(server: Server) -> None:
    text, statuses = "many words of a prefix " * 8, []
    for i in range(15):
        status, told = server.ask(f"/v1/prompts/p{i}", {"text": f"{i} {text * 8}"}, method="PUT")
        statuses.append(status)
        if status == 400:
            assert "must be left for prompts" in told["error"]["message"]
    assert statuses[0] == 200 and statuses[-1] == 400
    long = {"prompt": "a", "max_tokens": 900, "ignore_eos": True}
    assert server.ask("/v1/completions", long)[0] == 200
    for i in range(15):
        status = server.ask(f"/v1/prompts/p{i}", method="DELETE")[0]
        assert status == (200 if statuses[i] == 200 else 400)
    status, told = server.ask("/v1/prompts/default", method="DELETE")
    assert status == 400 and "server itself" in told["error"]["message"]


def test_an_answer_without_a_limit_fits_the_cache(server: Server) -> None:
    """OpenAI's clients name none; the context is longer than what is free beside a pinned text."""
    body = {"messages": CHAT, "ignore_eos": True}
    status, answer = server.ask("/v1/chat/completions", body)
    assert status == 200 and answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] <= 2048


def test_texts_of_clients_never_reach_the_disk(served_model: Path, tmp_path: Path) -> None:
    prompt = tmp_path / "brief.txt"
    prompt.write_text("Be short. " * 20)
    folder = tmp_path / "kept"
    arguments = (*tiny_arguments(served_model), "--prompt", prompt, "--prefix-dir", folder)
    with serving(*arguments) as server:
        before = sorted(folder.rglob("*"))
        for name in ("brief", "other"):
            server.ask(f"/v1/prompts/{name}", {"text": "Another one. " * 20}, method="PUT")
        assert before and sorted(folder.rglob("*")) == before


def test_a_stream_that_is_compared_goes_on_in_a_full_batch(served_model: Path) -> None:
    body = {"messages": CHAT, "max_tokens": 30, "ignore_eos": True, "temperature": 0}
    body |= {"urial_prompt": "raw", "compare_with": {"urial_prompt": "chat"}}
    long = {"prompt": "abc", "max_tokens": 1500, "ignore_eos": True, "temperature": 0}
    with (
        serving(*tiny_arguments(served_model), "--max-batch", 2) as server,
        ThreadPoolExecutor(6) as pool,
    ):
        others = [pool.submit(server.ask, "/v1/completions", long) for _ in range(1)]
        until(lambda: metric(server, 'urial_sequences_running{model="tiny"}') == 1)
        compared = pool.submit(server.ask, "/v1/chat/completions", body)
        until(lambda: metric(server, 'urial_sequences_running{model="tiny"}') == 2)
        others += [pool.submit(server.ask, "/v1/completions", long) for _ in range(4)]
        assert compared.result()[0] == 200
        assert not all(one.done() for one in others)


def test_who_does_not_read_is_left(served_model: Path) -> None:
    body = {"prompt": ["abc"] * 40, "max_tokens": 1900, "ignore_eos": True, "stream": True}
    body |= {"logprobs": 20}
    with serving(*tiny_arguments(served_model), "--max-batch", 64) as server:
        host, port = server.url.removeprefix("http://").split(":")
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\n"
        with socket.create_connection((host, int(port))) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)
            until(lambda: metric(server, "urial_requests_active") == 40)
            files = psutil.Process(server.process.pid).num_fds
            before = files()
            until(lambda: metric(server, "urial_requests_active") == 0, seconds=120)
            until(lambda: files() < before)
        assert metric(server, "urial_requests_dropped_total") == 40
        assert server.log == [f"ready: {server.url}\n"]


def test_the_time_to_finish_runs_out(served_model: Path) -> None:
    """A stream that is cut says so."""
    body = {"prompt": "abc", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    limits = ("--drain-seconds", 0.1, "--threads", 1)
    with (
        serving(*tiny_arguments(served_model), *limits) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        streams = [pool.submit(server.ask, "/v1/completions", body) for _ in range(8)]
        until(lambda: metric(server, "urial_requests_active") == 8)
        assert server.end() == 0
        for stream in streams:
            status, told = stream.result()
            assert status == 200 and b'"type":"draining"' in told.splitlines()[-2], told[-300:]
        assert [line for line in server.log if "Traceback" in line] == []


def test_what_is_counted(served_model: Path) -> None:
    with serving(*tiny_arguments(served_model)) as server, ThreadPoolExecutor(1) as pool:
        long = {"prompt": "abc", "max_tokens": 1900, "ignore_eos": True}
        running = pool.submit(server.ask, "/v1/completions", long)
        until(lambda: metric(server, "urial_generated_tokens_total") > 10)
        assert not running.done()
        running.result()
        assert metric(server, "urial_generated_tokens_total") == 1900
        assert metric(server, "urial_prefix_hits_total") == 0
        server.ask("/v1/prompts/mine", {"text": "Be short. " * 20}, method="PUT")
        chat = {"messages": CHAT, "max_tokens": 3, "urial_prompt": "mine"}
        server.ask("/v1/chat/completions", chat)
        assert metric(server, "urial_prefix_hits_total") == 1
        server.ask("/v1/score", {"prompt": "ab", "continuation": "efg"})
        assert metric(server, "urial_scored_tokens_total") >= 1


def test_a_full_server_refuses_all_work_at_its_door(server: Server) -> None:
    paths = server.ask("/openapi.json")[1]["paths"]
    others = {"/tokenize", "/detokenize", "/v1/prompts/{name}/pin"}
    assert {path for path, methods in paths.items() if "post" in methods} - others == WORK
