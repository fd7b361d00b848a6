"""What the README and the other documents name is there: commands, flags, files and pictures."""

import ast
import importlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from playground.settings import Settings, fields, flag, variable

ROOT = Path(__file__).parent.parent
NAMES = ("README.md", "SECURITY.md", "CONTRIBUTING.md")
DOCUMENTS = [ROOT / name for name in NAMES] + sorted((ROOT / "docs").glob("*.md"))
TEXT = "\n".join(document.read_text() for document in DOCUMENTS)


def commands():
    """{what is run: every flag that a document gives it}."""
    found = {}
    for program, flags in re.findall(r"`python\s(-m [\w.]+|app\.py)((?: --?[\w-]+(?: [\w@,./]+)?)*)`", TEXT):
        found.setdefault(program, set()).update(re.findall(r"--[\w-]+", flags))
    return sorted(found.items())


def links():
    """(document, where it leads) of each link and picture that stays in this repository."""
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", document.read_text()):
            yield document, target


def test_there_are_commands():
    assert len(commands()) > 3


@pytest.mark.parametrize(("program", "flags"), commands())
def test_a_command_exists_and_takes_its_flags(program, flags, monkeypatch, capsys):
    """In this process, where torch is loaded already; `app.py` in one of its own, as a person starts it."""
    if program == "app.py":
        said = subprocess.run([sys.executable, "app.py", "--help"], cwd=ROOT, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        help_text = said.stdout
    else:
        monkeypatch.setattr(signal, "signal", lambda number, handler: None)
        name = program.removeprefix("-m ")
        name += ".__main__" if (ROOT / name.replace(".", "/") / "__main__.py").exists() else ""
        help_text = ""
        for asked in ("--help", "--help-all"):
            if asked == "--help" or asked in help_text:
                with mock.patch.dict(os.environ), pytest.raises(SystemExit) as ended:
                    importlib.import_module(name).main([asked])
                assert not ended.value.code
                help_text += capsys.readouterr().out
    for name in flags:
        assert name in help_text


def test_each_link_leads_somewhere():
    assert [(document.name, to) for document, to in links() if not (document.parent / to).exists()] == []


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"`?\bmake (\w+)`?", "\n".join(re.findall(r"`make \w+`", TEXT)))))
)
def test_a_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_each_file_and_folder_exists():
    named = set(re.findall(r"`((?:playground|training|tests|assets|benchmarks)/[\w./-]+)`", TEXT))
    assert len(named) > 100 and [path for path in sorted(named) if not (ROOT / path).exists()] == []


# -- names in the architecture page


def defined_names() -> set[str]:
    """Every class, function and constant of the source; in a class or module also as `Class.name` and `module.name`."""
    names: set[str] = set()
    for file in [*ROOT.glob("playground/**/*.py"), *ROOT.glob("training/**/*.py")]:
        module = ast.parse(file.read_text(encoding="utf-8"))
        owners = [(file.stem, module)]
        owners += [(node.name, node) for node in ast.walk(module) if isinstance(node, ast.ClassDef)]
        for owner, node in owners:
            bound = names_bound_in(node)
            if isinstance(node, ast.ClassDef):
                bound |= {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
            names |= bound | {f"{owner}.{name}" for name in bound}
    return names


def names_bound_in(node: ast.Module | ast.ClassDef) -> set[str]:
    found = set()
    for child in node.body:
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(child.name)
        elif isinstance(child, ast.Assign):
            found |= {target.id for target in child.targets if isinstance(target, ast.Name)}
        elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            found.add(child.target.id)
    return found


def test_every_name_in_the_tables_of_the_architecture_page_is_in_the_source():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = defined_names() | set(fields(Settings))
    own_classes = {name.split(".")[0] for name in names if "." in name}
    asked = {
        name
        for name in re.findall(r"`([A-Za-z_]+\.(?!(?:py|json|pt)`)[A-Za-z_]+)`", page)
        if name.split(".")[0] in own_classes
    }
    table = page[page.index("## 4.") :]
    asked |= set(re.findall(r"`([A-Za-z_]+)`", table))
    inherited = {"Chat.vote"}  # of the classes that Chat is made of
    assert len(asked) > 80
    assert sorted(name for name in asked - inherited if name not in names) == []


# -- settings


def test_every_setting_that_a_document_names_by_its_group_is_there():
    """In any of its three forms: `ppo.kl_target`, `--ppo.kl-target`, `NUDGE_PPO_KL_TARGET`."""
    known = fields(Settings)
    groups = "|".join({name.split(".")[0] for name in known if "." in name})
    dotted = set(re.findall(rf"`((?:{groups})\.(?!(?:py|json|pt)`)\w+)(?==|`)", TEXT))
    flags = set(re.findall(rf"--(?:no-)?((?:{groups})\.[a-z-]+)", TEXT))
    variables = set(re.findall(r"NUDGE_[A-Z_]+", TEXT))
    assert len(dotted) > 10 and len(flags) > 10 and len(variables) > 8
    assert dotted - known.keys() == set()
    assert {f"--{name}" for name in flags} - {flag(name) for name in known} == set()
    assert variables - {variable(name) for name in known} == set()


def test_the_table_of_groups_is_whole():
    page = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
    groups = {name.split(".")[0] for name in fields(Settings) if "." in name}
    assert {group for group in groups if f"| `{group}` |" not in page} == set()
