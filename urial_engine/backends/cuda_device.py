"""The GPU: a device's name goes in; what the backend has to know of it, or why it cannot be had,
comes out. Errors of the driver become ours here.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from ..errors import CapacityError, DeviceError, ParameterError

if TYPE_CHECKING:
    import torch

OLDEST = 80  # bf16 on tensor cores, and asynchronous copies
INTERPRETED = "cuda-interpreted"
NATIVE = "urial_engine._cuda"
# In what torch, Triton and our own kernels say when the driver reports an error.
EXHAUSTED = ("out of memory", "ALLOC_FAILED", "cudaErrorMemoryAllocation")
FAILURES = ("CUDA error", "CUDA driver error", "[CUDA]", "cudaError", "CUBLAS_STATUS")
INSTALL = "pip install 'urial-engine[cuda]'"


@dataclass(frozen=True)
class Device:
    """Where tensors live and kernels run. `interpreted`: on the CPU, for tests without a GPU."""

    torch: torch.device
    name: str  # "NVIDIA H100 80GB HBM3"
    architecture: int  # 90 for compute capability 9.0
    processors: int  # streaming multiprocessors
    native: ModuleType  # the kernels of csrc/cuda
    interpreted: bool = False

    @property
    def stream(self) -> int:
        """The handle of the stream that everything is put on."""
        if self.interpreted:
            return 0
        import torch

        return int(torch.cuda.current_stream(self.torch).cuda_stream)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Work on this device; what goes wrong there is a CapacityError or a DeviceError."""
        import torch

        current = nullcontext() if self.interpreted else torch.cuda.device(self.torch)
        try:
            with current:
                yield
        except RuntimeError as error:
            said = str(error)
            if isinstance(error, torch.OutOfMemoryError) or any(w in said for w in EXHAUSTED):
                raise CapacityError(
                    f"{self.name}: out of memory; lower kv_cache_gib, max_batch or chunk, take a "
                    f"smaller model, or end what else uses this GPU ({first_line(error)})"
                ) from error
            if any(word in said for word in FAILURES):
                raise DeviceError(
                    f"{self.name}: the device failed, and nothing more can be done with this "
                    f"engine; open another one ({first_line(error)})"
                ) from error
            raise


def open_device(name: str) -> Device:
    """`name` is "cuda", "cuda:1" or "cuda-interpreted". DeviceError says what is missing, and what
    to do."""
    if name == INTERPRETED:
        return _interpreted()
    number = name.partition(":")[2]
    if number and not number.isdigit():
        raise ParameterError(f'device="{name}": a GPU has a number, such as "cuda:1"')
    index = int(number) if number else None
    if why := why_not(index):
        raise DeviceError(f'device="{name}": {why}')
    import torch

    # The library sums products of 16-bit matrices in fp32 to the end, also those that it splits. It
    # is a setting of the process: two threads could not each have their own.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    place = torch.device("cuda", torch.cuda.current_device() if index is None else index)
    about = torch.cuda.get_device_properties(place)
    native = importlib.import_module(NATIVE)
    architecture = about.major * 10 + about.minor
    return Device(place, about.name, architecture, about.multi_processor_count, native)


def why_not(index: int | None = None) -> str | None:
    """Why no GPU (or not the one of this number) can be used, and what to do; None where it can."""
    try:
        # Before torch is imported, which takes longer than a small model needs to start on a CPU.
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver on this machine (no libcuda.so.1)"
    try:
        import torch
        import triton
    except ImportError as error:
        return f"{error.name} is not installed: {INSTALL}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA: install one that has it"
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} (CUDA {torch.version.cuda})"
        return f"{built} finds no GPU, or the driver is older than that: update one of the two"
    if index is not None and index >= torch.cuda.device_count():
        return f"there are {torch.cuda.device_count()} GPUs, counted from 0"
    if triton.knobs.runtime.interpret:
        return "TRITON_INTERPRET is set: its kernels would run on the CPU; unset it"
    return _why_not_ours(torch.cuda.current_device() if index is None else index)


def _why_not_ours(index: int) -> str | None:
    """What our own kernels lack for this GPU."""
    import torch

    about = torch.cuda.get_device_properties(index)
    architecture = about.major * 10 + about.minor
    if architecture < OLDEST:
        return (
            f"{about.name} has compute capability {about.major}.{about.minor}; {OLDEST / 10} or "
            "newer is needed"
        )
    try:
        native = importlib.import_module(NATIVE)
    except ImportError:
        return "this installation was built without nvcc; install it and build again"
    if native.driver_version() // 1000 < native.runtime_version() // 1000:
        return (
            f"the driver is for CUDA {native.driver_version() // 1000}, and this installation was "
            f"built with nvcc {native.runtime_version() // 1000}: update the driver, or build with "
            "an older nvcc"
        )
    if not runs_on(architecture, native.ARCHITECTURES):
        return (
            f"{about.name} is sm_{architecture}, and this installation was built for "
            f"{', '.join(native.ARCHITECTURES)}: build again with "
            f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"
        )
    return None


def runs_on(architecture: int, built: Sequence[str]) -> bool:
    """Whether code for these, in CMake's words ("80-real", "120"), runs there: machine code within
    a major version, and what is not "real" on everything newer as well. Words that are not numbers
    ("native", "90a-real") are taken for a choice that was made for this machine."""
    for name in built:
        number = re.fullmatch(r"(\d+)(-real|-virtual)?", name)
        if number is None:
            return True
        oldest, newer_too = int(number[1]), number[2] != "-real"
        if oldest <= architecture and (newer_too or oldest // 10 == architecture // 10):
            return True
    return False


def _interpreted() -> Device:
    """Every kernel on the CPU: Triton's by its interpreter, those of csrc/cuda by emulation."""
    import torch
    import triton

    if not triton.knobs.runtime.interpret:
        raise DeviceError(f'device="{INTERPRETED}": start Python with TRITON_INTERPRET=1')
    try:
        native = importlib.import_module("urial_engine._cuda_emulated")
    except ImportError:
        raise DeviceError(
            f'device="{INTERPRETED}": tools/emulate.py must have loaded the emulated kernels'
        ) from None
    return Device(torch.device("cpu"), "interpreter", OLDEST, 2, native, interpreted=True)


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
