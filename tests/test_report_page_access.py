"""The page for every reader: keys alone, a small screen, paper, both colour schemes, any text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.browser import Views, chromium, empty_shift, spoken, write
from tests.shifts import made_shift

DATA = made_shift(90, 60, published=True)
SCHEMES = ("light", "dark")
FOCUSED = "() => document.activeElement.token"
# The contrast (WCAG 2.2, relative luminance) of an element's text, fill or line with what lies
# behind it: the nearest background that is not transparent.
CONTRAST = """([selector, property]) => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = parse(color).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...document.querySelectorAll(selector)].map((element) => {
    let behind = property === "color" ? element : element.parentElement;
    const clear = (node) => parse(getComputedStyle(node).backgroundColor)[3] === 0;
    while (clear(behind)) behind = behind.parentElement;
    const pair = [getComputedStyle(element)[property], getComputedStyle(behind).backgroundColor];
    const [a, b] = pair.map(light).sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  });
}"""


@pytest.fixture(scope="module")
def views() -> Iterator[Views]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write(DATA, path)
    return path


def at(answer: int, position: int) -> int:
    """The token's number among those of all answers."""
    return sum(len(a.token_ids) for a in DATA.answers[:answer]) + position


def press(page: Any, *keys: str) -> Any:
    for key in keys:
        page.keyboard.press(key)
    return page.evaluate(FOCUSED)


def test_keys_alone_reach_everything(views: Views, page_file: Path) -> None:
    page = views.open(page_file)
    press(page, "Tab", "Enter")  # the link that skips to the answers
    for _ in range(20):
        if press(page, "Tab") is not None:
            break
    assert page.evaluate(FOCUSED) == 0
    assert page.get_attribute("#list [role=option]:focus", "aria-selected") == "true"
    assert press(page, "ArrowRight", "ArrowRight", "ArrowLeft") == 1
    assert "position 1," in page.inner_text("#detail")
    assert press(page, "End") == at(0, 59)
    assert press(page, "ArrowRight") == at(0, 59)  # the last
    assert press(page, "Home") == 0
    below = press(page, "ArrowDown")
    tops = page.evaluate(
        "() => [...document.querySelectorAll('.text')].slice(0, 1).flatMap((text) =>"
        " [...text.children].map((t) => Math.round(t.getClientRects()[0].top)))"
    )
    assert tops[0] < tops[below] == min(top for top in tops if top > tops[0] + 4)
    assert press(page, "ArrowUp") == 0
    assert press(page, "Tab") == at(1, 0)  # the next answer
    press(page, "Tab", "Tab")  # over one without tokens, and into one that was plain text
    assert page.evaluate(FOCUSED) == at(4, 0)
    assert press(page, "c") == at(4, 0)
    assert page.input_value("#context") == "urial"
    assert "context urial" in page.inner_text("#detail")
    press(page, "?")
    assert page.is_visible("#help")
    press(page, "Escape")
    assert not page.is_visible("#help")
    press(page, "Escape")
    assert page.locator("#detail.open").count() == 0
    press(page, "/")
    page.keyboard.type('" the"')
    the = [
        at(a, i) for a, x in enumerate(DATA.answers) for i, p in enumerate(x.pieces) if p == " the"
    ]
    first = next(t for t in the if t >= 0)
    page.keyboard.press("Enter")  # to the first, where no token has been left
    assert page.evaluate(FOCUSED) == first
    assert [press(page, "n"), press(page, "n"), press(page, "p")] == [the[1], the[2], the[1]]
    assert [press(page, "p"), press(page, "p"), press(page, "n")] == [the[0], the[-1], the[0]]
    page.close()


