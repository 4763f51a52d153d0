"""The native backend through the engine: what it refuses and reports, and that it never hangs."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.engines import EIGHT, ids_of
from tests.fixtures import TinyModel
from urial_engine import Engine, SamplingParams
from urial_engine.backends.cpu import available_isas
from urial_engine.errors import (
    CapacityError,
    ConfigError,
    NumericsError,
    ParameterError,
    UrialError,
)

PROMPTS = ["why", "what is it now", "ab ab ab ab"]


@pytest.fixture
def engine(tiny_model: TinyModel) -> Iterator[Engine]:
    with Engine(tiny_model(), kv_cache_gib=0.02, prefix="Be brief. " * 12) as opened:
        yield opened


def plant(folder: Path, name: str, value: float) -> Path:
    """Put a value into one place of one tensor."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[name].reshape(-1)[3] = value
    save_file(tensors, file)
    return folder


# Where a value is put, and what the error must name.
bad_weights = pytest.mark.parametrize(
    ("name", "where"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "layer 0"),
        ("model.layers.1.self_attn.v_proj.weight", "layer 1"),
        ("model.layers.1.mlp.down_proj.weight", "layer 1"),
        ("model.norm.weight", "layer 1"),
        ("lm_head.weight", "the head"),
    ],
)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@bad_weights
@pytest.mark.parametrize("isa", available_isas())
def test_bad_weights_are_named(
    tiny_model: TinyModel, isa: str, name: str, where: str, value: float
) -> None:
    folder = plant(tiny_model(), name, value)
    with (
        Engine(folder, isa=isa) as engine,
        pytest.raises(NumericsError, match=re.escape(f"prompts[0]: {where} gives")),
    ):
        engine.generate("hello there", EIGHT)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"head_dim": 320}, "head_dim = 320"),
        ({"num_attention_heads": 258, "num_key_value_heads": 2, "head_dim": 2}, "groups of up to"),
    ],
)
def test_shapes_beyond_the_native_code(
    tiny_model: TinyModel, config: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine(tiny_model(**config))


def test_budgets_that_no_machine_has(tiny_model: TinyModel) -> None:
    with pytest.raises(CapacityError, match="lower kv_cache_gib"):
        Engine(tiny_model(), kv_cache_gib=1e8)
    for gib in (float("inf"), float("nan"), 0, -1.0):
        with pytest.raises(ParameterError, match="kv_cache_gib"):
            Engine(tiny_model(), kv_cache_gib=gib)


def test_a_forked_child_is_refused_and_does_not_hang(engine: Engine) -> None:
    engine.generate("warm", EIGHT)
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        try:
            engine.generate("why", EIGHT)
        except UrialError as error:
            os._exit(7 if "another process" in str(error) else 8)
        os._exit(9)
    end = time.monotonic() + 20
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
        time.sleep(0.02)
    if done[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert done[0] == child and os.waitstatus_to_exitcode(done[1]) == 7


def test_threads_share_an_engine(engine: Engine) -> None:
    alone = [ids_of(engine.generate(p, EIGHT)[0]) for p in PROMPTS]
    got: dict[int, list[list[int]]] = {}

    def work(i: int) -> None:
        got[i] = [ids_of(o) for o in engine.generate(PROMPTS, EIGHT)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert got == dict.fromkeys(range(4), alone)


def test_ctrl_c_keeps_what_is_finished(engine: Engine) -> None:
    params = [EIGHT, SamplingParams(max_tokens=400, ignore_eos=True)]
    whole = ids_of(engine.generate(PROMPTS[0], EIGHT)[0])
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    first, second = engine.generate(PROMPTS[:2], params)
    timer.cancel()
    assert first.finished and ids_of(first) == whole
    if not second.finished:  # a fast machine may be done before the signal comes
        assert second.outputs[0].finish_reason == "abort"
    assert ids_of(engine.generate(PROMPTS[0], EIGHT)[0]) == whole


def test_use_after_close(tiny_model: TinyModel) -> None:
    engine = Engine(tiny_model())
    engine.close()
    engine.close()
    uses: list[Callable[[], object]] = [
        lambda: engine.generate("x"),
        lambda: engine.score("x", "y"),
        lambda: list(engine.stream("x")),
    ]
    for use in uses:
        with pytest.raises(UrialError, match="closed"):
            use()


def test_an_answer_that_continues_a_text_keeps_its_first_space(tiny_model: TinyModel) -> None:
    """With sentencepiece's rules a whole text loses its prefix space; a continuation must not."""
    folder = tiny_model()
    path = folder / "tokenizer.json"
    parsed = json.loads(path.read_text())
    parsed["pre_tokenizer"] = None
    parsed["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "\u0120"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    path.write_text(json.dumps(parsed))
    with Engine(folder) as engine:
        space = engine.tokenizer.token_text
        ids = [i for i in range(engine.config.vocab_size) if space(i) == " "]
        assert ids
        tokenizer = engine.tokenizer
        assert tokenizer.decode(ids) == ""
        stream = tokenizer.stream(continues=True)
        assert stream.push(ids[0]) + stream.finish() == " "
        banned = [i for i in range(3, engine.config.vocab_size) if i != ids[0]]
        params = SamplingParams(max_tokens=2, ignore_eos=True, min_tokens=2, stop_token_ids=banned)
        assert engine.generate([[5, 6]], params)[0].outputs[0].text.startswith(" ")


def test_a_prompt_never_ends_in_eos(tiny_model: TinyModel) -> None:
    folder = tiny_model()
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**config, "add_eos_token": True, "eos_token": "</s>"}))
    with Engine(folder) as engine:
        eos = engine.tokenizer.eos_token_id
        assert engine.tokenizer.encode("ab")[-1] == eos
        output = engine.generate("ab", EIGHT)[0]
        assert output.prompt_token_ids[-1] != eos
        score = engine.score("ab", "cd")[0]
        whole = engine.tokenizer.encode_prompt("abcd")
        before = len(engine.tokenizer.encode_prompt("ab"))
        assert score.token_ids.tolist() == whole[before:]
