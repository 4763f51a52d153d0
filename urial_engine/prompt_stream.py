"""An answer in URIAL's form goes in as it grows; what is certain of the clean answer comes out."""

from __future__ import annotations

from .prompt import UrialPrompt


class AnswerStream:
    """`UrialPrompt.clean` for a text that is still being written.

    What `push` and `finish` return joins to `clean` of the whole. `ended`: the mark that closes
    the answer stands there, and nothing that follows belongs to it.
    """

    def __init__(self, prompt: UrialPrompt) -> None:
        self._prompt = prompt
        self._text = ""
        self._clean = ""  # what has been told
        self.ended = False

    def push(self, text: str) -> str:
        self._text += text
        clean, self.ended = self._prompt.certain(self._text)
        return self._tell(clean)

    def finish(self) -> str:
        """The rest: no more text comes."""
        return self._tell(self._prompt.clean(self._text))

    def reach(self) -> tuple[int, int]:
        """Where in all that was pushed the clean answer begins, and as far as told ends."""
        start = self._text.find(self._clean) if self._clean else 0
        return start, start + len(self._clean)

    def _tell(self, clean: str) -> str:
        new = clean[len(self._clean) :]
        self._clean = clean
        return new
