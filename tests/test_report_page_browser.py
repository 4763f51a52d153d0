"""The page in a browser: what it shows is what the data say, and it is quick at full size."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pytest

from tests.browser import Views, chromium, large_shift, rows_of, write
from tests.shifts import made_shift
from urial_engine.report.diversity import diversity
from urial_engine.report.page import write_page
from urial_engine.report.summary import summarize
from urial_engine.shift_data import CLASSES

DATA = made_shift(24, 40, published=True, top_k=6)
ACT = """([id, name, value]) => new Promise((done) => {
  const start = performance.now();
  const at = document.getElementById(id);
  const control = name === null ? at : at.elements[name];
  if (name === null) control.selectedIndex = value; else control.value = value;
  control.dispatchEvent(new Event(name === null ? "change" : "input", { bubbles: true }));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
})"""  # until the next frame has been drawn


@pytest.fixture(scope="module")
def views() -> Iterator[Views]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write(DATA, path)
    return path


@pytest.fixture(scope="module")
def one_page(views: Views, page_file: Path) -> Any:
    return views.open(page_file)


def told(page: Any) -> tuple[int, int]:
    """(tokens, answers) as the page counts what the filters find."""
    text = page.inner_text("#found").replace(",", "")
    tokens, answers = re.search(r"(\d+) token", text), re.search(r"(\d+)(?: of \d+)? answer", text)
    assert tokens and answers, text
    return int(tokens[1]), int(answers[1])


def test_full_size_opens_in_two_seconds_and_acts_in_a_fifth(views: Views, tmp_path: Path) -> None:
    data, path = large_shift(), tmp_path / "page.html"
    summary = summarize(made_shift(100, 600), resamples=2)  # as much to show as the large one's
    write_page(data, summary, path, title="Large", about={})
    opened, actions = [], dict[str, list[float]]()
    for _ in range(3):
        page = views.open(path)
        page.wait_for_load_state("load")
        marks = "() => [performance.getEntriesByName('usable')[0].startTime, performance.now()]"
        opened.append(page.evaluate(marks))
        for what in (
            *(["filters", name, v] for name, v in {"token": "s", "class": "shifted"}.items()),
            *(["filters", name, v] for name, v in {"token": "", "class": "", "to": "9"}.items()),
            *(["filters", name, v] for name, v in {"query": "9", "dataset": "lima"}.items()),
            *(["context", None, i] for i in (1, 0)),
        ):
            took = page.evaluate(ACT, what)
            actions.setdefault(f"{what[0]} {what[1]} {what[2]}", []).append(took)
        count = told(page)
        page.close()
    usable, whole = (min(times) for times in zip(*opened, strict=True))
    slowest = max(actions, key=lambda name: min(actions[name]))
    print(
        f"usable after {usable:.0f} ms, all of it read after {whole:.0f} ms; "
        f"slowest action: {slowest}, {min(actions[slowest]):.0f} ms"
    )
    assert usable < 2000
    assert min(actions[slowest]) < 200
    where = max(a for a, answer in enumerate(data.answers) if len(answer.token_ids) > 9)
    page = views.open(path, f"#context=urial&answer={where + 1}&position=9")  # of the last part
    row = rows_of(data, where, 1).start + 9
    rank = f"{data.base_rank[row]:,}"
    assert page.inner_text("#detail tbody tr:first-child td >> nth=0").split(", tied")[0] == rank
    assert f"KL(aligned ‖ base) {data.kl_aligned_base[row]:.3f}" in page.inner_text("#detail")
    page.close()
    ours = [a for a in data.answers if a.dataset == "lima" and "9" in a.query and a.token_ids]
    assert count == (sum(min(len(a.token_ids), 10) for a in ours), len(ours))


@pytest.mark.parametrize("context", [0, 1])
@pytest.mark.parametrize(("answer", "position"), [(0, 0), (0, 39), (10, 1), (22, 0)])
def test_a_token_s_panel_says_what_the_data_say(
    views: Views, page_file: Path, context: int, answer: int, position: int
) -> None:
    name = DATA.contexts[context].name
    page = views.open(page_file, f"#context={name}&answer={answer + 1}&position={position}")
    page.wait_for_selector("#detail.open h3")
    row = rows_of(DATA, answer, context).start + position
    tables = page.evaluate(
        "() => [...document.querySelectorAll('#detail tbody')].map((body) => [...body.rows].map("
        "(row) => [...row.cells].map((cell) => cell.innerText)))"
    )
    measures = {head: cells for head, *cells in tables[0]}
    models = ("base", "aligned")
    ranks = [int(cell.split(",")[0]) for cell in measures["Rank"]]
    assert ranks == [getattr(DATA, f"{m}_rank")[row] for m in models]
    assert ("tied" in measures["Rank"][0]) == bool(DATA.base_ties[row])
    for head, field in {"Log-probability": "logprob", "Entropy": "entropy"}.items():
        for cell, model in zip(measures[head], models, strict=True):
            shown = float(cell.replace("−", "-"))
            assert shown == pytest.approx(getattr(DATA, f"{model}_{field}")[row], abs=0.00101)
    for cell, model in zip(measures["Probability"], models, strict=True):
        assert percent(cell) == pytest.approx(np.exp(getattr(DATA, f"{model}_logprob")[row]), 0.006)
    for body, model in zip(tables[1:], models, strict=True):
        ids = getattr(DATA, f"{model}_top_ids")[row, :5].tolist()
        likely = np.exp(getattr(DATA, f"{model}_top_logprobs")[row, :5])
        chosen = int(DATA.token_id[row])
        assert [spelled(c[1]) for c in body[:5]] == [DATA.vocabulary[i] for i in ids]
        np.testing.assert_allclose([percent(c[2]) for c in body[:5]], likely, 0.006)
        assert len(body) == (5 if chosen in ids else 6)
        assert ["answer’s" in c[1] for c in body] == [i == chosen for i in [*ids, chosen]][
            : len(body)
        ]
    text = page.inner_text("#detail")
    assert f"position {position}, id {DATA.token_id[row]}, context {name}" in text
    kl = [float(x) for x in re.findall(r"KL\(\w+ ‖ \w+\) ([\d.]+)", text)]
    assert kl == pytest.approx([DATA.kl_aligned_base[row], DATA.kl_base_aligned[row]], abs=0.001)
    assert DATA.published and f"rank {DATA.published.rank[row]}, KL" in text
    assert CLASSES[DATA.shift_class[row]] in page.inner_text("#detail h3")
    page.close()


def percent(cell: str) -> float:
    if cell.startswith(">"):
        return 1.0
    digits = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    return float(cell.translate(digits).replace(" × 10", "e").removesuffix(" %")) / 100


def spelled(cell: str) -> str:
    return cell.removesuffix(" (the answer’s)").replace("␣", " ").replace("↵", "\n")


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"class": "shifted"},
        {"class": "unshifted", "token": "WORD1"},
        {"token": '"s"'},
        {"token": '"\\n"', "from": "2"},
        {"token": "no such token"},
        {"from": "3", "to": "5"},
        {"to": "0", "class": "marginal"},
        {"dataset": "lima"},
        {"dataset": "(none)", "query": "NUMBER 2"},
        {"query": "number 1", "class": "shifted", "from": "1", "token": "o", "dataset": "lima"},
    ],
)
@pytest.mark.parametrize("context", [0, 1])
def test_filters_find_what_a_count_finds(
    one_page: Any, context: int, filters: dict[str, str]
) -> None:
    page = one_page
    page.click("[type=reset]")
    page.select_option("#context", index=context)
    for name, value in filters.items():
        page.evaluate(ACT, ["filters", name, value])
    asked = filters.get("token", "")
    exact = {'"s"': "s", '"\\n"': "\n"}.get(asked)
    mine = []
    for a, answer in enumerate(DATA.answers):
        if filters.get("dataset", answer.dataset or "(none)") != (answer.dataset or "(none)"):
            continue
        if filters.get("query", "").lower() not in answer.query.lower():
            continue
        for i, piece in enumerate(answer.pieces):
            kind = CLASSES[DATA.shift_class[rows_of(DATA, a, context)][i]]
            wanted = piece == exact if exact else asked.lower() in piece.lower()
            inside = int(filters.get("from", 0)) <= i <= int(filters.get("to", 1000))
            if wanted and inside and filters.get("class", kind) == kind:
                mine.append((a, i))
    tokens, answers = told(page)
    assert tokens == len(mine)
    shown = page.eval_on_selector_all("article:not([hidden])", "(all) => all.length")
    assert shown == answers
    if filters.keys() - {"dataset", "query"}:
        assert answers == len({a for a, _ in mine})
        page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")  # fills them all
        assert page.locator(".text .hit").count() == len(mine)
        page.evaluate("() => window.dispatchEvent(new Event('afterprint'))")


def test_the_address_keeps_the_view(views: Views, page_file: Path) -> None:
    page = views.open(page_file)
    page.select_option("#context", label="urial")
    page.select_option("[name=class]", "unshifted")
    page.fill("[name=token]", '" the" é&=#')
    page.fill("[name=token]", "o")
    page.fill("[name=to]", "20")
    page.click("#next")
    page.click("#next")
    page.wait_for_function("() => location.hash.includes('position')")
    page.wait_for_timeout(400)
    address, panel = page.url, page.inner_text("#detail")
    again = views.open(page_file, address[address.index("#") :])
    again.wait_for_selector("#detail.open h3")
    assert parse_qs(address.split("#")[1])["class"] == ["unshifted"]
    assert again.inner_text("#detail") == panel
    assert told(again) == told(page)
    assert again.evaluate("() => document.querySelector('#context').value") == "urial"
    assert again.input_value("[name=to]") == "20"
    again.evaluate("() => { location.hash = 'context=no+such&class=no&answer=999&from=x'; }")
    again.wait_for_function("() => document.querySelector('#context').value === 'zero-shot'")
    assert told(again)[0] == len(DATA.answer) // 2  # what nothing on the page says is no filter
    page.close()
    again.close()


@pytest.mark.parametrize(("column", "kind"), [(0, "token"), (1, "word")])
def test_the_most_shifted_lead_to_their_occurrences(
    views: Views, page_file: Path, column: int, kind: str
) -> None:
    own = summarize(DATA, resamples=2)["contexts"][0]
    entries = own["most_shifted" if kind == "token" else "most_shifted_words"]
    page = views.open(page_file)
    page.fill("[name=query]", "nothing")  # is forgotten
    buttons = page.locator("#most-lists > div").nth(column).locator("button")
    texts = [spelled(text) for text in buttons.all_inner_texts()]
    names = sorted(entry[kind] for entry in entries)
    assert sorted(texts) == names
    most = max(entries, key=lambda entry: entry["occurrences"])
    buttons.nth(texts.index(most[kind])).click()
    assert told(page)[0] == most["occurrences"]
    first = page.evaluate("() => document.activeElement.token")
    page.click("#next")
    second = page.evaluate("() => document.activeElement.token")
    page.click("#previous")
    assert page.evaluate("() => document.activeElement.token") == first < second
    page.click("#previous")  # around the end
    assert page.evaluate("() => document.activeElement.token") > second
    page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")  # fills them all
    marked = page.locator(".text .hit").all_inner_texts()
    assert len(marked) == most["occurrences"]
    assert {text.strip().lower() for text in marked} == {most[kind].strip().lower()}
    page.click("#chosen")
    assert told(page) == (sum(len(a.token_ids) for a in DATA.answers), 24)
    page.close()


def test_another_context_has_its_own_classes_and_numbers(views: Views, page_file: Path) -> None:
    page = views.open(page_file)
    page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")  # fills them all
    for context in (0, 1, 0):
        page.select_option("#context", index=context)
        classes = page.evaluate(
            "() => [...document.querySelectorAll('.text .t')].map((t) => t.classList[1])"
        )
        expected = DATA.only(context).shift_class
        assert classes == [f"c{k}" for k in expected]
        shifted = (expected == 2).mean()
        bold = page.locator("#summary tr:has(strong)").first.inner_text()
        assert f"{100 * shifted:.1f} %" in bold and DATA.contexts[context].name in bold
    page.close()


def test_everything_of_the_summary_is_shown(views: Views, tmp_path: Path) -> None:
    samples = [replace(a, id=i // 2, sample=i % 2) for i, a in enumerate(DATA.answers)]
    summary = summarize(DATA, resamples=20)
    summary["diversity"] = diversity(samples, resamples=20)
    pair = {"base": "Llama-2-7b-hf", "aligned": "Llama-2-7b-chat-hf", "source": "arXiv"}
    shares = {"unshifted": 0.777, "marginal": 0.145, "shifted": 0.078}
    summary["published_ratios"] = [pair | shares]
    write_page(DATA, summary, tmp_path / "page.html", title="All", about={"Base": "tiny"})
    page = views.open(tmp_path / "page.html")
    text = page.inner_text("body")
    for expected in ("tiny", "77.7 %", "stylistic", "truthful_qa", "self bleu", "In the published"):
        assert expected in text
    own = summary["contexts"][0]
    shares = np.array([float(x) for x in re.findall(r"(\d+\.\d) %", text)])
    for group in own["groups"]:
        assert np.abs(shares - 100 * group["share_of_shifted"]["value"]).min() < 0.0501
    for table, bins in zip(
        page.locator("figure tbody").all(), [own["by_position"]] * 3, strict=True
    ):
        assert table.locator("tr").count() == len(bins)
    kl = page.locator("figure tbody").nth(1).locator("tr").nth(4).inner_text
    page.locator("figure summary").nth(1).click()
    assert f"{own['by_position'][4]['kl_aligned_base']['value']:.2f}" in kl()
    page.close()
