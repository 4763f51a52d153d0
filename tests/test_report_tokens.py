"""Words of tokens, the order of the most shifted, and the groups of a lexicon."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.shifts import made_shift
from urial_engine.errors import ParameterError
from urial_engine.report.bootstrap import Bootstrap, ratio
from urial_engine.report.lexicon import Lexicon
from urial_engine.report.summary import summarize
from urial_engine.report.tokens import all_words, most_shifted, words
from urial_engine.shift_data import Answer


@pytest.mark.parametrize(
    ("pieces", "wanted"),
    [
        ([], []),
        (["", ""], []),
        (["Thank", " you", "!"], [("thank", 0), ("you", 1)]),
        (["ap", "olog", "ize", " I"], [("apologize", 0), ("i", 3)]),
        (["However", ",", "\n", "the"], [("however", 0), ("the", 3)]),
        (["one ", "two"], [("one", 0), ("two", 1)]),
        (["a b", "c d"], [("a", 0), ("bc", 0), ("d", 1)]),
        (["end.Be", "gin"], [("end", 0), ("begin", 0)]),
        ([" (", "“", "Sure", "”)."], [("sure", 2)]),
        ([" don", "’", "t", " it", "'s", " '"], [("don't", 0), ("it's", 3)]),
        ([" well", "-", "known", " -", "x"], [("well-known", 0), ("x", 4)]),
        (["", "", "é", "t", "é"], [("été", 0)]),
        ([" a", "", "é", ""], [("aé", 0)]),
        ([" a ", "", "é"], [("a", 0), ("é", 1)]),
        (["Stra", "ße"], [("strasse", 0)]),
        ([" हिन्", "दी"], [("हिन्दी", 0)]),
        (["中", "文", "。"], [("中文", 0)]),
        ([" ok", "</s>", "</s>"], [("ok", 0), ("</s>", 1), ("</s>", 2)]),
        (["<|im_end|>", "hi"], [("<|im_end|>", 0), ("hi", 1)]),
        (["</", "s", ">"], [("s", 1)]),
        ([" 3", ".", "14", "_"], [("3", 0), ("14", 2)]),
        (["\ud800", "\x00", "🙂", " \u202e"], []),
    ],
)
def test_words_start_where_text_or_punctuation_says(
    pieces: list[str], wanted: list[tuple[str, int]]
) -> None:
    assert list(words(pieces)) == wanted


def answer(pieces: list[str]) -> Answer:
    ids = list(range(len(pieces)))
    return Answer(0, "", "".join(pieces), ids, pieces, "text", {}, {})


def test_words_of_all_answers_count_tokens_through() -> None:
    told = all_words([answer([" A", "b", " c"]), answer([]), answer(["", "C", " ab"])])
    assert told.names == ["ab", "c"]
    assert told.word.tolist() == [0, 1, 1, 0]
    assert told.row.tolist() == [0, 2, 3, 5]
    assert all_words([]).row.size == 0


def test_a_word_has_the_class_of_its_first_token() -> None:
    data = made_shift(12, 60, seed=2)
    context = summarize(data, most=1000)["contexts"][0]
    rank = data.base_rank[data.context == 0]
    pieces = [p for a in data.answers for p in a.pieces]
    # Here each piece with a space in front begins a word; "s" and "e" may continue one.
    start = [i for i, p in enumerate(pieces) if p.startswith(" word3")]
    assert start
    shifted = Counter(pieces[i].strip() for i in start if rank[i] > 3)
    found = {w["word"]: w["count"] for w in context["most_shifted_words"]}
    for name, count in shifted.items():
        alone = sum(n for word, n in found.items() if word.startswith(name) and word not in shifted)
        assert found.get(name, 0) + alone >= count


THE, THANK, HOPE, ONCE, NEVER, CALM = range(6)


def places(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items of 200 answers of 50 tokens: THE is half of them and shifted as often as the average,
    THANK opens, HOPE is shifted often in some, ONCE stands once, and CALM is hardly shifted."""
    random = np.random.default_rng(seed)
    item = np.where(random.random((200, 50)) < 0.5, THE, CALM)
    item[:, 0] = THANK
    item[::4, 30] = HOPE
    item[7, 20], item[9, 9] = ONCE, NEVER
    chance = np.array([0.08, 0.9, 0.6, 1.0, 0.0, 0.02])
    shifted = random.random(item.shape) < chance[item]
    return item.ravel(), shifted.ravel(), np.repeat(np.arange(200), 50)


