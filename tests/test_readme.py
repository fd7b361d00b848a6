"""What the README names is there: commands, flags, files and pictures."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"`python (-m [\w.]+|app\.py)((?: --?[\w-]+(?: [\w@,./]+)?)*)`", TEXT)))


def test_there_are_commands():
    assert len(COMMANDS) > 3


@pytest.mark.parametrize(("program", "flags"), COMMANDS)
def test_a_command_exists_and_takes_its_flags(program, flags):
    if program.startswith("-m"):
        assert importlib.util.find_spec(program[3:])
    said = subprocess.run([sys.executable, *program.split(), "--help"], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    for flag in re.findall(r"--[\w-]+", flags):
        assert flag in said.stdout


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"`?\bmake (\w+)`?", "\n".join(re.findall(r"`make \w+`", TEXT)))))
)
def test_a_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize(
    "path",
    sorted(
        set(
            re.findall(r"\]\(([\w./-]+)\)", TEXT)
            + re.findall(r"`((?:playground|training|assets|benchmarks)/[\w./-]+)`", TEXT)
        )
    ),
)
def test_a_file_or_folder_exists(path):
    assert (ROOT / path).exists()
