"""The three kinds of Space: which one this is, and where the models run on it."""

import json
import os
import subprocess
import sys

import pytest
import torch

from playground.models import loading
from playground.settings import Settings, SettingsError, read, space
from tests.tiny import tiny_folder
from tools.space_start import CPU_BASIC, SPACE, T4_SMALL, ZERO_GPU


@pytest.mark.parametrize(
    ("environ", "kind", "cores"),
    [
        ({}, "none", 0),
        ({"CPU_CORES": "2", "ACCELERATOR": "t4-small", "SPACES_ZERO_GPU": "true"}, "none", 0),
        (CPU_BASIC, "cpu", 2),
        (SPACE, "cpu", 0),
        ({**SPACE, "CPU_CORES": "3.5"}, "cpu", 3),
        ({**SPACE, "CPU_CORES": "many"}, "cpu", 0),
        ({**SPACE, "CPU_CORES": "inf"}, "cpu", 0),
        (T4_SMALL, "gpu", 4),
        (ZERO_GPU, "zero-gpu", 0),
        ({**ZERO_GPU, "SPACES_ZERO_GPU": "1", "ACCELERATOR": "zero-a10g"}, "zero-gpu", 0),
        ({**CPU_BASIC, "SPACES_ZERO_GPU": "false"}, "cpu", 2),
    ],
)
def test_the_variables_tell_the_kind_and_the_cores(environ, kind, cores):
    assert (space.kind_of(environ), space.cores_of(environ)) == (kind, cores)


@pytest.mark.parametrize("environ", [CPU_BASIC, T4_SMALL, ZERO_GPU], ids=["cpu basic", "t4 small", "zero gpu"])
def test_a_space_listens_to_the_proxy_with_the_cores_that_it_has(environ):
    """The machine under a Space has many more cores, which threads then fought over."""
    program = (
        "import json, os; os.sched_getaffinity = lambda _: range(48)\n"
        "from playground.settings import Settings\n"
        "s = Settings(_env_file=None); print(json.dumps([s.host, s.threads, '10.0.0.0/8' in s.trusted_proxies]))"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NUDGE_", "SPACE"))}
    done = subprocess.run([sys.executable, "-c", program], env={**clean, **environ}, capture_output=True, check=True)
    assert json.loads(done.stdout) == ["0.0.0.0", int(environ.get("CPU_CORES", 48)), True]


@pytest.fixture
def fake_cuda(monkeypatch):
    """What torch says on ZeroGPU outside of a call, and where there is a T4."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    return monkeypatch


@pytest.mark.parametrize(("environ", "device"), [(T4_SMALL, "cuda"), (ZERO_GPU, "cpu")])
def test_the_models_run_on_a_gpu_only_where_there_is_one_all_the_time(fake_cuda, environ, device):
    fake_cuda.setattr(space, "KIND", space.kind_of(environ))
    assert loading.device_of(Settings(_env_file=None)).type == device


def test_on_zero_gpu_the_model_is_loaded_to_the_cpu(fake_cuda, tmp_path):
    fake_cuda.setattr(space, "KIND", "zero-gpu")
    settings = Settings(model=str(tiny_folder(tmp_path / "model")), dtype="float32", threads=1, _env_file=None)
    assert {weight.device.type for weight in loading.load_trunk(settings).parameters()} == {"cpu"}


def test_a_t4_has_no_bf16(fake_cuda):
    fake_cuda.setattr(space, "KIND", "gpu")
    assert loading.trunk_dtype(Settings(_env_file=None)) == torch.float32


def test_cuda_by_name_is_refused_on_zero_gpu(monkeypatch):
    monkeypatch.setattr(space, "KIND", "zero-gpu")
    with pytest.raises(SettingsError, match="got 'cuda:0'.*On a ZeroGPU Space only auto or cpu"):
        read(["--device", "cuda:0"])
    assert read(["--device", "cpu"]).device == "cpu"
