"""Pages in Chromium, driven by Playwright, and what the pages' own data say, for tests of pages.

Where the browser or the driver is missing a test is skipped, and says what to install.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.shifts import made_shift
from urial_engine.report.page import write_page
from urial_engine.report.summary import summarize
from urial_engine.shift_data import ARRAYS, Answer, ShiftData

NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Views:
    """A browser, and what went wrong in any of the pages that it has opened."""

    browser: Any
    wrong: list[str] = field(default_factory=list)

    def open(self, path: Path, hash: str = "", **context: Any) -> Any:
        """The page, usable. `context`: of Playwright's `new_page`."""
        page = self.browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **context})
        page.set_default_timeout(10_000)
        file = path.resolve().as_uri()
        page.on("console", lambda m: self.wrong.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("dialog", lambda d: (self.wrong.append(f"dialog: {d.message}"), d.dismiss()))
        page.on("request", lambda r: r.url.split("#")[0] == file or self.wrong.append(r.url))
        page.goto(file + hash)
        page.wait_for_selector("#problem", state="hidden")
        return page


@contextmanager
def chromium() -> Iterator[Views]:
    """At the end nothing may have been said on a console, nor asked for beside the files."""
    api = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with api.sync_playwright() as driver:
        views = Views(driver.chromium.launch(executable_path=path, args=["--no-sandbox"]))
        yield views
        views.browser.close()
    assert not views.wrong, views.wrong


def write(data: ShiftData, path: Path, **options: Any) -> dict[str, Any]:
    """The page of a shift; returns its summary."""
    summary = summarize(data, resamples=20)
    told = {"title": "A test", "about": {"Base": "a", "Aligned": "b"}, **options}
    write_page(data, summary, path, **told)
    return summary


def spoken(pieces: list[str], **about: Any) -> ShiftData:
    """One answer that consists of these pieces, with made-up measures."""
    data = made_shift(1, len(pieces))
    ids = [1000 + i for i in range(len(pieces))]
    answer = replace(data.answers[0], token_ids=ids, pieces=pieces, text="".join(pieces), **about)
    vocabulary = data.vocabulary | dict(zip(ids, pieces, strict=True))
    token_id = np.array(ids * len(data.contexts), np.int32)
    return replace(data, answers=[answer], vocabulary=vocabulary, token_id=token_id)


@cache
def large_shift() -> ShiftData:
    """About 300,000 tokens in 1,340 answers (a quarter has none), under two contexts: noise of the
    size of a real run, with a vocabulary of 32,000 in the lists of the likeliest."""
    one, copies = made_shift(134, 600, top_k=5), 10
    many = {name: np.concatenate([getattr(one, name)] * copies) for name in ARRAYS}
    for i in range(copies):
        many["answer"][i * len(one.answer) :][: len(one.answer)] += i * len(one.answers)
    random = np.random.default_rng(0)
    for name, array in many.items():
        if array.dtype == np.float32:
            array *= random.random(array.shape, np.float32)
        elif name.endswith("top_ids"):
            array[:] = random.random(array.shape) ** 3 * 32_000
    answers = [replace(a, id=f"{i}-{a.id}") for i in range(copies) for a in one.answers]
    vocabulary = {i: one.vocabulary.get(i, f" token{i}") for i in range(32_000)}
    return replace(one, answers=answers, vocabulary=vocabulary, **many)


def blocks(page: str) -> dict[str, bytes]:
    """The page's data blocks by id, decompressed."""
    found = re.findall(r'<script type="text/plain" id="([\w-]+)">([^<]*)</script>', page)
    return {name: zlib.decompress(b64decode(text)) for name, text in found}


def header(page: str) -> dict[str, Any]:
    core = blocks(page)["core"]
    told: dict[str, Any] = json.loads(core[4 : 4 + int.from_bytes(core[:4], "little")])
    return told


def rows_of(data: ShiftData, answer: int, context: int) -> slice:
    """Where an answer's rows under a context lie, counted anew."""
    (rows,) = np.nonzero((data.answer == answer) & (data.context == context))
    return slice(int(rows[0]), int(rows[-1]) + 1)


def empty_shift() -> ShiftData:
    data = made_shift(1, 3)
    none = {name: getattr(data, name)[:0] for name in ARRAYS}
    answers: list[Answer] = []
    return replace(data, answers=answers, **none)
