"""The playground for every reader: keys alone, by ear, a small screen, both schemes, any text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser import Views, chromium
from tests.playground import (
    PHONE,
    answer_with,
    choose,
    chunk,
    finish,
    send,
    visit,
)

FOCUS = "() => document.activeElement.id || document.activeElement.getAttribute('role')"
POSITION = "() => document.activeElement.tokens?.[0].position"
NASTY = "<img src=x onerror=alert(1)>"
# Words, how they are ranked, and sentences to be said.
SPOKEN = [("Boil", 1), (" it", 2), (".", 1), (" Wait", 9), (" ten", 1), ("\n", 4), ("Done", 1)]


@pytest.fixture(scope="module")
def views() -> Iterator[Views]:
    with chromium() as found:
        yield found


def spoken(page: Any) -> Any:
    """An answer of SPOKEN, a chunk a token."""
    chunks = [chunk(text, [(text, rank)]) for text, rank in SPOKEN]
    answer_with(page, *chunks, chunk("", [("</s>", 1)], finish_reason="stop"))
    send(page)
    return finish(page)


def press(page: Any, *keys: str) -> Any:
    for key in keys:
        page.keyboard.press(key)
    return page.evaluate(POSITION)


def tab_to(page: Any, wanted: str, key: str = "Tab") -> None:
    for _ in range(40):
        page.keyboard.press(key)
        if page.evaluate(FOCUS) == wanted:
            return
    raise AssertionError(f"{wanted} is not reached by {key}")


def test_keys_alone_reach_everything(views: Views, server: Any) -> None:
    page = visit(views, server.url)
    assert page.evaluate(FOCUS) == "message"
    chunks = [chunk(text, [(text, rank)]) for text, rank in SPOKEN]
    answer_with(page, *chunks, chunk("", [("</s>", 1)], finish_reason="stop"))
    page.keyboard.type("Two")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("lines")
    page.keyboard.press("Enter")
    finish(page)
    assert page.inner_text("article h3") == "Two\nlines"
    assert page.evaluate(FOCUS) == "message"
    tab_to(page, "option", "Shift+Tab")
    assert page.evaluate(POSITION) == 0
    assert press(page, "ArrowRight", "ArrowRight", "ArrowLeft") == 1
    assert "position 1," in page.inner_text("#token")
    assert page.get_attribute("[role=option]:focus", "aria-selected") == "true"
    assert page.get_attribute("[role=option]:focus", "aria-label") == "␣it, marginal"
    assert [press(page, key) for key in ("n", "n", "n", "p")] == [3, 5, 5, 3]
    assert [press(page, key) for key in ("End", "Home", "ArrowDown", "ArrowUp")] == [7, 0, 6, 0]
    press(page, "Escape")
    assert page.evaluate(FOCUS) == "message" and page.locator("#detail.open").count() == 0
    tab_to(page, "prefix-open", "Shift+Tab")
    press(page, "Enter")
    assert page.evaluate(FOCUS) == "prefix-name"
    press(page, "Escape")
    assert page.evaluate(FOCUS) == "prefix-open" and not page.is_visible("#prefix")
    tab_to(page, "help-open")
    press(page, "Enter")
    assert page.is_visible("#help")
    press(page, "Escape")
    assert not page.is_visible("#help")
    tab_to(page, "theme", "Shift+Tab")
    before = page.evaluate("() => getComputedStyle(document.body.parentElement).backgroundColor")
    press(page, "Enter")
    after = page.evaluate("() => getComputedStyle(document.body.parentElement).backgroundColor")
    assert before != after
    page.close()


def test_each_sentence_is_said_once(views: Views, server: Any) -> None:
    page = visit(views, server.url)
    page.evaluate(
        "() => { window.said = []; new MutationObserver((all) => all.forEach((m) =>"
        " m.addedNodes.forEach((n) => said.push(n.textContent))))"
        ".observe(document.getElementById('said'), { childList: true }); }"
    )
    text = spoken(page)
    assert text.get_attribute("aria-live") is None
    said = page.evaluate("said")
    assert said[:-1] == ["Boil it. ", "Wait ten\n", "Done\n"]
    assert said[-1] == "Answered: 8 tokens, 2 shifted, 1 marginal"
    page.close()


def test_a_pointer_shows_a_token_until_it_leaves(views: Views, server: Any) -> None:
    page = visit(views, server.url)
    tokens = spoken(page).locator(".t")
    tokens.nth(3).click()
    tokens.nth(1).hover()
    assert "position 1," in page.inner_text("#token")
    page.mouse.move(1, 1)
    page.wait_for_selector("#token:has-text('position 3,')")
    page.click("#token .close")
    assert page.locator("#detail.open").count() == 0
    page.close()


@pytest.mark.parametrize(("scheme", "size"), [("light", None), ("dark", PHONE)])
def test_axe_finds_nothing(views: Views, server: Any, scheme: Any, size: Any) -> None:
    reason = "needs: pip install axe-playwright-python"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=reason).Axe()
    context = {"color_scheme": scheme, "reduced_motion": "reduce"}
    page = visit(views, server.url, **context, **({"viewport": size} if size else {}))

    def check(what: str) -> None:
        found = axe.run(page).response["violations"]
        assert [(v["id"], [n["html"][:120] for n in v["nodes"][:3]]) for v in found] == [], what

    check("before a chat")
    spoken(page).locator(".t").nth(3).click()
    check("a token")
    page.click("#token .close")
    if size:
        page.click("#settings-open")
        check("settings")
        page.click("#settings-open")
    page.click("#prefix-open")
    page.wait_for_selector("#prefix-count:has-text(' of ')")
    check("the prefix")
    page.click("#prefix-close")
    page.click("#help-open")
    check("help")
    page.close()


def test_a_phone_scrolls_in_one_direction(views: Views, server: Any) -> None:
    page = visit(views, server.url, viewport=PHONE, has_touch=True)
    page.click("#settings-open")
    choose(page, max_tokens=40)
    page.click("#settings-open")
    send(page)
    text = finish(page)
    wide = "() => document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= 375
    text.locator(".t").first.tap()
    assert page.is_visible("#token table") and page.evaluate(wide) <= 375
    page.tap("#token .close")
    assert not page.is_visible("#detail")
    for button, panel in (("#prefix-open", "#prefix"), ("#settings-open", "#settings")):
        page.tap(button)
        assert page.is_visible(panel) and page.evaluate(wide) <= 375
        page.tap(button)
        assert not page.is_visible(panel)
    page.close()


def test_texts_of_models_stay_texts(views: Views, server: Any) -> None:
    page = visit(views, server.url)
    pieces = ["<script>alert(1)</script>", NASTY, "\u202eabc", "\0", "مرحبا ", "שלום", "x" * 3000]
    pieces += ["👩\u200d💻", "\u2028", "&amp;", "\t\n", "é"]
    chunks = [chunk(piece, [(piece, 1 + 2 * i)]) for i, piece in enumerate(pieces)]
    answer_with(page, *chunks, chunk("", [(NASTY, 1)], finish_reason="stop"))
    send(page, NASTY)
    text = finish(page)
    assert text.text_content() == "".join(pieces)
    assert page.inner_text("article h3") == NASTY
    for i in (0, 1, 2, 6, len(pieces)):  # the last one ended the answer
        text.locator(".t").nth(i).focus()
        assert page.locator("#token h3 bdi").count() == 1
    assert page.locator("main img, main script, aside img, aside script").count() == 0
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 1280
    page.unroute_all()
    answer_with(page, {"error": {"message": NASTY}})
    page.click("#again")
    page.wait_for_selector("#problem", state="visible")
    assert page.inner_text("#problem-text") == NASTY and page.locator("img").count() == 0
    page.close()


# Tokens as the text came, held back, cut or split at random; what leaves is all of both, in order.
ALIGN = """async (cases) => {
  const { Alignment } = await import("/playground/alignment.js");
  return cases.map((chunks) => {
    let shown = "", tokens = [], runs = [];
    const alignment = new Alignment((text, own) => {
      shown += text; tokens.push(...own.map((t) => t.id)); runs.push([text, own.map((t) => t.id)]);
    });
    for (const [text, own] of chunks)
      alignment.add(text, own.map(([id, name]) => ({ id, text: name })));
    alignment.end();
    return [shown, tokens, runs];
  });
}"""


def test_text_and_tokens_find_each_other(views: Views, server: Any) -> None:
    page = visit(views, server.url)
    cases: dict[str, tuple[Any, list[Any]]] = {
        "as they come": ([["a", [[0, "a"]]], [" b", [[1, " b"]]]], [["a", [0]], [" b", [1]]]),
        "one character of three": (
            [["", [[0, "\ufffd"]]], ["", [[1, "\ufffd"]]], ["😀", [[2, "\ufffd"]]]],
            [["😀", [0, 1, 2]]],
        ),
        "and of two among others": (
            [["x😀 y", [[0, "x"], [1, "\ufffd"], [2, "\ufffd"], [3, " y"]]]],
            [["x", [0]], ["😀", [1, 2]], [" y", [3]]],
        ),
        "held back": ([["", [[0, "#"]]], ["#1", [[1, "1"]]]], [["#", [0]], ["1", [1]]]),
        "cut": ([["a", [[0, "a# Q"]]], ["", [[1, "uery"]]]], [["a", [0]], ["", [1]]]),
        "cut and continued": (
            [["a", [[0, "ab"]]], ["bc", [[1, "c"]]]],
            [["a", [0]], ["b", []], ["c", [1]]],
        ),
        "without its space": ([["Hi,", [[0, " Hi"], [1, ","]]]], [["Hi", [0]], [",", [1]]]),
        "an empty line cut": ([["", [[0, "\n"]]], ["Hi", [[1, "Hi"]]]], [["", [0]], ["Hi", [1]]]),
        "special": ([["a", [[0, "a"]]], ["", [[1, "</s>"]]]], [["a", [0]], ["", [1]]]),
        "no tokens": ([["a", []], ["b", []]], [["a", []], ["b", []]]),
    }  # fmt: skip
    found = page.evaluate(ALIGN, [chunks for chunks, _ in cases.values()])
    for (name, (chunks, runs)), (shown, tokens, given) in zip(cases.items(), found, strict=True):
        assert given == runs, name
        assert shown == "".join(text for text, _ in chunks), name
        assert tokens == [token[0] for _, own in chunks for token in own], name
    page.close()
