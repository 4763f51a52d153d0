"""lm-evaluation-harness with a URIAL prompt and with chats, and its command line on our engine."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from tests import harness
from tests.command_line import write_prefix
from tests.fixtures import TinyModel
from tests.harness import FOLDER, ROOT, Evaluate, Open, answers, requests
from urial_engine.compat.lm_eval import UrialLM, chat
from urial_engine.compat.lm_eval import __main__ as launcher
from urial_engine.engine import Engine
from urial_engine.errors import PromptError, TokenizerError
from urial_engine.prompt import UrialPrompt
from urial_engine.sampling import SamplingParams

evaluate, open_lm = harness.evaluate, harness.open_lm  # the fixtures
PAGE = ROOT / "docs" / "tools" / "lm-eval.md"
# Runs before a program: torch and transformers are not there for it, and only our tasks are listed,
# since to list all takes seconds.
WITHOUT_TORCH = """
from functools import partial
from importlib.machinery import PathFinder
find = PathFinder.find_spec
hidden = lambda name: name.partition(".")[0] in ("torch", "transformers")
PathFinder.find_spec = staticmethod(lambda *name: None if hidden(name[0]) else find(*name))
import lm_eval.tasks
lm_eval.tasks.TaskManager = partial(lm_eval.tasks.TaskManager, include_defaults=False)
"""
USER, BOT = ({"role": role, "content": f"one {role}"} for role in ("user", "assistant"))
SYSTEM = {"role": "system", "content": "Be brief."}


def total(engine: Engine, context: Any, continuation: Any) -> float:
    return float(engine.score(context, continuation)[0].logprob.sum(dtype=np.float64))


def test_every_request_continues_the_prompt(
    open_lm: Open, tiny_model: TinyModel, tmp_path: Path
) -> None:
    model, prompt = tiny_model(), write_prefix(tmp_path)
    lm = open_lm(model, prompt=str(prompt))
    pairs = [("one", " two"), ("", "two"), ("one ", "two")]
    found = [score for score, _ in lm.loglikelihood(requests("loglikelihood", *pairs))]
    assert found == [total(lm.engine, *pair) for pair in (*pairs[:2], ("one", " two"))]
    assert lm.loglikelihood_rolling(requests("loglikelihood_rolling", ("one two",), ("",))) == [
        total(lm.engine, "", "one two"),
        0,
    ]
    until = {"until": ["x"], "max_gen_toks": 12}
    params = SamplingParams(max_tokens=12, stop="x")
    assert (
        lm.generate_until(requests("generate_until", ("one", until)))[0]
        == lm.engine.generate("one", params)[0].outputs[0].text
    )


def test_the_prompt_stays_where_the_rest_is_cut(
    open_lm: Open, tiny_model: TinyModel, tmp_path: Path
) -> None:
    model, prompt = tiny_model(), write_prefix(tmp_path)
    prefix = Engine(model, prefix=UrialPrompt.load(prompt), kv_cache_gib=0.02)
    kept = prefix.prefix_ids
    lm = open_lm(model, prompt=str(prompt), max_length=len(kept) + 20)
    tokens = lm.tok_encode("The river went on and on, and nobody minded.")[len(kept) :]
    assert 40 < len(tokens) <= 60, "two windows more"
    text, whole = lm.tokenizer.decode(tokens), prefix
    windows = [(kept, tokens[:20])]
    for end in (40, len(tokens)):
        start = max(20, end - 20) if end == 40 else 40
        windows.append((kept + tokens[end - 21 : start], tokens[start:end]))
    expected = sum(total(whole, *window) for window in windows)
    (found,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    assert found == pytest.approx(expected, abs=1e-9)
    (score,) = lm.loglikelihood(requests("loglikelihood", (text, " And")))
    last = lm.tok_encode(text + " And")[len(kept) :][len(tokens) :]
    assert score[0] == total(whole, kept + tokens[-(21 - len(last)) :], last)
    fields = {"max_gen_toks": 15}
    (answer,) = lm.generate_until(requests("generate_until", (text, fields)))
    params = SamplingParams(max_tokens=15)
    assert answer == whole.generate(kept + tokens[-5:], params)[0].outputs[0].text
    with pytest.raises(PromptError, match=f"leaves {len(kept)} for .*alone has {len(kept)}: gen"):
        lm.generate_until(requests("generate_until", (text, {"max_gen_toks": 20})))
    prefix.close()


def test_chats_take_the_form_of_the_prompt(
    evaluate: Evaluate, open_lm: Open, real_model: Path, tmp_path: Path
) -> None:
    """Their answers are those of `answer`; its cache is kept in a folder."""
    prompt = {"prompt": "default", "prefix_dir": str(tmp_path), "kv_cache_gib": 0.3}
    lm = open_lm(real_model, **prompt, dtype="bfloat16")
    results = evaluate(lm, tasks=["urial_answer"], apply_chat_template=True)
    rows = (FOLDER / "answer.jsonl").read_text().splitlines()
    params = SamplingParams(max_tokens=24, stop=["\n\n", "."])
    expected = lm.engine.answer([json.loads(row)["question"] for row in rows], params)
    assert answers(results, "urial_answer") == expected
    again = open_lm(real_model, **prompt, dtype="bfloat16")
    assert again.get_model_info()["engine"]["prefix_source"] == "restored"


def test_urial_form() -> None:
    prompt = UrialPrompt("# Instruction\n")
    plain = chat.by_prompt(prompt, [USER, BOT, USER], answer_next=True)
    assert plain == prompt.render_chat(["one user", "one assistant", "one user"])
    system = chat.by_prompt(prompt, [SYSTEM, USER], answer_next=True)
    assert system == prompt.render("Be brief.\n\none user")
    begun = chat.by_prompt(prompt, [USER, BOT], answer_next=False)
    assert begun == prompt.render("one user") + "one assistant"
    rest = " more.\n```\n\n# Query:\n```\n"
    assert chat.clean(prompt, begun, rest) == " more."
    assert chat.clean(prompt, plain, "Well" + rest) == "Well more."
    assert chat.clean(prompt, "a text of a task", rest) == rest
    for wrong in ([USER, USER], [BOT], [SYSTEM]):
        with pytest.raises(PromptError, match="a user and an assistant in turns, not"):
            chat.by_prompt(prompt, wrong, answer_next=True)


def test_chats_by_the_models_template(
    open_lm: Open, tiny_model: TinyModel, caplog: pytest.LogCaptureFixture
) -> None:
    """As `hf` renders them: with a message to be continued, and where a role is refused."""
    model = tiny_model()
    spaced = {"role": "assistant", "content": " So "}
    strict = "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}"
    strict += (
        "{{ raise_exception('no') }}{% endif %}[{{ m.role }}]{{ m.content | trim }}\n{% endfor %}"
    )
    for template in (None, strict):
        if template:
            path = model / "tokenizer_config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
        lm, hf = open_lm(model), HFLM(str(model), device="cpu")
        assert lm.chat_template(True) == hf.chat_template(True) and lm.chat_template(False) is None
        for chat_, go_on in (([SYSTEM, USER], True), ([USER, BOT], False), ([USER, spaced], False)):
            ours, theirs = (each.apply_chat_template(chat_, go_on) for each in (lm, hf))
            assert ours == theirs
    assert sum("refuses system messages" in r.getMessage() for r in caplog.records) == 1
    with pytest.raises(TokenizerError, match="template fails"):
        lm.apply_chat_template([{"role": "critic", "content": "No."}])


@pytest.mark.parametrize(
    ("template", "wrong", "message"),
    [
        ("", TokenizerError, "has no default chat template"),
        ("{{ 'Nothing.' }}", PromptError, "does not write the message to be continued: 'one assi"),
    ],
)
def test_chats_that_a_template_cannot_write(
    open_lm: Open,
    tiny_model: TinyModel,
    caplog: pytest.LogCaptureFixture,
    template: str,
    wrong: type[Exception],
    message: str,
) -> None:
    model = tiny_model()
    path = model / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("chat_template")
    path.write_text(json.dumps(settings | ({"chat_template": template} if template else {})))
    lm = open_lm(model)
    with pytest.raises(wrong, match=message):
        lm.apply_chat_template([SYSTEM, USER, BOT], False)
    assert not [r for r in caplog.records if "system messages" in r.getMessage()]


def test_prepared_requests_are_told_apart(
    open_lm: Open, tiny_model: TinyModel, tmp_path: Path
) -> None:
    """Their file's name changes with the chat template and with the prompt."""
    model, prompt = tiny_model(), write_prefix(tmp_path)
    plain, urial = open_lm(model), open_lm(model, prompt=str(prompt))
    assert plain.tokenizer_name != urial.tokenizer_name and "/" not in urial.tokenizer_name
    form = UrialPrompt.load(prompt)
    assert urial.chat_template(True) == form.text + form.render("{query}")


