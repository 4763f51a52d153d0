"""Stop strings over a text in pieces."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from urial_engine.stop import StopMatcher


def cut(text: str, stops: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """The rule itself, on the whole text: the first to complete wins, the longest of those."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@st.composite
def texts_in_pieces(draw: st.DrawFn) -> tuple[list[str], tuple[str, ...]]:
    letters = st.text("ab#", max_size=12)
    stops = draw(st.lists(st.text("ab#", min_size=1, max_size=5), max_size=3))
    return draw(st.lists(letters, max_size=8)), tuple(stops)


@settings(deadline=None)
@given(texts_in_pieces(), st.booleans())
def test_stop_strings_do_not_depend_on_the_cuts(
    case: tuple[list[str], tuple[str, ...]], include: bool
) -> None:
    pieces, stops = case
    matcher, shown, pushed = StopMatcher(stops, include=include), "", ""
    expected, stop = cut("".join(pieces), stops, include)
    for piece in pieces:
        pushed += piece
        shown += matcher.push(piece)
        assert expected.startswith(shown), "what was shown is never taken back"
        longest = max(map(len, stops), default=1)
        assert matcher.matched or len(pushed) - len(shown) < longest, "too much is held back"
        if matcher.matched:
            break
    else:
        shown += matcher.flush()
    assert (shown, matcher.matched) == (expected, stop)


def test_nothing_is_held_back_that_cannot_become_a_stop_string() -> None:
    matcher = StopMatcher(("# Query", "# User"), include=False)
    assert [matcher.push(p) for p in ("Hi #", " Q", "x", "\n# Us", "er:")] == [
        "Hi ",
        "",
        "# Qx",
        "\n",
        "",
    ]
    assert matcher.matched == "# User"
