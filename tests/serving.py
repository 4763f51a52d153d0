"""A real server on loopback, in a process of its own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.command_line import start
from tests.fixtures import random_weights, tiny_config, write_tokenizer, write_weights
from urial_engine.engine import Engine


@dataclass
class Server:
    url: str
    process: subprocess.Popen[str]
    log: list[str]
    api_key: str | None = None
    endless = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,"  # the real model counts on
    long = 3000  # tokens of an answer, at most

    def ask(
        self, path: str, body: Any = None, *, method: str | None = None, **headers: str
    ) -> tuple[int, Any]:
        """The status and what stands in the answer, parsed where it is JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        own = {"Content-Type": "application/json", **headers}
        try:
            with urlopen(Request(self.url + path, data, own, method=method), timeout=60) as answer:
                status, text = answer.status, answer.read()
        except HTTPError as error:
            status, text = error.code, error.read()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def serving(*arguments: object) -> Iterator[Server]:
    """`urial-engine serve` with these arguments, once it is ready."""
    process = start("serve", *arguments, "--port", 0)
    assert process.stderr is not None
    log: list[str] = []
    try:
        for line in process.stderr:
            log.append(line)
            if found := re.match(r"ready: (\S+)", line):
                rest = threading.Thread(target=log.extend, args=(process.stderr,), daemon=True)
                rest.start()
                yield Server(found[1], process, log)
                break
        else:
            raise AssertionError("".join(log))
    finally:
        process.kill()
        process.communicate()


def tiny_arguments(model: Path) -> tuple[object, ...]:
    return (model, "--name", "tiny", "--threads", 1)


def metric(server: Server, name: str) -> float:
    lines = server.ask("/metrics")[1].decode().splitlines()
    (value,) = (line.split()[-1] for line in lines if line.rpartition(" ")[0] == name)
    return float(value)


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def served_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, settings = tmp_path_factory.mktemp("served"), tiny_config(max_position_embeddings=2048)
    (folder / "config.json").write_text(json.dumps(settings))
    write_weights(folder, random_weights(settings))
    write_tokenizer(folder, settings["vocab_size"])
    return folder


@pytest.fixture(scope="module")
def tiny_server(served_model: Path) -> Iterator[Server]:
    with serving(*tiny_arguments(served_model)) as one:
        yield one


@pytest.fixture(scope="module")
def tiny_engine(served_model: Path) -> Iterator[Engine]:
    with Engine(served_model, threads=1) as one:
        yield one


@pytest.fixture(scope="module")
def server(real_model: Path) -> Iterator[Server]:
    """With the real model."""
    with serving(real_model, "--name", "smol", "--max-new-tokens", Server.long) as one:
        yield one


@pytest.fixture(scope="module")
def guarded_server(real_model: Path) -> Iterator[Server]:
    """One that asks for a key."""
    with serving(real_model, "--name", "smol", "--api-key", "secret") as one:
        one.api_key = "secret"
        yield one
