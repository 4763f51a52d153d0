"""Stop strings over a text in pieces: pieces go in; what may be shown already comes out.

The outcome depends on the text only, never on where it was cut: the stop string that completes
first wins, the longest of those that complete together. What could still become one is held back.
"""

from __future__ import annotations


class StopMatcher:
    """`matched` is the stop string that was found, None until then. Nothing is pushed after it."""

    def __init__(self, stops: tuple[str, ...], *, include: bool) -> None:
        self.matched: str | None = None
        self._stops = stops
        self._include = include  # the stop string itself belongs to the text
        self._longest = max(map(len, stops), default=1)
        self._held = ""

    def push(self, piece: str) -> str:
        """The text that `piece` makes certain; at a match all of it up to the cut."""
        text = self._held + piece
        found = [
            (text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text
        ]
        if found:
            end, negative_length, self.matched = min(found)
            self._held = ""
            return text[:end] if self._include else text[: end + negative_length]
        self._held = self._opening(text)
        return text.removesuffix(self._held)

    def _opening(self, text: str) -> str:
        """The longest end of the text that could still become a stop string.

        It is looked for in the text: all that a stop string begins with would be as much memory as
        the square of its length.
        """
        for start in range(max(len(text) - self._longest + 1, 0), len(text)):
            end = text[start:]
            if any(stop.startswith(end) for stop in self._stops):
                return end
        return ""

    def flush(self) -> str:
        """What is still held back, when the text ends without a match."""
        text, self._held = self._held, ""
        return text
