"""Lists of words and phrases go in; the group that each token of an answer belongs to comes out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ParameterError
from .tokens import spell

REST = "content"
FORM = '{"about": text, "groups": {name: {"phrases": {kind: [text]}, "patterns": {kind: [text]}}}}'


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Groups of tokens by the words and phrases that they are part of; the last group, `content`,
    is the rest. The shipped one, `data/lexicon.json`, says in `about` how it was made.

    A phrase matches whole words in any case, with any white space between them; `*` at its end
    stands for the rest of a word. A pattern is a regular expression, in which ^ and $ are the ends
    of lines. Where several match at one place the group that stands first in the file wins, in it
    phrases before patterns, and the longest phrase.
    """

    about: str
    names: tuple[str, ...]
    expression: re.Pattern[str]

    @classmethod
    def default(cls) -> Lexicon:
        return cls.load(Path(__file__).parents[1] / "data" / "lexicon.json")

    @classmethod
    def load(cls, path: Path | str) -> Lexicon:
        """A JSON file of the shipped one's form. `ParameterError` names the file and the entry."""
        try:
            given = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ParameterError(f"the lexicon {path} cannot be read as JSON: {error}") from error
        groups = _object(given, f"{path}", "about", "groups").get("groups")
        groups = _object(groups, f"{path}: groups")
        if not groups or REST in groups:
            raise ParameterError(
                f"{path}: groups = {list(groups)} must name at least one group, and none "
                f"{REST!r}, which is what no other group holds"
            )
        expressions = [
            f"(?P<group{i}>{_group(group, f'{path}: groups.{name}')})"
            for i, (name, group) in enumerate(groups.items())
        ]
        about = given.get("about")
        if not isinstance(about, str):
            raise ParameterError(f"{path}: about = {about!r} must be a text; the form is {FORM}")
        expression = re.compile("|".join(expressions), re.IGNORECASE | re.MULTILINE)
        return cls(about, (*groups, REST), expression)

    def groups(self, pieces: Sequence[str]) -> NDArray[np.int8]:
        """[T] index into `names` for each token; `pieces` is the text token by token. A token
        that two entries share belongs to the later one."""
        spelled = spell(pieces)
        found = np.full(len(pieces), len(self.names) - 1, np.int8)
        for match in self.expression.finditer(spelled.text):
            start, end = match.span()
            group = int((match.lastgroup or "").removeprefix("group"))
            found[spelled.first_of_character[start:end]] = group
        return found[spelled.first_of_token]


def _object(value: object, where: str, *keys: str) -> Mapping[str, object]:
    """`value`, if it is an object with none but these keys (any, where none are given)."""
    if not isinstance(value, dict):
        raise ParameterError(f"{where} must be an object; the form is {FORM}")
    if keys and (unknown := sorted(value.keys() - set(keys))):
        raise ParameterError(f"{where}: {unknown[0]!r} is not known; the form is {FORM}")
    return value


def _group(group: object, where: str) -> str:
    """The expression of a group's entries."""
    kinds = _object(group, where, "phrases", "patterns")
    phrases = list(_texts(kinds.get("phrases", {}), f"{where}.phrases"))
    patterns = list(_texts(kinds.get("patterns", {}), f"{where}.patterns"))
    if not phrases and not patterns:
        raise ParameterError(f"{where} has no entry; the form is {FORM}")
    entries = [_pattern(text, at) for text, at in patterns]
    if phrases:
        longest_first = sorted(phrases, key=lambda p: (-len(p[0]), p[0]))
        entries.insert(0, rf"\b(?:{'|'.join(_phrase(*p) for p in longest_first)})\b")
    return "|".join(entries)


def _texts(kinds: object, where: str) -> Iterator[tuple[str, str]]:
    for kind, texts in _object(kinds, where).items():
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise ParameterError(f"{where}.{kind} must be a list of texts; the form is {FORM}")
        yield from ((text, f"{where}.{kind}") for text in texts)


def _phrase(text: str, where: str) -> str:
    if not re.fullmatch(r"\w(?:.*\w)?\*?", text, re.DOTALL):
        raise ParameterError(
            f"{where}: {text!r} must begin and end with a letter or a digit (`*` may follow); "
            "anything else is a pattern"
        )
    escaped = r"\s+".join(re.escape(word) for word in text.removesuffix("*").split())
    return re.sub("['’]", "['’]", escaped) + (r"\w*" if text.endswith("*") else "")


def _pattern(text: str, where: str) -> str:
    try:
        empty = re.compile(text, re.MULTILINE).match("")
    except re.error as error:
        raise ParameterError(f"{where}: {text!r} is no regular expression: {error}") from error
    if empty:
        raise ParameterError(f"{where}: {text!r} matches nothing at all, so it matches everywhere")
    return f"(?:{text})"
