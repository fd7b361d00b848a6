"""The import rules of the design: who may know whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = {f"playground.{name}" for name in ("settings", "store", "store.file", "store.disk", "store.errors", "store.migrations", "store.people", "store.chats", "store.erasures", "store.votes", "store.rounds", "store.policies", "store.watch",
                                               "attention", "models", "folders", "prompts", "templates", "adapters", "decoder", "lean", "plain", "tuning", "threads", "memory", "discreet", "scorer", "active")}
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
           for part in ("playground", "training") for p in sorted((ROOT / part).rglob("*.py"))}


def imports(path):
    """Names of the modules that a file imports, anywhere in it; `from package import module` counts as the module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inside}
    return found


def packages(path):
    return {name.split(".")[0] for name in imports(path)}


def of(package):
    return [name for name in MODULES if name.split(".")[0] == package]


def ours(name):
    return {i for i in imports(MODULES[name]) if i.split(".")[0] in ("playground", "training", "app", "benchmarks", "tests")}


def test_the_leaves_exist():
    assert LEAVES <= MODULES.keys()


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_a_leaf_imports_only_leaves(name):
    assert ours(name) <= LEAVES


@pytest.mark.parametrize("name", of("training"))
def test_training_imports_only_leaves_and_itself(name):
    assert {i for i in ours(name) if not i.startswith("training")} <= LEAVES


@pytest.mark.parametrize("name", of("playground"))
def test_playground_never_imports_training(name):
    assert {i for i in ours(name) if not i.startswith("playground")} == set()


@pytest.mark.parametrize("name", MODULES)
def test_only_the_ui_and_the_server_that_mounts_it_import_gradio(name):
    if not name.startswith("playground.ui") and name != "playground.server":
        assert "gradio" not in packages(MODULES[name])


@pytest.mark.parametrize("name", MODULES)
def test_only_the_store_and_its_migrations_speak_sql(name):
    if not name.startswith("playground.store"):
        assert not packages(MODULES[name]) & {"sqlite3", "sqlite_utils"}
        calls = {n.func.attr for n in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}
        assert not calls & {"execute", "executemany", "executescript", "query"}


def test_the_mathematics_of_ppo_know_nothing_but_torch():
    assert imports(MODULES["training.ppo_math"]) == {"torch"}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_for(name):
    tree = ast.parse(MODULES[name].read_text())
    assert ast.get_docstring(tree) or not tree.body
