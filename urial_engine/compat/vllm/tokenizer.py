"""The model's tokenizer under the names that callers of transformers use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

from ...tokenizer import Tokenizer
from ...tokenizer_config import TokenizerConfig
from .chat import Message, chat_text


class Encoding(dict[str, Any]):
    """`input_ids`, by key or as an attribute. Nothing is padded, so there is no mask."""

    @property
    def input_ids(self) -> Any:
        return self["input_ids"]


class ModelTokenizer:
    """What `LLM.get_tokenizer` gives. It returns lists, pads and cuts nothing, and its ids and
    texts are those of `urial_engine.tokenizer.Tokenizer`: a prompt never has two BOS."""

    def __init__(self, tokenizer: Tokenizer, folder: Path) -> None:
        self._tokenizer = tokenizer
        self.special_tokens_map = TokenizerConfig.load(folder).names
        self.name_or_path = str(folder)
        self.bos_token_id = tokenizer.bos_token_id
        self.eos_token_id = tokenizer.eos_token_id
        self.chat_template = tokenizer.chat_template
        self.vocab_size = tokenizer.vocab_size
        self.bos_token = self._name("bos_token", self.bos_token_id)
        self.eos_token = self._name("eos_token", self.eos_token_id)
        self.unk_token = self.special_tokens_map.get("unk_token")
        self.pad_token = self.special_tokens_map.get(
            "pad_token"
        )  # scripts set one where there is none

    def __len__(self) -> int:
        return self.vocab_size

    def __getattr__(self, name: str) -> NoReturn:
        there = ", ".join(n for n in (*dir(type(self)), *self.__dict__) if not n.startswith("_"))
        raise AttributeError(f"this tokenizer has no {name}; there are {there}")

    def __call__(self, text: str | Sequence[str], *, add_special_tokens: bool = True) -> Encoding:
        encode = partial(self.encode, add_special_tokens=add_special_tokens)
        ids = encode(text) if isinstance(text, str) else list(map(encode, text))
        return Encoding(input_ids=ids)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: int | Iterable[int], skip_special_tokens: bool = False) -> str:
        ids = token_ids if isinstance(token_ids, Iterable) else [token_ids]
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(
        self, sequences: Iterable[Iterable[int]], skip_special_tokens: bool = False
    ) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """A token, or a list of them; None where there is none."""
        if not isinstance(ids, Iterable):
            return self._tokens[ids] if 0 <= ids < len(self._tokens) else None
        return [self.convert_ids_to_tokens(i) for i in ids]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """An id, or a list of them; of what is no token, the unknown token's."""
        unknown = self._ids.get(self.unk_token or "")
        if isinstance(tokens, str):
            return self._ids.get(tokens, unknown)
        return [self._ids.get(token, unknown) for token in tokens]

    def apply_chat_template(
        self,
        conversation: Sequence[Message],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = False,
    ) -> str | list[int] | Encoding:
        """One conversation as text; or as ids, a list unless `return_dict`."""
        text = chat_text(
            self._tokenizer,
            conversation,
            self.special_tokens_map,
            template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        if not tokenize:
            return text
        encoding = self(text, add_special_tokens=False)
        return encoding if return_dict else encoding.input_ids

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    @cached_property
    def _tokens(self) -> list[str | None]:
        return self._tokenizer.tokens()

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self._tokens) if token is not None}

    def _name(self, role: str, token_id: int | None) -> str | None:
        named = self.special_tokens_map.get(role)
        return named if named or token_id is None else self._tokens[token_id]
