"""Scoring never holds [tokens, vocabulary]: measured on the real checkpoint, in a process alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOKENS, LIMIT = 4096, 64 * 2**20

PROGRAM = """
import json, pathlib, sys
import numpy as np
from urial_engine import Engine

def status(name):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024

model, tokens = sys.argv[1], int(sys.argv[2])
random = np.random.default_rng(0)
with Engine(model, kv_cache_gib=0.1) as engine:  # so small that each text reuses it
    texts = random.integers(3, engine.config.vocab_size, size=(2, tokens + 1)).tolist()
    engine.score([texts[0][:1]], [texts[0][1:]], top_k=10)  # touches the cache: budgeted memory
    idle = status("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    scores = engine.score([texts[1][:1]], [texts[1][1:]], top_k=10)[0]
    print(json.dumps({"idle": idle, "peak": status("VmHWM"), "scored": len(scores.rank)}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_scoring_4096_positions_takes_less_than_64_mb(real_model: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(real_model), str(TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["scored"] == TOKENS
    growth = figures["peak"] - figures["idle"]
    print(f"peak above idle while scoring {TOKENS} positions: {growth / 2**20:.1f} MiB")
    assert growth < LIMIT
