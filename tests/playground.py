"""The playground in Chromium, for its tests: what a user does, and what the server itself says."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tests.browser import Views

PHONE = {"width": 375, "height": 740}
QUERY = "How do I boil an egg?"
# Every change of the answer's text is noted, from before it is asked for.
WATCH = """() => {
  window.seen = [];
  const look = () => {
    const text = [...document.querySelectorAll(".text")].at(-1)?.textContent;
    if (text && text !== seen.at(-1)) seen.push(text);
  };
  new MutationObserver(look).observe(document.getElementById("log"),
    { childList: true, subtree: true, characterData: true });
}"""


def ask(url: str, path: str, body: Any = None) -> tuple[int, Any]:
    """The status, and the JSON that the server answers."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(url.rstrip("/") + path, data, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except HTTPError as refused:
        return refused.code, json.load(refused)


def active(url: str) -> int:
    """Requests that wait or run."""
    with urlopen(url.rstrip("/") + "/metrics", timeout=30) as response:
        found = re.search(r"^urial_requests_active (\d+)", response.read().decode(), re.M)
    assert found
    return int(found[1])


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)


def visit(views: Views, url: str, expected: Sequence[str] = (), **context: Any) -> Any:
    """The page, ready. What it says on the console, beside the failures of requests whose status is
    `expected`, and what it asks of others is wrong."""
    page = views.browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **context})
    page.set_default_timeout(20_000)

    def told(message: Any) -> None:
        failed = message.text.startswith("Failed to load resource")
        if not (failed and any(status in message.text for status in expected)):
            views.wrong.append(f"{message.type}: {message.text}")

    page.on("console", told)
    page.on("pageerror", lambda error: views.wrong.append(f"error: {error}"))
    page.on("dialog", lambda d: (views.wrong.append(f"dialog: {d.message}"), d.dismiss()))
    page.on("request", lambda r: ours(r.url, url) or views.wrong.append(r.url))
    page.goto(url)
    if "401" not in expected:
        ready(page)
    return page


def ours(address: str, url: str) -> bool:
    return address.startswith((url, f"blob:{url}"))


def ready(page: Any) -> None:
    page.wait_for_selector("body.ready")


def choose(page: Any, **settings: Any) -> None:
    """`max_tokens=4` fills the field max-tokens, and so on."""
    for name, value in settings.items():
        field = page.locator(f"#settings [name='{name.replace('_', '-')}']")
        if field.evaluate("(f) => f.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.fill(str(value))


def send(page: Any, text: str = QUERY) -> None:
    page.fill("#message", text)
    page.press("#message", "Enter")


def finish(page: Any) -> Any:
    """The text element of the last answer, once it has ended."""
    page.wait_for_selector("article:last-of-type .meta:nth-of-type(2):not(:empty)")
    return page.locator("article").last.locator(".text")


def error(page: Any) -> str:
    page.wait_for_selector("#problem", state="visible")
    text: str = page.inner_text("#problem-text")
    return text


@contextmanager
def requests(page: Any, path: str) -> Iterator[list[Any]]:
    """The bodies that the page sends to a path meanwhile."""
    bodies: list[Any] = []

    def look(request: Any) -> None:
        if request.url.endswith(path) and request.method == "POST":
            bodies.append(request.post_data_json)

    page.on("request", look)
    yield bodies
    page.remove_listener("request", look)


def chunk(text: str, tokens: Sequence[tuple[str, int]], **choice: Any) -> dict[str, Any]:
    """A chunk of a stream, its tokens each with a rank under the second context."""
    shift = [
        {"token_id": i, "token": token, "rank": rank, "ties": 0, "logprob": -1.5}
        for i, (token, rank) in enumerate(tokens)
    ]
    told = {"index": 0, "delta": {"content": text}, "finish_reason": None, "shift": shift}
    return {"choices": [told | choice]}


def answer_with(page: Any, *events: Any, done: bool = True) -> None:
    """Instead of the server, these events answer the next questions."""
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    lines += ["data: [DONE]\n\n"] * done
    headers = {"Content-Type": "text/event-stream"}
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=200, headers=headers, body="".join(lines)),
    )
