"""What it takes to start on the real checkpoint: no second copy of anything, and no idle module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_start
from urial_engine import Engine, UrialPrompt
from urial_engine.prefix_store import PrefixStore

BESIDE = 150e6  # bytes of a process beside the weights and the cache in use
# What an answer does not need. The command line's own are looked at where its help is tested.
IDLE = {
    *("jinja2", "sentencepiece", "huggingface_hub", "rich", "typer", "gguf", "pyarrow"),
    *("secrets", "hashlib", "importlib.resources", "importlib.metadata", "asyncio", "torch"),
}

PROGRAM = f"""
import sys
import urial_engine
assert not [m for m in sys.modules if m.split(".")[0] in {{"numpy", "tokenizers"}}]
with urial_engine.Engine(sys.argv[1], prefix="Be brief.", kv_cache_gib=0.01) as engine:
    engine.generate("Why?", urial_engine.SamplingParams(max_tokens=2))
print(*sorted({IDLE!r} & sys.modules.keys()))
"""


def test_an_answer_imports_only_what_it_uses(tiny_model: Any) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tiny_model())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.fixture(scope="module")
def asked(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A start of the real model, whose prefix is on disk."""
    folder = tmp_path_factory.mktemp("prefixes")
    prefix = folder / "prefix.txt"
    prefix.write_text(UrialPrompt.default().text)
    options = {"threads": 2, "prefix_dir": str(folder)}
    found = {"model": str(real_model), "prefix": str(prefix), "query": "Why?", "engine": options}
    assert bench_start.start(found)["prefix_source"] == "computed"
    return found


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_weights_and_prefix_stand_in_memory_once(asked: dict[str, Any]) -> None:
    found = bench_start.start(asked)
    assert found["prefix_source"] == "restored"
    over = found["peak_bytes"] - found["weight_bytes"] - found["kv_bytes"]
    print(f"peak beside weights and cache: {over / 1e6:.0f} MB")
    assert over < BESIDE


def test_restoring_a_prefix_takes_a_few_times_as_long_as_reading_its_file(
    asked: dict[str, Any],
) -> None:
    """The best of some: what disturbs a measurement only makes it longer."""
    folder = asked["engine"]["prefix_dir"]
    files = PrefixStore(folder).paths()
    restored, read = [], []
    for _ in range(4):
        with Engine(asked["model"], prefix=UrialPrompt.default(), prefix_dir=folder) as engine:
            assert engine.info["prefix_source"] == "restored"
            restored.append(1e3 * float(str(engine.info["prefix_seconds"])))
        read.append(bench_start.read(files, 1))
    size = files[0].stat().st_size
    print(f"{size / 1e6:.0f} MB: restored in {min(restored):.1f} ms, read in {min(read):.1f} ms")
    assert min(restored) < 8 * min(read)
