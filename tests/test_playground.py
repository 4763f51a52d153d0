"""The playground in a browser, on a real server: what it shows is what the server says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser import Views, chromium
from tests.playground import (
    QUERY,
    WATCH,
    active,
    answer_with,
    ask,
    choose,
    chunk,
    error,
    finish,
    ready,
    requests,
    send,
    until,
    visit,
)

CHAT = "/v1/chat/completions"
CLASSES = ("unshifted", "marginal", "shifted")


@pytest.fixture(scope="module")
def views() -> Iterator[Views]:
    with chromium() as found:
        yield found


def class_of(rank: int) -> int:
    return 0 if rank == 1 else 1 if rank <= 3 else 2


def told(server: Any, body: dict[str, Any]) -> Any:
    """What the server answers to the page's own request, whole instead of in a stream."""
    whole = {k: v for k, v in body.items() if k not in ("stream", "stream_options")}
    return ask(server.url, CHAT, whole)[1]["choices"][0]


def prompts(server: Any) -> dict[str, Any]:
    return {one["name"]: one for one in ask(server.url, "/v1/prompts")[1]["prompts"]}


def test_a_chat_of_two_turns_streams(views: Views, server: Any) -> None:
    page = visit(views, server.url)
    choose(page, max_tokens=24)
    page.evaluate(WATCH)
    with requests(page, CHAT) as bodies:
        send(page)
        first = finish(page).text_content()
        send(page, "And a soft one?")
        page.wait_for_selector("article:nth-of-type(2)")
        second = finish(page).text_content()
    seen = page.evaluate("seen")
    assert len(seen) > 6 and all(len(text) <= 400 for text in seen)
    assert [m["role"] for m in bodies[1]["messages"]] == ["user", "assistant", "user"]
    assert [m["content"] for m in bodies[1]["messages"]] == [QUERY, first, "And a soft one?"]
    assert [first, second] == [told(server, body)["message"]["content"] for body in bodies]
    assert page.input_value("#message") == ""
    note = page.locator("article").last.locator(".meta").last.inner_text()
    assert "tokens/s" in note and "from the cache" in note
    page.click("#new")
    assert page.locator("article").count() == 0
    page.close()


def test_tokens_are_shaded_by_the_second_context(views: Views, server: Any) -> None:
    page = visit(views, server.url)
    choose(page, max_tokens=24)
    with requests(page, CHAT) as bodies:
        send(page)
        spans = finish(page).locator(".t")
    choice = told(server, bodies[0])
    shift, own = choice["shift"], choice["logprobs"]["content"]
    of_spans = "(all) => all.map((t) => [t.tokens.map((x) => x.other.rank), t.className])"
    shaded = spans.evaluate_all(of_spans)
    assert [rank for ranks, _ in shaded for rank in ranks] == [s["rank"] for s in shift]
    assert all(name == f"t c{max(map(class_of, ranks))}" for ranks, name in shaded)
    for k, name in enumerate(CLASSES):
        count = sum(class_of(s["rank"]) == k for s in shift)
        assert page.inner_text(f"#count-{name}") == str(count)
        assert page.inner_text(f"#share-{name}") == f"{100 * count / len(shift):.1f} %"
    assert page.locator("#ranks i").count() == len(shift)
    worst = max(range(len(shift)), key=lambda i: shift[i]["rank"])
    at = next(i for i in range(len(shaded)) if sum(len(r) for r, _ in shaded[: i + 1]) > worst)
    spans.nth(at).hover()
    rows = page.locator("#token table").first.locator("tbody tr").all_inner_texts()
    cells = [row.split("\t")[1:] for row in rows]
    assert cells[0][1].split(", tied")[0] == f"{shift[worst]['rank']:,}"
    assert cells[2] == [f"{x['logprob']:.3f}".replace("-", "−") for x in (own[worst], shift[worst])]
    assert page.locator("#token .tops tbody tr").count() == 5
    choose(page, second_model="")
    with requests(page, CHAT) as bodies:
        page.click("#again")
        page.wait_for_selector("#counted:has-text('Not shaded')")
        bare = finish(page)
    assert "compare_with" not in bodies[0] and bare.locator(".c0, .c1, .c2").count() == 0
    assert bare.text_content() == choice["message"]["content"]
    page.close()


def test_settings_are_what_is_asked_for(views: Views, server: Any) -> None:
    page = visit(views, server.url)
    choose(page, temperature=0.7, max_tokens=6, penalty=1.25, scope="no_prefix", seed=11)
    choose(page, context="raw", second_context="default")
    with requests(page, CHAT) as bodies:
        send(page)
        text = finish(page).text_content()
    asked = bodies[0]
    wanted = {"temperature": 0.7, "max_tokens": 6, "repetition_penalty": 1.25, "seed": 11}
    wanted |= {"repetition_penalty_scope": "no_prefix", "urial_prompt": "raw"}
    assert {name: asked[name] for name in wanted} == wanted
    assert asked["compare_with"]["urial_prompt"] == "default"
    assert text == told(server, asked)["message"]["content"]
    choose(page, max_tokens=0)
    send(page, "Another?")
    assert page.locator("article").count() == 1 and page.input_value("#message") == "Another?"
    page.close()


