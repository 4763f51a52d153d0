"""A prefix tokenised once: its ids and those of what follows are always those of the whole text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from tests.tokenizer_cases import (
    CORPUS,
    NASTY,
    UNDERLINE,
    few,
    json_folder,
    mistral_model,
    model_folder,
    published_form,
)
from urial_engine.tokenizer import Tokenizer
from urial_engine.tokenizer_cut import GPT2, LLAMA3, TEKKEN, last_cut

TEXT = "The cat's hat, he'll say: it isn't the 1,234th time. What is in a name?\n\n# Query:\n```\n"
# Pieces that meet at a cut, or nearly: words, contractions, spaces in runs, marks, tokens.
PARTS = (
    *("a b", "he'll", "'ll", "'LL", " l", "l ", "x", " ", "  ", "\u00a0", "e\u0301", "\u0301", "É"),
    *("ǅ", "ʰ", "漢", "1 a", "12", "/", "\r\n", "</s>", "<s>", "<s> b", "\ud800", "▁a"),
)
NEAR = st.lists(st.sampled_from(PARTS), max_size=6).map("".join)
ANY = st.tuples(NEAR | NASTY, NEAR | NASTY).map("".join)
Made = tokenizers.Tokenizer


def trained(
    splits: Sequence[str], *, before: Sequence[Any] = (), use_regex: bool = False, **model: Any
) -> Made:
    """A byte-level tokenizer with some hundred merges, which finds words by these expressions."""
    made = Made(models.BPE(**model))
    steps = [pre_tokenizers.Split(Regex(split), "isolated") for split in splits]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    made.pre_tokenizer = pre_tokenizers.Sequence([*before, *steps, last])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([TEXT * 3, *CORPUS], trainer)
    made.add_special_tokens(["<s>", AddedToken("</s>", lstrip=True, rstrip=True)])
    return made


def metaspace() -> Made:
    """Llama 2's vocabulary in the newer form, without a normalizer."""
    made = published_form(mistral_model())
    made.normalizer = None  # type: ignore[assignment]
    made.pre_tokenizer = pre_tokenizers.Metaspace(UNDERLINE, prepend_scheme="first", split=False)
    return made


