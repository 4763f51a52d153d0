"""A prompt's name goes in; how a conversation becomes what the model reads, and how its answer
becomes clean, come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ParameterError
from ..prompt import UrialPrompt, in_urial_form, prompt_form

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Conversation:
    """`render` takes query, answer, …, query. `stop`: strings that end an answer."""

    render: Callable[[Sequence[str]], str | list[int]]
    clean: Callable[[str], str] = str.strip
    stop: tuple[str, ...] = ()


def conversation(
    spec: UrialPrompt | str, tokenizer: Tokenizer, *, several: bool = False
) -> Conversation:
    """Of a UrialPrompt, which is the engine's prefix; of "chat", the model's own template; of a
    name or a template that `prompt_form` knows, which have one turn, but for "zero-shot".

    `several`: conversations have several turns. ParameterError where the form has none.
    """
    if isinstance(spec, UrialPrompt):
        return Conversation(spec.render_chat, spec.clean, spec.stop)
    if spec == "chat":
        return Conversation(lambda turns: _chat(turns, tokenizer))
    ask, bare = prompt_form(spec, tokenizer), UrialPrompt("")
    if spec == "zero-shot":
        return Conversation(bare.render_chat, bare.clean, bare.stop)
    if several:
        raise ParameterError(
            f"--prompt {spec} has no form for a second turn; use a URIAL prompt, zero-shot or chat"
        )
    if in_urial_form(spec):
        return Conversation(lambda turns: ask(turns[0]), bare.clean, bare.stop)
    return Conversation(lambda turns: ask(turns[0]))


def _chat(turns: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """Token ids: a chat template writes its special tokens itself."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return tokenizer.encode(tokenizer.render_chat(messages), add_special_tokens=False)
