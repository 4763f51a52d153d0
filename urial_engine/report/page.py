"""A `ShiftData` and its summary go in; one HTML file that opens offline comes out.

The file holds all it needs and asks for nothing: its policy allows the one script and the one style
that are in it, by their hashes, and no request. Texts of models reach the page as compressed data,
never as markup.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..errors import ParameterError
from ..jsonl import replacing
from ..shift_data import ShiftData
from .page_data import columns, core, parts

SOURCES = Path(__file__).parents[1] / "data" / "page"
STYLES = ("../look.css", "page.css")
SCRIPTS = ("tools.js", "summary.js", "page.js")


def write_page(
    data: ShiftData,
    summary: Mapping[str, Any],
    path: Path,
    *,
    title: str,
    about: Mapping[str, str],
    top_k: int = 5,
) -> None:
    """`summary` is that of `summarize(data)`. `about` stands in the header: models, prompts,
    fingerprints, by name. Of the likeliest tokens of each position `top_k` of each model are kept.

    The same input gives the same bytes. The file appears when it is whole.
    """
    if top_k < 1:
        raise ParameterError(f"top_k = {top_k} must be at least 1")
    kept = columns(data, top_k)
    style, script = ("".join(map(_source, names)) for names in (STYLES, SCRIPTS))
    values = {
        "title": escape(title),
        "about": "".join(
            f"<div><dt>{escape(k)}</dt><dd><bdi>{escape(v)}</bdi></dd></div>"
            for k, v in about.items()
        ),
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "core": b64encode(core(data, summary, kept)).decode("ascii"),
    }
    # In one pass, so that nothing in a value can stand for another.
    page = re.sub(r"\{\{(\w+)\}\}", lambda m: values[m[1]], _source("page.html"))
    with replacing(path) as file:
        file.write(page.encode("utf-8", "replace"))
        for number, part in enumerate(parts(data, kept)):
            start = f'<script type="text/plain" id="part-{number}">'
            file.write(start.encode("ascii") + b64encode(part) + b"</script>\n")
        file.write(b"</body>\n</html>\n")


def _source(name: str) -> str:
    return (SOURCES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names a script or a style that is in the page."""
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
