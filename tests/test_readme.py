"""Every example of the README runs, as it stands, on the real checkpoint."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
MODEL = "path/to/model"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.M | re.S)


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
    for line in commands:
        words = shlex.split(line.replace(MODEL, str(real_model)))
        program = [str(Path(sys.executable).parent / words[0]), *words[1:]]
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert list((tmp_path / "prefixes").iterdir())


def test_make_targets_exist() -> None:
    makefile = README.with_name("Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", README.read_text(), re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
