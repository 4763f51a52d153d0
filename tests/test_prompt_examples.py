"""Examples chosen for a query: which ones, in what form, and what is refused."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tokenizer_cases import byte_level, json_folder
from urial_engine.errors import ParameterError
from urial_engine.prompt import UrialPrompt, prompt_form
from urial_engine.prompt_examples import Example, ExamplePrompt
from urial_engine.tokenizer import Tokenizer

POOL = tuple(Example(f"q{i}", f"a{i}", f"h{i}") for i in range(8))


def directions(degrees: dict[str, float]) -> dict[str, Any]:
    """Vectors in a plane, of odd lengths: only their angles count."""
    return {
        query: np.array([np.cos(np.radians(d)), np.sin(np.radians(d))], np.float32) * (1 + d / 7)
        for query, d in degrees.items()
    }


def queries(prompt: ExamplePrompt, query: str) -> list[str]:
    return [e.query for e in prompt.examples(query)]


class TestForm:
    def test_it_is_urial_s(self) -> None:
        prompt = ExamplePrompt(POOL, 3, instruction="# Instruction\n\nBe kind.\n\n")
        turns = [text for e in prompt.examples("Why?") for text in (e.query, e.answer)]
        urial = UrialPrompt("# Instruction\n\nBe kind.\n\n")
        assert prompt("Why?") == urial.text + urial.render_chat([*turns, "Why?"])

    def test_an_instruction_without_a_last_line_end_gets_one(self) -> None:
        prompts = (ExamplePrompt(POOL, instruction=f"Be kind.{end}") for end in ("", "\n"))
        assert len({prompt("Why?") for prompt in prompts}) == 1

    def test_without_an_instruction_it_starts_with_a_query(self) -> None:
        text = ExamplePrompt(POOL[:1], 1)(" ```{x}\n")
        assert text == (
            "# Query:\n```\nq0\n```\n\n# Answer:\n```\na0\n```\n"
            "\n# Query:\n```\n ```{x}\n\n```\n\n# Answer:\n```\n"
        )

    def test_hints_stand_before_answers(self) -> None:
        text = ExamplePrompt(POOL[:1], 1, hints={"Why?": "Because."})("Why?")
        assert text == (
            "# Query:\n```\nq0\n```\n\n# Summary:\n```\nh0\n```\n\n# Answer:\n```\na0\n```\n"
            "\n# Query:\n```\nWhy?\n```\n\n# Summary:\n```\nBecause.\n```\n\n# Answer:\n```\n"
        )

    def test_it_is_a_form_of_a_prompt(self, tmp_path: Path) -> None:
        tokenizer = Tokenizer.load(json_folder(tmp_path / "m", byte_level()))
        prompt = ExamplePrompt(POOL)
        assert prompt_form(prompt, tokenizer)("Why?") == prompt.render("Why?")


class TestRandom:
    def test_the_choice_depends_on_query_and_seed_alone(self) -> None:
        asked = [f"question {i}" for i in range(40)]
        first = [queries(ExamplePrompt(POOL), q) for q in asked]
        prompt = ExamplePrompt(POOL)
        backwards = [queries(prompt, q) for q in reversed(asked)]
        assert first == backwards[::-1]
        assert len({tuple(one) for one in first}) > 30  # of 8 * 7 * 6 that there are
        assert first != [queries(ExamplePrompt(POOL, seed=1), q) for q in asked]

    def test_it_is_recorded(self) -> None:
        """A run can be repeated with another version of Python or numpy."""
        assert queries(ExamplePrompt(POOL), "Why?") == ["q3", "q7", "q0"]
        assert queries(ExamplePrompt(POOL, seed=-7), "né 漢 \ud800") == ["q5", "q2", "q4"]

    def test_every_example_and_place_is_as_likely(self) -> None:
        prompt, n = ExamplePrompt(POOL, 2), 4000
        pairs = Counter(tuple(queries(prompt, str(i))) for i in range(n))
        assert all(a != b for a, b in pairs)
        two = itertools.permutations((e.query for e in POOL), 2)
        chi = sum((pairs[pair] - n / 56) ** 2 for pair in two) / (n / 56)
        assert chi < 100  # 55 degrees of freedom: 1 in 5,000 lies above

    def test_a_query_is_never_its_own_example(self) -> None:
        for example in POOL:
            for asked in (example.query, f" {example.query}\n"):
                assert sorted([*queries(ExamplePrompt(POOL, 7), asked), example.query]) == [
                    e.query for e in POOL
                ]
        with pytest.raises(ParameterError, match="k = 8: the pool has 7 examples besides 'q3'"):
            ExamplePrompt(POOL, 8).render("q3")
        assert len(queries(ExamplePrompt(POOL, 8), "another")) == 8


class TestNearest:
    def test_the_most_similar_is_last(self) -> None:
        vectors = directions({"q0": 0, "q1": 80, "q2": 20, "q3": 170, "mine": 30, "other": 160})
        prompt = ExamplePrompt(POOL[:4], 2, "nearest", embeddings=vectors)
        assert queries(prompt, "mine") == ["q0", "q2"]
        assert queries(prompt, "other") == ["q1", "q3"]
        assert queries(prompt, "q0") == ["q1", "q2"]

    def test_ties_go_by_the_order_of_the_pool(self) -> None:
        """Also of vectors so long that a library would add some of them in another order."""
        rng = np.random.default_rng(0)
        one, pool = rng.normal(size=1001), tuple(Example(str(i), "a") for i in range(37))
        vectors = {e.query: one * (i % 2 or -1) for i, e in enumerate(pool)}
        prompt = ExamplePrompt(pool, 4, "nearest", embeddings={**vectors, "mine": one * 3})
        assert queries(prompt, "mine") == ["7", "5", "3", "1"]

    def test_against_all_cosines(self) -> None:
        rng = np.random.default_rng(1)
        pool = tuple(Example(str(i), "a") for i in range(200))
        matrix = rng.normal(size=(201, 16)) * rng.exponential(size=(201, 1))
        vectors = {str(i): row.astype(np.float32) for i, row in enumerate(matrix)}
        prompt = ExamplePrompt(pool, 5, "nearest", embeddings=vectors)
        cosine = matrix @ matrix.T / np.outer(*[np.linalg.norm(matrix, axis=1)] * 2)
        for i in range(201):
            near = [str(j) for j in np.argsort(cosine[i, :200]) if j != i]
            assert queries(prompt, str(i)) == near[-5:]

    def test_a_missing_vector_is_named(self) -> None:
        vectors = directions({"q0": 0, "q1": 10})
        with pytest.raises(ParameterError, match="embeddings have none for the query 'q2'"):
            ExamplePrompt(POOL[:3], 1, "nearest", embeddings=vectors)
        prompt = ExamplePrompt(POOL[:2], 1, "nearest", embeddings=vectors)
        with pytest.raises(ParameterError, match="embeddings have none for the query 'mine'"):
            prompt.render("mine")

    @pytest.mark.parametrize("bad", [[0, 0], [np.nan, 1], [np.inf, 1], [1], [[1, 2]], 3])
    def test_a_vector_without_a_direction(self, bad: Any) -> None:
        vectors = {**directions({"q0": 5}), "q1": np.array(bad, np.float32)}
        with pytest.raises(ParameterError, match=r"embedding of 'q1', of shape .* not zero"):
            ExamplePrompt(POOL[:2], 1, "nearest", embeddings=vectors)

    def test_a_matrix_for_a_vector(self) -> None:
        with pytest.raises(ParameterError, match=r"embedding of 'q0', of shape \(1, 2\)"):
            ExamplePrompt(POOL[:1], 1, "nearest", embeddings={"q0": np.ones((1, 2), np.float32)})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": 0}, "k = 0: must be 1 to 8"),
        ({"k": 9}, "k = 9: must be 1 to 8"),
        ({"k": True}, "k = True must be of type int"),
        ({"seed": 1.5}, "seed = 1.5 must be of type int"),
        ({"instruction": None}, "instruction = None must be of type str"),
        ({"choose": "best"}, "choose = 'best' must be random or nearest"),
        ({"choose": "nearest"}, "'nearest' without embeddings"),
        ({"embeddings": {"q0": np.ones(2)}}, "'random' with embeddings"),
        ({"pool": ()}, "must be 1 to 0"),
        ({"pool": (*POOL, Example("q3 ", "x"))}, "the query 'q3' stands there twice"),
        ({"pool": (*POOL, Example("x", "y")), "hints": {}}, "'x' has none"),
    ],
)
def test_what_does_not_fit_together(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(message)):
        ExamplePrompt(**{"pool": POOL, **given})


def test_a_query_without_a_hint() -> None:
    with pytest.raises(ParameterError, match=r"hints have none for the query 'Why\?'"):
        ExamplePrompt(POOL, hints={"Why": "x"}).render("Why?")


def test_the_description_tells_any_two_prompts_apart() -> None:
    vectors = {e.query: np.ones(2, np.float32) for e in POOL}
    turned = {**vectors, "q1": np.array([1, 2], np.float32)}
    near: dict[str, Any] = {"choose": "nearest", "embeddings": vectors}
    changes: list[dict[str, Any]] = [
        {},
        {"k": 2},
        {"seed": 1},
        {"instruction": "x"},
        {"pool": POOL[::-1]},
        {"pool": (Example("q0", "a0", "another"), *POOL[1:])},
        near,
        {**near, "embeddings": turned},
        {"hints": {}},
        {"hints": {"x": "y"}},
    ]
    told = [ExamplePrompt(**{"pool": POOL, **change}).describe() for change in changes]
    assert len({json.dumps(one) for one in told}) == len(changes)
    backwards = dict(reversed(vectors.items()))
    assert ExamplePrompt(POOL, **{**near, "embeddings": backwards}).describe() == told[6]
    assert told[1] | {"k": 3} == told[0]
    assert (told[0]["form"], told[0]["examples"]) == ("examples", 8)


class TestFiles:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        rows = [{"query": f"q{i}", "answer": f"a{i}", "hint": f"h{i}"} for i in range(4)]
        lines(tmp_path / "pool.jsonl", *rows)
        self.vectors = directions({"q0": 0, "q1": 80, "q2": 20, "q3": 170, "é?": 30})
        told = [{"query": q, "embedding": v.tolist()} for q, v in self.vectors.items()]
        lines(tmp_path / "near.jsonl", *told)
        names = np.array(list(self.vectors))
        np.savez(tmp_path / "near.npz", queries=names, vectors=np.stack([*self.vectors.values()]))
        lines(tmp_path / "hints.jsonl", {"id": "x", "query": "é?", "hint": "yes"})
        return tmp_path

    def load(self, folder: Path, **given: Any) -> ExamplePrompt:
        file = folder / "prompt.json"
        file.write_text(json.dumps(given))
        return ExamplePrompt.load(file)

    def test_defaults(self, folder: Path) -> None:
        prompt = self.load(folder, examples="pool.jsonl")
        assert prompt.describe() == ExamplePrompt(POOL[:4]).describe()
        assert prompt("é?") == ExamplePrompt(POOL[:4])("é?")

    @pytest.mark.parametrize("file", ["near.npz", "near.jsonl"])
    def test_everything(self, folder: Path, file: str) -> None:
        given = {"instruction": "Be kind.", "k": 2, "choose": "nearest", "seed": 4}
        files = {"examples": "pool.jsonl", "embeddings": file, "hints": "hints.jsonl"}
        prompt = self.load(folder, **given, **files)
        wanted = ExamplePrompt(POOL[:4], embeddings=self.vectors, hints={"é?": "yes"}, **given)
        assert prompt.describe() == wanted.describe()
        assert queries(prompt, "é?") == ["q0", "q2"]
        assert prompt("é?") == wanted("é?")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "examples is missing"),
            ({"examples": "pool.jsonl", "K": 3, "n": 1}, "unknown K, n; the keys are examples,"),
            ({"examples": 3}, "examples = 3 must be the name of a file"),
            (
                {"examples": "pool.jsonl", "hints": ["a"]},
                "hints = ['a'] must be the name of a file",
            ),
            ({"examples": "none.jsonl"}, "none.jsonl cannot be read"),
            ({"examples": "pool.jsonl", "k": "3"}, "prompt.json: k = '3' must be of type int"),
            ({"examples": "pool.jsonl", "embeddings": "near.npz"}, "'random' with embeddings"),
            (
                {"examples": "near.jsonl"},
                "near.jsonl:1: unknown embedding; a row has query, answer",
            ),
            ({"examples": "hints.jsonl"}, "hints.jsonl:1: answer must be a text"),
            ({"examples": "pool.jsonl", "hints": "pool.jsonl"}, "pool.jsonl:1: unknown answer"),
        ],
    )
    def test_what_is_refused(self, folder: Path, given: dict[str, Any], message: str) -> None:
        with pytest.raises(ParameterError, match=re.escape(message)):
            self.load(folder, **given)

    @pytest.mark.parametrize("content", ["[]", "{", "\xff"])
    def test_no_json_object(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "p.json").write_text(content, encoding="latin-1")
        with pytest.raises(ParameterError, match=r"p\.json"):
            ExamplePrompt.load(tmp_path / "p.json")

    @pytest.mark.parametrize(
        "value", [None, 3, "1", [], ["1"], [True], [[1.0]], [float("nan")], [10**400], [1e39]]
    )
    def test_an_embedding_that_is_none(self, folder: Path, value: Any) -> None:
        lines(folder / "near.jsonl", {"query": "q0", "embedding": value})
        with pytest.raises(ParameterError, match=r"near.jsonl:1: embedding|embedding of 'q0'"):
            self.load(folder, examples="pool.jsonl", choose="nearest", embeddings="near.jsonl")

    def test_a_query_twice(self, folder: Path) -> None:
        lines(folder / "hints.jsonl", {"query": "x", "hint": "a"}, {"query": "x", "hint": "b"})
        with pytest.raises(ParameterError, match=r"hints.jsonl: the query 'x' stands there twice"):
            self.load(folder, examples="pool.jsonl", hints="hints.jsonl")

    @pytest.mark.parametrize(
        "arrays",
        [
            {"queries": np.array(["q0"])},
            {"queries": np.array(["q0", "q1"]), "vectors": np.ones((3, 2))},
            {"queries": np.array([0, 1]), "vectors": np.ones((2, 2))},
            {"queries": np.array(["q0"], object), "vectors": np.ones((1, 2))},
            {"queries": np.array(["q0"]), "vectors": np.array([["1"]])},
        ],
    )
    def test_an_npz_of_another_kind(self, folder: Path, arrays: dict[str, Any]) -> None:
        np.savez(folder / "near.npz", **arrays)
        with pytest.raises(ParameterError, match=r"near\.npz.* queries"):
            self.load(folder, examples="pool.jsonl", choose="nearest", embeddings="near.npz")

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x93NUMPY", None])
    def test_no_npz(self, folder: Path, content: bytes | None) -> None:
        if content is None:
            (folder / "near.npz").unlink()
        else:
            (folder / "near.npz").write_bytes(content)
        with pytest.raises(ParameterError, match=r"near\.npz cannot be read as an \.npz"):
            self.load(folder, examples="pool.jsonl", choose="nearest", embeddings="near.npz")


def lines(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
