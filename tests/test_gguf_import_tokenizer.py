"""Tokenizers inside GGUF files: the written files give the ids that the original gives."""

from __future__ import annotations

import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from tests.fixtures import gguf_of_the_real_model, tiny_config
from tests.gguf_files import PIECES, write_gguf
from urial_engine.errors import CheckpointError, TokenizerError
from urial_engine.gguf_import import import_gguf
from urial_engine.tokenizer import Tokenizer

# Spaces before digits are apart: there the way of cutting a text shows.
DIGITS = ("in 2024", "a  1", "   12 and\n 3", "1234567", "x1y22 ², ½ Ⅷ ٣٤", "1\t2", "3.14, -7")
TEXTS = (
    "",
    " ",
    "Hello, world!",
    "  two  spaces,   three\t\ttabs \n\n\n lines \r\n end ",
    "I'm you're he'll WE'VE it's o'clock",
    "naïve café — “quotes” … ß İ ſ",
    "日本語のテキスト。中文，한국어 ไทย हिन्दी עברית العربية",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u200b\u00a0\ufeff \x00\x01\x7f",
    "def f(x):\n    return {'a': [x**2, -x]}  # ok\n",
    "http://example.org/?q=a&b=%20",
    "<|im_start|>user\nhi<|im_end|> <|endoftext|>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\U0010ffff\ufffd\u2028 ~!@#$%^&*()_+`-=[]{}|;':,./<>?",
)


@pytest.fixture(scope="module")
def theirs() -> Any:
    """What transformers makes of the real GGUF, which it cuts as GPT-2 does."""
    file = gguf_of_the_real_model()
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def test_real_ids_are_those_of_transformers(real_model: Path, theirs: Any) -> None:
    ours = Tokenizer.load(real_model)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(
            theirs.encode(text), skip_special_tokens=True
        )
    assert (ours.bos_token_id, ours.eos_token_id, ours.add_bos) == (1, 2, False)


def test_real_digits_are_cut_one_by_one(real_model: Path, theirs: Any) -> None:
    """The vocabulary's own rule, "smollm", of which transformers' reading of a GGUF knows nothing.

    Digits are set apart before GPT-2's rule sees the text, as in the tokenizer.json of the model.
    """
    ours = Tokenizer.load(real_model)
    plain = {text: theirs.encode(text) for text in DIGITS}
    backend = tokenizers.Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    for text in (*TEXTS, *DIGITS):
        assert ours.encode(text) == backend.encode(text).ids, text
    assert any(ours.encode(text) != ids for text, ids in plain.items())


def test_real_special_tokens_and_template(real_model: Path, theirs: Any) -> None:
    ours = Tokenizer.load(real_model)
    loaded = AutoTokenizer.from_pretrained(real_model)
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    rendered = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert ours.render_chat(turns) == rendered
    assert loaded.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == rendered
    assert loaded.all_special_ids == theirs.all_special_ids
    assert loaded.get_vocab() == theirs.get_vocab()
    for text in (*TEXTS, *DIGITS):
        assert loaded.encode(text) == ours.encode(text)


