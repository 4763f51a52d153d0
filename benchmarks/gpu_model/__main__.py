"""What the GPU backend should do on machines that nobody had: `python -m benchmarks.gpu_model`.

Nothing goes in; tables in Markdown come out. With `--into docs/gpu.md` they take the place of the
page's own, each between its two marks.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_model import head_tables as of_the_head
from benchmarks.gpu_model import tables as of_steps

MARKS = "<!-- {} -->\n", "\n<!-- end -->"


def tables() -> dict[str, list[str]]:
    """Each table's lines, by name."""
    return {
        "machines": of_steps.machines(),
        "kernels": of_steps.kernels(),
        "steps": of_steps.steps(),
        "alone": of_steps.alone(),
        "memory": of_steps.memory(),
        "sharing": of_steps.sharing(),
        "invariant": of_steps.invariant(),
        "rank": of_the_head.rank(),
        "floor": of_the_head.floor(),
        "torch": of_the_head.torch(),
        "fused": of_the_head.fused(),
        "verdict": of_the_head.verdict(),
        "models": of_the_head.models(),
        "lost": of_the_head.lost(),
        "widths": of_the_head.widths(),
    }


def filled(page: str) -> str:
    """The page with the tables of today. ValueError where it has no place for one of them."""
    for name, lines in tables().items():
        begin, end = MARKS[0].format(name), MARKS[1]
        place = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not place.search(page):
            raise ValueError(
                f"no place for the table {name!r}: it wants {begin.strip()} and an end"
            )
        text = begin + "\n".join(lines) + end
        page = place.sub(lambda _, text=text: text, page)  # type: ignore[misc]
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, help="a page whose tables are replaced")
    given = parser.parse_args(arguments)
    if given.into:
        page = given.into.read_text(encoding="utf-8")
        given.into.write_text(filled(page), encoding="utf-8")
    else:
        print("\n\n".join("\n".join([name, "", *lines]) for name, lines in tables().items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
