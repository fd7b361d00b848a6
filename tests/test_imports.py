"""The import rules of the design: who may know whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# from below to above: a room imports what stands before it, and itself
ROOMS = [
    "system",
    "settings",
    "store",
    "data",
    "backup",
    "models",
    "decoding",
    "serving",
    "chat",
    "people",
    "web",
    "ui",
    "server",
]
SHARED = ["system", "settings", "store", "data", "backup", "models", "decoding"]  # by both halves
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for part in ("playground", "training")
    for p in sorted((ROOT / part).rglob("*.py"))
}


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
    return {
        i for i in imports(MODULES[name]) if i.split(".")[0] in ("playground", "training", "app", "benchmarks", "tests")
    }


def room(name):
    """The room of one of playground's modules."""
    return name.split(".")[1] if "." in name else ""


def test_the_rooms_are_all_that_there_is():
    assert {room(name) for name in of("playground")} - {""} == set(ROOMS)


@pytest.mark.parametrize("name", [name for name in of("playground") if room(name)])
def test_a_room_imports_only_what_stands_below_it(name):
    own = ROOMS.index(room(name))
    above = {other for other in ours(name) if room(other) and ROOMS.index(room(other)) > own}
    assert above == set()


@pytest.mark.parametrize("name", of("training"))
def test_training_imports_only_what_both_halves_share_and_itself(name):
    assert {room(other) for other in ours(name) if not other.startswith("training")} <= set(SHARED)


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
        calls = {
            n.func.attr
            for n in ast.walk(ast.parse(MODULES[name].read_text()))
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
        }
        assert not calls & {"execute", "executemany", "executescript", "query"}


def test_the_mathematics_of_ppo_know_nothing_but_torch():
    assert imports(MODULES["training.ppo_math"]) - {"typing", "collections.abc"} == {"torch"}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_for(name):
    tree = ast.parse(MODULES[name].read_text())
    assert ast.get_docstring(tree) or not tree.body
