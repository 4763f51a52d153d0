"""What an engine refuses, each with its own message, and what it survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import engines
from tests.engines import EIGHT, PREFIX, Open, blocks_in_use, ids_of
from tests.fixtures import TinyModel, random_weights, tiny_config, write_tokenizer, write_weights
from urial_engine.errors import (
    CapacityError,
    CheckpointError,
    NumericsError,
    ParameterError,
    PromptError,
    TokenizerError,
)
from urial_engine.sampling import SamplingParams

open_engine = engines.open_engine  # the fixture


def test_prompts_that_cannot_be_run(open_engine: Open, tiny_model: TinyModel) -> None:
    engine = open_engine(max_model_len=20)
    for prompt in ([[]], [np.array([], np.int64)]):
        with pytest.raises(PromptError, match=r"prompts\[0\] is empty: not one token"):
            engine.generate(prompt)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match=r"\[1\] is too long: 20 tokens and 1 more in a context"):
        engine.generate(["a", [5] * 20])
    for bad in (320, -1, 1.5, True):
        with pytest.raises(PromptError, match=r"prompts\[0\]: entry 1 is .* from 0 to 319"):
            engine.generate([5, bad])  # type: ignore[list-item]
    without_bos = open_engine(model=tiny_model(add_bos=False))
    with pytest.raises(PromptError, match="the tokenizer adds no BOS"):
        without_bos.generate("")
    assert len(open_engine().generate("", EIGHT)[0].prompt_token_ids) == 1, "a BOS is a token"


def test_a_request_that_never_fits_is_refused_and_the_rest_forgotten(open_engine: Open) -> None:
    engine = open_engine(kv_cache_gib=0.0002)
    with pytest.raises(CapacityError, match=r"prompts\[1\]: 400 prompt tokens"):
        engine.generate(["a", [5] * 400], EIGHT)
    assert blocks_in_use(engine) == 0
    assert len(ids_of(engine.generate("a", EIGHT)[0])) == 8


def test_parameters_beyond_the_vocabulary(open_engine: Open) -> None:
    engine = open_engine()
    for name in ("logprobs", "prompt_logprobs"):
        with pytest.raises(ParameterError, match=f"{name}=321: must be between 0 and"):
            engine.generate("a", SamplingParams(**{name: 321}))
    assert engine.generate("a", SamplingParams(max_tokens=1, logprobs=320))[0].finished


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_batch": 0}, "max_batch=0: must be at least 1"),
        ({"chunk": 0}, "chunk=0: must be at least 1"),
        ({"max_model_len": 513}, "max_model_len=513: must be between 2 and the model's 512"),
        ({"max_model_len": 1}, "max_model_len=1"),
        ({"device": "tpu"}, 'device="tpu": unknown'),
        ({"kv_cache_gib": 0}, "kv_cache_gib=0"),
        ({"prefix_dir": "here"}, "prefix_dir='here' without a prefix"),
    ],
)
def test_what_an_engine_refuses_at_the_door(
    open_engine: Open, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        open_engine(**fields)


def test_a_prefix_longer_than_the_context(open_engine: Open) -> None:
    with pytest.raises(PromptError, match="the prefix is too long: 121 tokens and 1 more"):
        open_engine(prefix=PREFIX, max_model_len=121)


def test_a_tokenizer_with_more_tokens_than_the_weights(
    open_engine: Open, tiny_model: TinyModel
) -> None:
    model = tiny_model()
    write_tokenizer(model, 330)
    with pytest.raises(TokenizerError, match="the weights know 320"):
        open_engine(model=model)


def test_damaged_weights_are_refused(open_engine: Open, tiny_model: TinyModel) -> None:
    model = tiny_model()
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError):
        open_engine(model=model)


def plant(model: Path, name: str, row: int) -> Path:
    """A NaN in one row of one tensor."""
    weights = random_weights(tiny_config())
    weights[name][row] = np.nan
    write_weights(model, weights)
    return model


def test_nan_in_the_weights_names_layer_and_position(
    open_engine: Open, tiny_model: TinyModel
) -> None:
    model = plant(tiny_model(), "model.layers.1.mlp.up_proj.weight", 3)
    message = r"prompts\[0\]: layer 1 gives a value that is not finite at position 0; look for NaN"
    with pytest.raises(NumericsError, match=message):
        open_engine(model=model).generate("a")
    with pytest.raises(NumericsError, match="the prefix: layer 1"):
        open_engine(model=model, prefix=PREFIX)
    with pytest.raises(NumericsError, match="the head"):
        open_engine(model=plant(tiny_model(), "lm_head.weight", 5)).generate("a")


def test_one_bad_prompt_never_disturbs_another(open_engine: Open, tiny_model: TinyModel) -> None:
    engine = open_engine(model=plant(tiny_model(), "model.embed_tokens.weight", 99))
    stream = engine.stream("a", EIGHT)
    tokens = next(stream).token_ids
    with pytest.raises(NumericsError, match=r"prompts\[1\]: .* position 2") as caught:
        engine.generate(["b", [1, 70, 99, 80]], EIGHT)
    assert caught.value.row == 2
    tokens += [token for event in stream for token in event.token_ids]
    assert tokens == ids_of(engine.generate("a", EIGHT)[0])
    with pytest.raises(NumericsError, match="the prompt: "):
        list(engine.stream([1, 99]))
    assert blocks_in_use(engine) == 0