def test_a_prefix_is_seen_edited_saved_and_pinned(views: Views, server: Any) -> None:
    page = visit(views, server.url, expected=["400"])
    choose(page, context="default", max_tokens=4)
    page.click("#prefix-open")
    text = prompts(server)["default"]["text"]
    assert page.input_value("#prefix-text") == text
    count = ask(server.url, "/tokenize", {"prompt": text})[1]["count"]
    page.wait_for_selector(f"#prefix-count:has-text('{count:,} of ')")
    page.fill("#prefix-text", "# Instruction\n\nBe brief.\n")
    assert page.is_visible("#dirty") and page.is_enabled("#original")
    page.click("#original")
    assert not page.is_visible("#dirty") and page.input_value("#prefix-text") == text
    page.fill("#prefix-text", "# Instruction\n\nBe brief.\n")
    page.fill("#save-as", "brief")
    page.click("#prefix-form button:has-text('Save and pin')")
    page.wait_for_selector("#prefix-work:has-text('done')")

    def state() -> Any:
        known = prompts(server)
        assert known["default"]["text"] == text
        assert known["brief"]["text"] == "# Instruction\n\nBe brief.\n"
        return next(iter(known["brief"]["models"].values()))["state"]

    assert state() == "pinned" and not page.is_visible("#dirty")
    assert page.input_value("#settings [name=context]") == "brief"
    assert "Prefix brief: pinned" in page.inner_text("#prefix-state")
    page.locator("#prefix-states button").first.press("Enter")
    page.wait_for_selector("#prefix-state:has-text('cold')")
    assert state() == "cold"
    assert page.evaluate("() => document.activeElement.textContent") == "Pin"
    send(page)
    finish(page)  # what is asked after a cold prefix pins it
    page.wait_for_selector("#prefix-state:has-text('brief: pinned')")
    assert state() == "pinned"
    page.fill("#save-as", "chat")
    page.click("#prefix-form button:has-text('Save and pin')")
    page.wait_for_selector("#prefix-problem:has-text('chat')")
    page.close()


def test_an_error_shows_and_can_be_mended(views: Views, server: Any) -> None:
    page = visit(views, server.url, expected=["400"])
    choose(page, max_tokens=10**7)
    with requests(page, CHAT) as bodies:
        send(page)
        shown = error(page)
    status, refused = ask(server.url, CHAT, bodies[0])
    assert status == 400 and refused["error"]["message"] == shown
    assert page.get_attribute("#problem", "role") == "alert"
    choose(page, max_tokens=4)
    page.click("#retry")
    finish(page)
    assert not page.is_visible("#problem") and page.locator("article").count() == 1
    page.close()


def test_a_full_queue_and_a_lost_connection_say_so(views: Views, server: Any) -> None:
    page = visit(views, server.url, expected=["429", "ERR_FAILED"])
    choose(page, max_tokens=4)
    told = json.dumps({"error": {"message": "the queue is full"}})
    page.route(
        f"**{CHAT}", lambda r: r.fulfill(status=429, headers={"Retry-After": "7"}, body=told)
    )
    send(page)
    assert error(page) == "the queue is full The server says to try again in 7 s."
    page.unroute_all()
    page.route(f"**{CHAT}", lambda route: route.abort())
    page.click("#retry")
    page.wait_for_selector("#problem-text:has-text('cannot be reached')")
    page.unroute_all()
    half = chunk("Half", [("Half", 2)])
    answer_with(page, half, done=False)
    page.click("#retry")
    page.wait_for_selector("#problem-text:has-text('ended before the answer did')")
    assert finish(page).text_content() == "Half"
    page.unroute_all()
    answer_with(page, half, {"error": {"message": "the deadline is over"}})
    page.click("#retry")
    page.wait_for_selector("#problem-text:has-text('the deadline is over')")
    page.unroute_all()
    with requests(page, CHAT) as bodies:
        send(page, "Go on.")  # what came of the answer stays in the chat
        page.wait_for_selector("article:nth-of-type(2)")
        finish(page)
    assert [m["content"] for m in bodies[0]["messages"]] == [QUERY, "Half", "Go on."]
    page.close()


def test_stop_frees_the_work(views: Views, server: Any) -> None:
    page = visit(views, server.url)
    choose(page, context="raw", second_model="", penalty=1, max_tokens=server.long)
    send(page, server.endless)
    page.wait_for_selector(".text .t:nth-child(5)")
    assert active(server.url) == 1
    page.click("#stop")
    text = finish(page).text_content()
    until(lambda: active(server.url) == 0)
    assert page.is_visible("#send") and "stopped" in page.locator(".meta").last.inner_text()
    assert page.locator("article .t").count() < server.long
    choose(page, context="default", max_tokens=4)
    with requests(page, CHAT) as bodies:
        send(page, "And?")
        page.wait_for_selector("article:nth-of-type(2)")
        finish(page)
    assert bodies[0]["messages"][1] == {"role": "assistant", "content": text}
    page.close()


def test_the_key_is_asked_for_and_kept(views: Views, guarded_server: Any) -> None:
    page = visit(views, guarded_server.url, expected=["401"])
    page.wait_for_selector("#key-dialog[open]")
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#key').value === ''")
    page.wait_for_selector("#key-dialog[open]")
    page.keyboard.type(guarded_server.api_key)
    page.keyboard.press("Enter")
    ready(page)
    page.reload()
    ready(page)
    choose(page, max_tokens=4)
    send(page)
    finish(page)
    assert page.evaluate("() => document.cookie") == ""
    page.close()


def test_a_chat_is_saved_with_its_measures(views: Views, server: Any) -> None:
    page = visit(views, server.url)
    choose(page, max_tokens=8)
    with requests(page, CHAT) as bodies:
        send(page)
        text = finish(page).text_content()
    with page.expect_download() as download:
        page.click("#save")
    (turn,) = json.loads(download.value.path().read_text())
    asked = {k: v for k, v in bodies[0].items() if k != "messages"}
    assert [turn["query"], turn["answer"], turn["request"]] == [QUERY, text, asked]
    ranks = [s["rank"] for s in told(server, bodies[0])["shift"]]
    assert [token["other"]["rank"] for token in turn["tokens"]] == ranks
    page.close()
