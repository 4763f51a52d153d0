"""lm-evaluation-harness over HTTP: our server gives the figures of `hf` and of the plugin."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import simple_parse_args_string

from tests import harness
from tests.fixtures import TinyModel
from tests.harness import ROOT, TASKS, Evaluate, Open, assert_close
from tests.serving import Server, serving

evaluate, open_lm = harness.evaluate, harness.open_lm  # the fixtures
PAGE = ROOT / "docs" / "tools" / "lm-eval.md"


@pytest.fixture(autouse=True)
def _without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def arguments(client: str, server: Server, model: Path) -> dict[str, Any]:
    """The model_args of the page, for this server and model."""
    (given,) = re.findall(rf"--model {client} --model_args (\S+)", PAGE.read_text())
    given = given.replace("path/to/model", str(model)).replace("http://127.0.0.1:8000", server.url)
    return {**simple_parse_args_string(given), "max_retries": 1}


def test_figures_over_http(evaluate: Evaluate, open_lm: Open, tiny_model: TinyModel) -> None:
    """As token ids and as text, one by one and many at a time.

    Its windows are shorter than those of `hf` where a text is longer than the context, which is
    therefore long enough here.
    """
    model = tiny_model(max_position_embeddings=2048)
    hf = evaluate(HFLM(str(model), dtype="float32", softmax_dtype="float64", device="cpu"))
    assert_close(evaluate(open_lm(model)), hf, TASKS)
    with serving(model, "--name", "mine", "--dtype", "float32") as server:
        own = arguments("local-completions", server, model)
        ids = evaluate("local-completions", own)
        many = evaluate("local-completions", {**own, "num_concurrent": 8, "batch_size": 4})
        texts = evaluate("local-completions", {**own, "tokenized_requests": False})
    for results in (ids, many, texts):
        assert_close(results, hf, TASKS)


def test_chats_over_http(evaluate: Evaluate, open_lm: Open, tiny_model: TinyModel) -> None:
    model = tiny_model()
    chats = {"tasks": ["urial_answer"], "apply_chat_template": True}
    ours = evaluate(open_lm(model), **chats)
    with serving(model, "--name", "mine", "--dtype", "float32") as server:
        own = arguments("local-chat-completions", server, model)
        answers = evaluate("local-chat-completions", own, **chats)
    assert_close(answers, ours, ["urial_answer"])
