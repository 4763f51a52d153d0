"""The CUDA backend where something goes wrong, interpreted: a NaN is named, work that is done is
kept, and what a machine or a model does not have is refused with the reason."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import triton

from tests.engines import Open, ids_of
from tests.fixtures import TinyModel
from tests.interpreted import DEVICE, emulated, open_cuda, open_engine, without_gpu
from tests.test_engine_native import bad_weights, plant
from urial_engine import Engine, SamplingParams
from urial_engine.backends import choose_device, cuda_device, open_backend
from urial_engine.backends.cuda_device import open_device
from urial_engine.errors import (
    CapacityError,
    ConfigError,
    DeviceError,
    NumericsError,
    ParameterError,
    UrialError,
)
from urial_engine.head import compare_heads
from urial_engine.outputs import RequestOutput

__all__ = ["emulated", "open_cuda", "open_engine"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

FOUR = SamplingParams(max_tokens=4, ignore_eos=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@bad_weights
def test_bad_weights_are_named(
    open_cuda: Open, tiny_model: TinyModel, name: str, where: str, value: float
) -> None:
    engine = open_cuda(model=plant(tiny_model(), name, value))
    with pytest.raises(NumericsError, match=re.escape(f"prompts[0]: {where} gives")):
        engine.generate("hello", FOUR)
    with pytest.raises(NumericsError, match=re.escape(where)):
        engine.score("hello", " you")
    if where != "the head":
        with pytest.raises(NumericsError, match=re.escape(where)):
            engine.hidden_states([[1, 70]], [0])


def test_one_bad_prompt_leaves_the_others_alone(open_cuda: Open, tiny_model: TinyModel) -> None:
    """Token 0's embedding holds a NaN: whoever reads it fails, and only they; the prompt goes on
    after it, and what stands in the cache of it is no NaN that would be met again."""
    folder = tiny_model()
    clean = open_cuda(model=folder).generate([[1, 80, 81]], FOUR)
    plant(folder, "model.embed_tokens.weight", np.nan)
    engine = open_cuda(model=folder)
    with pytest.raises(NumericsError, match=re.escape("prompts[1]: the embedding gives")) as caught:
        engine.generate([[1, 80, 81], [1, 0, 81]], FOUR)
    first, second = caught.value.outputs
    assert isinstance(first, RequestOutput) and isinstance(second, RequestOutput)
    assert ids_of(first) == ids_of(clean[0])
    assert second.outputs[0].finish_reason == "abort"


@pytest.mark.parametrize(
    ("failure", "expected", "message"),
    [
        (torch.OutOfMemoryError("tried to get 3 GiB\nmore"), CapacityError, "lower kv_cache_gib"),
        (torch.AcceleratorError("CUDA error: unspecified launch"), DeviceError, "open another one"),
        (RuntimeError("Triton Error [CUDA]: an illegal address"), DeviceError, "illegal address"),
        (RuntimeError("rank_tile: cudaErrorLaunchFailure: x"), DeviceError, "open another one"),
    ],
)
def test_a_failing_device_keeps_what_is_finished(
    open_cuda: Open,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    expected: type[UrialError],
    message: str,
) -> None:
    engine = open_cuda()
    short, long = SamplingParams(max_tokens=1, ignore_eos=True), FOUR
    whole = engine.generate("why", short)
    forward = engine.backend._forward  # type: ignore[attr-defined]
    steps = iter([None, None])

    def run(*given: Any) -> Any:
        if next(steps, failure):
            raise failure
        return type(forward).run(forward, *given)

    monkeypatch.setattr(forward, "run", run)
    with pytest.raises(expected, match=message) as caught:
        engine.generate(["why", "what"], [short, long])
    first, second = caught.value.outputs
    assert isinstance(first, RequestOutput) and isinstance(second, RequestOutput)
    assert first.finished and ids_of(first) == ids_of(whole[0])
    assert not second.finished and second.outputs[0].finish_reason == "abort"
    monkeypatch.undo()
    assert ids_of(engine.generate("why", short)[0]) == ids_of(whole[0])


def test_an_error_of_another_kind_is_passed_on(emulated: None) -> None:
    with pytest.raises(RuntimeError, match="a fault of ours") as caught, open_device(DEVICE).use():
        raise RuntimeError("a fault of ours")
    assert not isinstance(caught.value, UrialError)


def test_a_cache_that_the_device_does_not_have(
    open_cuda: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*size: Any, **_: Any) -> None:
        raise torch.OutOfMemoryError("no")

    engine = open_cuda()
    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(CapacityError, match=r"does not give .* GiB for the KV-cache"):
        engine.backend.allocate(1000)


@without_gpu
def test_auto_takes_the_cpu_where_there_is_no_gpu(tiny_model: TinyModel) -> None:
    with Engine(tiny_model(), kv_cache_gib=0.01) as engine:
        assert engine.info["device"] == "cpu"
        assert "no GPU is used: " in str(engine.info["device_reason"])


def test_auto_takes_a_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urial_engine.backends.why_not", lambda: None)
    assert choose_device("auto") == ("cuda", "a GPU is there")
    assert choose_device("cpu")[0] == "cpu"


@without_gpu
def test_a_gpu_that_is_asked_for_and_not_there(tiny_model: TinyModel) -> None:
    for name in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match=f'device="{name}": there is no NVIDIA driver'):
            Engine(tiny_model(), device=name)


@without_gpu
def test_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reason in turn, on a machine that is given what the one before lacked."""

    def why() -> str:
        return str(cuda_device.why_not())

    def no_library(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", no_library)
    assert "no NVIDIA driver" in why()
    monkeypatch.setattr("ctypes.CDLL", lambda name: None)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in why()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "the driver is older" in why()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert cuda_device.why_not(1) == "there are 1 GPUs, counted from 0"
    assert "TRITON_INTERPRET" in why()
    with pytest.raises(DeviceError, match='device="cuda": TRITON_INTERPRET'):
        cuda_device.open_device("cuda")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    card = SimpleNamespace(major=7, minor=5, name="Tesla T4", multi_processor_count=40)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    assert "Tesla T4 has compute capability 7.5; 8.0 or newer" in why()
    assert choose_device("auto")[0] == "cpu"
    card.major, card.minor, card.name = 9, 0, "H100"
    monkeypatch.setitem(sys.modules, cuda_device.NATIVE, None)
    assert "built without nvcc" in why()
    ours = SimpleNamespace(
        driver_version=lambda: 12080, runtime_version=lambda: 13000, ARCHITECTURES=["80-real"]
    )
    monkeypatch.setitem(sys.modules, cuda_device.NATIVE, ours)
    assert "the driver is for CUDA 12, and this installation was built with nvcc 13" in why()
    ours.driver_version = lambda: 13010
    assert "H100 is sm_90, and this installation was built for 80-real" in why()
    ours.ARCHITECTURES = ["80-real", "90-real"]
    assert cuda_device.why_not() is None
    opened = cuda_device.open_device("cuda:0")
    assert (opened.name, opened.architecture, opened.processors) == ("H100", 90, 40)
    assert choose_device("auto") == ("cuda", "a GPU is there")


@pytest.mark.parametrize(
    ("architecture", "built", "runs"),
    [
        (86, ["80-real"], True),
        (90, ["80-real"], False),
        (80, ["86-real", "90"], False),
        (121, ["80-real", "120"], True),
        (89, ["80"], True),
        (90, ["90a-real"], True),
        (75, ["80"], False),
        (100, ["native"], True),
    ],
)
def test_which_architectures_run(architecture: int, built: list[str], runs: bool) -> None:
    assert cuda_device.runs_on(architecture, built) == runs


@pytest.mark.parametrize("name", ["cuda:x", "cuda:-1", "cuda:1.5"])
def test_a_gpu_has_a_number(name: str) -> None:
    with pytest.raises(ParameterError, match=f'device="{name}": a GPU has a number'):
        cuda_device.open_device(name)


def test_memory_that_a_library_does_not_get(emulated: None) -> None:
    for said in ("CUBLAS_STATUS_ALLOC_FAILED when calling", "Triton Error [CUDA]: out of memory"):
        with pytest.raises(CapacityError, match="out of memory"), open_device(DEVICE).use():
            raise RuntimeError(said)


@without_gpu
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "bfloat16"}, "interpreter has float16, float32"),
        ({"isa": "avx2"}, 'only device "cpu" has instruction sets'),
    ],
)
def test_what_is_refused(open_cuda: Open, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        open_cuda(**fields)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"head_dim": 320}, "head_dim = 320: the cuda backend"),
        (
            {"num_attention_heads": 65, "num_key_value_heads": 1, "head_dim": 2},
            "groups of up to 64",
        ),
    ],
)
def test_shapes_beyond_the_kernels(
    open_cuda: Open, tiny_model: TinyModel, config: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_cuda(model=tiny_model(**config))


def test_more_likely_tokens_than_are_kept_sorted(open_cuda: Open, tiny_model: TinyModel) -> None:
    engine = open_cuda(model=tiny_model(vocab_size=1100))
    with pytest.raises(ParameterError, match="between 0 and 1024, the most that device"):
        engine.score("a", "b", top_k=1025)
    assert engine.score("a", "b", top_k=1024)[0].top_ids.shape == (1, 1024)


def test_two_devices_are_not_compared(open_cuda: Open, open_engine: Open) -> None:
    ours, other = open_cuda(), open_engine()
    hidden = np.zeros((1, 32), np.float32)
    with pytest.raises(ParameterError, match="two heads are compared on one device"):
        compare_heads(ours, hidden, np.zeros(1, np.int32), 0, other, hidden)


@without_gpu
def test_without_the_emulation_it_says_so(tiny_model: TinyModel) -> None:
    with pytest.raises(DeviceError, match=r"tools/emulate\.py"):
        Engine(tiny_model(), device=DEVICE)


def test_open_backend_needs_a_known_name() -> None:
    with pytest.raises(ParameterError, match="unknown"):
        open_backend("gpu", None)  # type: ignore[arg-type]
