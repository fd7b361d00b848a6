"""The folder that is pushed to a Space, and what its check finds."""

import pytest

from tools import space


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space") / "folder"
    space.build(folder)
    return folder


@pytest.fixture
def small(folder, tmp_path):
    """A folder with the head of the README, the requirements and one module."""
    for name in ("README.md", "requirements.txt", "app.py"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    return tmp_path


def change(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_this_repository_is_a_space(folder):
    assert space.problems(folder) == []
    assert (folder / "app.py").exists() and not (folder / ".venv").exists() and not (folder / "data").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("sdk_version: 6", "sdk_version: 5", "sdk_version"),
        ('python_version: "3.12"', "python_version: 3.1", "python_version"),
        ("hf_oauth: true", "hf_oauth: false", "hf_oauth"),
        ("suggested_hardware: cpu-basic", "suggested_hardware: gpu", "suggested_hardware"),
        ("colorTo: purple", "colorTo: violet", "colorTo"),
        ("app_file: app.py", "app_file: main.py", "app_file"),
        ("short_description: A", f"short_description: {'a' * 60}", "short_description"),
        ("  - HuggingFaceTB/", "  - ", "models"),
    ],
)
def test_a_head_that_does_not_fit_is_named(small, old, new, said):
    change(small / "README.md", old, new)
    head = space.front_matter(small / "README.md")
    [problem] = space.front_matter_problems(head, small, (small / "requirements.txt").read_text())
    assert said in problem


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.txt", b"token hf_" + b"a1" * 17, "a token of Hugging Face"),
        ("notes.txt", b"-----BEGIN RSA " + b"PRIVATE KEY-----", "a private key"),
        (".env", b"NUDGE_PORT=1", "no file for others"),
        ("nudge.db", b"", "no file for others"),
        ("big.bin", bytes(space.LARGEST_FILE + 1), "at most"),
    ],
)
def test_what_must_not_be_pushed_is_named(small, name, content, said):
    (small / name).write_bytes(content)
    [problem] = [*space.size_problems(small), *space.secret_problems(small)]
    assert name in problem and said in problem


def test_an_import_that_nothing_brings_is_named(small):
    """pytest is installed here, by the other file of requirements."""
    (small / "playground").mkdir()
    (small / "playground" / "x.py").write_text(
        "import json\nimport pytest\nimport torch\nfrom starlette import status\n"
    )
    found = space.import_problems(small, (small / "requirements.txt").read_text())
    assert list(found) == ["playground/x.py imports pytest, which requirements.txt does not bring"]


def test_the_commands_name_the_space(tmp_path):
    assert f"hf upload ann/nudge {tmp_path} . --type space" in space.push_commands(tmp_path, "ann/nudge")
