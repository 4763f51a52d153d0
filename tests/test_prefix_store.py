"""Prefixes on disk: restored to the bit, refused with a reason, replaced when damaged."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import FakeBackend
from tests.fixtures import TinyModel
from urial_engine.engine import Engine
from urial_engine.errors import CapacityError, PrefixStoreError
from urial_engine.prefix_store import SUFFIX, Fingerprint, Missing, PrefixStore, StoredPrefix
from urial_engine.sampling import SamplingParams

IDS = [5, 6, 7, 8, 9, 10]
BLOCKS = [np.arange(32, dtype=np.uint8), np.full(32, 7, np.uint8)]
TEXT = "Instruction: answer. " * 8  # more than two blocks of tokens of the tiny tokenizer


def fingerprint(ids: list[int] = IDS, weights: str = "w") -> Fingerprint:
    return Fingerprint.of(FakeBackend(), weights, ids)


def saved(folder: Path) -> tuple[PrefixStore, Path]:
    store = PrefixStore(folder)
    store.require_writable()
    return store, store.save(fingerprint(), IDS, BLOCKS)


def why(store: PrefixStore, wanted: Fingerprint | None = None) -> str:
    found = store.find(wanted or fingerprint())
    assert isinstance(found, Missing)
    return found.why


def test_what_is_saved_is_found_and_read_block_by_block(tmp_path: Path) -> None:
    store, path = saved(tmp_path / "new" / "folder")
    found = store.find(fingerprint())
    assert isinstance(found, StoredPrefix)
    assert (found.path, found.tokens, found.blocks) == (path, 6, 2)
    assert found.bytes == path.stat().st_size
    for block, data in zip(BLOCKS, found.read_blocks(), strict=True):
        assert np.array_equal(block, data)


def test_each_field_of_the_fingerprint_keeps_a_file_from_being_used(tmp_path: Path) -> None:
    store, _ = saved(tmp_path)
    for field in dataclasses.fields(Fingerprint):
        other = dataclasses.replace(fingerprint(), **{field.name: "another"})
        stored = getattr(fingerprint(), field.name)
        assert f"differs in {field.name} (stored {stored}, now another)" in why(store, other)
    assert "holds no stored prefix" in why(PrefixStore(tmp_path / "nothing"))


def test_the_reason_is_that_of_the_most_similar_file(tmp_path: Path) -> None:
    store, _ = saved(tmp_path)
    near, far = fingerprint(weights="near"), fingerprint([1], weights="far")
    for other in (near, far):
        store.save(other, IDS, BLOCKS)
    wanted = dataclasses.replace(near, dtype="float16")
    assert why(store, wanted).startswith(str(tmp_path / near.file_name))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def put_another(path: Path) -> None:
    PrefixStore(path.parent).save(fingerprint([1]), [1], BLOCKS).replace(path)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-5]), "not a whole prefix file"),
    "empty": (lambda p: p.write_bytes(b""), "not a whole prefix file"),
    "a bit of the last block": (lambda p: flip(p, -1), "checksum does not fit"),
    "a bit of an id": (lambda p: flip(p, p.read_bytes().index(bytes([5, 0, 0, 0, 6]))), "checksum"),
    "a bit of the header's length": (lambda p: flip(p, 7), "not a whole prefix file"),
    "something else": (lambda p: p.write_bytes(b"x" * 999), "not a whole prefix file"),
    "another's file": (put_another, "differs in tokens"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_reported_and_replaced(tmp_path: Path, kind: str) -> None:
    store, path = saved(tmp_path)
    damage, message = DAMAGE[kind]
    damage(path)
    found = store.find(fingerprint())
    assert isinstance(found, Missing)
    assert found.damaged
    assert str(path) in found.why
    assert message in found.why
    store.save(fingerprint(), IDS, BLOCKS)
    assert isinstance(store.find(fingerprint()), StoredPrefix)


def test_list_verify_and_clear(tmp_path: Path) -> None:
    store, path = saved(tmp_path)
    other = store.save(fingerprint([1]), [1], BLOCKS[:1])
    (tmp_path / "notes.txt").write_text("not ours")
    left, writing = (tmp_path / f".{other.name}.{key}.tmp" for key in ("0123", "4567"))
    for temporary in (left, writing):
        temporary.write_text("of an interrupted save, and of one that goes on")
    os.utime(left, (0, 0))
    assert store.paths() == sorted([path, other])
    flip(other, -1)
    StoredPrefix.open(path).verify()
    with pytest.raises(PrefixStoreError, match="damaged"):
        StoredPrefix.open(other).verify()
    assert store.clear() == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [writing.name, "notes.txt"]


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, path = saved(tmp_path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PrefixStoreError, match=r"cannot be written .*No space left"):
        store.save(fingerprint(), IDS, [BLOCKS[1], BLOCKS[0]])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# Through the engine


def open_engine(model: Path, folder: Path | None, **fields: object) -> Engine:
    settings: dict[str, object] = {"device": "reference", "kv_cache_gib": 0.01, **fields}
    return Engine(model, prefix=TEXT, prefix_dir=folder, **settings)  # type: ignore[arg-type]


def answer(engine: Engine) -> list[int]:
    return engine.generate("Why?", SamplingParams(max_tokens=8))[0].outputs[0].token_ids


def test_the_engine_restores_what_an_engine_stored(
    tiny_model: TinyModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model, folder = tiny_model(), tmp_path / "store"
    with open_engine(model, folder) as engine:
        assert engine.info["prefix_source"] == "computed"
        first = answer(engine)
    (path,) = PrefixStore(folder).paths()
    written = path.stat().st_mtime_ns
    with open_engine(model, folder) as engine:
        assert engine.info["prefix_source"] == "restored"
        output = engine.generate("Why?", SamplingParams(max_tokens=8))[0]
        assert output.metrics.cached_tokens == engine.info["prefix_tokens"]
        assert output.outputs[0].token_ids == first
    assert path.stat().st_mtime_ns == written
    assert "restored from" in caplog.text


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("dtype", {"dtype": "float32"}),
        ("weights", {"model": {"seed": 1}}),
        ("config", {"model": {"rms_norm_eps": 1e-4}}),
        ("tokens", {"model": {"add_bos": False}}),
    ],
)
def test_the_engine_computes_again_what_does_not_fit_and_says_why(
    tiny_model: TinyModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    field: str,
    change: dict[str, object],
) -> None:
    caplog.set_level(logging.INFO)
    open_engine(tiny_model(), tmp_path / "store").close()
    overrides = change.pop("model", {})
    assert isinstance(overrides, dict)
    with open_engine(tiny_model(**overrides), tmp_path / "store", **change) as engine:
        assert engine.info["prefix_source"] == "computed"
    assert f"differs in {field} " in caplog.text
    assert len(PrefixStore(tmp_path / "store").paths()) == 2


def test_the_engine_replaces_a_damaged_file_with_a_warning(
    tiny_model: TinyModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model()
    open_engine(model, tmp_path / "store").close()
    (path,) = PrefixStore(tmp_path / "store").paths()
    flip(path, -1)
    with open_engine(model, tmp_path / "store") as engine:
        assert engine.info["prefix_source"] == "computed"
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    StoredPrefix.open(path).verify()


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("urial_engine.engine_runner.Runner.run", lambda *_: pytest.fail("worked"))
    with pytest.raises(PrefixStoreError, match=r"prefix_dir='.*file/store': cannot be written"):
        open_engine(tiny_model(), tmp_path / "file" / "store")


def test_a_folder_that_holds_the_prefix_is_only_read(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    open_engine(model, tmp_path / "store").close()
    monkeypatch.setattr(PrefixStore, "require_writable", lambda _: pytest.fail("wrote"))
    open_engine(model, tmp_path / "store").close()


def test_a_prefix_that_does_not_fit_in_the_cache(tiny_model: TinyModel) -> None:
    with pytest.raises(CapacityError, match="the prefix of 169 tokens needs 3 cache blocks"):
        open_engine(tiny_model(), None, kv_cache_gib=0.0001)


PROGRAM = """
import sys
from urial_engine.engine import Engine
from urial_engine.sampling import SamplingParams
model, folder, text = sys.argv[1:]
with Engine(model, prefix=text, prefix_dir=folder, device="reference", kv_cache_gib=0.01) as engine:
    out = engine.generate("Why?", SamplingParams(max_tokens=8))[0]
    print(engine.info["prefix_source"], *out.outputs[0].token_ids)
"""


def test_two_processes_may_write_the_same_prefix(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, folder = tiny_model(), tmp_path / "store"
    command = [sys.executable, "-c", PROGRAM, str(model), str(folder), TEXT]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=120)[0].split() for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    with open_engine(model, folder) as engine:
        assert engine.info["prefix_source"] == "restored"
        expected = answer(engine)
    for source, *ids in results:
        assert source in ("computed", "restored")
        assert list(map(int, ids)) == expected
    assert [p.name.endswith(SUFFIX) for p in folder.iterdir()] == [True], "nothing is left over"
