"""Every argument that vLLM's LLM is opened with: honoured, refused by name, or named in the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import test_compat_vllm
from tests.fixtures import TinyModel
from tests.test_compat_vllm import OpenLLM, generate
from urial_engine.compat.vllm import LLM, SamplingParams
from urial_engine.compat.vllm.arguments import ONLY, UNUSED
from urial_engine.errors import CheckpointError, ConfigError, ParameterError

open_llm = test_compat_vllm.open_llm  # the fixture


@pytest.mark.parametrize("name", sorted(ONLY))
def test_what_would_change_results_is_refused_by_name_and_value(
    tiny_model: TinyModel, name: str
) -> None:
    with pytest.raises(ParameterError) as caught:
        LLM(tiny_model(), **{name: "other"})
    assert f"{name}='other': not implemented here" in str(caught.value)
    assert " or ".join(map(repr, ONLY[name])) in str(caught.value)


def test_values_that_mean_what_is_done_anyway_are_fine(
    open_llm: OpenLLM, tiny_model: TinyModel, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model()
    for values in (0, -1):
        open_llm(model=model, **{name: allowed[values] for name, allowed in ONLY.items()})
    open_llm(model=model, **UNUSED)
    open_llm(model=model, **dict.fromkeys(UNUSED))
    assert not caplog.records


def test_what_has_no_meaning_is_named_in_one_line(
    open_llm: OpenLLM, tiny_model: TinyModel, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model()
    open_llm(model=model, **dict.fromkeys(UNUSED, "other"))
    ((said, level),) = {(r.getMessage(), r.levelname) for r in caplog.records}
    assert level == "WARNING" and said.count("='other'") == len(UNUSED)
    assert all(f"{name}='other'" in said for name in UNUSED)
    caplog.clear()
    open_llm(model=model, tensor_parallel_size=4, pipeline_parallel_size=1, swap_space=8)
    (record,) = caplog.records  # URIAL's scripts ask for as many devices as its machines had
    assert record.getMessage() == (
        "of no meaning here, and so not used: tensor_parallel_size=4, swap_space=8, "
        "there is one device, and it gives the results of any number"
    )
    caplog.clear()
    open_llm(model=model, swap_space=8)
    assert "one device" not in caplog.text and "swap_space=8" in caplog.text


def test_a_name_that_vllm_does_not_have(tiny_model: TinyModel) -> None:
    with pytest.raises(ParameterError, match="tensor_paralel_size=1: no argument of vLLM"):
        LLM(tiny_model(), tensor_paralel_size=1)


@pytest.mark.parametrize(
    ("given", "opened"),
    [
        ("auto", "float32"),
        ("float32", "float32"),
        ("float", "float32"),
        ("bfloat16", "bfloat16"),
        (torch.bfloat16, "bfloat16"),
    ],
)
def test_dtype(open_llm: OpenLLM, given: object, opened: str) -> None:
    assert open_llm(dtype=given).engine.info["dtype"] == opened


def test_dtypes_that_the_device_does_not_have(tiny_model: TinyModel) -> None:
    for dtype in ("half", torch.float16):
        with pytest.raises(ParameterError, match="float16"):
            LLM(tiny_model(), dtype=dtype, device="cpu")


def test_sizes(open_llm: OpenLLM, tiny_model: TinyModel) -> None:
    llm = open_llm(max_model_len=40, max_num_seqs=2, device=torch.device("cpu"))
    assert llm.engine.info["context"] == 40 and llm.engine.info["device"] == "cpu"
    assert llm.engine.info["kv_cache_blocks"] == 3  # one block a text, and one more
    (output,) = generate(llm, "hi", SamplingParams(max_tokens=None, ignore_eos=True))
    assert len(output.prompt_token_ids) + len(output.outputs[0].token_ids) == 40
    for arguments in ({"max_model_len": 600}, {"max_num_seqs": 0}):
        with pytest.raises(ParameterError):
            LLM(tiny_model(), **arguments)


def test_the_tokenizer_must_be_the_models_own(
    open_llm: OpenLLM, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    monkeypatch.chdir(model.parent)
    for same in (str(model), model, model.name, f"{model}/"):
        open_llm(model=model, tokenizer=same, tokenizer_mode="slow")
    with pytest.raises(ParameterError, match="tokenizer='owner/other': a model is read with its"):
        LLM(model, tokenizer="owner/other")
    with pytest.raises(ParameterError, match="tokenizer_revision='x': must be revision='y'"):
        LLM(model, revision="y", tokenizer_revision="x")


def test_a_model_of_the_hub(
    open_llm: OpenLLM, tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub of one repository, which notes what it is asked for."""
    folder = tiny_model(folder="0123abcd")
    asked: list[dict[str, Any]] = []

    def snapshot_download(repository: str, **how: Any) -> str:
        asked.append({"repository": repository, **how})
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    name = "owner/name"
    llm = open_llm(model=name, tokenizer=name, download_dir=tmp_path / "hub", revision="v1")
    assert generate(llm, "hi") and len(asked) == 2
    assert {(a["repository"], a["cache_dir"]) for a in asked} == {(name, tmp_path / "hub")}
    assert [a["revision"] for a in asked] == ["v1", folder.name]
    with pytest.raises(CheckpointError, match="no-such-model"):
        LLM("no-such-model")


def test_defaults_of_the_model(open_llm: OpenLLM, tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tiny_model()
    assert open_llm(model=model).get_default_sampling_params() == SamplingParams()
    said = {"temperature": 0.6, "top_p": 0.9, "max_new_tokens": 5, "do_sample": True, "top_k": None}
    (model / "generation_config.json").write_text(json.dumps(said))
    expected = SamplingParams(temperature=0.6, top_p=0.9, max_tokens=5)
    llm = open_llm(model=model, override_generation_config={"min_p": 0.1})
    expected.min_p = 0.1
    params = llm.get_default_sampling_params()
    assert params == expected and params is not llm.get_default_sampling_params()
    (output,) = generate(llm, "hi")
    assert len(output.outputs[0].token_ids) <= 5
    plain = open_llm(model=model, generation_config="vllm").get_default_sampling_params()
    assert plain == SamplingParams()
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        LLM(model, generation_config=other)
    (other / "generation_config.json").write_text('{"repetition_penalty": 1.1}')
    found = open_llm(model=model, generation_config=str(other)).get_default_sampling_params()
    assert found == SamplingParams(repetition_penalty=1.1)


def test_metrics_are_times_of_day(open_llm: OpenLLM) -> None:
    (output,) = generate(open_llm(), "hi", SamplingParams(max_tokens=4, ignore_eos=True))
    m = output.metrics
    times = [m.arrival_time, m.first_scheduled_time, m.first_token_time, m.finished_time]
    assert np.all(np.diff(times) >= 0) and m.finished_time - m.arrival_time < 60
