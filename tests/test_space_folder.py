"""The folder that is pushed to a Space: where it may be made, what goes into it, and what the command says."""

import subprocess
from pathlib import Path

import pytest

from tools import space, space_folder
from tools.space_folder import CannotBuild


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small repository, in whose folder the test is."""
    root = tmp_path / "repository"
    (root / "playground").mkdir(parents=True)
    for name in ("app.py", "README.md", "playground/a.py"):
        (root / name).write_text(name)
    (root / ".gitignore").write_text("build/\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "-c", "user.name=ann", "-c", "user.email=ann@nudge.example", "commit", "--quiet", "-m", "all")
    monkeypatch.chdir(root)
    return root


def git(root, *arguments):
    subprocess.run(["git", *arguments], cwd=root, check=True)


def all_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- where the folder may be


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (".", "holds this repository"),
        ("..", "holds this repository"),
        ("playground/new", "in this repository"),
        (".git/new", "in this repository"),
        ("data/new", "in this repository"),
        ("build", "in this repository"),
        ("../home", "holds your home"),
        ("../letters", "letters has dear.txt"),
        ("../letters/dear.txt", "no folder"),
        ("../link", "is a link"),
        ("../with an empty one", "has empty"),
    ],
)
def test_a_folder_that_may_hold_something_else_is_refused_and_kept(repository, monkeypatch, capsys, name, said):
    """`--folder .` removed the repository, with `.git`, before anything was checked."""
    above = repository.parent
    (above / "home" / "ann").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(above / "home" / "ann"))
    (above / "letters").mkdir()
    (above / "letters" / "dear.txt").write_text("dear")
    (above / "link").symlink_to(above / "letters")
    (above / "with an empty one" / "empty").mkdir(parents=True)
    before = all_files(above)
    assert space.main(["--folder", name], repository) == 1
    assert said in capsys.readouterr().err
    assert all_files(above) == before and (above / "with an empty one" / "empty").exists()


@pytest.mark.parametrize("name", ["build/space", "../new", "../new/below", "../empty"])
def test_a_new_folder_an_empty_one_and_an_earlier_build_are_taken(repository, name):
    (repository.parent / "empty").mkdir()
    space_folder.build(Path(name), repository)
    git(repository, "rm", "--quiet", "playground/a.py")
    (Path(name) / "playground" / "__pycache__").mkdir()
    (Path(name) / "playground" / "__pycache__" / "a.pyc").touch()
    space_folder.build(Path(name), repository)
    assert {path.name for path in all_files(Path(name))} == {"app.py", "README.md", ".gitignore"}


def test_an_earlier_build_with_a_file_of_somebody_is_kept(repository):
    space_folder.build(Path("build/space"), repository)
    Path("build/space/notes.txt").write_text("mine")
    with pytest.raises(CannotBuild, match=r"has notes\.txt, which no build has put there"):
        space_folder.build(Path("build/space"), repository)
    assert Path("build/space/notes.txt").read_text() == "mine"


# -- what goes into it


def test_a_file_that_is_deleted_here_is_named(repository):
    """It was a FileNotFoundError, after the folder had been emptied."""
    space_folder.build(Path("build/space"), repository)
    (repository / "playground" / "a.py").unlink()
    with pytest.raises(CannotBuild, match=r"playground/a\.py is deleted here, and git still has it: git rm"):
        space_folder.build(Path("build/space"), repository)
    assert Path("build/space/playground/a.py").exists()


def test_a_new_module_that_git_does_not_have_is_named(repository):
    """It was left out, and the Space failed at the import."""
    (repository / "playground" / "b.py").touch()
    with pytest.raises(CannotBuild, match=r"playground/b\.py is new and git does not have it.*git add"):
        space_folder.build(Path("build/space"), repository)
    git(repository, "add", ".")
    space_folder.build(Path("build/space"), repository)
    assert Path("build/space/playground/b.py").exists()


def test_what_is_not_committed_is_said(repository):
    (repository / "app.py").write_text("changed")
    (repository / "notes.txt").touch()
    space_folder.build(repository.parent / "new", repository)
    assert (repository.parent / "new" / "app.py").read_text() == "changed"
    assert list(space_folder.remarks(repository)) == [
        "app.py is not committed as it is here; the folder has what is here.",
        "notes.txt is left out, since git does not have it.",
    ]


def test_a_link_and_a_folder_without_git_are_named(repository, tmp_path):
    (repository / "link").symlink_to("/etc/passwd")
    git(repository, "add", ".")
    with pytest.raises(CannotBuild, match="link is a link"):
        space_folder.build(Path("build/space"), repository)
    (tmp_path / "bare").mkdir()
    with pytest.raises(CannotBuild, match="is no repository of git"):
        space_folder.build(tmp_path / "new", tmp_path / "bare")


# -- the command


def test_without_a_start_the_command_says_so(repository, capsys):
    for name in ("README.md", "requirements.txt", "app.py"):
        (repository / name).write_bytes((space_folder.ROOT / name).read_bytes())
    git(repository, "add", ".")
    (repository / "playground" / "a.py").write_text("")
    arguments = ["--no-start", "--repo", "ann/nudge", "--hardware", "zero-a10g"]
    assert space.main(arguments, repository) == 0
    said = capsys.readouterr()
    assert "neither installed nor started" in said.out
    assert f"hf upload ann/nudge {repository}/build/space . --type space" in said.out
    assert "hf repos create ann/nudge --type space --space-sdk gradio --flavor zero-a10g" in said.out
    assert "note: playground/a.py is not committed" in said.err
    (repository / "users").touch()
    git(repository, "add", ".")
    assert space.main(arguments, repository) == 1
    said = capsys.readouterr()
    assert "users is no file for others" in said.err and "hf upload" not in said.out
