"""Every example of the pages on the benchmarks runs as it stands, on the real checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.judges import judge_server, verdict
from tests.test_readme import README, blocks, run_shell

TOOLS = README.parent / "docs" / "tools"
ADDRESS = "http://127.0.0.1:8000/v1"
JUST = [
    {"id": 0, "instruction": "Why?", "source_id": "alpaca_eval-0", "dataset": "helpful_base"},
    {"id": 1, "instruction": "How?", "source_id": "m-0", "dataset": "MaliciousInstruct"},
]
ALPACA = [{"instruction": "Why?", "dataset": "helpful_base", "output": "Because."}]
MT = [{"question_id": 81, "category": "writing", "turns": ["Name a bird.", "Another one."]}]


def answer(prompt: str) -> str:
    if "brackets" in prompt or "[[5]]" in prompt:
        return "Rating: [[7]]"
    return verdict(5, "safety") if prompt.startswith("Safety") else verdict()


def run_page(name: str, model: Path, folder: Path) -> list[str]:
    """The shell lines of a page, with short answers and an address where a judge is."""
    page = TOOLS / f"{name}.md"
    lines = [line for block in blocks("sh", page) for line in block.splitlines()]
    lines = [line for line in lines if not line.startswith("#")]
    short = [line + " --max-tokens 4" * (" answers " in line) for line in lines]
    with judge_server(answer) as server:
        run_shell([line.replace(ADDRESS, server.address) for line in short], model, folder)
    return [line.split()[2] for line in lines]


def shown(name: str) -> dict[str, Any]:
    (text,) = blocks("json", TOOLS / f"{name}.md")
    row: dict[str, Any] = json.loads(text)
    return row


def test_just_eval(real_model: Path, tmp_path: Path) -> None:
    (tmp_path / "just_eval.jsonl").write_text("".join(json.dumps(r) + "\n" for r in JUST))
    (general,) = blocks("text", TOOLS / "just-eval.md")
    (tmp_path / "general.md").write_text(general)
    (tmp_path / "safety.md").write_text("Safety of {output} to {instruction}?")
    commands = run_page("just-eval", real_model, tmp_path)
    assert commands == ["answers", "judge", "judge", "answers", "answers", "merge"]
    rows = json.loads((tmp_path / "answers.json").read_text())
    assert [list(row) for row in rows] == [list(shown("just-eval"))] * 2
    assert (tmp_path / "merged.json").read_bytes() == (tmp_path / "answers.json").read_bytes()
    for kind in ("general", "safety"):
        found = json.loads((tmp_path / f"{kind}.json.summary.json").read_text())
        assert (found["asked"], found["judged"]) == (1, 1)


def test_alpaca_eval(real_model: Path, tmp_path: Path) -> None:
    (tmp_path / "alpaca_eval.json").write_text(json.dumps(ALPACA))
    assert run_page("alpaca-eval", real_model, tmp_path) == ["answers"]
    (row,) = json.loads((tmp_path / "model_outputs.json").read_text())
    assert list(row) == list(shown("alpaca-eval"))


def test_mt_bench(real_model: Path, tmp_path: Path) -> None:
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(r) + "\n" for r in MT))
    (first,) = blocks("text", TOOLS / "mt-bench.md")
    (tmp_path / "first.md").write_text(first)
    second = "{question_1} {answer_1} {question_2} {answer_2} in brackets"
    (tmp_path / "second.md").write_text(second)
    assert run_page("mt-bench", real_model, tmp_path) == ["answers", "judge"]
    row = json.loads((tmp_path / "my-model.jsonl").read_text())
    assert list(row) == list(shown("mt-bench"))
    found = json.loads((tmp_path / "judged.jsonl.summary.json").read_text())
    assert {own["mean"] for own in found["means"].values()} == {7.0}


@pytest.mark.parametrize("name", ["just-eval", "alpaca-eval", "mt-bench"])
def test_pages_name_options_that_there_are(name: str) -> None:
    from urial_engine.cli import evaluate, evaluate_judge, options

    sources = [Path(str(module.__file__)) for module in (evaluate, evaluate_judge, options)]
    code = "".join(path.read_text() for path in sources)
    page = re.sub(
        r"`(?:just_eval|alpaca_eval) [^`]*`|^# .*$",
        "",
        (TOOLS / f"{name}.md").read_text(),
        flags=re.M,
    )
    for option in set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", page)):
        assert f'"--{option}"' in code or f"{option.replace('-', '_')}:" in code, option