@pytest.mark.parametrize("seed", range(5))
def test_neither_the_frequent_nor_the_single_leads(seed: int) -> None:
    item, shifted, cluster = places(seed)
    found = dict(most_shifted(Bootstrap(200, 400, seed), item, shifted, cluster, 10))
    order = list(found)
    assert order[:2] == [THANK, HOPE]
    assert order[-1] == ONCE
    assert found[THE]["count"] > found[THANK]["count"]  # what a count alone would put first
    assert max(found, key=lambda key: found[key]["lift"]["value"]) == ONCE  # and a lift alone
    assert NEVER not in found
    for key, told in found.items():
        own = item == key
        assert (told["count"], told["occurrences"]) == ((own & shifted).sum(), own.sum())
        assert told["ratio"]["value"] == pytest.approx(shifted[own].mean())
        lift = (own & shifted).sum() / shifted.sum() / own.mean()
        assert told["lift"]["value"] == pytest.approx(lift)
    assert found[ONCE]["ratio"] == {"value": 1, "low": None, "high": None}
    assert found[ONCE]["lift"]["low"] is None
    assert found[THANK]["lift"]["low"] > 5
    assert found[CALM]["lift"]["high"] < 1


def test_an_interval_of_a_lift_is_that_of_draws_by_hand() -> None:
    item, shifted, cluster = places()
    found = dict(most_shifted(Bootstrap(200, 2000, 1), item, shifted, cluster, 10))
    random = np.random.default_rng(2)
    item, shifted, drawn = item.reshape(200, 50), shifted.reshape(200, 50), []
    for _ in range(2000):
        some = random.integers(200, size=200)
        own, hit = item[some] == HOPE, shifted[some]
        drawn.append((own & hit).sum() / hit.sum() / own.mean())
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert found[HOPE]["lift"]["low"] == pytest.approx(low, abs=0.1 * (high - low))
    assert found[HOPE]["lift"]["high"] == pytest.approx(high, abs=0.1 * (high - low))


@pytest.mark.filterwarnings("error")
def test_draws_that_hold_nothing_do_not_count() -> None:
    boot = Bootstrap(30, 2, 0)
    first, second = (np.flatnonzero(boot.draws[i] == 0) for i in (0, 1))
    both = np.intersect1d(first, second)[:2]
    one = np.setdiff1d(first, second)[:2]  # only the second draw holds these
    size = np.zeros((30, 2))
    size[both, 0], size[one, 1] = 10, 10
    nowhere, somewhere = boot.bands(ratio, size * 0.3, size, support=size)
    assert nowhere == {"value": pytest.approx(0.3), "low": None, "high": None}
    assert somewhere == {name: pytest.approx(0.3) for name in ("value", "low", "high")}


def test_ties_stand_in_order_of_id_and_the_list_ends() -> None:
    item = np.array([9, 3, 5, 7] * 4)
    shifted = np.ones(16, bool)
    shifted[3::4] = False
    cluster = np.repeat(np.arange(4), 4)
    for most in (1, 2, 3, 9):
        found = most_shifted(Bootstrap(4, 50, 0), item, shifted, cluster, most)
        assert [key for key, _ in found] == [3, 5, 9][:most]
    none = np.zeros(0, np.int64)
    assert most_shifted(Bootstrap(0, 5, 0), none, none.astype(bool), none, 9) == []
    assert most_shifted(Bootstrap(4, 5, 0), item, ~(shifted | True), cluster, 9) == []


def grouped(pieces: list[str], lexicon: Lexicon | None = None) -> list[str]:
    lexicon = lexicon or Lexicon.default()
    return [lexicon.names[g] for g in lexicon.groups(pieces)]


