"""Chats and the tokenizer of the LLM that vLLM's callers open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests import test_compat_vllm
from tests.test_compat_vllm import OpenLLM, generate
from urial_engine.compat.vllm import SamplingParams
from urial_engine.errors import ParameterError, PromptError, TokenizerError

open_llm = test_compat_vllm.open_llm  # the fixture


def test_chat_is_the_models_template(open_llm: OpenLLM) -> None:
    llm, params = open_llm(), SamplingParams(temperature=0, max_tokens=6)
    talk = [{"role": "user", "content": "hi"}]
    text = llm.engine.tokenizer.render_chat(talk)
    ids = llm.engine.tokenizer.encode(text, add_special_tokens=False)
    (truth,) = generate(llm, [ids], params)
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    found = llm.chat([talk, parts], params, use_tqdm=False)
    assert [output.prompt_token_ids for output in found] == [ids, ids]
    assert [output.outputs for output in found] == [truth.outputs] * 2
    assert found[0].prompt == text
    begun = [*talk, {"role": "assistant", "content": "Well, "}]
    how: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    (output,) = llm.chat(begun, params, use_tqdm=False, **how)
    assert output.prompt == "<s><user>\nhi\n<assistant>\nWell, "
    own = "{{ bos_token }}{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
    assert llm.chat(begun, params, False, chat_template=own)[0].prompt == "<s>[hi][Well,]"
    (output,) = llm.chat(begun, params, False, chat_template=own, **how)
    assert output.prompt == "<s>[hi][Well,"
    with pytest.raises(ParameterError, match="begins or goes on"):
        llm.chat(begun, params, continue_final_message=True)
    with pytest.raises(ParameterError, match="does not show 'Well, '"):
        llm.chat(begun, params, chat_template="x", **how)
    how = {"chat_template_content_format": "string", "chat_template_kwargs": {}, "tools": None}
    assert llm.chat(talk, params, use_tqdm=False, **how)[0].prompt == text
    how = {"chat_template": own + "{{ thinking }}", "chat_template_kwargs": {"thinking": 7}}
    assert llm.chat(talk, params, False, **how)[0].prompt == "<s>[hi]7"
    with pytest.raises(ParameterError, match="tools="):
        llm.chat(talk, params, tools=[{}])
    with pytest.raises(PromptError, match="image_url"):
        llm.chat([{"role": "user", "content": [{"type": "image_url"}]}], params)
    with pytest.raises(TokenizerError, match="at least one message"):
        llm.chat([], params)


def test_the_tokenizer_has_the_names_of_transformers(
    open_llm: OpenLLM, real_model: Path, tmp_path: Path
) -> None:
    llm = open_llm(model=real_model, kv_cache_memory_bytes=1 << 26)
    theirs = AutoTokenizer.from_pretrained(real_model)
    tokenizer = llm.get_tokenizer()
    text, talk = "Größe <|im_end|> ok", [{"role": "user", "content": "hi"}]
    ids = theirs.encode(text)
    assert (
        tokenizer.encode(text) == tokenizer(text).input_ids == tokenizer(text)["input_ids"] == ids
    )
    assert tokenizer([text, "a"]).input_ids == theirs([text, "a"]).input_ids
    assert tokenizer("a", add_special_tokens=False) == {"input_ids": theirs.encode("a")}
    assert tokenizer.decode(ids) == theirs.decode(ids) == text
    assert tokenizer.decode(ids, True) == theirs.decode(ids, True)
    assert tokenizer.decode(ids[0]) == theirs.decode(ids[0])
    assert tokenizer.batch_decode([ids], True) == theirs.batch_decode([ids], True)
    assert tokenizer.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    for token in ("<|im_end|>", "Ġthe", "no such token", ["<|im_end|>", "a"]):
        assert tokenizer.convert_tokens_to_ids(token) == theirs.convert_tokens_to_ids(token)
    assert tokenizer.convert_ids_to_tokens(10**6) is None
    roles = ["bos_token", "eos_token", "unk_token", "pad_token"]
    names = [*roles, *(f"{role}_id" for role in roles), "all_special_tokens", "all_special_ids"]
    for name in (*names, "chat_template", "model_max_length"):
        assert getattr(tokenizer, name) == getattr(theirs, name), name
    assert tokenizer.tokenize(text) == theirs.tokenize(text)
    for one in (tokenizer, theirs):
        one.pad_token = "<file_sep>"
    assert tokenizer.pad_token_id == theirs.pad_token_id
    assert tokenizer.all_special_ids == theirs.all_special_ids
    tokenizer.pad_token_id = tokenizer.eos_token_id
    assert tokenizer.pad_token == "<|im_end|>"
    assert len(tokenizer) == len(theirs) and tokenizer.get_vocab() == theirs.get_vocab()
    for how in ({}, {"add_generation_prompt": True}):
        wanted = theirs.apply_chat_template(talk, tokenize=False, **how)
        assert tokenizer.apply_chat_template(talk, tokenize=False, **how) == wanted
        own = tokenizer.apply_chat_template(talk, **how)
        assert own == theirs.encode(wanted, add_special_tokens=False)
        assert tokenizer.apply_chat_template(talk, return_dict=True, **how).input_ids == own
        both = [talk, [{"role": "user", "content": "And?"}]]
        wanted = theirs.apply_chat_template(both, tokenize=False, **how)
        assert tokenizer.apply_chat_template(both, tokenize=False, **how) == wanted
        assert tokenizer.apply_chat_template(both, **how) == [theirs.encode(t) for t in wanted]
    talk = [*talk, {"role": "assistant", "content": "Well"}]
    how = {"continue_final_message": True, "tokenize": False}
    assert tokenizer.apply_chat_template(talk, **how) == theirs.apply_chat_template(talk, **how)
    with pytest.raises(AttributeError, match=r"no padding_side; there are .*encode"):
        tokenizer.padding_side  # noqa: B018


def test_keywords_of_transformers(open_llm: OpenLLM, real_model: Path) -> None:
    """What a template asks for is handed to it; what nobody does here is refused by name."""
    tokenizer = open_llm(model=real_model, kv_cache_memory_bytes=1 << 26).get_tokenizer()
    theirs = AutoTokenizer.from_pretrained(real_model)
    ids, talk = theirs.encode("Größe"), [{"role": "user", "content": "hi"}]
    thinks = {"chat_template": "{{ enable_thinking }}", "tokenize": False, "enable_thinking": True}
    same = tokenizer.apply_chat_template(talk, **thinks, padding=False, return_tensors=None)
    assert same == theirs.apply_chat_template(talk, **thinks) == "True"
    assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    for refused, words in (
        (lambda: tokenizer.apply_chat_template(talk, return_tensors="pt"), "return_tensors='pt'"),
        (lambda: tokenizer("a", truncation=True), "truncation=True"),
        (lambda: tokenizer.encode("a", max_length=2), "max_length=2"),
        (lambda: tokenizer.batch_decode([ids], clean_up_tokenization_spaces=True), "clean_up"),
        (lambda: tokenizer("a", pading=True), "pading=True: no argument"),
    ):
        with pytest.raises(ParameterError, match=words):
            refused()
