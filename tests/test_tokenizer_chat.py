"""Chat templates, rendered as transformers renders them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.tokenizer_cases import byte_level, json_folder
from urial_engine.errors import TokenizerError
from urial_engine.tokenizer import Tokenizer

CHAT = [
    {"role": "user", "content": 'Hi <b> & "you" é\n '},
    {"role": "assistant", "content": " Hello! "},
    {"role": "user", "content": "漢字?"},
]
LOOP = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
TEMPLATES = {
    "plain": LOOP,
    "blocks": """
    {%- for m in messages %}
        {% if m.role == 'user' %}
    [INST] {{ m.content | trim }} [/INST]
        {% else %}
            {{- m.content }}{{ eos_token }}
        {% endif %}
    {% endfor %}
    {% if add_generation_prompt %}ASSISTANT:{% endif %}
""",
    "names": "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}" + LOOP,
    "tojson": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ '</s>é' | tojson }}",
    "controls": "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}"
    "{{ m.content }}{% if loop.last %}{% break %}{% endif %}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}\n{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}",
    "tools": "{% if tools is not none %}tools{% endif %}{% if documents %}documents{% endif %}"
    "{{ tools is defined }}" + LOOP,
    "date": "{{ strftime_now('%Y') }}" + LOOP,
    "refuses": "{{ raise_exception('roles must alternate') }}",
}


def folder(tmp_path: Path, **config: Any) -> Path:
    eos = {"__type": "AddedToken", "content": "</s>", "special": True}
    names = {"bos_token": "<s>", "eos_token": eos, "unk_token": None}
    return json_folder(tmp_path / "m", byte_level(), **names, **config)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [False, True])
def test_as_transformers(tmp_path: Path, name: str, prompt: bool) -> None:
    home = folder(tmp_path, chat_template=TEMPLATES[name])
    tokenizer, theirs = Tokenizer.load(home), AutoTokenizer.from_pretrained(str(home))
    if name == "refuses":
        with pytest.raises(TokenizerError, match="roles must alternate"):
            tokenizer.render_chat(CHAT)
        return
    options: dict[str, Any] = {"add_generation_prompt": prompt}
    text = tokenizer.render_chat(CHAT, **options)
    assert text == theirs.apply_chat_template(CHAT, tokenize=False, **options)
    ids = theirs.apply_chat_template(CHAT, return_dict=False, **options)
    assert tokenizer.encode(text, add_special_tokens=False) == ids


def test_the_real_template(real_model: Path) -> None:
    tokenizer = Tokenizer.load(real_model)
    theirs = AutoTokenizer.from_pretrained(str(real_model))
    text = tokenizer.render_chat(CHAT)
    assert text == theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>assistant\n")


def test_where_a_template_is_found(tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "rag"}, {"name": "default", "template": "listed"}]
    home = folder(tmp_path, chat_template=named)
    (home / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert Tokenizer.load(home).chat_template == "listed"
    (home / "chat_template.jinja").write_text("jinja")
    assert Tokenizer.load(home).chat_template == "jinja"
    (home / "chat_template.jinja").unlink()
    (home / "tokenizer_config.json").unlink()
    assert Tokenizer.load(home).chat_template == "json"


@pytest.mark.parametrize("template", [None, [{"name": "rag", "template": "x"}]])
def test_no_template(tmp_path: Path, template: Any) -> None:
    tokenizer = Tokenizer.load(folder(tmp_path, chat_template=template))
    assert tokenizer.chat_template is None
    with pytest.raises(TokenizerError, match="has no default chat template"):
        tokenizer.render_chat(CHAT)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}",
        "{{ messages[0].content.missing.deeper }}",
        "{{ messages[0].__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{{ messages[0] + 1 }}",
        "{% generation %}",
    ],
)
def test_a_template_that_fails_or_misbehaves(tmp_path: Path, template: str) -> None:
    tokenizer = Tokenizer.load(folder(tmp_path, chat_template=template))
    with pytest.raises(TokenizerError, match=r"the chat template fails on roles \['user'"):
        tokenizer.render_chat(CHAT)


def test_an_empty_chat(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="at least one message"):
        Tokenizer.load(folder(tmp_path, chat_template=LOOP)).render_chat([])


def test_a_template_file_that_is_no_text(tmp_path: Path) -> None:
    home = folder(tmp_path)
    (home / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja cannot be read"):
        Tokenizer.load(home)
