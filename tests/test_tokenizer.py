"""`tokenizer.json`, one BOS, the files beside it, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoTokenizer

from tests.tokenizer_cases import (
    CORPUS,
    NASTY,
    byte_level,
    few,
    json_folder,
    mistral_model,
    model_folder,
    published_form,
)
from urial_engine.errors import TokenizerError
from urial_engine.tokenizer import Tokenizer
from urial_engine.tokenizer_stream import ALPHABET

SPECIAL = ["<|im_start|>user\nhi<|im_end|>", "<|im_end|>", " <|endoftext|> x", "<|im_start|"]


def with_bos(text: str = "<s> $A", name: str = "<s>") -> tokenizers.Tokenizer:
    made = byte_level()
    made.post_processor = processors.TemplateProcessing(
        single=text, special_tokens=[(name, made.token_to_id(name)), ("</s>", 1)]
    )
    return made


@dataclass(frozen=True)
class Real:
    """SmolLM2's tokenizer.json: 49,152 byte-level tokens, no BOS, and a few bytes unknown to it."""

    ours: Tokenizer
    theirs: Any
    bytes: frozenset[int]

    def round_trip(self, text: str) -> None:
        ids = self.ours.encode(text)
        back = self.ours.decode(ids, skip_special_tokens=False)
        assert ids == self.theirs.encode(text)
        assert back == self.theirs.decode(ids, skip_special_tokens=False)
        assert back == text or not self.bytes.issuperset(text.encode())


@pytest.fixture(scope="module")
def real(real_model: Path) -> Real:
    theirs = AutoTokenizer.from_pretrained(str(real_model))
    known = {byte for letter, byte in ALPHABET.items() if letter in theirs.get_vocab()}
    assert len(known) > 230
    return Real(Tokenizer.load(real_model), theirs, frozenset(known))


def test_attributes_of_the_real_model(real: Real) -> None:
    assert (real.ours.vocab_size, real.ours.add_bos) == (49152, False)
    assert real.ours.bos_token_id == real.theirs.bos_token_id
    assert real.ours.eos_token_id == real.theirs.eos_token_id
    assert real.ours.chat_template == real.theirs.chat_template


@pytest.mark.parametrize("text", CORPUS + SPECIAL)
def test_corpus(real: Real, text: str) -> None:
    real.round_trip(text)
    ids = real.ours.encode(text)
    assert real.ours.decode(ids) == real.theirs.decode(ids, skip_special_tokens=True)


@few
@given(text=NASTY)
def test_any_text(real: Real, text: str) -> None:
    real.round_trip(text)


@few
@given(data=st.binary(max_size=60))
def test_any_bytes(real: Real, data: bytes) -> None:
    real.round_trip(data.decode("latin-1"))
    broken = data.decode("utf-8", "surrogateescape")
    readable = "".join("\ufffd" if "\ud800" <= c < "\ue000" else c for c in broken)
    assert real.ours.encode(broken) == real.ours.encode(readable)


@few
@given(ids=st.lists(st.integers(-3, 49200), max_size=30), skip=st.booleans())
def test_any_ids(real: Real, ids: list[int], skip: bool) -> None:
    known = [i for i in ids if 0 <= i < 49152]
    text = real.ours.decode(ids, skip_special_tokens=skip)
    assert text == real.theirs.decode(known, skip_special_tokens=skip)
    stream = real.ours.stream(skip_special_tokens=skip)
    pieces = [stream.push(i) for i in ids] + [stream.finish()]
    assert "".join(pieces) == text


