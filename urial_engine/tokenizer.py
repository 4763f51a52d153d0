"""A model's folder goes in; a `Tokenizer` comes out: text to token ids, ids to text, chat to text.

`tokenizer.json` is read where there is one, as it stands; else `tokenizer.model`, by the legacy
rules of Llama and Mistral.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Protocol

import tokenizers

from .errors import TokenizerError
from .tokenizer_config import AddedToken, TokenizerConfig, find_template
from .tokenizer_cut import last_cut
from .tokenizer_stream import Decoding, Detokenizer

__all__ = ["Detokenizer", "Tokenizer"]

LONG = 1 << 14  # characters, from which other threads would notice that they wait
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Vocabulary(Protocol):
    """What the two kinds of files have in common."""

    size: int  # ids below this may be produced
    special_ids: frozenset[int]
    decoding: Decoding
    ends: tuple[int | None, int | None]  # bos and eos where no name is given to them
    around: tuple[list[int], list[int]]  # ids put before and behind where no flag says otherwise

    def encode(self, text: str) -> list[int]: ...
    def cut(self, text: str) -> tuple[int, int]: ...  # see tokenizer_cut.last_cut
    def token(self, token_id: int) -> str | None: ...
    def find(self, content: str) -> int | None: ...


class Tokenizer:
    """The tokenizer of one model.

    `vocab_size`: ids below it may be produced. `bos_token_id`, `eos_token_id`: None where there is
    none. `add_bos`: whether `encode` puts a BOS first. `chat_template`: jinja2 source, or None.
    """

    def __init__(self, vocabulary: Vocabulary, config: TokenizerConfig) -> None:
        self._vocabulary = vocabulary
        self._names = config.names
        self._folder = config.folder
        self.vocab_size = vocabulary.size
        self.bos_token_id, self.eos_token_id = (
            own if (name := config.names.get(key)) is None else vocabulary.find(name)
            for key, own in zip(("bos_token", "eos_token"), vocabulary.ends, strict=True)
        )
        before, behind = vocabulary.around
        self._before = self._end("bos_token", config.add_bos, self.bos_token_id, before)
        self._behind = self._end("eos_token", config.add_eos, self.eos_token_id, behind)
        self.add_bos = self.bos_token_id is not None and self.bos_token_id in self._before
        self.chat_template = find_template(config.folder, config.chat_template)
        self._bytes = cache(self._find_bytes)  # a look for each token of each answer

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Raises `TokenizerError` where files are missing, damaged, or contradict each other."""
        folder = Path(folder)
        config = TokenizerConfig.load(folder)
        if (file := folder / "tokenizer.json").is_file():
            return cls(JsonVocabulary(file, config), config)
        if (file := folder / "tokenizer.model").is_file():
            from .tokenizer_sentencepiece import SentencePieceVocabulary

            return cls(SentencePieceVocabulary(file, config), config)
        raise TokenizerError(
            f"{folder} holds neither tokenizer.json nor tokenizer.model: copy it from where the"
            " weights came from"
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens written in it become their own ids.

        With `add_special_tokens`, BOS and EOS are added where `add_bos_token` and `add_eos_token`
        of tokenizer_config.json say so and, where a flag is not given, where tokenizer.json does. A
        text that starts with the BOS keeps that one: there is never a second.
        """
        ids = self._ids(text)
        return [*self._begun(ids), *self._behind] if add_special_tokens else ids

    def encode_prompt(self, text: str) -> list[int]:
        """As `encode`, for a text that goes on: without the EOS that ends a whole one."""
        return self._begun(self._ids(text))

    def encoder_after(self, prefix: str) -> Callable[[str], list[int]]:
        """`encode_prompt` of the prefix and a text, as one text, for many of them.

        What of the ids no text can change is found out once, where that can be told.
        """
        end, start = self._vocabulary.cut(prefix)
        known, rest = self._ids(prefix[:end]), prefix[start:]
        return lambda text: self._begun(known + self._ids(rest + text))

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids. Ids outside the vocabulary give nothing.

        The prefix space is taken off again; nothing else is cleaned up, so a text comes back as it
        was.
        """
        stream = self.stream(skip_special_tokens=skip_special_tokens)
        return "".join(map(stream.push, ids)) + stream.finish()

    def stream(self, *, skip_special_tokens: bool = True, continues: bool = False) -> Detokenizer:
        """A new detokenizer; its pieces join to `decode` of the same ids.

        With `continues` the ids follow a text, and their first space is a space of it: it stays.
        """
        hidden = self._vocabulary.special_ids if skip_special_tokens else frozenset()

        def piece(token_id: int) -> bytes | None:
            return None if token_id in hidden else self._bytes(token_id)

        decoding = self._vocabulary.decoding
        return Detokenizer(piece, replace(decoding, strip=0) if continues else decoding)

    def is_special(self, token_id: int) -> bool:
        """A token that stands for no text, such as EOS."""
        return token_id in self._vocabulary.special_ids

    def token_bytes(self, token_id: int) -> bytes | None:
        """What a token adds to a text; None where its id has no token."""
        return self._bytes(token_id)

    def token_text(self, token_id: int) -> str:
        """One token as shown to a person: bytes that are no text by themselves as `\\xe4`."""
        data = self._bytes(token_id)
        return f"<id {token_id}>" if data is None else data.decode(errors="backslashreplace")

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """Messages (`role`, `content`) in the model's chat template.

        Encode the result with `add_special_tokens=False`: a template writes its own. Raises
        `TokenizerError` without a template, or where it refuses the messages.
        """
        if self.chat_template is None:
            raise TokenizerError(
                f"{self._folder} has no default chat template (tokenizer_config.json,"
                " chat_template.jinja): prompt it with a UrialPrompt or a template with {query}"
            )
        from .tokenizer_chat import render

        return render(
            self.chat_template, messages, self._names, add_generation_prompt=add_generation_prompt
        )

    @cached_property
    def fingerprint(self) -> str:
        """The same for two tokenizers exactly where every id means the same token."""
        import hashlib

        return hashlib.sha256(json.dumps(self.tokens()).encode()).hexdigest()[:32]

    def tokens(self) -> list[str | None]:
        """Every token as the tokenizer's file writes it, by id; None where an id has none."""
        return [self._vocabulary.token(i) for i in range(self.vocab_size)]

    def check_fits(self, vocab_size: int) -> None:
        """Raises `TokenizerError` where an id could be produced that the weights have no row for.

        `vocab_size`: V of the weights. A larger V is padding and is fine.
        """
        if self.vocab_size <= vocab_size:
            return
        beyond = (i for i in range(vocab_size, self.vocab_size))
        first = next(i for i in beyond if self._vocabulary.token(i) is not None)
        raise TokenizerError(
            f"the tokenizer in {self._folder} has ids below {self.vocab_size}, the weights know"
            f" {vocab_size}; the first too many is {first} ({self._vocabulary.token(first)!r})."
            " Use the tokenizer that belongs to the weights"
        )

    def _ids(self, text: str) -> list[int]:
        return self._vocabulary.encode(LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text))

    def _begun(self, ids: list[int]) -> list[int]:
        """With what belongs before them, unless it is there."""
        return ids if ids[: len(self._before)] == self._before else self._before + ids

    def _find_bytes(self, token_id: int) -> bytes | None:
        token = self._vocabulary.token(token_id)
        return None if token is None else self._vocabulary.decoding.bytes_of(token)

    def _end(self, key: str, flag: bool | None, own: int | None, default: list[int]) -> list[int]:
        if flag and own is None:
            raise TokenizerError(
                f"{self._folder}: add_{key} is true, but {key} = {self._names.get(key)!r} is not in"
                " the vocabulary"
            )
        return default if flag is None else [own] if flag and own is not None else []


