"""What vLLM's callers pass for prompts goes in; a text or token ids of each come out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypedDict

from ...engine_inputs import as_list
from ...errors import PromptError


class TextPrompt(TypedDict):
    prompt: str


class TokensPrompt(TypedDict):
    prompt_token_ids: list[int]


PromptType = str | list[int] | TextPrompt | TokensPrompt


class Given(NamedTuple):
    """A text to be tokenised, or token ids with the text that they stand for, if that is known."""

    text: str | None
    ids: list[int] | None


def given_prompts(prompts: Any, prompt_token_ids: Any = None) -> list[Given]:
    """`prompts`: a text, token ids, a dict, or a list of them. `prompt_token_ids` is the older way
    to give ids: of one prompt or of several, each beside its text where `prompts` has one.

    PromptError where that is not what they are.
    """
    if prompt_token_ids is not None:
        ids = as_list(prompt_token_ids)
        texts = [None] * len(ids) if prompts is None else as_list(prompts)
        if len(texts) != len(ids):
            raise PromptError(f"{len(texts)} prompts and prompt_token_ids for {len(ids)}")
        prompts = [
            {"prompt": text, "prompt_token_ids": own} for text, own in zip(texts, ids, strict=True)
        ]
    if prompts is None:
        raise PromptError("neither prompts nor prompt_token_ids are given")
    items = [prompts] if isinstance(prompts, Mapping) else as_list(prompts)
    return [_given(item, f"prompts[{i}]") for i, item in enumerate(items)]


def _given(item: Any, label: str) -> Given:
    if isinstance(item, str):
        return Given(item, None)
    if not isinstance(item, Mapping):
        item = {"prompt_token_ids": item}
    asked = {key: value for key, value in item.items() if value is not None}
    text, ids = asked.pop("prompt", None), asked.pop("prompt_token_ids", None)
    if asked:
        raise PromptError(f"{label} has {', '.join(asked)}: there are prompt and prompt_token_ids")
    if ids is None and not isinstance(text, str):
        raise PromptError(f"{label} is {item!r}: it holds neither a text nor token ids")
    if ids is not None and (isinstance(ids, str) or not isinstance(ids, Iterable)):
        raise PromptError(f"{label} is {ids!r}: a prompt is a text, a list of token ids or a dict")
    return Given(text, None if ids is None else list(ids))
