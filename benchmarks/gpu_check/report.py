"""What was found: rows go in; JSON and a Markdown table come out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measurement. Shares are of what the device was measured to do in the same minute."""

    part: str
    what: str
    seconds: float
    memory: float | None = None  # share of the copy bandwidth
    products: float | None = None  # share of the rate of a large matrix product
    times: float | None = None  # how many times as fast as what it is compared with
    bytes: int | None = None  # the most that it held
    tokens: float | None = None  # a second
    floor: str = ""  # what it has to reach, where something is promised
    reached: bool = True


def markdown(about: dict[str, Any], rows: list[Row]) -> str:
    """A page of it."""
    head = ["what", "time", "of copy bandwidth", "of matrix rate", "ratio", "tokens/s", "memory"]
    lines = ["# GPU check", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    lines += [f"| {' | '.join([*head, 'floor'])} |", "|" + "---|" * (len(head) + 1)]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    return [
        f"{row.part}: {row.what}",
        f"{row.seconds * 1e3:.3f} ms",
        _percent(row.memory),
        _percent(row.products),
        "" if row.times is None else f"{row.times:.2f} x",
        "" if row.tokens is None else f"{row.tokens:,.0f}",
        "" if row.bytes is None else f"{row.bytes / 1e6:,.1f} MB",
        f"{row.floor}{'' if row.reached else ' MISSED'}",
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def as_json(about: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
    return {"about": about, "rows": [asdict(row) for row in rows]}
