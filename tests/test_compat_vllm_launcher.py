"""Scripts written for vLLM run as they are, and as python itself would run them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import TinyModel
from urial_engine.engine import Engine
from urial_engine.sampling import SamplingParams

LAUNCHER = [sys.executable, "-m", "urial_engine.compat.vllm"]
SCRIPT = Path(__file__).parent / "data" / "vllm_script.py"
PAGE = Path(__file__).parents[1] / "docs" / "tools" / "vllm.md"
PREFIX = "Be brief, and answer in one word. " * 6
QUERIES = ["What?", "Where is it?", "Who was that?", "When?", "Why on earth?"]


def run(*command: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (
            {"batch_size": 2, "repetition_penalty": 1.1, "max_tokens": 24},
            {"repetition_penalty": 1.1, "max_tokens": 24},
        ),
        (
            {"num_outputs": 3, "temperature": 0.8, "top_p": 0.9, "seed": 11, "max_tokens": 12},
            {"n": 3, "temperature": 0.8, "top_p": 0.9, "seed": 11, "max_tokens": 12},
        ),
        ({"batch_size": 8, "tensor_parallel_size": 4}, {"max_tokens": 7500}),
    ],
)
def test_a_script_of_vllm_gives_the_answers_of_the_engine(
    tiny_model: TinyModel, tmp_path: Path, options: dict[str, Any], fields: dict[str, Any]
) -> None:
    model, out = tiny_model(), tmp_path / "answers.json"
    (tmp_path / "queries.txt").write_text("\n".join(QUERIES))
    (tmp_path / "urial.txt").write_text(PREFIX)
    named = {"model_name": model, "queries": "queries.txt", "urial": "urial.txt", "filepath": out}
    words = [w for name, value in {**named, **options}.items() for w in (f"--{name}", value)]
    done = run(*LAUNCHER, SCRIPT, *words, cwd=tmp_path)
    assert done.stdout == f"5 answers in {out}\n"
    (said,) = done.stderr.splitlines()
    assert said.startswith("of no meaning here, and so not used: ")
    assert "gpu_memory_utilization=0.8" in said
    assert (
        ("tensor_parallel_size=4" in said)
        == ("one device" in said)
        == ("max_tokens" not in options)
    )
    rows = json.loads(out.read_text())
    prompts = [f"{PREFIX}\n# Query:\n```\n{q}\n```\n\n# Answer:\n```\n" for q in QUERIES]
    with Engine(model) as engine:
        stop = SamplingParams(stop=("# Query", "# User"), stop_token_ids=(2,), **fields)
        truth = engine.generate(prompts, stop)
        least = len(engine.tokenizer.encode(PREFIX)) // 64 * 64
    assert least >= 128
    for row, output in zip(rows, truth, strict=True):
        assert row["output"] == [sample.text for sample in output.outputs]
        assert row["token_ids"] == [sample.token_ids for sample in output.outputs]
        assert row["finish_reason"] == [sample.finish_reason for sample in output.outputs]
    assert all(row["cached"] >= least for row in rows[1:])


PROBE = """
import json, sys
import __main__
import beside
print(json.dumps([sys.argv, __file__, __name__, sys.path[0], __main__.__dict__ is globals(),
                  __package__, beside.__file__, __package__ or __builtins__.__name__,
                  "vllm" in sys.modules]))
def annotated(x: undefined_name): ...
"""


def test_the_script_sees_what_python_shows_it(tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for place in (folder, tmp_path):
        (place / "beside.py").write_text("")
    source = PROBE.replace("def annotated(x: undefined_name): ...\n", "")
    (folder / "probe.py").write_text(source)
    (tmp_path / "link.py").symlink_to(folder / "probe.py")
    for command in (
        ["sub/probe.py", "a", "--b", "-m"],
        [folder / "probe.py"],
        ["link.py"],
        ["-m", "sub.probe", "a"],
    ):
        truth = json.loads(run(sys.executable, *command, cwd=tmp_path).stdout)
        assert truth.pop() is False
        assert json.loads(run(*LAUNCHER, *command, cwd=tmp_path).stdout) == [*truth, True]
    # Nothing of the launcher's own rules of annotations reaches the script.
    (folder / "probe.py").write_text(PROBE)
    assert "undefined_name" in run(*LAUNCHER, "sub/probe.py", cwd=tmp_path, code=1).stderr


IMPORTS = """
import sys, vllm
from vllm import LLM, CompletionOutput, RequestOutput, SamplingParams, TextPrompt, TokensPrompt
from vllm.inputs import PromptType
from vllm.outputs import RequestOutput as same
from vllm.sampling_params import SamplingParams as also
from vllm.entrypoints.llm import LLM as third
import vllm.inputs
from vllm.logprobs import Logprob
from vllm.sequence import Logprob as before
assert same is RequestOutput and also is SamplingParams and third is LLM and before is Logprob
assert vllm.inputs.TokensPrompt is TokensPrompt and vllm.outputs.RequestOutput is RequestOutput
assert vllm.__version__.startswith("0.32.0+urial"), vllm.__version__
try:
    from vllm.lora.request import LoRARequest
