"""The files of a token shift: every bit comes back, however the run was split, within memory."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.shifts import made_shift
from urial_engine import token_shift_files as files
from urial_engine import token_shift_table
from urial_engine.errors import ParameterError
from urial_engine.shift_data import ARRAYS, Published, ShiftData
from urial_engine.token_shift_measure import join

parquet = pytest.importorskip("pyarrow.parquet", reason="needs the package pyarrow")

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("answers.jsonl", "tokens.parquet", "vocabulary.json")
# Both zeros, both infinities, subnormal ones, the largest, and NaNs that differ in their bits.
BITS = (0, 1 << 31, 1, 0x807FFFFF, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC01234)


def part_of(data: ShiftData, start: int, end: int) -> ShiftData:
    """What a run would have measured of these answers alone; their texts, and no others."""
    rows = np.flatnonzero((data.answer >= start) & (data.answer < end))
    arrays = {name: getattr(data, name)[rows] for name in ARRAYS}
    arrays["answer"] = arrays["answer"] - np.int32(start)
    used = np.concatenate([arrays[n].ravel() for n in ARRAYS if n.endswith(("_ids", "token_id"))])
    published = data.published and Published(*(column[rows] for column in data.published))
    texts = {i: data.vocabulary[i] for i in used.tolist()}
    own = data.answers[start:end]
    return replace(data, answers=own, vocabulary=texts, published=published, **arrays)


def hard_shift(top_k: int, *, published: bool, answers: int = 9) -> ShiftData:
    """Every kind of float in every column of floats, and texts that are easily broken."""
    data = made_shift(answers, 40, top_k=top_k, published=published)
    chance = np.random.default_rng(1)

    def hard(values: np.ndarray) -> np.ndarray:
        if values.dtype != np.float32:
            return values
        return chance.choice(np.array(BITS, np.uint32), values.shape).view(np.float32)

    arrays = {name: hard(getattr(data, name)) for name in ARRAYS}
    columns = data.published and Published(*map(hard, data.published))
    odd = replace(
        data.answers[0], query='q\u2028\x85\0\r\n"\\ \U0001f600', id="ü", generator="\ufeff"
    )
    texts = {**data.vocabulary, 7: "", 8: "\0", 9: "\u2028", 10: data.vocabulary[11]}
    told = [odd, *data.answers[1:]]
    whole = replace(data, answers=told, vocabulary=texts, published=columns, **arrays)
    return part_of(whole, 0, answers)


def bits(data: ShiftData) -> list[object]:
    columns = {name: getattr(data, name) for name in ARRAYS}
    columns |= data.published._asdict() if data.published else {}
    told = [(name, a.dtype, a.shape, a.tobytes()) for name, a in columns.items()]
    return [data.answers, data.contexts, data.vocabulary, *told]


def write_parts(data: ShiftData, cuts: list[int], folder: Path) -> list[tuple[Path, Path]]:
    parts = []
    for start, end in zip([0, *cuts], [*cuts, len(data.answers)], strict=True):
        number = len(parts)
        parts.append((folder / f"answers-{number}.jsonl", folder / f"tokens-{number}.parquet"))
        files.write_data(part_of(data, start, end), *parts[-1])
    return parts


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in NAMES]


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("top_k", [0, 1, 4])
def test_every_bit_survives(tmp_path: Path, top_k: int, published: bool) -> None:
    data = hard_shift(top_k, published=published)
    files.write_folder(data, tmp_path / "new" / "run", {"é": 1})
    assert bits(files.read_folder(tmp_path / "new" / "run")) == bits(data)
    assert json.loads((tmp_path / "new/run/summary.json").read_text()) == {"é": 1}
    rows = (tmp_path / "new/run/answers.jsonl").read_bytes().splitlines()
    assert [json.loads(row)["query"] for row in rows] == [a.query for a in data.answers]
    assert '"id": "ü"'.encode() in rows[0]
    texts = json.loads((tmp_path / "new/run/vocabulary.json").read_text())
    assert texts == {str(i): text for i, text in data.vocabulary.items()}
    assert list(map(int, texts)) == sorted(data.vocabulary)


def test_columns_are_named_and_typed(tmp_path: Path) -> None:
    data = made_shift(5, 9, published=True)
    told = [replace(answer, sample=i % 3) for i, answer in enumerate(data.answers)]
    data = replace(data, answers=told)
    files.write_tables(data, tmp_path)
    text, ids, reals = "dictionary<values=string, indices=int32, ordered=0>", "int32", "float"
    side = {"rank": ids, "ties": ids, "logprob": reals, "entropy": reals}
    both = [{f"{name}_{n}": k for n, k in side.items()} for name in ("base", "aligned")]
    table = parquet.read_table(tmp_path / "tokens.parquet")
    kinds = {
        f.name: str(f.type).replace("element: ", "").replace("item: ", "") for f in table.schema
    }
    assert kinds == {
        "id": text, "sample": ids, "answer": ids, "context": text, "position": ids,
        "token_id": ids, "token": text, "shift_class": text,
        **both[0], **both[1], "kl_aligned_base": reals, "kl_base_aligned": reals,
        **{f"{n}_top_ids": "list<int32>" for n in ("base", "aligned")},
        **{f"{n}_top_logprobs": "list<float>" for n in ("base", "aligned")},
        "published_rank": ids, "published_probability": reals, "published_kl": reals,
    }  # fmt: skip
    rows = table.to_pylist()
    assert rows == files.to_table(data).to_pylist()
    assert [row["id"] for row in rows] == [str(data.answers[i].id) for i in data.answer.tolist()]
    assert [row["sample"] for row in rows] == [i % 3 for i in data.answer.tolist()]
    assert [row["token"] for row in rows] == data.token
    names = ["unshifted", "marginal", "marginal"]
    classes = [names[r - 1] if r <= 3 else "shifted" for r in data.base_rank.tolist()]
    assert [row["shift_class"] for row in rows] == classes
    assert [row["context"] for row in rows] == [
        data.contexts[i].name for i in data.context.tolist()
    ]


@pytest.mark.parametrize("seed", range(12))
def test_however_a_run_was_split_its_files_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    data = hard_shift(chance.choice([0, 3]), published=seed % 2 == 0, answers=12)
    monkeypatch.setattr(token_shift_table, "ROW_GROUP", chance.choice([1, 7, 64, 10_000]))
    whole, joined = tmp_path / "whole", tmp_path / "joined"
    whole.mkdir(), joined.mkdir()
    files.write_tables(data, whole)
    cuts = sorted(chance.choices(range(13), k=chance.randint(0, 9)))  # some parts have no answer
    parts = write_parts(data, cuts, tmp_path)
    files.join_files(parts, joined)
    assert contents(joined) == contents(whole)
    assert bits(files.read_folder(joined)) == bits(data)
    for end in range(1, len(parts) + 1):  # and one after the other, into the folder itself
        own = (whole / "answers.jsonl", whole / "tokens.parquet")
        files.join_files([own if end > 1 else parts[0], *parts[end - 1 : end][end == 1 :]], whole)
    assert contents(joined) == contents(whole)
    assert not list(tmp_path.glob(f"*/*.{os.getpid()}"))


def test_row_groups_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made_shift(12, 30)
    monkeypatch.setattr(token_shift_table, "ROW_GROUP", 50)
    files.join_files(write_parts(data, [2, 3, 8], tmp_path), tmp_path)
    about = parquet.read_metadata(tmp_path / "tokens.parquet")
    sizes = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
    rows = len(data.answer)
    assert rows > 150 and sizes == [50] * (rows // 50) + [rows % 50] * (rows % 50 > 0)


def test_answers_that_no_token_names_are_left(tmp_path: Path) -> None:
    """As where a process has ended between the two files."""
    data = made_shift(6, 9)
    first, second = write_parts(data, [3], tmp_path)
    whole = [json.loads(line) for path in (first[0], second[0]) for line in path.open()]
    first[0].write_text("".join(f"{json.dumps(row, indent=None)}\n" for row in whole))
    assert [a.id for a in files.read_data(*first).answers] == [a.id for a in data.answers[:3]]
    files.join_files([first, second], tmp_path)
    assert files.read_answers(tmp_path / "answers.jsonl") == data.answers
    assert bits(files.read_folder(tmp_path))[0] == data.answers


@pytest.mark.parametrize("top_k", [0, 4])
@pytest.mark.parametrize("published", [False, True])
def test_a_part_without_tokens_keeps_its_form(tmp_path: Path, top_k: int, published: bool) -> None:
    data = made_shift(8, 9, top_k=top_k, published=published)
    silent = part_of(data, 3, 4)  # the fourth answer has no tokens
    assert len(silent.answer) == 0 and len(silent.answers) == 1
    parts = write_parts(data, [3, 4], tmp_path)
    read = [files.read_data(*pair) for pair in parts]
    assert read[1].base_top_ids.shape == read[1].aligned_top_logprobs.shape == (0, top_k)
    assert bits(read[1]) == bits(silent) and (read[1].published is not None) == published
    assert bits(join(read))[3:] == bits(data)[3:]
    files.join_files(parts[1:2], tmp_path)
    assert files.read_keys(tmp_path / "tokens.parquet") == [("row 3", 0)]
    assert parquet.read_table(tmp_path / "tokens.parquet").to_pandas().empty


def test_what_was_whole_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made_shift(6, 9)
    folder = tmp_path / "run"
    folder.mkdir()
    parts = write_parts(data, [3], tmp_path)
    files.join_files(parts[:1], folder)
    before = contents(folder)
    own = (folder / "answers.jsonl", folder / "tokens.parquet")
    real, calls = os.fsync, iter(range(9))

    def fails(descriptor: int) -> None:
        if next(calls) == 1:  # answers.jsonl is new, tokens.parquet is not
            raise OSError("the disk is full")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk is full"):
        files.join_files([own, parts[1]], folder)
    assert contents(folder)[1:] == before[1:] and contents(folder)[0].startswith(before[0])
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    assert bits(files.read_folder(folder)) == bits(part_of(data, 0, 3))
    files.join_files([own, parts[1]], folder)
    assert bits(files.read_folder(folder)) == bits(part_of(data, 0, 6))


def test_parts_of_other_runs_are_refused(tmp_path: Path) -> None:
    data = made_shift(4, 9)
    (first,) = write_parts(data, [], tmp_path)
    for name, other in {
        "contexts": made_shift(4, 9, contexts=("x", "urial")),
        "width": made_shift(4, 9, top_k=3),
        "published": made_shift(4, 9, published=True),
    }.items():
        pair = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.parquet"
        files.write_data(other, *pair)
        with pytest.raises(ParameterError, match=f"{name}.parquet has other contexts or columns"):
            files.join_files([first, pair], tmp_path)
    with pytest.raises(ParameterError, match=r"tokens-0.parquet has the answer \(0, 0\), which"):
        files.join_files([first, first], tmp_path)
    assert not (tmp_path / "answers.jsonl").exists()


def test_pyarrow_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ParameterError, match=r"pip install 'urial-engine\[analysis\]'"):
        files.to_table(made_shift())


MEASURE = """
import resource, sys
from pathlib import Path
from urial_engine.token_shift_files import join_files
folder, count = Path(sys.argv[1]), int(sys.argv[2])
pairs = [(folder / f"a{i}", folder / f"t{i}") for i in range(count)]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
join_files(pairs[:1], folder)  # what the libraries take by themselves
before = peak()
join_files(pairs, folder)
print((peak() - before) * 1024)
"""


def test_memory_does_not_grow_with_a_run(tmp_path: Path) -> None:
    data = made_shift(48, 200, top_k=10, published=True)
    count = -(-400_000 // len(data.answer))
    for i in range(count):
        told = [replace(answer, id=f"{i} {answer.id}") for answer in data.answers]
        other = data.base_top_logprobs - np.float32(i)  # else a page holds a whole group
        part = replace(data, answers=told, base_top_logprobs=other)
        files.write_data(part, tmp_path / f"a{i}", tmp_path / f"t{i}")
    run = [sys.executable, "-c", MEASURE, str(tmp_path), str(count)]
    extra = int(subprocess.run(run, check=True, cwd=ROOT, stdout=subprocess.PIPE).stdout)
    about = parquet.read_metadata(tmp_path / "tokens.parquet")
    assert about.num_rows == count * len(data.answer) >= 400_000
    assert about.row_group(0).num_rows == 65_536 and about.num_row_groups == 7
    bytes_of_a_row = sum(getattr(data, name).nbytes for name in ARRAYS) / len(data.answer)
    assert about.num_rows * bytes_of_a_row > 85e6  # held whole it would be more than this twice
    assert extra < 120e6
    before = contents(tmp_path)  # of other pieces than a part's, in groups of many pages
    files.join_files([(tmp_path / "answers.jsonl", tmp_path / "tokens.parquet")], tmp_path)
    assert contents(tmp_path) == before
