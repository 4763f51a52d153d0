"""The file of a page, read without a browser: what it holds, and what it lets in."""

from __future__ import annotations

import hashlib
import re
import time
import tracemalloc
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.browser import blocks, empty_shift, header, large_shift, spoken, write
from tests.shifts import made_shift
from urial_engine.errors import ParameterError
from urial_engine.report.page import write_page
from urial_engine.report.page_data import PART_ROWS
from urial_engine.report.summary import summarize
from urial_engine.shift_data import ShiftData

KINDS = {1: "<u1", 2: "<u2", 4: "<u4"}


def runs(raw: bytes, start: int, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    found = []
    for width, count in sizes:
        found.append(np.frombuffer(raw, KINDS[width], count, start))
        start += -(-width * count // 4) * 4
    assert start == len(raw)
    return found


def column(page: str, name: str) -> np.ndarray:
    """[N] or [N, k] of a measure, as the page will read it; infinite where it says "or more"."""
    told, raw = header(page), blocks(page)
    starts = np.cumsum([0, *(a[-1] for a in told["answers"])]) * len(told["contexts"])
    edges = [*(starts[a] for a in told["parts"]), starts[-1]]
    at = [c[0] for c in told["columns"]].index(name)
    found = []
    for i, rows in enumerate(np.diff(edges).tolist()):
        sizes = [(width, rows * k) for _, width, k, _ in told["columns"]]
        found.append(runs(raw[f"part-{i}"], 0, sizes)[at])
    _, _, k, step = told["columns"][at]
    values = np.concatenate(found)
    if step is not None:
        special = {65534: np.inf, 65535: np.nan}
        values = np.array([special.get(v, v * step) for v in values.tolist()])
    return values.reshape(-1, k) if k > 1 else values


def page_of(data: ShiftData, tmp_path: Path, **options: Any) -> str:
    write(data, tmp_path / "page.html", **options)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_measures_are_there_to_half_a_step(tmp_path: Path) -> None:
    data = made_shift(9, 40, published=True, top_k=6)
    page = page_of(data, tmp_path, top_k=5)
    exact = {
        **{f"{m}_surprisal": -getattr(data, f"{m}_logprob") for m in ("base", "aligned")},
        **{f"{m}_entropy": getattr(data, f"{m}_entropy") for m in ("base", "aligned")},
        **{f"{m}_top_surprisal": -getattr(data, f"{m}_top_logprobs")[:, :5] for m in ("base",)},
        **{f"kl_{pair}": getattr(data, f"kl_{pair}") for pair in ("aligned_base", "base_aligned")},
        "published_kl": data.published and data.published.kl,
        "published_probability": data.published and data.published.probability,
    }
    for name, values in exact.items():
        assert np.abs(column(page, name) - values).max() < 0.000_51, name
    known = np.array(header(page)["ids"])
    for model in ("base", "aligned"):
        ids = getattr(data, f"{model}_top_ids")[:, :5]
        np.testing.assert_array_equal(known[column(page, f"{model}_top")], ids)
        np.testing.assert_array_equal(column(page, f"{model}_rank"), getattr(data, f"{model}_rank"))
        np.testing.assert_array_equal(column(page, f"{model}_ties"), getattr(data, f"{model}_ties"))


def test_measures_beyond_what_two_bytes_hold_say_so(tmp_path: Path) -> None:
    data = made_shift(1, 6, contexts=("one",), published=True)
    assert data.published
    rank = np.array([1, 255, 256, 65_535, 65_536, 200_000], np.int32)
    kl = np.array([0, -1e-6, 65.533, 65.6, 1e9, np.nan], np.float32)
    gone = data.published._replace(
        rank=np.array([-1, 0, 1, 9, 10, -1], np.int32), kl=kl, probability=np.clip(kl, 0, 1)
    )
    data = replace(data, base_rank=rank, base_ties=rank * 0, kl_aligned_base=kl, published=gone)
    page = page_of(data, tmp_path)
    np.testing.assert_array_equal(column(page, "base_rank"), rank)
    told = column(page, "kl_aligned_base")
    np.testing.assert_allclose(told, [0, 0, 65.533, np.inf, np.inf, np.nan], atol=1e-9)
    assert column(page, "published_rank").tolist() == [0, 1, 2, 10, 11, 0]


def test_the_core_holds_the_texts_and_classes(tmp_path: Path) -> None:
    data = made_shift(9, 30)
    page = page_of(data, tmp_path)
    told, raw = header(page), blocks(page)["core"]
    start = 4 + int.from_bytes(raw[:4], "little")
    sizes = [(width, count) for _, width, count in told["arrays"]]
    token, piece, classes, _, _ = runs(raw, start + -start % 4, sizes)
    answers = data.answers
    assert [told["ids"][i] for i in token] == [i for a in answers for i in a.token_ids]
    assert [told["pieces"][i] for i in piece] == [p for a in answers for p in a.pieces]
    rank = np.concatenate([data.only(c).base_rank for c in range(2)])
    np.testing.assert_array_equal(classes, (rank > 1).astype(int) + (rank > 3))
    assert [a[:4] for a in told["answers"]] == [
        [a.id, a.sample, a.query, a.dataset] for a in answers
    ]
    assert "by_answer" not in told["summary"]["contexts"][0]


def test_the_policy_allows_only_what_is_in_the_page(tmp_path: Path) -> None:
    page = page_of(made_shift(), tmp_path)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for rule, tag in (("script-src", "script"), ("style-src", "style")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules.pop(rule) == f"'sha256-{digest}'"
        assert "eval(" not in text and "innerHTML" not in text and "<!--" not in text
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    outside = re.sub(r"http://www.w3.org/2000/svg", "", page)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", outside)


def test_nothing_that_is_written_becomes_markup(tmp_path: Path) -> None:
    nasty = "</title><script>alert(1)</script>{{core}}\"'&\ud800"
    data = spoken(["</script>", "<!--", "{{title}}"], query=nasty, dataset=nasty, id=nasty)
    page = page_of(data, tmp_path, title=nasty, about={nasty: nasty})
    assert page.count("<script>") == page.count("<title>") == 1  # our own
    assert page.count("alert(1)") == 4 == page.count("&lt;script&gt;alert(1)")
    assert page.count("{{core}}") == 4 and page.count("{{") == 4  # as texts, not filled in
    assert header(page)["answers"][0][2] == nasty


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    pages = [page_of(made_shift(6, 20), tmp_path) for _ in range(2)]
    assert pages[0] == pages[1] != page_of(made_shift(6, 20, seed=1), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_an_empty_run_is_a_page_too(tmp_path: Path) -> None:
    page = page_of(empty_shift(), tmp_path)
    assert header(page)["answers"] == header(page)["parts"] == []


def test_parts_end_where_answers_do(tmp_path: Path) -> None:
    data = made_shift(200, 200)
    told = header(page_of(data, tmp_path))
    rows = np.diff([0, *np.cumsum([2 * a[-1] for a in told["answers"]])])
    sizes = np.add.reduceat(rows, told["parts"])
    assert len(sizes) > 1 and sizes.sum() == len(data.answer)
    assert sizes.max() < PART_ROWS + 2 * 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: replace(d, answer=d.answer[::-1]), "the rows' answer is not that of 4 answers"),
        (lambda d: replace(d, context=1 - d.context), "the rows' context"),
        (lambda d: replace(d, token_id=d.token_id + 1), "the rows' token_id"),
        (lambda d: replace(d, base_top_ids=d.base_top_ids + 900), "token id 9.. has no text"),
        (lambda d: replace(d, base_top_ids=d.base_top_ids - 400), "token id -4?.?.? has no text"),
    ],
)
def test_rows_that_a_page_cannot_show_are_refused(
    change: Any, message: str, tmp_path: Path
) -> None:
    data = made_shift()
    summary = summarize(data, resamples=2)
    with pytest.raises(ParameterError, match=message):
        write_page(change(data), summary, tmp_path / "page.html", title="", about={})
    assert not list(tmp_path.iterdir())


def test_top_k_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="top_k = 0 must be at least 1"):
        write_page(made_shift(), {}, tmp_path / "page.html", title="", about={}, top_k=0)


def test_a_large_run_in_seconds_and_little_memory(tmp_path: Path) -> None:
    data, path = large_shift(), tmp_path / "page.html"
    summary = summarize(made_shift(), resamples=2)  # one of the same size on the page
    start = time.perf_counter()
    write_page(data, summary, path, title="", about={})
    seconds = time.perf_counter() - start
    size = path.stat().st_size
    tenth = made_shift(134, 600)  # watching every allocation of the large one takes long
    tracemalloc.start()
    write_page(tenth, summary, path, title="", about={})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{seconds:.1f} s, {size / 1e6:.1f} MB, {peak / 1e5:.0f} MB of memory")
    assert seconds < 15
    assert 10 * peak < 500e6
    assert size < 40e6
