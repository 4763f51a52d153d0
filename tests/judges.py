"""A judge for the tests: a small HTTP server that speaks OpenAI's chat completions, and says what
it is told to say of each prompt."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = str | tuple[int, Any] | dict[str, Any] | None  # text, (status, body), message, or silence
ASPECTS = ("helpfulness", "clarity", "factuality", "depth", "engagement")


def verdict(score: int = 4, *names: str) -> str:
    """What a good judge says."""
    return json.dumps({n: {"reason": f"why {n}", "score": score} for n in names or ASPECTS})


class JudgeServer(ThreadingHTTPServer):
    """`asked`: the bodies of all requests. `most`: how many were answered at the same time."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Callable[[str], Answer], seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.seconds = answer, seconds
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.most = self.now = 0
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.asked]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients are killed in these tests; that is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.asked.append(body)
            server.keys.add(self.headers["Authorization"])
            server.now += 1
            server.most = max(server.most, server.now)
        time.sleep(server.seconds)
        with server.lock:
            server.now -= 1
        answer = server.answer(body["messages"][-1]["content"])
        if answer is None:
            time.sleep(60)
        status, content = answer if isinstance(answer, tuple) else (200, _completion(answer))
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(data)


def _completion(answer: Any) -> dict[str, Any]:
    choice = {"message": {"content": answer}, "finish_reason": "stop"}
    choice = answer if isinstance(answer, dict) else choice
    message = {"role": "assistant", **choice["message"]}
    choices = [{"index": 0, **choice, "message": message}]
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "j", "choices": choices}


@contextmanager
def judge_server(answer: Callable[[str], Answer], seconds: float = 0.0) -> Iterator[JudgeServer]:
    server = JudgeServer(answer, seconds)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
