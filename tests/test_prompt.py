"""URIAL's bytes in, clean answers out, and our own prefix."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tokenizer_cases import byte_level, json_folder, mistral_model, model_folder
from urial_engine.errors import ParameterError, PromptError
from urial_engine.prompt import UrialPrompt, prompt_form
from urial_engine.prompt_stream import AnswerStream
from urial_engine.tokenizer import Tokenizer

PUBLISHED = ("inst_1k", "inst_1k_v4", "inst_1k_v4.help", "inst_1shot", "inst_2k", "inst_only")
CODE = "Sure:\n\n```python\nprint(1)\n```\n\nThat prints 1."


@pytest.fixture
def prompt() -> UrialPrompt:
    return UrialPrompt.default()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_prefixes_keep_every_byte(shared_data: Path, name: str) -> None:
    file = shared_data / "urial_prompts" / f"{name}.txt"
    prompt = UrialPrompt.load(file)
    assert prompt.text.encode() == file.read_bytes()
    asked = file.read_bytes() + b"\n# Query:\n```\nWhy?\n```\n\n# Answer:\n```\n"
    assert (prompt.text + prompt.render("Why?")).encode() == asked


def test_a_query_is_rendered_as_it_is(prompt: UrialPrompt) -> None:
    query = " {x}\n```\n# Query\n "
    assert prompt.render(query) == f"\n# Query:\n```\n{query}\n```\n\n# Answer:\n```\n"


def test_a_chat(prompt: UrialPrompt) -> None:
    first = "\n# Query:\n```\na\n```\n\n# Answer:\n```\nb\n```\n"
    second = "\n# Query:\n```\nc\n```\n\n# Answer:\n```\n"
    assert prompt.render_chat(["a", "b", "c"]) == first + second
    # The second turn continues the first, so what was cached of it still serves.
    assert prompt.render_chat(["a", "b", "c"]).startswith(prompt.render("a") + "b\n```\n")


@pytest.mark.parametrize("turns", [[], ["a", "b"], "abc"])
def test_a_chat_that_does_not_end_with_a_query(prompt: UrialPrompt, turns: list[str]) -> None:
    with pytest.raises(PromptError, match=r"query, answer, …, query \(an odd number\)"):
        prompt.render_chat(turns)


@pytest.mark.parametrize(
    ("answer", "cleaned"),
    [
        ("Hello.", "Hello."),
        ("\n \nHello.  \n", "Hello."),
        ("  indented\n", "  indented"),
        ("Hello.\n```", "Hello."),
        ("Hello.\n```\n\n", "Hello."),
        ("Hello.\n```\n\n# Query:\n```\nNext?\n```\n", "Hello."),
        ("Hello.\n```\n# Query:\n```\nNext?\n```\n", "Hello."),
        ("Hello.\n``` \n\nMore\n```\n", "Hello."),
        ("Hello.\nmore text after an unclosed\n```\nfence", "Hello.\nmore text after an unclosed"),
        ("Hello.\n\n# Query:\nNext?", "Hello."),
        ("Hello.\n# User: Next?", "Hello."),
        ("The heading # Query stays.", "The heading # Query stays."),
        ("```", ""),
        ("", ""),
        ("Use ``` in the text, and\n```x``` too.\n```\n", "Use ``` in the text, and\n```x``` too."),
        (CODE, CODE),
        (f"{CODE}\n```\n\n", CODE),
        (f"{CODE}\n\n{CODE}\n```\n\nrubbish", f"{CODE}\n\n{CODE}"),
        ("```js\nx\n```", "```js\nx\n```"),
        ("```js\nx\n```\n```\n", "```js\nx\n```"),
        ("```js\n# Query the page\nx\n```\n```\n", "```js\n# Query the page\nx\n```"),
        ("```js\nx cut short", "```js\nx cut short"),
        ("Run this:\n```\nls\n```\nDone.\n```\n\n", "Run this:\n```\nls\n```\nDone."),
        ("Run this:\n```\nls\n```\n", "Run this:\n```\nls\n```"),
        (
            "  ```\nquoted, not at the start of a line\n```\n\n",
            "  ```\nquoted, not at the start of a line",
        ),
    ],
)
def test_clean(prompt: UrialPrompt, answer: str, cleaned: str) -> None:
    assert prompt.clean(answer) == cleaned


@given(st.lists(st.sampled_from(["```", "```py", "\n", "x", "# Query", " ", "\r"]), max_size=20))
def test_cleaning_only_cuts(parts: list[str]) -> None:
    prompt = UrialPrompt.default()
    answer = "".join(parts)
    cleaned = prompt.clean(answer)
    assert cleaned in answer
    assert cleaned == cleaned.rstrip()


MARKS = [
    "```",
    "``",
    "`",
    "\n",
    "\n\n",
    "```py",
    "# Query",
    "# Qu",
    "# User:",
    " ",
    "a",
    "b c",
    "\t",
]


@given(st.lists(st.sampled_from(MARKS), max_size=14))
def test_an_answer_in_a_stream_is_the_clean_one(parts: list[str]) -> None:
    prompt, told = UrialPrompt("", ("# Query", "# User")), ""
    stream = AnswerStream(prompt)
    for count, part in enumerate(parts, start=1):
        told += stream.push(part)
        if stream.ended:
            for more in ("", *(f"{a}{b}{c}" for a in MARKS for b in MARKS for c in MARKS[:4])):
                assert prompt.clean("".join(parts[:count]) + more) == told
            break
    else:
        told += stream.finish()
        assert told == prompt.clean("".join(parts))


def test_other_stop_strings() -> None:
    prompt = UrialPrompt("prefix", stop=("[Q]",))
    assert prompt.clean("a\n# Query\n[Q] b") == "a\n# Query"


class TestDefault:
    def test_form(self, prompt: UrialPrompt) -> None:
        """It is three rendered queries with answers, each of which cleans to itself."""
        assert prompt.stop == ("# Query", "# User")
        assert prompt.text.endswith("\n```\n")
        shots = re.findall(
            r"\n# Query:\n```\n(.*?)\n```\n\n# Answer:\n```\n(.*?\n```\n)", prompt.text, re.S
        )
        assert len(shots) == 3
        turns = [prompt.render(query) + answer for query, answer in shots]
        assert prompt.text.endswith("".join(turns))
        for _, answer in shots:
            assert prompt.clean(answer) + "\n```\n" == answer

    def test_size(self, tmp_path: Path, prompt: UrialPrompt) -> None:
        tokenizer = Tokenizer.load(model_folder(tmp_path / "m", mistral_model()))
        assert 900 < len(tokenizer.encode(prompt.text)) < 1100

    def test_it_is_our_own(self, shared_data: Path, prompt: UrialPrompt) -> None:
        def sentences(text: str) -> set[str]:
            parts = re.split(r"(?<=[.!?:])\s+|\n", text)
            return {p.strip(" `").lower() for p in parts if len(p.split()) > 2}

        for name in PUBLISHED:
            theirs = (shared_data / "urial_prompts" / f"{name}.txt").read_text()
            assert not sentences(prompt.text) & sentences(theirs)


class TestForms:
    @pytest.fixture
    def tokenizer(self, tmp_path: Path) -> Tokenizer:
        template = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}"
        names = {"bos_token": "<s>", "add_bos_token": True, "chat_template": template}
        return Tokenizer.load(json_folder(tmp_path / "m", byte_level(), **names))

    def test_chat(self, tokenizer: Tokenizer) -> None:
        ids = prompt_form("chat", tokenizer)("Why?")
        assert ids == tokenizer.encode("<s>user:Why?", add_special_tokens=False)
        assert ids.count(0) == 1

    def test_template(self, tokenizer: Tokenizer) -> None:
        form = prompt_form("{a} {query} {query}", tokenizer)
        assert form("{query}!") == "{a} {query}! {query}!"

    def test_urial(self, tokenizer: Tokenizer, prompt: UrialPrompt) -> None:
        whole = prompt_form(prompt, tokenizer)("Why?")
        assert whole == prompt.text + prompt.render("Why?")
        assert prompt_form(prompt, tokenizer, prefix="another")("Why?") == whole
        assert prompt_form(prompt, tokenizer, prefix=prompt.text)("Why?") == prompt.render("Why?")

    def test_function(self, tokenizer: Tokenizer) -> None:
        assert prompt_form(str.upper, tokenizer)("why?") == "WHY?"

    @pytest.mark.parametrize("spec", ["no place for it", "", 3])
    def test_anything_else(self, tokenizer: Tokenizer, spec: str) -> None:
        with pytest.raises(ParameterError, match=re.escape(f"not {spec!r}")):
            prompt_form(spec, tokenizer)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xff"])
def test_a_prefix_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "prefix.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PromptError, match=r"prefix\.txt cannot be read as text"):
        UrialPrompt.load(file)
