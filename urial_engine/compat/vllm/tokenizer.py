"""The model's tokenizer under the names that callers of transformers use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

from ...tokenizer import Tokenizer
from ...tokenizer_config import TokenizerConfig, read_object
from .arguments import TEXTS, check_only
from .chat import Message, chat_text

CONFIG, EXTRA = "tokenizer_config.json", "additional_special_tokens"
NO_LIMIT = int(1e30)  # what transformers says where the model's files name no length


class Encoding(dict[str, Any]):
    """`input_ids`, by key or as an attribute. Nothing is padded, so there is no mask."""

    @property
    def input_ids(self) -> Any:
        return self["input_ids"]


class ModelTokenizer:
    """What `LLM.get_tokenizer` gives. It returns lists, pads and cuts nothing, and its ids and
    texts are those of `urial_engine.tokenizer.Tokenizer`: a prompt never has two BOS. Keywords of
    transformers that ask for something else are a ParameterError (`arguments.TEXTS`)."""

    def __init__(self, tokenizer: Tokenizer, folder: Path) -> None:
        self._tokenizer = tokenizer
        config, written = TokenizerConfig.load(folder), read_object(folder / CONFIG)
        self.special_tokens_map = config.names
        self.model_max_length = written.get("model_max_length") or NO_LIMIT
        extra: Any = written.get("extra_special_tokens") or written.get(EXTRA) or []
        self._extra = [token if isinstance(token, str) else token["content"] for token in extra]
        self.name_or_path = str(folder)
        self.bos_token_id = tokenizer.bos_token_id
        self.eos_token_id = tokenizer.eos_token_id
        self.chat_template = tokenizer.chat_template
        self.vocab_size = tokenizer.vocab_size
        self.bos_token = self._name("bos_token", self.bos_token_id)
        self.eos_token = self._name("eos_token", self.eos_token_id)
        self.unk_token = self.special_tokens_map.get("unk_token")
        # Scripts set one where there is none.
        self.pad_token = self.special_tokens_map.get("pad_token")

    def __len__(self) -> int:
        return self.vocab_size

    def __getattr__(self, name: str) -> NoReturn:
        there = ", ".join(n for n in (*dir(type(self)), *self.__dict__) if not n.startswith("_"))
        raise AttributeError(f"this tokenizer has no {name}; there are {there}")

    @property
    def pad_token_id(self) -> int | None:
        return self._ids.get(self.pad_token or "")

    @pad_token_id.setter
    def pad_token_id(self, value: int) -> None:
        self.pad_token = self._tokens[value]

    @property
    def unk_token_id(self) -> int | None:
        return self._ids.get(self.unk_token or "")

    @property
    def all_special_tokens(self) -> list[str]:
        """Those that have a role, and the additional ones."""
        named = (self.bos_token, self.eos_token, self.unk_token, self.pad_token)
        every = (*named, *self.special_tokens_map.values(), *self._extra)
        return list(dict.fromkeys(token for token in every if token))

    @property
    def all_special_ids(self) -> list[int]:
        return [self._ids[token] for token in self.all_special_tokens if token in self._ids]

    def __call__(
        self, text: str | Sequence[str], *, add_special_tokens: bool = True, **others: object
    ) -> Encoding:
        check_only(others, TEXTS)
        encode = partial(self.encode, add_special_tokens=add_special_tokens)
        ids = encode(text) if isinstance(text, str) else list(map(encode, text))
        return Encoding(input_ids=ids)

    def encode(self, text: str, *, add_special_tokens: bool = True, **others: object) -> list[int]:
        check_only(others, TEXTS)
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def tokenize(self, text: str) -> list[str]:
        """The tokens of the text alone, as the tokenizer's file writes them."""
        found: list[str] = self.convert_ids_to_tokens(self.encode(text, add_special_tokens=False))
        return found

    def decode(
        self, token_ids: int | Iterable[int], skip_special_tokens: bool = False, **others: object
    ) -> str:
        check_only(others, TEXTS)
        ids = token_ids if isinstance(token_ids, Iterable) else [token_ids]
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(
        self,
        sequences: Iterable[Iterable[int]],
        skip_special_tokens: bool = False,
        **others: object,
    ) -> list[str]:
        return [self.decode(ids, skip_special_tokens, **others) for ids in sequences]

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """A token, or a list of them; None where there is none."""
        if not isinstance(ids, Iterable):
            return self._tokens[ids] if 0 <= ids < len(self._tokens) else None
        return [self.convert_ids_to_tokens(i) for i in ids]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """An id, or a list of them; of what is no token, the unknown token's."""
        if isinstance(tokens, str):
            return self._ids.get(tokens, self.unk_token_id)
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def apply_chat_template(
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = False,
        **more: Any,
    ) -> Any:
        """One conversation as text; or as ids, a list unless `return_dict`. Of several, a list.

        `more`: what the template may ask for, such as `enable_thinking=False`.
        """
        check_only({name: more.pop(name) for name in TEXTS if name in more}, TEXTS)
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        chats: Any = conversation if several else [conversation]
        form = partial(
            chat_text,
            self._tokenizer,
            names=self.special_tokens_map,
            template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            more=more,
        )
        texts = [form(chat) for chat in chats]
        if not tokenize:
            return texts if several else texts[0]
        encoding = self(texts if several else texts[0], add_special_tokens=False)
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