def test_a_pointer_shows_a_token_until_it_leaves(views: Views, page_file: Path) -> None:
    page = views.open(page_file, "#answer=1&position=2")
    tokens = page.locator(".text").first.locator(".t")
    tokens.nth(7).hover()
    page.wait_for_selector("#detail:has-text('position 7,')")
    page.mouse.move(1, 1)
    page.wait_for_selector("#detail:has-text('position 2,')")
    tokens.nth(9).click()
    page.mouse.move(1, 1)
    page.wait_for_selector("#detail:has-text('position 9,')")
    page.click(".close")
    assert page.locator("#detail.open").count() == 0
    page.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_contrast(views: Views, page_file: Path, scheme: Any) -> None:
    page = views.open(page_file, "#class=shifted&answer=1&position=0", color_scheme=scheme)
    page.wait_for_selector("#detail.open h3")
    texts = "body, .t.c0, .t.c1, .t.c2, .note, .meta, small, button, input, select, th, td, summary"
    for selector in texts.split(", "):
        found = page.evaluate(CONTRAST, [selector, "color"])
        assert found and min(found) >= 4.5, selector
    others = {"stroke": "path.own, path.other", "fill": ".axes text", "borderTopColor": "select"}
    others["textDecorationColor"] = ".t.c2"
    for name, selector in others.items():
        assert min(page.evaluate(CONTRAST, [selector, name])) >= 3, selector
    before = page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
    page.click("#theme")
    after = page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
    assert before != after
    assert min(page.evaluate(CONTRAST, [".t", "color"])) >= 4.5
    page.close()


def test_a_class_is_not_told_by_colour_alone(views: Views, page_file: Path) -> None:
    page = views.open(page_file, "#answer=1")
    page.wait_for_selector(".text .t.c1")
    looks = [
        page.eval_on_selector(
            f".text .t.c{k}",
            "(t) => { const s = getComputedStyle(t);"
            " return [s.textDecorationLine, s.textDecorationStyle, s.fontWeight]; }",
        )
        for k in range(3)
    ]
    assert looks == [
        ["none", "solid", "400"],
        ["underline", "dotted", "400"],
        ["underline", "solid", "700"],
    ]
    label = page.get_attribute(".text .t.c2", "aria-label")
    assert label is not None and label.endswith(", shifted")
    page.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 375)])
def test_axe_finds_nothing(views: Views, page_file: Path, scheme: Any, width: int) -> None:
    reason = "needs: pip install axe-playwright-python"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=reason).Axe()
    size = {"width": width, "height": 800}
    page = views.open(
        page_file, "#class=shifted&answer=1&position=0", color_scheme=scheme, viewport=size
    )
    page.wait_for_selector("#detail.open h3")
    page.locator("figure summary").first.click()
    found = axe.run(page).response["violations"]
    assert [(v["id"], [n["html"][:120] for n in v["nodes"][:3]]) for v in found] == []
    page.click("#help-open")
    assert axe.run(page).response["violations"] == []
    page.close()


def test_a_phone_scrolls_in_one_direction(views: Views, page_file: Path) -> None:
    phone = {"width": 375, "height": 700}
    page = views.open(page_file, "#answer=5&position=3", viewport=phone, has_touch=True)
    page.wait_for_selector("#detail.open h3")
    for details in page.locator("details").all():
        details.evaluate("(d) => { d.open = true; }")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 375
    page.wait_for_timeout(100)
    token, panel = page.locator(".now").bounding_box(), page.locator("#detail").bounding_box()
    bar = page.locator(".bar").bounding_box()
    assert bar["y"] + bar["height"] <= token["y"] < token["y"] + token["height"] <= panel["y"]
    page.click(".close")
    page.locator(".text .t").first.tap()
    assert page.is_visible("#detail.open")
    page.close()


def test_paper_gets_the_answers_that_are_found(views: Views, page_file: Path) -> None:
    page = views.open(page_file, "#class=shifted&context=urial")
    found = page.locator("article:not([hidden])").count()
    page.pdf()
    page.emulate_media(media="print")
    assert page.locator(".unprinted").count() == 0  # it is over
    for every, printed in ((False, min(found, 50)), (True, found)):
        page.eval_on_selector("#print-all", "(box, every) => { box.checked = every; }", every)
        page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")
        seen = "(all) => all.filter((a) => a.checkVisibility()).length"
        assert page.eval_on_selector_all("article", seen) == printed
        assert page.inner_text("#printed") == (
            f"Context urial; filters: class shifted. Printed: {printed} of {found} answers found."
        )
        spans = "(all) => all.every((a) => !a.checkVisibility() || a.querySelector('.t.c2'))"
        assert page.eval_on_selector_all("article", spans)
        page.evaluate("() => window.dispatchEvent(new Event('afterprint'))")
    assert found > 50 and not page.is_visible("aside") and not page.is_visible("#theme")
    assert page.eval_on_selector("body", "(b) => getComputedStyle(b).colorScheme") == "light"
    page.close()


