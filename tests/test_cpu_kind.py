"""A benchmark that is kept to fewer instructions than the CPU has."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import cpu_kind, engine
from benchmarks.engine_site import EngineSettings
from playground.settings import SettingsError, read

SHOW = """
import json, torch
from numba import config
print(json.dumps([torch.backends.cpu.get_cpu_capability(), config.CPU_NAME, config.CPU_FEATURES]))
"""


def test_the_program_begins_again_with_what_libraries_read(monkeypatch):
    begun = []
    monkeypatch.setattr(os, "execve", lambda *call: begun.append(call))
    cpu_kind.limit("avx2", "benchmarks.engine", ["--quick"])
    ((program, arguments, environment),) = begun
    assert (program, arguments) == (sys.executable, [sys.executable, "-m", "benchmarks.engine", "--quick"])
    wanted = cpu_kind.KINDS["avx2"].environment
    assert environment == {**os.environ, **wanted}
    monkeypatch.setattr(os, "environ", environment)
    cpu_kind.limit("avx2", "benchmarks.engine", ["--quick"])
    cpu_kind.limit("", "benchmarks.engine", [])
    assert len(begun) == 1


def test_torch_and_numba_are_kept_to_it():
    environment = {**os.environ, **cpu_kind.KINDS["avx2"].environment}
    said = subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True)
    capability, name, features = json.loads(said.stdout)
    assert capability in ("AVX2", "DEFAULT")  # DEFAULT where the CPU has no AVX2
    assert name == "haswell" and "+avx2" in features and "avx512" not in features


def test_llama_cpp_is_compiled_for_it():
    assert "-DGGML_NATIVE=OFF" in cpu_kind.KINDS["avx512"].cmake_arguments
    assert "-DGGML_AVX512=OFF" in cpu_kind.KINDS["avx2"].cmake_arguments
    assert cpu_kind.KINDS[""].cmake_arguments == ""


def test_a_part_that_there_is_not_is_named():
    settings = read(["--only", "duel,crowds"], EngineSettings, "engine")
    with pytest.raises(SettingsError, match="crowds: choose among duel, crowd"):
        engine.asked_parts(settings, ["duel", "crowd"])
    assert engine.asked_parts(settings.with_values(only="crowd"), ["duel", "crowd"]) == ["crowd"]
