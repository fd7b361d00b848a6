"""The team of threads that torch computes with, for kernels of our own.

A second team beside torch's would halve the speed of both, so a kernel runs in the OpenMP library that torch has
loaded. Compilers call `GOMP_parallel` and `GOMP_barrier` of that library for `#pragma omp parallel` and `#pragma omp
barrier` (GNU's libgomp; LLVM's and Intel's have them too). Windows has none of them.
"""

import ctypes
import sys
from importlib.util import find_spec
from pathlib import Path

from llvmlite import binding
from numba import types

SYMBOLS = ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads")


def _addresses() -> dict[str, int]:
    """Where the functions are in this process. OSError or AttributeError where torch has no such library.

    Torch itself is not imported here: a process that only compiles does without it.
    """
    name = "libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so"
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        raise OSError("torch is not installed")
    library = ctypes.CDLL(str(Path(torch.origin).parent / "lib" / name))  # finds what it is linked with too
    return {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in SYMBOLS}


_ADDRESSES = _addresses()
for _symbol, _address in _ADDRESSES.items():
    binding.add_symbol(_symbol, _address)

# for kernels: these may be called in a function that `run` runs
barrier = types.ExternalFunction("GOMP_barrier", types.void())
thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
number_of_threads = types.ExternalFunction("omp_get_num_threads", types.int32())

_parallel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(
    _ADDRESSES["GOMP_parallel"]
)


def run(function: int, data: int, threads: int) -> None:
    """Call the C function at the address `function` with the pointer `data` in each of `threads` threads. Other Python
    threads run meanwhile.
    """
    _parallel(function, data, threads, 0)
