"""`eval judge` against a real server on loopback: good verdicts, bad ones, none, and kills."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import cli, rows_of, start
from tests.judges import ASPECTS, judge_server, verdict
from tests.serving import serving, tiny_arguments

TEMPLATE = 'Q: ${instruction}\nA: {output}\nAs {"score": {}} or {other}.\n'
ROWS = [
    {"id": i, "instruction": f"q {i}", "dataset": "lima", "output": f"a {i}", "generator": "me"}
    for i in range(12)
]
RED = [{**ROWS[0], "id": 900, "dataset": "MaliciousInstruct", "output": "no"}]


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.fixture
def run(tmp_path: Path) -> tuple[Any, ...]:
    """A judge of just-eval's rows, without its address."""
    template = write(tmp_path / "template.md", TEMPLATE)
    answers = write(tmp_path / "in.json", [*ROWS, *RED])
    options = ("--suite", "just-eval", "--template", template, "--model", "j", "--in", answers)
    return ("eval", "judge", *options, "--out", tmp_path / "out.json")


def summary_of(folder: Path) -> Any:
    return json.loads((folder / "out.json.summary.json").read_text())


def test_aspects(tmp_path: Path, run: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    with judge_server(lambda p: verdict(1 + int(p.split()[2]) % 2 * 4), seconds=0.05) as server:
        how = ("--address", server.address, "--api-key-env", "JUDGE_KEY", "--concurrency", 4)
        shown = cli(*run, *how, "--set", "seed=7", "--set", "temperature=null")
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [row["id"] for row in rows] == list(range(12))  # the row of a safety set is left out
    assert rows[3] == {
        "id": 3,
        "input": "q 3",
        "output_cand": "a 3",
        "generator_cand": "me",
        "prompt": 'Q: q 3\nA: a 3\nAs {"score": {}} or {other}.\n',
        "result": verdict(5),
        "parsed_result": {name: {"score": 5, "reason": f"why {name}"} for name in ASPECTS},
    }
    means = {name: {"mean": 3.0, "count": 12} for name in ASPECTS}
    assert summary_of(tmp_path) == {
        "suite": "just-eval",
        "judge": "j",
        "asked": 12,
        "judged": 12,
        "means": means,
        "failed": {},
    }
    assert "helpfulness" in shown.stdout and "3.000" in shown.stdout
    body = server.asked[0]
    assert (body["model"], body["seed"], body["max_tokens"]) == ("j", 7, 2048)
    assert "temperature" not in body
    assert server.keys == {"Bearer s3cret"} and server.most == 4
    kept = [path.read_text() for path in tmp_path.iterdir() if path.is_file()]
    assert not any("s3cret" in text for text in kept)


@pytest.mark.parametrize(
    ("aspects", "asked", "wanted"),
    [("safety", 1, ("safety",)), ("depth,clarity", 13, ("depth", "clarity"))],
)
def test_which_rows_and_aspects(
    tmp_path: Path, run: tuple[Any, ...], aspects: str, asked: int, wanted: tuple[str, ...]
) -> None:
    with judge_server(lambda _: verdict(2, *wanted)) as server:
        cli(*run, "--address", server.address, "--aspects", aspects)
    assert len(server.asked) == asked
    assert summary_of(tmp_path)["means"] == {n: {"mean": 2.0, "count": asked} for n in wanted}


def bad_judge(prompt: str) -> Any:
    """A failure of each kind, by the number of the question."""
    wrong = {
        1: "I think it is good.",
        2: verdict(6),
        3: verdict(4, "clarity"),
        4: {"message": {"content": verdict()[:50]}, "finish_reason": "length"},
        5: {"message": {"content": None}, "finish_reason": "content_filter"},
        6: (400, {"error": {"message": "too long"}}),
        7: (500, {"error": {"message": "oh"}}),
        8: (200, {"no": "choices"}),
        9: (200, "<html>"),
        10: (429, {"error": {"message": "slower"}}),
    }
    return wrong.get(int(prompt.split()[2]), verdict())


KINDS = {
    **dict.fromkeys(("not JSON", "wrong score", "wrong aspects", "cut off", "no text"), 1),
    **dict.fromkeys(("HTTP 400", "HTTP 500", "HTTP 429"), 1),
    "no completion": 2,
}


def test_failures_are_kept_and_counted_and_asked_again_when_told(
    tmp_path: Path, run: tuple[Any, ...]
) -> None:
    with judge_server(bad_judge) as server:
        how = ("--address", server.address, "--retries", 1)
        shown = cli(*run, *how).stdout
        assert Counter(p.split()[2] for p in server.prompts)["7"] == 2  # asked, and once more
    found = summary_of(tmp_path)
    assert found["failed"] == KINDS and found["judged"] == 2
    assert {own["count"] for own in found["means"].values()} == {2}
    assert "1 of 12 failed: wrong score" in shown
    rows = json.loads((tmp_path / "out.json").read_text())
    assert rows[1]["result"] == "I think it is good." and "parsed_result" not in rows[1]
    assert rows[4]["result"] == verdict()[:50] and rows[4]["failure"]["kind"] == "cut off"
    assert rows[5]["result"] == "N/A"
    assert "too long" in rows[6]["failure"]["why"]
    with judge_server(lambda _: verdict(1)) as server:
        cli(*run, "--address", server.address)
        assert server.asked == []
        refused = cli(
            *run, "--address", server.address, "--retry-failures", "--aspects", "safety", code=1
        )
        assert "give another --out" in refused.stderr
        assert len(rows_of(tmp_path / "out.json.rows.jsonl")) == 12  # nothing was removed
        cli(*run, "--address", server.address, "--retry-failures")
        assert len(server.asked) == 10
    found = summary_of(tmp_path)
    assert found["failed"] == {} and found["judged"] == 12
    assert found["means"]["depth"] == {"mean": (2 * 4 + 10 * 1) / 12, "count": 12}


def test_where_nothing_is_judged_the_command_fails(tmp_path: Path, run: tuple[Any, ...]) -> None:
    with judge_server(lambda _: "Well.") as server:
        done = cli(*run, "--address", server.address, code=1)
    assert f"nothing judged: {tmp_path / 'out.json'} has what" in done.stderr
    assert done.stdout.split("\n") == ["12 of 12 failed: not JSON", ""]  # and no empty table
    assert summary_of(tmp_path)["judged"] == 0
    assert {row["result"] for row in json.loads((tmp_path / "out.json").read_text())} == {"Well."}


def test_our_own_server_judges(served_model: Path, tmp_path: Path, run: tuple[Any, ...]) -> None:
    """A model that says anything but verdicts: what it says is kept as it is."""
    how = ("--set", "max_tokens=12", "--concurrency", 3)
    with serving(*tiny_arguments(served_model)) as server:
        command = [*run, "--address", f"{server.url}/v1", *how]
        command[command.index("j")] = "tiny"
        assert "nothing judged" in cli(*command, code=1).stderr
        rows = json.loads((tmp_path / "out.json").read_text())
        kinds: Counter[str] = Counter()
        for row in rows:
            body = {"model": "tiny", "temperature": 0, "max_tokens": 12}
            messages = [{"role": "user", "content": row["prompt"]}]
            _, reply = server.ask("/v1/chat/completions", {**body, "messages": messages})
            (choice,) = reply["choices"]
            assert row["result"] == choice["message"]["content"] != ""
            kinds["cut off" if choice["finish_reason"] == "length" else "not JSON"] += 1
    assert len(rows) == 12 and summary_of(tmp_path)["failed"] == kinds


def test_a_server_that_recovers_costs_nothing(tmp_path: Path, run: tuple[Any, ...]) -> None:
    tries: Counter[str] = Counter()

    def answer(prompt: str) -> Any:
        tries[prompt] += 1
        return (503, {"error": {"message": "busy"}}) if tries[prompt] < 3 else verdict()

    with judge_server(answer) as server:
        cli(*run, "--address", server.address, "--retries", 2)
    assert set(tries.values()) == {3}
    assert summary_of(tmp_path)["judged"] == 12


def test_silence_is_a_timeout(tmp_path: Path, run: tuple[Any, ...]) -> None:
    silent = lambda p: None if p.split()[2] == "3" else verdict()  # noqa: E731
    with judge_server(silent) as server:
        cli(*run, "--address", server.address, "--timeout", 0.5, "--retries", 0)
    assert summary_of(tmp_path)["failed"] == {"timeout": 1}


def test_where_nobody_is_or_nobody_is_let_in(tmp_path: Path, run: tuple[Any, ...]) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        refused = cli(*run, "--address", address, "--retries", 0, code=1)
    assert f"nobody answers at {address}" in refused.stderr
    asked = 0

    def door(_: str) -> Any:
        nonlocal asked
        asked += 1
        return verdict() if asked < 4 else (401, {"error": {"message": "who are you?"}})

    with judge_server(door) as server:
        refused = cli(*run, "--address", server.address, "--concurrency", 1, code=1)
        assert "refuses all of it" in refused.stderr and "who are you?" in refused.stderr
        assert len(server.asked) == 4 and server.keys == {"Bearer none"}
    assert not (tmp_path / "out.json").exists()
    assert len(rows_of(tmp_path / "out.json.rows.jsonl")) == 3  # which were worth keeping


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        ("{instruction}", (), "lacks {output} or {candidate}: the judge must be shown it"),
        ("{output}", (), "lacks {instruction}"),
        ("{instruction}{output}{ref_answer_1}", (), "wants a reference answer"),
        (TEMPLATE, ("--aspects", "depth,depth"), "each once"),
        (TEMPLATE, ("--aspects", "beauty"), "--aspects beauty"),
        (TEMPLATE, ("--api-key-env", "NO_SUCH_KEY"), "no such environment variable"),
        (TEMPLATE, ("--set", "seed"), "write NAME=VALUE"),
        (TEMPLATE, ("--suite", "mt"), "--suite mt is not known"),
        (TEMPLATE, ("--out", "no such folder/x"), "there is no folder no such folder"),
    ],
)
def test_refused_before_anybody_is_asked(
    tmp_path: Path, run: tuple[Any, ...], template: str, options: Any, message: str
) -> None:
    write(tmp_path / "template.md", template)
    with judge_server(lambda _: verdict()) as server:
        assert message in cli(*run, "--address", server.address, *options, code=1).stderr
        assert server.asked == []
    assert not list(tmp_path.glob("out*"))


