"""The GPU: a device's name goes in; what the backend has to know of it, or why it cannot be had,
comes out. Errors of the driver become ours here.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from ..errors import CapacityError, DeviceError

if TYPE_CHECKING:
    import torch

OLDEST = 80  # bf16 on tensor cores, and asynchronous copies
INTERPRETED = "cuda-interpreted"
# In what torch, Triton and our own kernels say when the driver reports an error.
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
        except torch.OutOfMemoryError as error:
            raise CapacityError(
                f"{self.name}: out of memory; lower kv_cache_gib, max_batch or chunk, or end what "
                f"else uses this GPU ({first_line(error)})"
            ) from error
        except RuntimeError as error:
            if not any(word in str(error) for word in FAILURES):
                raise
            raise DeviceError(
                f"{self.name}: the device failed, and nothing more can be done with this engine; "
                f"open another one ({first_line(error)})"
            ) from error


def open_device(name: str) -> Device:
    """`name` is "cuda", "cuda:1" or "cuda-interpreted". DeviceError says what is missing, and what
    to do."""
    if name == INTERPRETED:
        return _interpreted()
    if why := why_not():
        raise DeviceError(f'device="{name}": {why}')
    import torch

    index = int(name.partition(":")[2] or torch.cuda.current_device())
    if index >= torch.cuda.device_count():
        raise DeviceError(f'device="{name}": there are {torch.cuda.device_count()} GPUs, from 0 on')
    about = torch.cuda.get_device_properties(index)
    architecture = about.major * 10 + about.minor
    if architecture < OLDEST:
        raise DeviceError(
            f'device="{name}": {about.name} has compute capability {about.major}.{about.minor}; '
            f'{OLDEST / 10} or newer is needed; use device="cpu"'
        )
    place = torch.device("cuda", index)
    native = importlib.import_module("urial_engine._cuda")
    return Device(place, about.name, architecture, about.multi_processor_count, native)


def why_not() -> str | None:
    """Why no GPU can be used here, and what to do; None where one can."""
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
    if triton.knobs.runtime.interpret:
        return "TRITON_INTERPRET is set: its kernels would run on the CPU; unset it"
    try:
        importlib.import_module("urial_engine._cuda")
    except ImportError:
        return "this installation was built without nvcc; install it and build again"
    return None


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