def test_right_to_left_text_stays_in_its_place(views: Views, tmp_path: Path) -> None:
    pieces = ["مرحبا", " بالعالم", "!", " שלום", " (123)", "\n", " नमस्ते"] * 30
    write(spoken(pieces, query="ما هو؟ " * 30), tmp_path / "page.html")
    page = views.open(tmp_path / "page.html", "#answer=1&position=4")
    page.wait_for_selector("#detail.open h3")
    text = page.locator(".text")
    assert text.evaluate("(t) => getComputedStyle(t).direction") == "rtl"
    box, aside = text.bounding_box(), page.locator("aside").bounding_box()
    assert box["x"] + box["width"] <= aside["x"]
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 1280
    assert press(page, "ArrowLeft") == 5  # onward is to the left
    assert press(page, "ArrowRight", "ArrowRight") == 3
    page.close()


def test_texts_of_models_stay_texts(views: Views, tmp_path: Path) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    pieces = ["</script>", nasty, "\u2028", "\ud800", "\0", "\u202e", "\u200f", " ", "\n", "", "\t"]
    pieces += [
        " \n\n",
        "{{title}}",
        "`${alert(1)}`",
        "é\u202eabc",
        "\u0301",
        "👩\u200d💻",
        "x" * 900,
    ]
    data = spoken(pieces, query=nasty + "\u202e", dataset=nasty, id=nasty)
    write(data, tmp_path / "page.html", title=nasty, about={nasty: "</dl>" + nasty})
    page = views.open(tmp_path / "page.html", "#answer=1&position=1&query=%3Cimg&token=%00")
    page.wait_for_selector("#detail.open h3")
    assert page.locator("img").count() == 0
    assert page.inner_text("h1") == nasty
    shown = page.eval_on_selector_all(".text .t", "(all) => all.map((t) => t.textContent)")
    assert shown[:9] == [
        "</script>",
        nasty,
        "␣",
        "⟨U+D800⟩",
        "␀",
        "⟨U+202E⟩",
        "⟨U+200F⟩",
        "␣",
        "↵\n",
    ]
    assert shown[9:13] == ["▯", "⇥", "␣↵\n↵\n", "{{title}}"]
    assert shown[14:17] == ["é⟨U+202E⟩abc", "\u0301", "👩\u200d💻"]
    body = page.inner_text("body")
    assert not set(body) & {"\u202e", "\u200f", "\0", "\u2028"}
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 1280
    page.close()


def test_a_measure_that_is_none_or_huge_says_so(views: Views, tmp_path: Path) -> None:
    data = made_shift(1, 3)
    data.kl_aligned_base[:], data.kl_base_aligned[:], data.base_logprob[:] = np.nan, 1e9, -70
    write(data, tmp_path / "page.html")
    page = views.open(tmp_path / "page.html", "#answer=1&position=1")
    page.wait_for_selector("#detail.open h3")
    text = page.inner_text("#detail")
    assert "KL(aligned ‖ base) –, KL(base ‖ aligned) ≥ 65.5 nats" in text
    assert "≈ 0 %" in text and "≤ −65.5" in text
    page.close()


def test_a_page_without_answers_opens(views: Views, tmp_path: Path) -> None:
    write(empty_shift(), tmp_path / "page.html")
    page = views.open(tmp_path / "page.html", "#answer=1&id=3")
    assert page.inner_text("#found") == "0 tokens in 0 answers"
    page.close()


def test_an_old_browser_is_told_so(views: Views, page_file: Path) -> None:
    page = views.browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(page_file.as_uri())
    page.wait_for_function("() => document.querySelector('#problem').textContent.includes('lacks')")
    assert page.is_visible("#problem")
    page.close()