def byte_level(**changes: Any) -> dict[str, Any]:
    """Metadata of a small byte-level vocabulary that cuts nothing in two by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = ["1 2", "12 3", "123 4", "a b", "Ġ 1", "Ġ a", "? !", "' S", "A B", "AB C"]
    tokens = ["<|bos|>", "<|eos|>", "<think>", *alphabet, *(p.replace(" ", "") for p in pairs)]
    tokens += ["whole", "[PAD0]"]
    types = [3, 3, 4] + [1] * (len(tokens) - 4) + [5]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": pairs,
        "tokenizer.ggml.scores": ...,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": ...,
        **changes,
    }


def import_tokenizer(tmp_path: Path, **changes: Any) -> Path:
    out = tmp_path / "out"
    import_gguf(write_gguf(tmp_path / "x.gguf", **changes), out)
    return out


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "1234 1?!ab'S", ["1234", "Ġ1", "?!", "ab", "'", "S"]),
        ("smollm", "1234 1?!ab", ["1", "2", "3", "4", "Ġ", "1", "?!", "ab"]),
        ("llama-bpe", "1234 1?!ab'S", ["123", "4", "Ġ", "1", "?!", "ab", "'S"]),
        ("llama-v3", "1234", ["123", "4"]),
        ("default", "1234 a?!a", ["123", "4", "Ġa", "?!", "a"]),
        (..., "1234 a?!a", ["123", "4", "Ġa", "?!", "a"]),
    ],
)
def test_each_kind_cuts_in_its_own_way(
    tmp_path: Path, pre: Any, text: str, pieces: list[str]
) -> None:
    out = import_tokenizer(tmp_path, **byte_level(**{"tokenizer.ggml.pre": pre}))
    found = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    assert found.encode(text, add_special_tokens=False).tokens == pieces
    assert found.decode(found.encode(text).ids) == text


@pytest.mark.parametrize(
    ("pre", "says", "expected"),
    [
        ("gpt-2", ..., False),
        ("gpt-2", True, True),
        ("llama-bpe", ..., True),
        ("llama-bpe", False, False),
    ],
)
def test_exactly_one_bos_where_the_file_asks_for_one(
    tmp_path: Path, pre: str, says: Any, expected: bool
) -> None:
    changes = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": says}
    out = import_tokenizer(tmp_path, **byte_level(**changes))
    ours, loaded = Tokenizer.load(out), AutoTokenizer.from_pretrained(out)
    assert ours.add_bos is expected
    assert ours.encode("ab").count(0) == loaded.encode("ab").count(0) == int(expected)


def test_kinds_of_tokens(tmp_path: Path) -> None:
    settings = byte_level(**{"tokenizer.ggml.pre": "llama-bpe"})
    ours = Tokenizer.load(import_tokenizer(tmp_path, **settings))
    ids = {token: i for i, token in enumerate(settings["tokenizer.ggml.tokens"])}
    assert ours.encode("<think>a<|eos|>") == [0, ids["<think>"], ids["a"], ids["<|eos|>"]]
    # a word that is a token is one, though no merges lead to it, in Llama 3 and nowhere else
    assert ours.encode("whole", add_special_tokens=False) == [ids["whole"]]
    assert ours.decode([0, ids["<think>"], ids["a"], 1]) == "<think>a"
    assert ours.vocab_size == len(ids) - 1  # without [PAD0]


def test_whole_words_are_merged_elsewhere(tmp_path: Path) -> None:
    settings = byte_level(**{"tokenizer.ggml.pre": "gpt-2"})
    assert len(Tokenizer.load(import_tokenizer(tmp_path, **settings)).encode("whole")) == 5


def sentencepiece_metadata(processor: SentencePieceProcessor, **changes: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes of a SentencePiece model."""
    ids = range(processor.vocab_size())
    tests = (processor.IsUnknown, processor.IsControl, processor.IsUnused, processor.IsByte)
    kinds: list[tuple[Any, int]] = list(zip(tests, (2, 3, 5, 6), strict=True))
    types = [next((kind for test, kind in kinds if test(i)), 1) for i in ids]
    return {
        "tokenizer.ggml.tokens": [processor.IdToPiece(i) for i in ids],
        "tokenizer.ggml.scores": [processor.GetScore(i) for i in ids],
        "tokenizer.ggml.token_type": types,
        **changes,
    }


@pytest.fixture(scope="module")
def trained() -> SentencePieceProcessor:
    """A real SentencePiece model of 400 pieces with Llama's settings."""
    text = Path(__file__).read_text(encoding="utf-8").splitlines()
    stream = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([*text, *TEXTS[1:4]]),
        model_writer=stream,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.99,
        minloglevel=2,
    )
    return SentencePieceProcessor(model_proto=stream.getvalue())


def test_a_trained_sentencepiece_model_survives(
    tmp_path: Path, trained: SentencePieceProcessor
) -> None:
    out = import_tokenizer(tmp_path, **sentencepiece_metadata(trained))
    found = SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    check_same(found, trained)
    assert (found.unk_id(), found.bos_id(), found.eos_id()) == (0, 1, 2)
    ours = Tokenizer.load(out)
    assert (ours.add_bos, ours.bos_token_id, ours.eos_token_id) == (True, 1, 2)
    assert ours.encode("Hello") == [1, *trained.EncodeAsIds("Hello")]
    assert ours.encode("Hello</s>") == [1, *trained.EncodeAsIds("Hello"), 2]