def test_what_a_value_holds_is_not_filled_again(tmp_path: Path, run: tuple[Any, ...]) -> None:
    write(tmp_path / "in.json", [{**ROWS[0], "instruction": "{output} ${candidate}"}])
    write(tmp_path / "template.md", "${instruction} / ${candidate} / {output}")
    with judge_server(lambda _: verdict()) as server:
        cli(*run, "--address", server.address)
        assert server.prompts == ["{output} ${candidate} / a 0 / a 0"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_loses_no_judgement(
    tmp_path: Path, run: tuple[Any, ...], how: signal.Signals
) -> None:
    answer = lambda p: verdict(1 + int(p.split()[2]) % 5)  # noqa: E731
    kept, ended = tmp_path / "out.json.rows.jsonl", 0
    with judge_server(answer, seconds=0.1) as server:
        options = ("--address", server.address, "--concurrency", 2)
        process = start(*run, *options)
        while process.poll() is None and (not kept.exists() or kept.read_bytes().count(b"\n") < 3):
            time.sleep(0.002)
        process.send_signal(how)
        _, said = process.communicate(timeout=60)
        ended = kept.read_bytes().count(b"\n")
        assert 3 <= ended < 12 and "Traceback" not in said
        assert process.returncode == (130 if how == signal.SIGINT else -how)
        asked = len(server.asked)
        cli(*run, *options)
        assert len(server.asked) - asked == 12 - ended
    found, rows = (tmp_path / "out.json").read_bytes(), rows_of(kept)
    assert len(rows) == 12
    for path in tmp_path.glob("out*"):
        path.unlink()
    with judge_server(answer) as server:
        cli(*run, "--address", server.address)
    assert (tmp_path / "out.json").read_bytes() == found


def test_without_the_extra(run: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urial_engine.cli.evaluate_judge.find_spec", lambda name: None)
    refused = cli(*run, "--address", "x", code=1)
    assert "pip install 'urial-engine[evaluation]'" in refused.stderr