class JsonVocabulary:
    """A `tokenizer.json`, by the library that defines the format."""

    def __init__(self, path: Path, config: TokenizerConfig) -> None:
        self._tokenizer = _load(path)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._add(path, config)
        self._tokenizer.encode_special_tokens = config.split_special_tokens
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        decoder = self._tokenizer.decoder
        self.decoding = Decoding.of_json(decoder and json.loads(decoder.__getstate__()))
        self.ends: tuple[int | None, int | None] = (None, None)
        self.around = self._template()

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no token is put before or behind it."""
        if len(text) < LONG:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        # Of a batch the library lets other threads work meanwhile; of a single text it does not.
        (found,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return list(found.ids)

    def cut(self, text: str) -> tuple[int, int]:
        return last_cut(self._tokenizer, text)

    def token(self, token_id: int) -> str | None:
        """The token of an id as the file writes it; None where there is none."""
        return self._tokenizer.id_to_token(token_id) if 0 <= token_id < 2**32 else None

    def find(self, content: str) -> int | None:
        """The id of a token, by its exact text."""
        return self._tokenizer.token_to_id(content)

    def _add(self, path: Path, config: TokenizerConfig) -> None:
        """What the other files add, or say differently, about added and special tokens."""
        for token in config.added:
            self._tokenizer.add_tokens([_library_token(token)])
            if (found := self.find(token.content)) != token.id:
                raise TokenizerError(
                    f"{path} gives {token.content!r} the id {found}, the files beside it {token.id}"
                )
        known = self._tokenizer.get_added_tokens_decoder()
        for content in config.special:
            found = self.find(content)
            # One that the file does not know is left out: the weights cannot know it either.
            if found is not None and not (found in known and known[found].special):
                new = AddedToken(content, found, special=True)
                self._tokenizer.add_special_tokens([_library_token(new)])

    def _template(self) -> tuple[list[int], list[int]]:
        """The ids that the file's post-processor puts before and behind a text."""
        alone, all_ids = self.encode("a"), self._tokenizer.encode("a").ids
        places = range(len(all_ids) - len(alone) + 1)
        found = (i for i in places if alone and all_ids[i : i + len(alone)] == alone)
        start = next(found, len(all_ids))
        return all_ids[:start], all_ids[start + len(alone) :]


def _library_token(token: AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


def _load(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise TokenizerError(
            f"{path} is no tokenizer.json that can be read: {error}. Fetch it again."
        ) from error
