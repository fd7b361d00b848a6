"""Measuring on this machine as if its CPU had fewer instructions, for both sides: libraries read from environment
variables what they may use, and llama.cpp is compiled for it.

A real CPU of the kind may have another clock, other caches and slower memory: ratios of two sides carry over, seconds
do not.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Name = Literal["", "avx2", "avx512"]

_HASWELL = "+avx2,+fma,+bmi,+bmi2,+f16c,+lzcnt,+popcnt"
_GGML = {"NATIVE": "OFF", "AVX": "ON", "AVX2": "ON", "FMA": "ON", "F16C": "ON", "BMI2": "ON", "AVX512": "OFF"}


@dataclass(frozen=True)
class Kind:
    """What one kind of CPU is limited to."""

    environment: dict[str, str] = field(default_factory=dict)  # of torch, oneDNN, MKL and numba
    ggml: dict[str, str] = field(default_factory=dict)  # llama.cpp's options of CMake, without their GGML_

    @property
    def cmake_arguments(self) -> str:
        return " ".join(f"-DGGML_{name}={value}" for name, value in self.ggml.items())


KINDS: dict[Name, Kind] = {
    "": Kind(),
    "avx2": Kind(
        {
            "ATEN_CPU_CAPABILITY": "avx2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "NUMBA_CPU_NAME": "haswell",
            "NUMBA_CPU_FEATURES": _HASWELL,  # without them numba takes this machine's
        },
        _GGML,
    ),
    # with VNNI, without bf16 and AMX
    "avx512": Kind(
        {
            "ATEN_CPU_CAPABILITY": "avx512",
            "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI",
            "MKL_ENABLE_INSTRUCTIONS": "AVX512",
            "NUMBA_CPU_NAME": "cascadelake",
            "NUMBA_CPU_FEATURES": f"{_HASWELL},+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl,+avx512vnni",
        },
        _GGML | {"AVX512": "ON", "AVX512_VNNI": "ON"},
    ),
}


def limit(kind: Name, module: str, argv: Sequence[str]) -> None:
    """Begin this program again as `python -m MODULE ARGV` with the kind's environment, unless it has it: libraries read
    it when they are imported.
    """
    wanted = KINDS[kind].environment
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, "-m", module, *argv], {**os.environ, **wanted})
