"""The types of `playground/` and `training/` are right. A test, so that it is checked beside the others."""

import ast
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]


def test_mypy_finds_nothing():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def matches(module, patterns):
    """As mypy reads them: `a.b.*` is `a.b` too."""
    return any(fnmatchcase(module, pattern) or module == pattern.removesuffix(".*") for pattern in patterns)


def followed(module):
    """Whether mypy reads the types of a module that has them. Those of one that it skips are `Any` without a word."""
    patterns = {"skip": [], "normal": []}
    for group in CONFIG["overrides"]:
        if not group.get("ignore_missing_imports"):
            patterns[group["follow_imports"]] += group["module"]
    return matches(module, patterns["normal"]) or not matches(module, patterns["skip"])


def test_modules_that_mypy_skips_are_known():
    assert not followed("torch._inductor.config") and not followed("transformers.models.gemma.modeling_gemma")
    assert followed("transformers.models.llama") and followed("torch.nn")


@pytest.mark.parametrize("package", CONFIG["packages"])
def test_no_name_is_taken_from_a_module_that_mypy_skips(package):
    for file in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [name.name for name in node.names if name.name.islower()]
                taken = [node.module, *(f"{node.module}.{name}" for name in modules)]
            elif isinstance(node, ast.Import):
                taken = [name.name for name in node.names]
            else:
                continue
            skipped = [module for module in taken if not followed(module)]
            assert not skipped, f"{file}: add them to the modules that mypy follows, in pyproject.toml: {skipped}"
