"""A chat of the harness goes in; the text that a model reads comes out."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lm_eval.utils import warning_once

from ...errors import PromptError, TokenizerError
from ...prompt import NAMED, UrialPrompt
from ...tokenizer import Tokenizer

LOG = logging.getLogger(__name__)
OPENS = NAMED["zero-shot"].split("{query}")[1]  # what stands between a query and its answer
Message = dict[str, str]  # role, content


def by_template(tokenizer: Tokenizer, chat: Sequence[Message], *, answer_next: bool) -> str:
    """By the model's own template; without `answer_next` the last message is to be continued.

    A template that refuses a system message gets the chat without it, which is what `hf` does.
    """
    try:
        text = tokenizer.render_chat(chat, add_generation_prompt=answer_next)
    except TokenizerError:
        others = [message for message in chat if message["role"] != "system"]
        if len(others) == len(chat) or tokenizer.chat_template is None:
            raise
        warning_once(LOG, "the chat template refuses system messages: they are left out")
        return by_template(tokenizer, others, answer_next=answer_next)
    if answer_next:
        return text
    last = chat[-1]["content"]
    if (start := text.rfind(last.strip())) < 0:  # a template may strip what it is given
        raise PromptError(f"the chat template does not write the message to be continued: {last!r}")
    kept = last.lstrip() if text.startswith(last.lstrip(), start) else last.strip()
    return text[: start + len(kept)]


def by_prompt(prompt: UrialPrompt, chat: Sequence[Message], *, answer_next: bool) -> str:
    """In URIAL's form, to stand behind its prefix; arguments as `by_template`.

    It knows no system message: its text opens the first query, an empty line behind it.
    """
    first = chat[0]["role"] == "system" and len(chat) > 1
    turns = [message["content"] for message in chat[first:]]
    if first:
        turns[0] = f"{chat[0]['content']}\n\n{turns[0]}"
    roles = [message["role"] for message in chat[first:]]
    if roles != [("user", "assistant")[i % 2] for i in range(len(turns))]:
        raise PromptError(f"URIAL's form has a user and an assistant in turns, not {roles}")
    return prompt.render_chat(turns) if answer_next else prompt.render_chat(turns[:-1]) + turns[-1]


def clean(prompt: UrialPrompt, context: str, answer: str) -> str:
    """The answer alone, where `context` is a chat in URIAL's form; else as it is."""
    _, opens, begun = context.rpartition(OPENS)
    return prompt.clean(begun + answer).removeprefix(begun) if opens else answer
