"""What callers may pass for prompts: texts or token ids, one or many, go in; lists of ids come out.

A text continues the engine's prefix and is tokenised together with it, at once. Token ids are taken
as they are: a whole prompt, to which nothing is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from .errors import ContextError, ParameterError, PromptError
from .sampling import SamplingParams

if TYPE_CHECKING:
    from .backends.base import Backend
    from .config import ModelConfig
    from .tokenizer import Tokenizer

Prompt = str | Sequence[int]


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt, or several: a list that begins with a number is one prompt of token ids."""
    items: list[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
    return [items] if items and isinstance(items[0], Integral) else items


def each_params(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    """What was given for all of `count` prompts, or one for each."""
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    items: list[Any] = list(params)
    if not all(isinstance(item, SamplingParams) for item in items):
        raise ParameterError("params must be one SamplingParams or a list of them")
    if len(items) != count:
        raise ParameterError(f"params has {len(items)} entries for {count} prompts")
    return items


def check_top(name: str, count: int, backend: Backend) -> None:
    """How many of the likeliest tokens are asked for: no more than the backend reports."""
    if not 0 <= count <= backend.max_top_k:
        raise ParameterError(
            f"{name}={count}: must be between 0 and {backend.max_top_k}, the most that device "
            f'"{backend.name}" reports of {backend.config.vocab_size} tokens'
        )


class PromptReader:
    """Turns prompts into token ids that the model can read, or raises PromptError."""

    def __init__(self, tokenizer: Tokenizer, prefix: str, vocab_size: int, context: int) -> None:
        self._tokenizer = tokenizer
        # The ids of the engine's prefix and a text, as a whole.
        self.encode = tokenizer.encoder_after(prefix)
        self._vocab_size = vocab_size
        self._context = context

    def read(self, prompt: Prompt, label: str, *, room: int) -> list[int]:
        """Its token ids, at least one, with room for `room` more in the context."""
        text = isinstance(prompt, str)
        ids = self.encode(prompt) if isinstance(prompt, str) else self.check(prompt, label)
        if not ids:
            raise PromptError(
                f"{label} is empty: not one token"
                + (", and the tokenizer adds no BOS; give it some text" if text else "")
            )
        if len(ids) + room > self._context:
            more = f" and {room} more" if room else ""
            raise ContextError(
                f"{label} is too long: {len(ids)} tokens{more} in a context of {self._context}"
            )
        return ids

    def read_from(self, ids: Sequence[int], first: int, label: str) -> list[int]:
        """Token ids of which the positions first .. end are wanted."""
        own = self.read(ids, label, room=0)
        if not 0 <= first < len(own):
            raise PromptError(f"{label}: position {first} is not in a text of {len(own)} ids")
        return own

    def read_pair(self, prompt: Prompt, continuation: Prompt, label: str) -> tuple[list[int], int]:
        """The ids of both, and how many of them are the prompt's.

        Two texts are tokenised as one: the continuation's tokens are those after as many as the
        prompt has alone, which is the convention of lm-eval. Ids are never tokenised again.
        """
        ids = self.encode(prompt) if isinstance(prompt, str) else self.check(prompt, label)
        start = len(ids)
        if not isinstance(continuation, str):
            ids = ids + self.check(continuation, f"{label} (continuation)")
        elif isinstance(prompt, str):
            ids = self.encode(prompt + continuation)
        else:
            ids = ids + self._tokenizer.encode(continuation, add_special_tokens=False)
        if start == 0 or start >= len(ids):
            part = "prompt" if start == 0 else "continuation"
            raise PromptError(f"{label}: the {part} is empty, not one token; nothing to score")
        return self.read(ids, label, room=0), start

    def check(self, ids: Sequence[int], label: str) -> list[int]:
        """Token ids as a list, all of them in the vocabulary."""
        for place, token in enumerate(ids):
            whole = type(token) is int  # most are, and the general question takes longer
            whole = whole or (isinstance(token, Integral) and not isinstance(token, bool))
            if not whole or not 0 <= token < self._vocab_size:
                raise PromptError(
                    f"{label}: entry {place} is {token!r}, not a token id from 0 to "
                    f"{self._vocab_size - 1}"
                )
        return [int(token) for token in ids]


def context_length(config: ModelConfig, wanted: int | None) -> int:
    """Tokens a text may have: prompt and output together."""
    if wanted is not None and not 1 < wanted <= config.max_positions:
        raise ParameterError(
            f"max_model_len={wanted}: must be between 2 and the model's {config.max_positions}"
        )
    return wanted or config.max_positions
