"""The playground where something is refused, lost, changed by others, or too much at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser import Views, chromium
from tests.playground import PHONE, answer_with, choose, chunk, error, finish, requests, send, visit
from urial_engine.server.models import NAME

CHAT = "/v1/chat/completions"
REFUSED = {"error": {"message": "not today"}}
TEXT = "# Instruction\n\nBe brief.\n"


@pytest.fixture(scope="module")
def views() -> Iterator[Views]:
    with chromium() as found:
        yield found


def answered(page: Any, query: str, *pieces: str) -> Any:
    """An answer of these pieces, ranked 1, 2, 3 and so on, to a question."""
    answer_with(page, *(chunk(piece, [(piece, i)]) for i, piece in enumerate(pieces, start=1)))
    send(page, query)
    text = finish(page)
    page.unroute_all()
    return text


def asked(body: Any) -> list[str]:
    return [message["content"] for message in body["messages"]]


def test_an_answer_stays_until_there_is_another(views: Views, server: Any) -> None:
    page = visit(views, server.url)
    answered(page, "One?", "Old", " one", "", "!")
    answer_with(page, REFUSED)
    for button in ("#again", "#retry"):
        page.click(button)
        assert error(page) == "not today"
        assert page.inner_text("article .text") == "Old one!"
        assert page.input_value("#message") == ""
        assert page.inner_text("#count-shifted") == "1" and page.locator("#ranks i").count() == 4
        assert page.locator("article .meta").last.inner_text().startswith("4 tokens, 1 shifted")
    page.unroute_all()
    page.route(f"**{CHAT}", lambda route: None)  # never answered
    page.click("#again")
    page.wait_for_selector(".text.streaming")
    page.click("#stop")
    page.wait_for_selector(".text:has-text('Old one!')")
    page.unroute_all()
    answer_with(page, chunk("New", [("New", 1)]))
    with requests(page, CHAT) as bodies:
        send(page, "Two?")
        page.wait_for_selector("article:nth-of-type(2) .text:has-text('New')")
    assert asked(bodies[0]) == ["One?", "Old one!", "Two?"]
    page.close()


def test_a_question_that_is_refused_can_be_mended(views: Views, server: Any) -> None:
    page = visit(views, server.url, expected=["400", "ERR_FAILED"])
    long = "word " * 9000
    send(page, long)
    assert "in a context of 8192" in error(page)
    assert page.input_value("#message") == long
    page.fill("#message", "Shorter?")
    answer_with(page, REFUSED)
    with requests(page, CHAT) as bodies:
        page.click("#retry")
        page.wait_for_selector("#problem-text:has-text('not today')")
        page.click("#again")  # which is the same here
        page.wait_for_selector("#stop", state="hidden")
        page.unroute_all()
        answer_with(page, chunk("Yes", [("Yes", 1)]))
        page.click("#retry")
        finish(page)
    assert list(map(asked, bodies)) == [["Shorter?"]] * 3
    assert page.locator("article h3").all_inner_texts() == ["Shorter?"]
    assert page.input_value("#message") == ""
    page.unroute_all()
    held: list[Any] = []
    page.route(f"**{CHAT}", lambda route: held.append(route))
    send(page, "Next?")
    page.wait_for_selector("article:nth-of-type(2)")
    page.fill("#message", "And then?")  # written meanwhile: it is not written over
    held[0].abort()
    page.wait_for_selector("#problem-text:has-text('cannot be reached')")
    assert page.input_value("#message") == "And then?"
    page.close()


def test_what_another_tab_has_saved_is_shown(views: Views, server: Any) -> None:
    page = visit(views, server.url, expected=["400"])

    def put(text: str) -> None:
        assert server.ask("/v1/prompts/shared", {"text": text}, method="PUT")[0] == 200

    put(TEXT)
    page.reload()
    page.wait_for_selector("body.ready")
    page.click("#prefix-open")
    page.select_option("#prefix-name", "shared")
    assert page.input_value("#prefix-text") == TEXT
    put(TEXT + "And kind.\n")
    answered(page, "One?", "Yes")
    page.wait_for_function("() => document.querySelector('#prefix-text').value.includes('kind')")
    assert not page.is_visible("#dirty")
    page.fill("#prefix-text", "mine")
    put(TEXT + "Again.\n")
    with page.expect_response("**/v1/prompts"):
        answered(page, "Two?", "Yes")
    assert page.input_value("#prefix-text") == "mine" and page.is_visible("#dirty")
    page.click("#delete")
    page.wait_for_selector("#prefix-work:has-text('Deleting shared: done')")
    known = [prompt["name"] for prompt in server.ask("/v1/prompts")[1]["prompts"]]
    assert known == ["default"] == page.locator("#prefix-name option").all_inner_texts()
    page.set_viewport_size(PHONE)
    page.click("#delete")
    page.wait_for_selector("#prefix-problem:has-text('it stays')")
    assert page.locator("#prefix-problem").bounding_box()["height"] > 20  # whole lines of it
    page.close()


def test_a_context_that_is_gone_is_not_another(views: Views, server: Any) -> None:
    assert server.ask("/v1/prompts/mine", {"text": TEXT}, method="PUT")[0] == 200
    page = visit(views, server.url, expected=["400"])
    choose(page, context="mine", second_model="")
    assert server.ask("/v1/prompts/mine", method="DELETE")[0] == 200
    with requests(page, CHAT) as bodies:
        send(page, "One?")
        shown = error(page)
        page.wait_for_selector("#prefix-state:has-text('Prefix mine: the server has it no longer')")
        page.click("#retry")
        page.wait_for_function("() => !document.querySelector('#send').hidden")
    assert [body["urial_prompt"] for body in bodies] == ["mine", "mine"]
    assert shown == error(page) and "there is no prompt 'mine'" in shown
    context = page.locator("[name=context]")
    assert context.evaluate("(s) => s.selectedOptions[0].textContent") == "mine (gone)"
    choose(page, context="default")
    assert "mine" not in context.inner_text()
    page.close()


def test_names_that_the_server_takes_and_no_others(views: Views, server: Any) -> None:
    page = visit(views, server.url)
    names = ["a", "größe 2", "a.b-c_d", "x/pin", "a?", "a#", " ", " a", "a ", ""]
    names += ["x" * 64, "x" * 65]
    valid = "(all) => all.map((name) => { const field = document.getElementById('save-as');"
    valid += " field.value = name; return field.checkValidity(); })"
    assert page.evaluate(valid, names) == [NAME.fullmatch(name) is not None for name in names]
    assert page.evaluate(valid, [".", "..", "..."]) == [False, False, True]  # parts of addresses
    page.close()


def test_ranks_shade(views: Views, server: Any) -> None:
    """As they are painted: a colour for each class, in the text and in the bars beside it."""
    painted = "(all) => all.map((node) => getComputedStyle(node).backgroundColor)"
    for scheme in ("light", "dark"):
        page = visit(views, server.url, color_scheme=scheme)
        tokens = answered(page, "One?", "a", "b", "c", "d").locator(".t")
        for nodes in (tokens, page.locator("#ranks i")):
            first, second, third, fourth = nodes.evaluate_all(painted)
            assert second == third and len({first, second, fourth}) == 3, scheme
        page.close()


def test_many_tokens_at_once_are_drawn_once_a_frame(views: Views, server: Any) -> None:
    page = visit(views, server.url)
    page.evaluate(
        "() => { window.draws = 0; new MutationObserver(() => draws++)"
        ".observe(document.getElementById('counted'), { childList: true });"
        " window.measures = 0; const log = document.getElementById('log');"
        " const height = Object.getOwnPropertyDescriptor(Element.prototype, 'scrollHeight').get;"
        " Object.defineProperty(log, 'scrollHeight', { get() { measures++; return height.call(log);"
        " } }); }"
    )
    pieces = [f" w{i}" for i in range(800)]
    text = answered(page, "One?", *pieces)
    assert text.text_content() == "".join(pieces)
    assert page.locator("#ranks i").count() == 800
    assert page.inner_text("#count-shifted") == "797"
    assert page.evaluate("() => draws + measures") < 200  # and not several times a token
    gap = "(l) => l.scrollHeight - l.scrollTop - l.clientHeight"
    page.wait_for_function(f"() => ({gap})(document.getElementById('log')) < 60")
    page.close()


def test_a_long_token_leaves_room_for_its_measures(views: Views, server: Any) -> None:
    page = visit(views, server.url, viewport=PHONE, has_touch=True)
    answered(page, "One?", "x" * 3000, " ok").locator(".t").first.focus()
    box = page.locator("#token table").first.bounding_box()
    assert box["y"] > 0 and box["y"] + box["height"] < PHONE["height"]
    page.close()