KINDS: dict[str, Callable[[], Made]] = {
    "gpt-2": lambda: trained([], use_regex=True),
    "smollm": lambda: trained([r"\p{N}", GPT2]),
    "digits": lambda: trained([], before=[pre_tokenizers.Digits()], use_regex=True),
    "default": lambda: trained([r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    "llama 3": lambda: trained([LLAMA3], ignore_merges=True),
    "tekken": lambda: trained([TEKKEN]),
    "llama 2": lambda: published_form(mistral_model()),
    "metaspace": metaspace,
}


@pytest.fixture(scope="module", params=KINDS)
def known(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    made = KINDS[request.param]()
    names = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    return Tokenizer.load(json_folder(tmp_path_factory.mktemp("t") / "m", made, **names))


def check(tokenizer: Tokenizer, prefix: str, *texts: str) -> None:
    encode = tokenizer.encoder_after(prefix)
    for text in texts:
        assert encode(text) == tokenizer.encode_prompt(prefix + text)


@few
@given(prefix=ANY, texts=st.lists(ANY, min_size=1, max_size=4))
def test_the_ids_are_those_of_the_whole(known: Tokenizer, prefix: str, texts: list[str]) -> None:
    check(known, prefix, *texts)
    check(known, TEXT + prefix, *texts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_kind_is_cut_at_its_last_place(kind: str) -> None:
    end, start = last_cut(KINDS[kind](), TEXT)
    assert TEXT[:end].endswith("What is in a")
    assert TEXT[start:].lstrip(" ") == "name?\n\n# Query:\n```\n"
    assert start - end == (kind == "llama 2")


@few
@given(prefix=ANY, text=ANY)
def test_the_real_tokenizer(real_model: Path, prefix: str, text: str) -> None:
    check(Tokenizer.load(real_model), TEXT + prefix, text)


def test_the_real_tokenizer_is_cut(real_model: Path) -> None:
    made = Made.from_file(str(real_model / "tokenizer.json"))
    assert last_cut(made, TEXT)[0] > 60


@few
@given(prefix=ANY, text=ANY)
def test_a_model_file_is_read_whole(
    tmp_path_factory: pytest.TempPathFactory, prefix: str, text: str
) -> None:
    tokenizer = Tokenizer.load(model_folder(tmp_path_factory.mktemp("t") / "m", mistral_model()))
    check(tokenizer, prefix, text)


def changed(kind: str, change: Callable[[Made], object]) -> Made:
    made = KINDS[kind]()
    change(made)
    return made


def put(part: str, value: object) -> Callable[[Made], object]:
    return lambda made: setattr(made, part, value)


def add(content: str, **flags: bool) -> Callable[[Made], object]:
    return lambda made: made.add_tokens([AddedToken(content, **flags)])


def vocabulary(*tokens: str, **model: Any) -> Callable[[Made], object]:
    """Another one, with these tokens."""
    ids = {token: i for i, token in enumerate(tokens)}
    merges = [(t[:-1], t[-1]) for t in tokens if len(t) == 2]
    return put("model", models.BPE(vocab=ids, merges=merges, **model))


WORDS = pre_tokenizers.Split(Regex(GPT2), "merged_with_next")
UNKNOWN: dict[str, tuple[str, Callable[[Made], object]]] = {
    "a normalizer": ("gpt-2", put("normalizer", normalizers.NFC())),
    "another normalizer": ("llama 2", put("normalizer", normalizers.Prepend(UNDERLINE))),
    "no words": ("gpt-2", put("pre_tokenizer", pre_tokenizers.ByteLevel(use_regex=False))),
    "other words": ("gpt-2", put("pre_tokenizer", pre_tokenizers.Whitespace())),
    "another use of them": ("gpt-2", put("pre_tokenizer", WORDS)),
    "both": ("llama 2", put("pre_tokenizer", pre_tokenizers.Metaspace())),
    "other spaces": ("metaspace", put("pre_tokenizer", pre_tokenizers.Metaspace("_"))),
    "a model without merges": ("gpt-2", put("model", models.WordLevel({"a": 0}, unk_token="a"))),
    "chance": ("gpt-2", put("model", models.BPE(vocab={}, merges=[], dropout=0.5))),
    "a token across": ("llama 2", vocabulary("a", UNDERLINE, f"a{UNDERLINE}")),
    "no token for a space": ("llama 2", vocabulary("a", "b", unk_token="a", fuse_unk=True)),
    "whole words": ("llama 2", vocabulary("a", UNDERLINE, ignore_merges=True)),
    "an end of its own": ("llama 2", vocabulary("a", UNDERLINE, end_of_word_suffix="$")),
    "an added space": ("gpt-2", add("of a")),
    "an added letter first": ("gpt-2", add("in>", single_word=True)),
    "an added letter last": ("gpt-2", add("<in", rstrip=True)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_read_whole(name: str) -> None:
    kind, change = UNKNOWN[name]
    assert last_cut(changed(kind, change), TEXT) == (0, 0)
    assert last_cut(KINDS[kind](), TEXT) != (0, 0)


def test_a_text_without_a_place_is_read_whole() -> None:
    assert last_cut(KINDS["gpt-2"](), "one 2 three. four\n\nfive") == (0, 0)


def test_a_cut_where_a_token_takes_the_space_would_be_wrong(tmp_path: Path) -> None:
    """So the last rule of UNKNOWN is needed; the tokenizer of its kind keeps to the whole text."""
    made = changed("gpt-2", add("<in", rstrip=True))
    apart = made.encode("What is <in").ids + made.encode(" a name").ids
    assert made.encode("What is <in a name").ids != apart
    check(Tokenizer.load(json_folder(tmp_path / "m", made)), "What is <in a", " name", "")
