"""The import rules of the design: who may know whom."""

import ast
from functools import cache
from pathlib import Path

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


@cache
def tree(path):
    return ast.parse(path.read_text())


@cache
def imports(path):
    """Names of the modules that a file imports, anywhere in it; `from package import module` counts as the module."""
    found = set()
    for node in ast.walk(tree(path)):
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


def test_a_room_imports_only_what_stands_below_it():
    def above(name):
        own = ROOMS.index(room(name))
        return {other for other in ours(name) if room(other) and ROOMS.index(room(other)) > own}

    assert faults(above, [name for name in of("playground") if room(name)]) == {}


def faults(found_in, names):
    """{module: what is found in it} of the modules in which there is anything."""
    return {name: found for name in names if (found := found_in(name))}


def test_training_imports_only_what_both_halves_share_and_itself():
    def others(name):
        return {other for other in ours(name) if not other.startswith("training") and room(other) not in SHARED}

    assert faults(others, of("training")) == {}


def test_playground_never_imports_training():
    def others(name):
        return {other for other in ours(name) if not other.startswith("playground")}

    assert faults(others, of("playground")) == {}


def test_only_the_ui_and_the_server_that_mounts_it_import_gradio():
    elsewhere = [name for name in MODULES if not name.startswith("playground.ui") and name != "playground.server"]
    assert faults(lambda name: packages(MODULES[name]) & {"gradio"}, elsewhere) == {}


def test_only_the_store_and_its_migrations_speak_sql():
    def sql(name):
        called = {
            node.func.attr
            for node in ast.walk(tree(MODULES[name]))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        spoken = called & {"execute", "executemany", "executescript", "query"}
        return spoken | packages(MODULES[name]) & {"sqlite3", "sqlite_utils"}

    assert faults(sql, [name for name in MODULES if not name.startswith("playground.store")]) == {}


def test_the_mathematics_of_ppo_know_nothing_but_torch():
    assert imports(MODULES["training.ppo_math"]) - {"typing", "collections.abc"} == {"torch"}


def test_a_module_says_what_it_is_for():
    modules = {name: tree(path) for name, path in MODULES.items()}
    assert [name for name, module in modules.items() if module.body and not ast.get_docstring(module)] == []