except ImportError as error:
    print(error)
try:
    from vllm import AsyncLLMEngine
except ImportError as error:
    print(error)
sys.exit(7)
"""


def test_a_real_vllm_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "installed" / "vllm"
    (real / "lora").mkdir(parents=True)
    for file in ("__init__.py", "lora/__init__.py", "lora/request.py"):
        (real / file).write_text("raise SystemExit('this is the real one')")
    monkeypatch.setenv("PYTHONPATH", str(real.parent))
    (tmp_path / "script.py").write_text(IMPORTS)
    run(sys.executable, "script.py", cwd=tmp_path, code=1)
    module, name = run(*LAUNCHER, "script.py", cwd=tmp_path, code=7).stdout.splitlines()
    assert "'vllm.lora'" in module and "this vllm is urial-engine, which has vllm, " in module
    assert "AsyncLLMEngine" in name and "urial_engine/compat/vllm" in name


CHILDREN = """
import multiprocessing, os, subprocess, sys
def version(_):
    import vllm
    from vllm.sampling_params import SamplingParams
    return vllm.__version__
if __name__ == "__main__":
    print(version(0))
    for how in ("spawn", "fork"):
        with multiprocessing.get_context(how).Pool(1) as pool:
            print(*pool.map(version, [0]))
    code = "from vllm import LLM; import vllm; print(vllm.__version__); import vllm.lora"
    for environment in (None, dict(os.environ)):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        print(done.stdout.strip(), "this vllm is urial-engine" in done.stderr)
"""


def test_processes_of_the_script_have_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where vLLM is installed, or earlier on the path than what is installed."""
    real = tmp_path / "installed" / "vllm"
    real.mkdir(parents=True)
    (real / "__init__.py").write_text("__version__, LLM = 'the real one', None")
    (real / "sampling_params.py").write_text("SamplingParams = None")
    monkeypatch.setenv("PYTHONPATH", str(real.parent))
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "script.py").write_text(CHILDREN)
    (folder / "vllm").mkdir()  # results, for instance: it is no package
    ours = [f"0.32.0+urial.engine{end}" for end in ("", "", "", " True", " True")]
    for command in (["scripts/script.py"], ["-m", "scripts.script"]):
        assert run(*LAUNCHER, *command, cwd=tmp_path).stdout.splitlines() == ours
    assert run(sys.executable, "scripts/script.py", cwd=tmp_path).stdout.count("the real one") == 5
    (folder / "vllm.py").write_text("")
    refused = run(*LAUNCHER, "scripts/script.py", cwd=tmp_path, code=2)
    assert f"{folder} has a vllm of its own" in refused.stderr and not refused.stdout


def test_how_it_is_called(tmp_path: Path) -> None:
    assert "SCRIPT [ARGUMENT ...]" in run(*LAUNCHER, "--help", cwd=tmp_path).stdout
    for command, words in (([], "usage:"), (["-m"], "no file -m"), (["x.py"], "no file x.py")):
        done = run(*LAUNCHER, *command, cwd=tmp_path, code=2)
        assert words in done.stderr and "usage:" in done.stderr and not done.stdout
    (tmp_path / "wrong.py").write_text("\nprint(1\n")
    assert 'wrong.py", line 2' in run(*LAUNCHER, "wrong.py", cwd=tmp_path, code=1).stderr


def test_the_page_runs_as_it_stands(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, page = tiny_model(), PAGE.read_text()
    shell, urials = re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    program = program.replace("path/to/model", str(model))
    (tmp_path / "ours.py").write_text(program)
    truth = run(sys.executable, "ours.py", cwd=tmp_path)
    assert truth.stdout.startswith("The capital of France is") and "prompts" in truth.stderr
    (tmp_path / "your_script.py").write_text(program.replace("urial_engine.compat.vllm", "vllm"))
    words = shell.split()
    assert words[:3] == ["python", *LAUNCHER[1:]]
    assert run(sys.executable, *words[1:], cwd=tmp_path).stdout == truth.stdout
    # URIAL's script fetches its questions and prefixes; ours has the rest of its options.
    (tmp_path / "queries.txt").write_text("\n".join(QUERIES))
    (tmp_path / "inst_1k_v4").write_text(PREFIX)
    line = urials.replace("--engine vllm ", "").replace(
        "--data_name just_eval", "--queries queries.txt"
    )
    words = (
        line.replace("src/unified_infer.py", str(SCRIPT))
        .replace("path/to/model", str(model))
        .split()
    )
    assert run(sys.executable, *words[1:], cwd=tmp_path).stdout == "5 answers in answers.json\n"
