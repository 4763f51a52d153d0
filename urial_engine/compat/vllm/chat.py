"""Messages in OpenAI's form go in; the text of a chat template comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ParameterError, PromptError
from ...tokenizer import Tokenizer

Message = Mapping[str, Any]


def chat_text(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    names: Mapping[str, str],
    *,
    template: str | None = None,
    add_generation_prompt: bool,
    continue_final_message: bool,
    more: Mapping[str, Any] | None = None,
) -> str:
    """`template`: jinja2 source instead of the model's own; `names`: its special tokens by role;
    `more`: what else the template may ask for, by name, such as `enable_thinking`.

    `continue_final_message`: the text ends with the last message, which the model then goes on
    with. TokenizerError where the template fails or there is none.
    """
    if add_generation_prompt and continue_final_message:
        raise ParameterError(
            "add_generation_prompt and continue_final_message: a reply either begins or goes on"
        )
    plain = [{**message, "content": _content(message)} for message in messages]
    template = template or tokenizer.chat_template
    if template is None:
        return tokenizer.render_chat(plain)  # which says what to do about it

    from ...tokenizer_chat import render

    known = {**names, **(more or {})}
    text = render(template, plain, known, add_generation_prompt=add_generation_prompt)
    return _cut_behind(text, plain[-1]["content"]) if continue_final_message else text


def _content(message: Message) -> str:
    """Text, or a list of parts that are text, which vLLM joins by line feeds."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    texts = [part if isinstance(part, str) else part.get("text") for part in content]
    if not all(isinstance(text, str) for text in texts):
        kinds = [part.get("type") for part in content if not isinstance(part, str)]
        raise PromptError(f"a message has parts of type {kinds}: this engine reads text")
    return "\n".join(texts)


def _cut_behind(text: str, final: str) -> str:
    """Up to the end of the last message, whose white space a template may have trimmed."""
    for form in (final, final.strip()):
        place = text.rfind(form)
        if form and place >= 0:
            return text[: place + len(form)]
    raise ParameterError(f"continue_final_message: the chat template does not show {final!r}")
