"""Every example of the README, and of the page on token shift, runs as it stands, on the real
checkpoint."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from urial_engine.prompt_examples import ExamplePrompt

README = Path(__file__).resolve().parent.parent / "README.md"
SHIFT = README.parent / "docs" / "token-shift.md"
MODEL = "path/to/model"


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def run_shell(lines: list[str], model: Path, folder: Path) -> None:
    for line in lines:
        words = shlex.split(re.sub(r"path/to/\w+", str(model), line))
        program = [str(Path(sys.executable).parent / words[0]), *words[1:]]
        done = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_python_examples(
    real_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    program = "\n".join(blocks("python"))
    assert program.count("Engine(") == 1 and MODEL in program
    exec(compile(program.replace(MODEL, str(real_model)), str(README), "exec"), {})
    assert "unshifted" in capsys.readouterr().out
    assert (tmp_path / "shift-run" / "tokens.parquet").exists()


def test_shell_examples(real_model: Path, tmp_path: Path) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("urial-engine ")]
    assert len(commands) == 4
    run_shell(commands, real_model, tmp_path)


def test_token_shift_examples(
    real_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    lines = [line for block in blocks("sh", SHIFT) for line in block.splitlines()]
    assert [line.split()[1] for line in lines] == ["shift", "report", "compare"]
    (tmp_path / "queries.txt").write_text("Name three birds.\nWhy is the sky blue?\n")
    lines[0] += " --max-tokens 12"
    run_shell(lines, real_model, tmp_path)
    monkeypatch.chdir(tmp_path)
    for program in blocks("python", SHIFT):
        exec(compile(program, str(SHIFT), "exec"), {})
    said = capsys.readouterr().out
    assert "'unshifted'" in said and "zero-shot" in said
    (prompt,) = blocks("json", SHIFT)
    fields = json.loads(prompt)
    vectors = {"queries": np.array(["a", "b", "c", "d", "e"]), "vectors": np.eye(5, dtype="f4")}
    np.savez(tmp_path / fields["embeddings"], **vectors)
    pool = [{"query": q, "answer": q * 2, "hint": q} for q in "abcd"]
    for name, rows in (("examples", pool), ("hints", [{"query": "e", "hint": "it"}])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / fields[name]).write_text(text)
    (tmp_path / "prompt.json").write_text(prompt)
    assert ExamplePrompt.load(tmp_path / "prompt.json")("e").startswith("Answer briefly.")
