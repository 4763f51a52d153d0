"""A `tokenizer.model` goes in; token ids by the legacy rules of Llama and Mistral come out.

The rules are those of sentencepiece itself, of the models' own code and of transformers' slow
`LlamaTokenizer` (to 4.57):

- Text is cut at the added tokens, of which bos, eos and unk are always some; each rest is encoded.
- `legacy: true`, or nothing said: every rest gets the prefix space that the model file asks for.
  `legacy: false`: only a rest at the very start does. `add_prefix_space: false`: none does.
- A prefix space comes before the text's own leading spaces, so these survive a round trip.

transformers 5 converts a `tokenizer.model` differently (merges by id instead of score; one leading
space swallowed, see huggingface/transformers#47700; no prefix space under `model_type: mistral`; no
BOS unless told); the ids that the models were trained on are the ones made here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from .errors import TokenizerError
from .tokenizer_config import AddedToken, TokenizerConfig
from .tokenizer_cut import UNDERLINE
from .tokenizer_stream import Decoding

# A serialised message that sets normalizer_spec.add_dummy_prefix to false and nothing else. Parsing
# two messages in a row merges them, so appended to a model it switches its own prefix off.
NO_PREFIX = b"\x1a\x02\x18\x00"


class SentencePieceVocabulary:
    """The pieces of a `tokenizer.model` and the tokens that were added to them."""

    def __init__(self, path: Path, config: TokenizerConfig) -> None:
        model = _read(path)
        self._pieces = _load(path, model)
        own = bool(self._pieces.normalize("a").startswith(UNDERLINE))
        prefix = config.add_prefix_space and (own or not config.legacy)
        self._first_prefix = UNDERLINE if prefix and not config.legacy else ""
        if not (prefix and config.legacy):
            self._pieces = _load(path, model + NO_PREFIX)
        self._base: int = self._pieces.get_piece_size()
        self._added = self._all_added(config)
        self._tokens = {token.id: token.content for token in self._added.values()}
        self._cut = None if config.split_special_tokens else _pattern(self._added)
        self.size = max([self._base, *(i + 1 for i in self._tokens)])
        self.special_ids = frozenset(
            [t.id for t in self._added.values() if t.special]
            + [i for i in range(self._base) if self._pieces.is_control(i)]
        )
        self.decoding = Decoding(
            byte_fallback=True, replace=((UNDERLINE, " "),), strip=1 if prefix else 0
        )
        bos, eos = self._pieces.bos_id(), self._pieces.eos_id()
        self.ends = (bos if bos >= 0 else None, eos if eos >= 0 else None)
        self.around: tuple[list[int], list[int]] = ([bos] if bos >= 0 else [], [])

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no token is put before or behind it."""
        ids: list[int] = []
        for part in self._parts(text):
            ids += [part.id] if isinstance(part, AddedToken) else self._pieces.encode(part)
        return ids

    def cut(self, text: str) -> tuple[int, int]:
        return 0, 0  # a model file may normalise texts by rules that cannot be seen from outside

    def token(self, token_id: int) -> str | None:
        """The piece or added token of an id; None where there is none."""
        if token_id in self._tokens:
            return self._tokens[token_id]
        return str(self._pieces.id_to_piece(token_id)) if 0 <= token_id < self._base else None

    def find(self, content: str) -> int | None:
        """The id of a token, by its exact text."""
        if content in self._added:
            return self._added[content].id
        found: int = self._pieces.piece_to_id(content)
        return found if self.token(found) == content else None

    def _all_added(self, config: TokenizerConfig) -> dict[str, AddedToken]:
        """The files' added tokens, and every special token that is a piece of the model.

        A special token that is neither is left out: an id made up for it would be one that the
        weights cannot know.
        """
        added = {token.content: token for token in config.added}
        ends = (self._pieces.unk_id(), self._pieces.bos_id(), self._pieces.eos_id())
        names = [self._pieces.id_to_piece(i) for i in ends if i >= 0]
        for content in (*names, *config.special):
            found = self._pieces.piece_to_id(content)
            if content not in added and self._pieces.id_to_piece(found) == content:
                added[content] = AddedToken(content, found, special=True)
        return added

    def _parts(self, text: str) -> Iterator[str | AddedToken]:
        """The text as added tokens and the rests between them, the prefix space in place."""
        end = 0
        for match in self._cut.finditer(text) if self._cut else ():
            token = self._added[match[0]]
            rest = text[end : match.start()]
            rest = rest.rstrip() if token.lstrip else rest
            if rest:
                yield rest if end else self._first_prefix + rest
            yield token
            end = match.end()
            end += len(text) - end - len(text[end:].lstrip()) if token.rstrip else 0
        if end < len(text):
            yield text[end:] if end else self._first_prefix + text


def _pattern(added: dict[str, AddedToken]) -> re.Pattern[str]:
    """The leftmost added token, the longest of those that start there."""
    longest = sorted(added.values(), key=lambda token: -len(token.content))
    words = {t.content: rf"(?<!\w){re.escape(t.content)}(?!\w)" for t in longest if t.single_word}
    return re.compile("|".join(words.get(t.content, re.escape(t.content)) for t in longest))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error


def _load(path: Path, model: bytes) -> SentencePieceProcessor:
    try:
        return SentencePieceProcessor(model_proto=model or b"\0")  # no bytes would load nothing
    except RuntimeError as error:
        raise TokenizerError(
            f"{path} ({len(model)} bytes) is no sentencepiece model: it is damaged, or in another"
            " format (Llama 3 ships tiktoken's under this name; use its tokenizer.json). Fetch it"
            " again from the model's source."
        ) from error
