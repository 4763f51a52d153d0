"""A query goes in; the text that a model continues with its answer comes out, and the answer clean.

URIAL (arXiv 2312.01552) makes a base model answer by a constant prefix: an instruction and K styled
examples, each a query and an answer between fences of three backticks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ParameterError, PromptError

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

FENCE = "```"
# Prompts that have a name: the query alone, and URIAL's form without instruction and examples.
NAMED = {
    "raw": "{query}",
    "zero-shot": f"# Query:\n{FENCE}\n{{query}}\n{FENCE}\n\n# Answer:\n{FENCE}\n",
}
Form = Callable[[str], str | list[int]]


@dataclass(frozen=True, slots=True)
class UrialPrompt:
    """A URIAL prefix and the way to ask after it.

    `text`: the prefix, byte for byte as its file. `text + render(query)` is what URIAL itself gives
    a model. `stop`: URIAL's stop strings, for `SamplingParams`. A closing fence is none of them
    because an answer may hold code between fences; `clean` finds the one that ends the answer.
    """

    text: str
    stop: tuple[str, ...] = ("# Query", "# User")

    @classmethod
    def load(cls, path: Path | str) -> UrialPrompt:
        """A published prefix file, such as `inst_1k_v4.txt`, or one of your own in UTF-8."""
        try:
            return cls(Path(path).read_bytes().decode("utf-8"))
        except (OSError, ValueError) as error:
            raise PromptError(f"the prefix file {path} cannot be read as text: {error}") from error

    @classmethod
    def default(cls) -> UrialPrompt:
        """Our own prefix with K = 3 examples, about 1,000 tokens of Llama 2."""
        return cls.load(Path(__file__).parent / "data" / "urial_k3.txt")

    def render(self, query: str) -> str:
        """What follows the prefix when a user asks: it ends where the model's answer starts."""
        return self.render_chat([query])

    def render_chat(self, turns: Sequence[str]) -> str:
        """What follows the prefix in a conversation: query, answer, query, …, and last a query.

        It begins with a line's end; without one where the prefix is empty: `NAMED["zero-shot"]`.
        """
        if isinstance(turns, str) or len(turns) % 2 == 0:
            raise PromptError(
                f"a chat is a list of query, answer, …, query (an odd number), not {turns!r}"
            )
        roles = ("Query", "Answer")
        blocks = (f"\n# {roles[i % 2]}:\n{FENCE}\n{t}\n{FENCE}\n" for i, t in enumerate(turns))
        text = "".join(blocks) + f"\n# Answer:\n{FENCE}\n"
        return text if self.text else text.removeprefix("\n")

    def clean(self, answer: str) -> str:
        """The answer alone: up to its closing fence or a stop string, its own code blocks kept.

        A fence with a language opens a code block and the next bare one closes it. A bare fence
        outside a block ends the answer, unless text follows on the very next line and a later bare
        fence can close it: then it opens a block too. (In a prefix of this form an empty line
        follows every answer.)
        """
        return self._trimmed(answer, self._end(answer, whole=True)[0])

    def certain(self, answer: str) -> tuple[str, bool]:
        """Of `clean`, for an answer that is still being written: what no further text changes, and
        whether the end of the answer stands there."""
        line = answer.rfind("\n") + 1
        last = answer[line:]
        if last.startswith("`") or any(stop.startswith(last) for stop in self.stop):
            answer = answer[:line]  # it may become a mark
        end, closed = self._end(answer, whole=False)
        return self._trimmed(answer, end), closed

    def _trimmed(self, answer: str, end: int) -> str:
        return re.sub(r"\A(?:[^\S\n]*\n)+", "", answer[:end]).rstrip()

    def _end(self, answer: str, *, whole: bool) -> tuple[int, bool]:
        """Where the answer ends, and whether by a mark. Of one that is not `whole`, where it ends
        or may turn out to end."""
        inside = False
        marks = list(_marks(self.stop).finditer(answer))
        for number, mark in enumerate(marks):
            later = any(_bare(m) for m in marks[number + 1 :])
            if inside:
                inside = not _bare(mark)
            elif mark["info"] and not _bare(mark):
                inside = True
            elif not _bare(mark):
                return mark.start(), True
            else:
                follows = self._text_follows(answer, mark.end())
                known = whole or later or (not follows and "\n" in answer[mark.end() + 1 :])
                inside = follows and later
                if not inside:
                    return mark.start(), known
        return len(answer), False

    def _text_follows(self, answer: str, end: int) -> bool:
        """Whether the very next line holds text that goes on with the answer."""
        line = answer[end + 1 :].split("\n", 1)[0]
        return bool(line.strip()) and not line.startswith(self.stop)


@lru_cache
def _marks(stop: tuple[str, ...]) -> re.Pattern[str]:
    """Fences (a language may follow, never a backtick) and stop strings that start a line."""
    stops = "".join(f"|{re.escape(one)}" for one in stop)
    return re.compile(rf"^(?:{FENCE}(?P<info>[^`\n]*)${stops})", re.MULTILINE)


def _bare(mark: re.Match[str]) -> bool:
    """A fence without a language: it closes a block, or opens one, or ends the answer."""
    return mark["info"] is not None and not mark["info"].strip()


def in_urial_form(spec: object) -> bool:
    """Whether an answer to this prompt stands between fences: it ends with one that opens."""
    if isinstance(spec, str):
        return NAMED.get(spec, spec).endswith(f"\n{FENCE}\n")
    return isinstance(spec, UrialPrompt) or getattr(spec, "urial_form", False)


def prompt_form(
    spec: str | UrialPrompt | Form, tokenizer: Tokenizer, *, prefix: str | None = None
) -> Form:
    """How a query becomes what the model reads: a text, or token ids where a chat template does it.

    `spec`: `"chat"` (the model's own chat template; token ids, since it writes its special tokens
    itself), a name of NAMED, a template that holds `{query}`, a `UrialPrompt`, or a function.
    `prefix`: the text that the engine puts before every text; a `UrialPrompt` of that text then
    gives only what follows it. Raises `ParameterError` for anything else.
    """
    if isinstance(spec, UrialPrompt):
        before = "" if prefix == spec.text else spec.text
        return lambda query: before + spec.render(query)
    if spec == "chat":
        return lambda query: tokenizer.encode(
            tokenizer.render_chat([{"role": "user", "content": query}]), add_special_tokens=False
        )
    if isinstance(spec, str) and "{query}" in (template := NAMED.get(spec, spec)):
        return lambda query: template.replace("{query}", query)
    if callable(spec):
        return spec
    raise ParameterError(
        f"a prompt is one of {', '.join(('chat', *NAMED))}, a template that holds {{query}}, a"
        f" UrialPrompt or a function, not {spec!r}"
    )
