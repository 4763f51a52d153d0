"""`tokenizer.model`: the legacy rules of Llama and Mistral, against transformers and sentencepiece.

transformers 5 has no tokenizer left with these rules, so its legacy ones' ids are recorded, and the
files that Llama 2 and Mistral were published with are rebuilt for it to load.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.tokenizer_cases import (
    CORPUS,
    NASTY,
    RECORDED,
    TEXT,
    UNDERLINE,
    few,
    json_folder,
    mistral_model,
    model_folder,
    published_form,
    train_llama,
)
from urial_engine.tokenizer import Tokenizer

FAMILIES = ("llama", "mistral")


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda c: c["model"][-2:])
def test_recorded_ids(tmp_path: Path, case: dict[str, Any]) -> None:
    tokenizer = Tokenizer.load(
        model_folder(tmp_path / "m", mistral_model(case["model"]), **case["config"])
    )
    for text, ids in zip(CORPUS, case["ids"], strict=True):
        # transformers doubles the BOS of a text that brings its own.
        doubled = tokenizer.add_bos and ids[:2] == [1, 1]
        assert tokenizer.encode(text) == ids[doubled:], text


class Pair:
    """One vocabulary twice: the model file read by us, the published form by transformers."""

    def __init__(self, home: Path, file: Path) -> None:
        self.file = file
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
        self.ours = Tokenizer.load(model_folder(home / "model", file))
        published = json_folder(home / "json", published_form(file), bos_token="<s>")
        self.theirs = AutoTokenizer.from_pretrained(str(published))
        self.published = Tokenizer.load(published)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    home = tmp_path_factory.mktemp(request.param)
    texts = [Path(__file__).read_text(), *filter(None, map(str.strip, CORPUS))]
    return Pair(home, mistral_model() if request.param == "mistral" else train_llama(home, texts))


@pytest.mark.parametrize("text", CORPUS)
def test_corpus(pair: Pair, text: str) -> None:
    ids = pair.ours.encode(text, add_special_tokens=False)
    assert ids == pair.theirs.encode(text, add_special_tokens=False)
    assert ids == pair.published.encode(text, add_special_tokens=False)
    for skip in (False, True):
        there = pair.theirs.decode(ids, skip_special_tokens=skip)
        assert pair.ours.decode(ids, skip_special_tokens=skip) == there


@few
@given(text=NASTY)
def test_any_text(pair: Pair, text: str) -> None:
    there = pair.theirs.encode(text, add_special_tokens=False)
    assert pair.ours.encode(text) == [1] * (not text.startswith("<s>")) + there


@few
@given(text=TEXT)
def test_round_trip(pair: Pair, text: str) -> None:
    """The one loss is in the vocabulary: sentencepiece writes a space as U+2581."""
    assert pair.ours.decode(pair.ours.encode(text)) == text.replace(UNDERLINE, " ")


@few
@given(data=st.binary(max_size=60))
def test_any_bytes(pair: Pair, data: bytes) -> None:
    for text in (data.decode("latin-1"), data.decode("utf-8", "surrogateescape")):
        readable = "".join("\ufffd" if "\ud800" <= c < "\ue000" else c for c in text)
        assert pair.ours.decode(pair.ours.encode(text)) == readable
        assert pair.published.decode(pair.published.encode(text)) == readable


@few
@given(data=st.data())
def test_any_ids(pair: Pair, data: st.DataObject) -> None:
    size = pair.ours.vocab_size
    either = st.integers(0, 300) | st.integers(-2, size + 2)  # the bytes are among the first
    ids = data.draw(st.lists(either, max_size=30))
    for tokenizer in (pair.ours, pair.published):
        stream = tokenizer.stream()
        pieces = [stream.push(i) for i in ids] + [stream.finish()]
        assert "".join(pieces) == tokenizer.decode(ids)
    assert pair.ours.decode(ids) == pair.published.decode(ids)


@few
@given(data=st.binary(max_size=12))
def test_broken_bytes_decode_as_sentencepiece_does(pair: Pair, data: bytes) -> None:
    ids = [pair.pieces.piece_to_id(f"<0x{byte:02X}>") for byte in data]
    assert pair.ours.decode(ids) == pair.pieces.decode(ids).removeprefix(" " * (data[:1] == b" "))


def test_the_ids_of_mistral_s_own_code(tmp_path: Path) -> None:
    own = pytest.importorskip("mistral_common.tokens.tokenizers.sentencepiece")
    file = mistral_model()
    theirs = own.SentencePieceTokenizer(str(file))
    ours = Tokenizer.load(model_folder(tmp_path / "m", file))
    for text in (t for t in CORPUS if "s>" not in t and "<unk>" not in t):
        assert ours.encode(text) == theirs.encode(text, bos=True, eos=False)


@pytest.mark.parametrize(("legacy", "prefix"), [(True, True), (False, True), (True, False)])
def test_prefix_space(tmp_path: Path, legacy: bool, prefix: bool) -> None:
    config = {"legacy": legacy, "add_prefix_space": prefix}
    tokenizer = Tokenizer.load(model_folder(tmp_path / "m", mistral_model(), **config))
    shown = [tokenizer.token_text(i) for i in tokenizer.encode("a</s>a", add_special_tokens=False)]
    first, later = " " * prefix, " " * (prefix and legacy)
    assert shown == [f"{first}a", "</s>", f"{later}a"]
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"


def test_an_added_token_takes_the_space_around_it(tmp_path: Path) -> None:
    flags = {"lstrip": True, "rstrip": True, "special": True}
    word = {"content": "<w>", "single_word": True}
    added = {"32000": {"content": "<eat>", **flags}, "32001": word, "32002": {"content": "<eat>>"}}
    folder = model_folder(tmp_path / "m", mistral_model(), added_tokens_decoder=added, legacy=False)
    tokenizer = Tokenizer.load(folder)
    shown = [tokenizer.token_text(i) for i in tokenizer.encode("b  <eat> \n b<eat>><w>. b<w>b")]
    assert shown[:6] == ["<s>", " b", "<eat>", "b", "<eat>>", "<w>"]
    assert "".join(shown[6:]) == ". b<w>b"
    assert tokenizer.encode("<w>")[-1] == 32001
    assert "<w>" not in shown[6:]


def test_added_tokens_in_the_older_file(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", mistral_model())
    (folder / "added_tokens.json").write_text('{"<|tag|>": 32000, "<pad>": 32001}')
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}')
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("x<|tag|><pad>", add_special_tokens=False)
    assert ids[1:] == [32000, 32001]
    assert tokenizer.decode(ids) == "x<|tag|>"
    assert tokenizer.vocab_size == 32002


def test_control_pieces_are_never_read_from_text(tmp_path: Path) -> None:
    file = mistral_model("mistral_instruct_tokenizer_240323.model.v3")
    tokenizer = Tokenizer.load(model_folder(tmp_path / "m", file))
    assert 3 not in tokenizer.encode("[INST]")
    assert tokenizer.token_text(3) == "[INST]"
    assert tokenizer.decode([3, *tokenizer.encode("x")]) == "x"
