"""A chat template goes in with messages; the text that the model was trained to read comes out.

Templates come from strangers, so they run in jinja2's sandbox. What they may expect is what
transformers gives them: trimmed blocks, loop controls, `tojson` that leaves text as it is,
`raise_exception`, `strftime_now`, a `{% generation %}` block, and the names of the special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import TokenizerError


class GenerationTag(Extension):
    """`{% generation %} … {% endgeneration %}` marks what an assistant wrote, and renders it."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    names: Mapping[str, str],
    *,
    add_generation_prompt: bool,
) -> str:
    """The messages as one text. `names` are the special tokens by role, as `bos_token`.

    Raises `TokenizerError` where the template is broken or refuses the messages.
    """
    if not messages:
        raise TokenizerError("a chat needs at least one message")
    try:
        return _compile(template).render(
            messages=[dict(m) for m in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **names,
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        roles = [m.get("role") for m in messages]
        raise TokenizerError(f"the chat template fails on roles {roles}: {error}") from error


def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    return environment.from_string(template)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: jinja2's own filter would escape it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> str:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