@pytest.fixture(scope="module")
def bytes_only(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(json_folder(tmp_path_factory.mktemp("t") / "bytes", byte_level()))


@few
@given(token_id=st.integers(-(2**70), 2**70) | st.integers(0, 260))
def test_one_token_is_shown_to_a_person(bytes_only: Tokenizer, token_id: int) -> None:
    shown = bytes_only.token_text(token_id)
    assert shown.encode()
    assert (shown == f"<id {token_id}>") == (not 0 <= token_id < 258)


def test_a_byte_that_is_no_text_is_shown_as_its_number(bytes_only: Tokenizer) -> None:
    assert [bytes_only.token_text(i) for i in bytes_only.encode("é!</s>")] == [
        *("\\xc3", "\\xa9", "!", "</s>")
    ]


class TestBos:
    """One where the configuration adds one, none where it does not, never two."""

    @pytest.mark.parametrize("in_file", [False, True])
    @pytest.mark.parametrize("flag", [None, False, True])
    @pytest.mark.parametrize("text", ["", "hi", "<s>hi", " <s>", "<s>"])
    def test_count(self, tmp_path: Path, in_file: bool, flag: bool | None, text: str) -> None:
        config = {"bos_token": "<s>"} | ({} if flag is None else {"add_bos_token": flag})
        made = with_bos() if in_file else byte_level()
        tokenizer = Tokenizer.load(json_folder(tmp_path / "m", made, **config))
        adds = in_file if flag is None else flag
        ids = tokenizer.encode(text)
        assert tokenizer.add_bos == adds
        assert ids[:1] == [0] or not (adds or text.startswith("<s>"))
        assert ids.count(0) == max(
            text.count("<s>"), text.count("<s>") + adds - text.startswith("<s>")
        )
        assert tokenizer.encode(text, add_special_tokens=False).count(0) == text.count("<s>")

    @pytest.mark.parametrize("single", ["$A", "<s> $A", "<s> $A </s>", "$A </s>"])
    def test_what_the_file_says_is_what_transformers_does(
        self, tmp_path: Path, single: str
    ) -> None:
        folder = json_folder(tmp_path / "m", with_bos(single), bos_token="<s>", eos_token="</s>")
        theirs = AutoTokenizer.from_pretrained(str(folder))
        assert Tokenizer.load(folder).encode("ab") == theirs.encode("ab")

    @pytest.mark.parametrize("flag", [False, True])
    def test_eos_has_its_flag_too(self, tmp_path: Path, flag: bool) -> None:
        config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_eos_token": flag}
        made = with_bos("<s> $A" if flag else "<s> $A </s>")
        tokenizer = Tokenizer.load(json_folder(tmp_path / "m", made, **config))
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
        assert [i for i in tokenizer.encode("ab") if i < 2] == [0, 1][: 1 + flag]

    def test_a_flag_without_its_token_is_refused(self, tmp_path: Path) -> None:
        folder = json_folder(tmp_path / "m", byte_level(), add_bos_token=True, bos_token="<bos>")
        with pytest.raises(TokenizerError, match=r"add_bos_token is true.*'<bos>' is not in"):
            Tokenizer.load(folder)


class TestFilesBeside:
    """What tokenizer_config.json and its older companions change."""

    def test_added_tokens(self, tmp_path: Path) -> None:
        new = {"content": "<|tag|>", "special": False}
        config = {"added_tokens_decoder": {"258": new, "97": {"content": "a", "special": True}}}
        made = byte_level()
        folder = json_folder(tmp_path / "m", made, **config | {"pad_token": "<pad>"})
        assert made.token_to_id("a") != 97  # the id in the config is not the one in the file
        with pytest.raises(TokenizerError, match=r"gives 'a' the id \d+, the files beside it 97"):
            Tokenizer.load(folder)
        config["added_tokens_decoder"].pop("97")
        tokenizer = Tokenizer.load(json_folder(tmp_path / "m", made, **config))
        theirs = AutoTokenizer.from_pretrained(str(folder))
        ids = tokenizer.encode("x<|tag|>y")
        assert ids == theirs.encode("x<|tag|>y")
        assert 258 in ids
        assert tokenizer.vocab_size == 259
        assert tokenizer.decode(ids) == "x<|tag|>y"

    @pytest.mark.parametrize("older", [False, True])
    def test_a_named_token_is_special(self, tmp_path: Path, older: bool) -> None:
        made = byte_level()
        names = {"eos_token": "z", "additional_special_tokens": ["y", {"content": "<new>"}]}
        folder = json_folder(tmp_path / "m", made, **({} if older else names))
        if older:
            (folder / "special_tokens_map.json").write_text(json.dumps(names))
        tokenizer = Tokenizer.load(folder)
        assert tokenizer.decode(tokenizer.encode("xyz")) == "x"
        assert tokenizer.eos_token_id == made.token_to_id("z")
        assert tokenizer.vocab_size == 258  # no id is made up for <new>

    def test_special_tokens_can_be_read_as_text(self, tmp_path: Path) -> None:
        folder = json_folder(tmp_path / "m", byte_level(), split_special_tokens=True)
        assert len(Tokenizer.load(folder).encode("<s>")) == 3

    def test_padding_and_truncation_are_none_of_ours(self, tmp_path: Path) -> None:
        made = byte_level()
        made.enable_padding(length=9, pad_id=1, pad_token="</s>")
        made.enable_truncation(2)
        assert len(Tokenizer.load(json_folder(tmp_path / "m", made)).encode("abcd")) == 4

    def test_tokenizer_json_comes_first(self, tmp_path: Path) -> None:
        folder = model_folder(tmp_path / "m", mistral_model())
        assert Tokenizer.load(folder).vocab_size == 32000
        assert Tokenizer.load(json_folder(folder, byte_level())).vocab_size == 258


def test_words_without_a_decoder_are_joined_by_spaces(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer.load(json_folder(tmp_path / "m", made))
    assert tokenizer.decode(tokenizer.encode("a b  c")) == made.decode([0, 1, 2]) == "a b <unk>"


def test_weights_must_know_every_id(bytes_only: Tokenizer) -> None:
    bytes_only.check_fits(258)
    bytes_only.check_fits(320)  # padded rows
    with pytest.raises(TokenizerError, match=r"below 258, the weights know 250; .* 250 \('ļ'\)"):
        bytes_only.check_fits(250)


def test_fingerprint_is_of_what_the_ids_mean(tmp_path: Path, bytes_only: Tokenizer) -> None:
    same = Tokenizer.load(json_folder(tmp_path / "a", byte_level(), add_bos_token=False))
    other = Tokenizer.load(json_folder(tmp_path / "b", byte_level(("<s>", "<end>"))))
    assert same.fingerprint == bytes_only.fingerprint != other.fingerprint


def test_fingerprint_does_not_depend_on_the_form_of_the_files(tmp_path: Path) -> None:
    file = mistral_model()
    model = Tokenizer.load(model_folder(tmp_path / "a", file))
    published = Tokenizer.load(json_folder(tmp_path / "b", published_form(file)))
    assert model.fingerprint == published.fingerprint


class TestBadFiles:
    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("", b"", "holds neither tokenizer.json nor tokenizer.model"),
            ("tokenizer.json", b'{"version": "1.0", "mod', r"no tokenizer.json that can be read"),
            ("tokenizer.json", b"[]", r"no tokenizer.json that can be read"),
            ("tokenizer.json", b"\xff\xfe", r"no tokenizer.json that can be read"),
            ("tokenizer.model", b"", r"\(0 bytes\) is no sentencepiece model"),
            ("tokenizer.model", b"IQ== 0\nIg== 1\n", r"Llama 3 ships tiktoken's"),
        ],
    )
    def test_vocabulary(self, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        if name:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(TokenizerError, match=message):
            Tokenizer.load(tmp_path)

    def test_cut_short(self, tmp_path: Path) -> None:
        data = mistral_model().read_bytes()
        with pytest.raises(TokenizerError, match="is no sentencepiece model: it is damaged"):
            Tokenizer.load(model_folder(tmp_path / "m", data[: len(data) // 2]))

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("tokenizer_config.json", "{", "cannot be read as JSON"),
            ("tokenizer_config.json", "[]", "must hold an object, not a list"),
            ("tokenizer_config.json", '{"add_bos_token": "yes"}', "'yes' must be true or false"),
            ("tokenizer_config.json", '{"added_tokens_decoder": []}', "must map each id"),
            ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "must map each id"),
            (
                "tokenizer_config.json",
                '{"added_tokens_decoder": {"-1": {"content": "x"}}}',
                "an added token needs a text and an id >= 0",
            ),
            ("special_tokens_map.json", "{", "cannot be read as JSON"),
            ("added_tokens.json", '{"x": "1"}', "the id of 'x' is '1', not a number"),
        ],
    )
    def test_beside(self, tmp_path: Path, name: str, content: str, message: str) -> None:
        byte_level().save(str(tmp_path / "tokenizer.json"))
        (tmp_path / name).write_text(content)
        with pytest.raises(TokenizerError, match=message):
            Tokenizer.load(tmp_path)
