"""The figures as a page: what `run` found goes in, Markdown leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

FIGURES = {
    "tokens": "answer tokens",
    "own_tokens": "of them not planted",
    "own_unshifted": "not planted: unshifted",
    "own_marginal": "not planted: marginal",
    "own_shifted": "not planted: shifted",
}


def markdown(found: dict[str, Any]) -> str:
    """One table of checks and one of positions over all seeds, then each seed's style and list."""
    seeds = found["seeds"]
    parts = [_checks(seeds), _figures(seeds), _positions(seeds)]
    parts += [_list(number, seed) for number, seed in seeds.items()]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _table(head: Sequence[str]) -> Iterator[str]:
    yield _row(head)
    yield "|" + "---|" * len(head)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1e}" if 0 < value < 5e-4 else f"{value:.3f}"


def _names(seeds: dict[str, Any]) -> list[str]:
    return [f"seed {number}" for number in seeds]


def _checks(seeds: dict[str, Any]) -> Iterator[str]:
    yield from _table(["check", "threshold", *_names(seeds)])
    for same in zip(*(seed["checks"] for seed in seeds.values()), strict=True):
        shown = (_number(c["value"]) + ("" if c["passed"] else " **fails**") for c in same)
        yield _row([same[0]["name"], f"{same[0]['sign']} {same[0]['threshold']}", *shown])


def _figures(seeds: dict[str, Any]) -> Iterator[str]:
    yield from _table(["", *_names(seeds)])
    yield _row(["seconds of tuning", *(f"{s['tuning']['seconds']:.0f}" for s in seeds.values())])
    for name in ("tokens", "own_tokens"):
        yield _row([FIGURES[name], *(s["figures"][name] for s in seeds.values())])
    for name in ("own_unshifted", "own_marginal", "own_shifted"):
        yield _row([FIGURES[name], *(_number(s["figures"][name]) for s in seeds.values())])


def _positions(seeds: dict[str, Any]) -> Iterator[str]:
    """Shifted share of all tokens, and of those that are not planted, at each range."""
    yield from _table(["shifted at positions: of all / of not planted", *_names(seeds)])
    for same in zip(*(seed["figures"]["by_position"] for seed in seeds.values()), strict=True):
        first = same[0]
        where = f"{first['from']} to {first['to'] - 1}" if first["to"] else f"from {first['from']}"
        shares = ((_number(r["shifted"]), _number(r["own_shifted"])) for r in same)
        yield _row([where, *map(" / ".join, shares)])


def _list(number: str, seed: dict[str, Any]) -> Iterator[str]:
    planted = " … ".join(f"*{phrase.strip()}*" for phrase in seed["style"].values())
    listed = ", ".join(f"`{text}` {times}" for text, times in seed["figures"]["most_shifted"])
    yield f"Seed {number} planted {planted}"
    yield f"and has as its most shifted {listed}."
