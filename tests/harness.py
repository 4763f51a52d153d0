"""lm-evaluation-harness as the tests call it: a model goes in; scores and texts come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from urial_engine.compat.lm_eval import UrialLM

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "data" / "lm_eval"
TASKS = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))
Evaluate = Callable[..., dict[str, Any]]
Open = Callable[..., UrialLM]


@pytest.fixture
def evaluate(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """evaluate(model, model_args, ...) -> the harness's results on our tasks, offline."""
    monkeypatch.chdir(ROOT)  # where the tasks' files are looked for
    kept = tmp_path_factory.getbasetemp() / "datasets"  # what takes time is done once a session
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", kept)
    # It asks pip and compilers about the machine, for seconds.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)

    def run(model: Any, model_args: Any = None, **more: Any) -> dict[str, Any]:
        more = {"tasks": list(TASKS), "bootstrap_iters": 0, "task_manager": manager, **more}
        found = lm_eval.simple_evaluate(model=model, model_args=model_args, **more)
        assert found is not None
        return dict(found)

    return run


@pytest.fixture
def open_lm() -> Iterator[Open]:
    """UrialLM(...), closed in the end."""
    opened: list[UrialLM] = []

    def make(model: Path, **model_args: Any) -> UrialLM:
        settings = {"kv_cache_gib": 0.02, "dtype": "float32", **model_args}
        opened.append(UrialLM(str(model), **settings))
        return opened[-1]

    yield make
    for lm in opened:
        lm.engine.close()


def answers(results: dict[str, Any], task: str) -> list[Any]:
    """What the model answered to each request of a task, in order."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [answer for sample in samples for answer in sample["filtered_resps"]]


def figures(results: dict[str, Any]) -> dict[str, float]:
    """Every metric of every task."""
    return {
        f"{task}: {name}": float(value)
        for task, found in results["results"].items()
        for name, value in found.items()
        if name.endswith(",none") and not isinstance(value, str)
    }


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    """Requests as a task makes them."""
    return [Instance(kind, {}, own, i) for i, own in enumerate(arguments)]


def assert_close(ours: dict[str, Any], theirs: dict[str, Any], tasks: Sequence[str]) -> None:
    """The same texts and choices, and log-likelihoods within 1e-3 nats."""
    for task in tasks:
        for own, other in zip(answers(ours, task), answers(theirs, task), strict=True):
            if isinstance(own, str):
                assert own == other, task
            else:
                (logprob, *greedy), (expected, *also) = _parts(own), _parts(other)
                assert abs(logprob - expected) < 1e-3 and greedy == also, task
    wanted = figures(theirs)
    assert wanted and figures(ours) == pytest.approx(wanted, rel=1e-5)


def _parts(answer: Any) -> list[Any]:
    return list(answer) if isinstance(answer, tuple | list) else [answer]