def check_same(found: SentencePieceProcessor, expected: SentencePieceProcessor) -> None:
    assert found.vocab_size() == expected.vocab_size()
    for text in (*TEXTS, *DIGITS):
        ids = expected.EncodeAsIds(text)
        assert found.EncodeAsIds(text) == ids, text
        assert found.DecodeIds(ids) == expected.DecodeIds(ids)


def test_mistrals_sentencepiece_model_survives(tmp_path: Path) -> None:
    spec = find_spec("mistral_common")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package mistral-common")
    file = Path(spec.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"
    original = SentencePieceProcessor(model_file=str(file))
    settings = tiny_config(vocab_size=32000, hidden_size=8, num_hidden_layers=1)
    changes = sentencepiece_metadata(original)
    import_gguf(write_gguf(tmp_path / "x.gguf", settings, **changes), tmp_path / "out")
    check_same(SentencePieceProcessor(model_file=str(tmp_path / "out/tokenizer.model")), original)


def test_no_prefix_space_where_the_file_says_so(
    tmp_path: Path, trained: SentencePieceProcessor
) -> None:
    off = {"tokenizer.ggml.add_space_prefix": False}
    out = import_tokenizer(tmp_path, **sentencepiece_metadata(trained, **off))
    found = SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    assert found.EncodeAsPieces("Hello") != trained.EncodeAsPieces("Hello")
    assert found.DecodeIds(found.EncodeAsIds(" Hello")) == " Hello"


def test_user_defined_tokens_stay_whole(tmp_path: Path) -> None:
    tokens, types = [*PIECES[0], "<tool>", "<hidden>"], PIECES[1]
    kinds = types + [1] * (len(tokens) - len(types) - 2) + [4, 3]
    scores = [-float(i) for i in range(len(tokens))]
    lists = zip(("tokens", "token_type", "scores"), (tokens, kinds, scores), strict=True)
    out = import_tokenizer(tmp_path, **{f"tokenizer.ggml.{key}": value for key, value in lists})
    ours = Tokenizer.load(out)
    tool, hidden = len(tokens) - 2, len(tokens) - 1
    ids = ours.encode("ab<tool><hidden>")
    assert ids == [1, tokens.index("▁ab"), tool, hidden]
    assert ours.decode(ids) == "ab<tool>"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer.ggml.model": "t5"}, ["tokenizer.ggml.model", "'t5'", "gpt2, llama"]),
        ({"tokenizer.ggml.model": ...}, ["lacks tokenizer.ggml.model"]),
        (
            {"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]},
            ["2 tokens, 1 of them different"],
        ),
        ({"tokenizer.ggml.token_type": [1]}, ["with 1 types"]),
        ({"tokenizer.ggml.token_type": [1] * 265}, ["not a SentencePiece vocabulary"]),
        ({"tokenizer.ggml.scores": ...}, ["lacks tokenizer.ggml.scores"]),
        ({"tokenizer.ggml.precompiled_charsmap": [1, 2]}, ["normalizing SentencePiece"]),
        (byte_level(**{"tokenizer.ggml.pre": "tekken"}), ["tokenizer.ggml.pre", "'tekken'"]),
        (
            byte_level(**{"tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.merges": ["a zz"]}),
            ["merges do not fit"],
        ),
        (
            byte_level(**{"tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.merges": ["abc"]}),
            ["merges do not fit"],
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises((TokenizerError, CheckpointError)) as caught:
        import_tokenizer(tmp_path, **changes)
    message = str(caught.value)
    assert [word for word in [*words, str(tmp_path / "x.gguf")] if word not in message] == []
    assert not (tmp_path / "out").exists()


def test_the_chat_template_is_kept(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    out = import_tokenizer(tmp_path, **{"tokenizer.chat_template": template})
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == template
    ours = Tokenizer.load(out)
    assert ours.render_chat([{"role": "user", "content": "é"}]) == "<s>[é]"
