"""What was found: rows go in; JSON and a Markdown table come out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One finding. Shares are of what the device was measured to do in the same minute."""

    part: str
    what: str
    seconds: float | None = None  # on the device where it is timed there, else on the clock
    wall: float | None = None  # on the clock, where both were taken
    memory: float | None = None  # share of the copy bandwidth
    products: float | None = None  # share of the rate of a large matrix product
    times: float | None = None  # how many times as fast as what it is compared with
    leaner: float | None = None  # how many times less memory it took than that
    bytes: int | None = None  # the most that it held
    tokens: float | None = None  # a second
    found: str = ""  # what a number of time or memory does not say
    difference: float | None = None  # the greatest between two roads to the same numbers
    floor: str = ""  # what it has to reach, where something is promised
    reached: bool = True


HEAD: tuple[str, ...] = (
    "what",
    "time",
    "wall clock",
    "of copy bandwidth",
    "of matrix rate",
    "ratio",
    "tokens/s",
)
HEAD += ("memory", "found", "floor")


def markdown(about: dict[str, Any], rows: list[Row]) -> str:
    """A page of it."""
    lines = ["# GPU check", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    lines += [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    return [
        f"{row.part}: {row.what}",
        _milliseconds(row.seconds),
        _milliseconds(row.wall),
        _percent(row.memory),
        _percent(row.products),
        "" if row.times is None else f"{row.times:.2f} x",
        "" if row.tokens is None else f"{row.tokens:,.0f}",
        "" if row.bytes is None else f"{row.bytes / 1e6:,.1f} MB",
        row.found.replace("|", "\\|"),
        f"{row.floor}{'' if row.reached else ' MISSED'}",
    ]


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:,.3f} ms"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def as_json(about: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
    return {"about": about, "rows": [asdict(row) for row in rows]}