def test_the_shipped_lexicon_says_how_it_was_made_and_knows_the_published_tokens() -> None:
    assert len(Lexicon.default().about) > 200
    openings = ["Thank", "Hello", "Great", "Please", "However", "As", "To", "Additionally", "Sure"]
    for word in (
        *openings,
        "Remember",
        "Of course",
        "</s>",
        "<|im_end|>",
        "\n",
        "I hope this helps",
    ):
        assert grouped([word]) == ["stylistic"], word
    for word in ("I apologize", "cannot", "As an AI", "unethical", "Consult a", "I'm sorry"):
        assert "safety" in grouped(word.split(" ")) or grouped([word]) == ["safety"], word
    for word in (
        "sea",
        "thankless",
        "surety",
        "hi-fi music"[6:],
        "lungs",
        ",",
        "12",
        "\x00",
        "🤖"[:0],
    ):
        assert set(grouped([word])) == {"content"}, word


def test_groups_are_of_whole_phrases_across_tokens() -> None:
    safety, style, rest = "safety", "stylistic", "content"
    assert grouped(["I", " apo", "log", "ise", "."]) == [rest, safety, safety, safety, rest]
    assert grouped([" as  AN\n", "ai", " is"]) == [safety, safety, rest]
    assert grouped(["\n", "12", ".", " Eat", " 12", "."]) == [style] * 3 + [rest] * 3
    assert grouped(["-", " Rest", " -", " x"]) == [style, rest, rest, rest]
    assert grouped(["I can", "’", "t", " go"]) == [safety, safety, safety, rest]
    assert grouped(["to", " As"]) == [rest, style]
    assert grouped(["", "", "🙂", " hi"]) == [style] * 4
    assert grouped([]) == []


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_a_lexicon_of_ones_own(tmp_path: Path) -> None:
    groups = {
        "sea": {"phrases": {"ships": ["ship*", "deep sea"]}, "patterns": {"waves": ["~+"]}},
        "deep": {"phrases": {"all": ["deep sea diver", "deep", "blue", "blue whale"]}},
    }
    lexicon = Lexicon.load(write(tmp_path / "own.json", {"about": "x", "groups": groups}))
    assert lexicon.names == ("sea", "deep", "content")
    pieces = ["Ships", " deep", " sea", " diver", " deep", " ~~", " starship", " blue", " whale"]
    wanted = ["sea", "sea", "sea", "content", "deep", "sea", "content", "deep", "deep"]
    assert grouped(pieces, lexicon) == wanted
    names = [g["group"] for g in summarize(made_shift(), lexicon=lexicon)["contexts"][0]["groups"]]
    assert names == ["sea", "deep", "content"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must be an object"),
        ({"about": "x"}, "groups must be an object"),
        ({"about": "x", "groups": {}}, "at least one group"),
        ({"about": "x", "groups": {"content": {"phrases": {"a": ["b"]}}}}, "'content'"),
        ({"groups": {"a": {"phrases": {"a": ["b"]}}}}, "about = None"),
        ({"about": "x", "groups": {"a": {}}}, "groups.a has no entry"),
        ({"about": "x", "groups": {"a": {"words": {}}}}, "groups.a: 'words' is not known"),
        ({"about": "x", "groups": {"a": {"phrases": ["b"]}}}, "groups.a.phrases must be an object"),
        ({"about": "x", "groups": {"a": {"phrases": {"b": "c"}}}}, "phrases.b must be a list"),
        ({"about": "x", "groups": {"a": {"phrases": {"b": ["c!"]}}}}, "phrases.b: 'c!' must begin"),
        ({"about": "x", "groups": {"a": {"phrases": {"b": [""]}}}}, "phrases.b: '' must begin"),
        ({"about": "x", "groups": {"a": {"patterns": {"b": ["("]}}}}, "is no regular expression"),
        ({"about": "x", "groups": {"a": {"patterns": {"b": ["y*"]}}}}, "matches nothing at all"),
        ({"about": "x", "groups": {"a": {"phrases": {"b": ["c"]}}}, "more": 1}, "'more' is not"),
    ],
)
def test_what_is_wrong_with_a_lexicon_is_said(tmp_path: Path, value: object, message: str) -> None:
    path = write(tmp_path / "wrong.json", value)
    with pytest.raises(ParameterError, match=message) as error:
        Lexicon.load(path)
    assert "wrong.json" in str(error.value)


def test_a_lexicon_that_is_not_there_or_no_json(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"about"', encoding="utf-8")
    for name in ("none.json", "half.json"):
        with pytest.raises(ParameterError, match=f"{name} cannot be read as JSON"):
            Lexicon.load(tmp_path / name)