def test_the_page_runs(
    tiny_model: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Its commands and its program, on our tasks in place of those that must be fetched."""
    model = tiny_model(max_position_embeddings=8192)  # the prefix has about 2,000 of its tokens
    page = PAGE.read_text().replace("path/to/model", str(model))
    for theirs, ours in (("arc_easy", "urial_choice"), ("gsm8k", "urial_answer")):
        page = page.replace(theirs, ours)
    commands = re.findall(r"^python -m (urial_engine\S+) (.*)$", page, re.M)
    assert len(commands) == 2
    more = ["--include_path", str(FOLDER), "--output_path", str(tmp_path), "--limit", "3"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_TORCH)
    (module, line), (_, other) = commands
    command = [sys.executable, "-m", module, *shlex.split(line), *more]
    with monkeypatch.context() as its:
        its.setenv("PYTHONPATH", str(tmp_path))
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "urial_choice" in done.stdout, done.stderr
    ours_only = partial(TaskManager, include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", ours_only)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    monkeypatch.setattr(sys, "argv", [module, *shlex.split(other), *more])
    launcher.main()
    assert "urial_answer" in capsys.readouterr().out
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("results*.json"))]
    assert [r["config"]["engine"].get("prefix_tokens", 0) > 500 for r in results] == [False, True]
    assert results[0]["transformers_version"] == "N/A"
    assert results[0]["pretty_env_info"] == "N/A (torch not installed)"
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    program = program.replace("simple_evaluate(", "simple_evaluate(task_manager=manager, ")
    exec(compile(program, str(PAGE), "exec"), {"manager": ours_only(include_path=str(FOLDER))})
    assert 0 <= float(capsys.readouterr().out) <= 1


def test_an_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "cli_evaluate", lambda: UrialLM("nowhere", peft="x"))
    with pytest.raises(SystemExit, match=r"^error: model_args has no peft; there are pretrained"):
        launcher.main()


def test_without_the_harness() -> None:
    code = "import sys; sys.modules['lm_eval'] = None; import urial_engine.compat.lm_eval"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "ImportError: the model `urial` needs lm-evaluation-harness: pip" in done.stderr
