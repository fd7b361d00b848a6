"""What the server and the worker import, and load with a model: nothing that takes seconds and is never used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny_folder

ROOT = Path(__file__).resolve().parent.parent
UNUSED = ("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "scipy.optimize", "scipy.stats")
PROGRAM = """
import ast, inspect, json, sys
stubs = []
ast.get_source_segment = lambda code, node: stubs.append(node.name)  # only Gradio calls it, for a component's stub

import training.worker
import training.simulate
imported = {"worker": [*sys.modules]}
from playground import server
from playground.chat.session import Chat
from playground.serving.engine import Engine
from playground.models import loading
from playground.settings import Settings
loading.load_trunk(Settings(model=sys.argv[1]))
imported["server"] = [*sys.modules]

import torch
from playground.system.quick_imports import without_dynamo
with without_dynamo():
    more = torch._dynamo.config.__name__
from transformers.masking_utils import TransformGetItemToIndex
with TransformGetItemToIndex():
    item = torch.func.vmap(lambda i: torch.arange(3)[i])(torch.tensor([2, 0]))
REPLACED = (inspect.getfile, torch.compile, torch.distributed.is_available, torch._dynamo.disable)
print(json.dumps({
    "imported": imported,
    "stubs": stubs,
    "item": item.tolist(),
    "more": more,
    "in_use": [f.__module__ for f in REPLACED],
}))
"""

TORCHVISION = """
import sys, types
if sys.argv[1] == "without_dynamo":
    from playground.system.quick_imports import without_dynamo
    with without_dynamo():
        import torchvision
    from torch._dynamo import utils
    same = torchvision.utils is utils is sys.modules["torch._dynamo.utils"]
    assert same and utils.__spec__.origin == utils.__file__ and not type(sys.meta_path[0]).__name__ == "_Submodules"
    print(torchvision.is_compile_supported.__module__)
else:
    from playground.system import quick_imports
    from transformers.utils import is_torchvision_available
    assert is_torchvision_available()
    print("torchvision" in sys.modules)
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    model = tiny_folder(tmp_path_factory.mktemp("model"))
    done = subprocess.run([sys.executable, "-c", PROGRAM, model], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("process", ["worker", "server"])
def test_neither_process_imports_what_it_never_uses(report, process):
    """Each start took 12 to 20 s of CPU time, 6 to 8 s of it for these."""
    assert set(report["imported"][process]) & set(UNUSED) == set()


def test_a_worker_imports_no_compiler_unless_it_compiles(report):
    assert "numba" not in report["imported"]["worker"]


def test_gradio_makes_no_stubs_for_type_checkers(report):
    assert report["stubs"] == []


def test_a_rare_mask_still_finds_what_it_needs_of_dynamo(report):
    assert report["item"] == [2, 0]


def test_whoever_wants_more_of_dynamo_than_marks_gets_dynamo(report):
    assert report["more"] == "torch._dynamo.config"


def test_after_the_imports_everything_is_as_it_was(report):
    assert not [module for module in report["in_use"] if module.startswith("playground")]


@pytest.mark.parametrize(
    ("how", "printed"), [("without_dynamo", "torch._dynamo.utils"), ("transformers", "False")], ids=lambda value: value
)
def test_torchvision_may_import_parts_of_dynamo(tmp_path, how, printed):
    """Where torchvision was installed, nothing started: "No module named 'torch._dynamo.utils'"."""
    package = tmp_path / "torchvision"
    package.mkdir()
    code = "from torch._dynamo import utils\nfrom torch._dynamo.utils import is_compile_supported\n"
    (package / "__init__.py").write_text(code + "__version__ = '0.30.0'\n")
    (package / "transforms.py").write_text("class InterpolationMode:\n    pass\n")
    metadata = tmp_path / "torchvision-0.30.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.30.0\n")
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", TORCHVISION, how],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == printed
