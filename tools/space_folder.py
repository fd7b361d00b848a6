"""The folder that is pushed to a Space: where it may be, and what is copied into it. Owns everything that is removed.

An earlier build is known by the list of its files, which is kept beside the folder (`space.built`), so that it is not
pushed. Only such a folder is emptied.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILDS = "build"  # the one folder of the repository that a build may be in; git ignores it
CODE = ("app.py", "playground", "training")  # what runs on a Space
NEEDED = (*CODE, "assets", "requirements.txt", "README.md")  # without which it does not run
CONFLICTS = {"DD", "AU", "UD", "UA", "DU", "AA", "UU"}  # states of git's short format


class CannotBuild(Exception):
    """The folder cannot be made; the message says why. Nothing has been removed."""


def build(folder: Path, root: Path = ROOT) -> None:
    """Copy every file that git knows from `root` into `folder`, which is emptied before. CannotBuild where it is not
    plain that nothing is lost by that, or where git's files are not all here.
    """
    folder = folder.expanduser().absolute()
    if refusal := refused(folder, root):
        raise CannotBuild(refusal)
    names = tracked(root)
    if found := [*missing(names, root), *left_out(root)]:
        raise CannotBuild("\n".join(found))
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    list_of(folder).write_text(
        "".join(f"{name}\0" for name in names)
    )  # first, so that a build that is cut off is known
    copy(names, root, folder)


def copy(names: list[str], root: Path, folder: Path) -> None:
    """Copy the files `names` of `root` into `folder`."""
    for name in names:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, place)


# -- where it may be


def list_of(folder: Path) -> Path:
    """The list of an earlier build's files, each ended by a null character."""
    return folder.with_name(f"{folder.name}.built")


def refused(folder: Path, root: Path = ROOT) -> str:
    """Why `folder` must not be emptied; "" where it may be."""
    folder = folder.absolute()
    if folder.is_symlink():
        return f"{folder} is a link. Name the folder itself."
    real, root, home = folder.resolve(), root.resolve(), Path.home().resolve()
    if root.is_relative_to(real):
        return f"{folder} holds this repository. Name a new folder."
    if home.is_relative_to(real):
        return f"{folder} holds your home. Name a new folder."
    inside = real.is_relative_to(root)
    if inside and not (real.is_relative_to(root / BUILDS) and real != root / BUILDS):
        return f"{folder} is in this repository. There only folders in {BUILDS}/ are emptied."
    if real.exists() and not real.is_dir():
        return f"{folder} is no folder."
    if real.exists() and (strange := not_of_a_build(real)):
        return f"{folder} has {strange}, which no build has put there. Name a new folder, or remove this one yourself."
    return ""


def not_of_a_build(folder: Path) -> str:
    """A file or an empty folder below `folder` that an earlier build has not put there; "" where there is none."""
    listed = list_of(folder)
    known = set(listed.read_text().split("\0")) if listed.is_file() else set()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_compiled = "__pycache__" in path.parts and bool(known)
        is_folder = path.is_dir() and not path.is_symlink() and any(path.iterdir())
        if name not in known and not is_compiled and not is_folder:
            return name
    return ""


# -- what is copied


def git(root: Path, *arguments: str) -> list[str]:
    """What a command of git prints, at each null character. CannotBuild where there is no git, or no repository."""
    try:
        done = subprocess.run(["git", *arguments, "-z"], cwd=root, capture_output=True, check=True)
    except FileNotFoundError:
        raise CannotBuild("git is needed: the files of a Space are those that git has.") from None
    except subprocess.CalledProcessError as error:
        raise CannotBuild(f"{root} is no repository of git: {error.stderr.decode(errors='replace').strip()}") from None
    return [part for part in done.stdout.decode(errors="surrogateescape").split("\0") if part]


def tracked(root: Path) -> list[str]:
    """The names of all files that git has."""
    return list(dict.fromkeys(git(root, "ls-files")))


def missing(names: list[str], root: Path) -> Iterator[str]:
    """Files that git has and that cannot be copied; each in a sentence."""
    for name in names:
        path = root / name
        if path.is_symlink():
            yield f"{name} is a link, and a Space gets files alone: put the file in its place."
        elif path.is_dir():
            yield f"{name} is a repository of its own (a submodule), which a Space does not get."
        elif not path.exists():
            yield f"{name} is deleted here, and git still has it: git rm {name}, or git restore {name}."


def states(root: Path) -> list[tuple[str, str]]:
    """(state, name) of each file that is not as git has it: two letters of `git status --short`."""
    lines = git(root, "status", "--porcelain=v1", "--untracked-files=all", "--no-renames")
    return [(line[:2], line[3:]) for line in lines]


def left_out(root: Path) -> Iterator[str]:
    """New files that git does not have where the app's own are, and files in a conflict; each in a sentence."""
    for state, name in states(root):
        if state == "??" and is_needed(name):
            yield f"{name} is new and git does not have it, so the Space would not: git add {name}, or move it away."
        if state in CONFLICTS:
            yield f"{name} is in a conflict of git: end the merge first."


def remarks(root: Path = ROOT) -> Iterator[str]:
    """What somebody may not expect of the folder; each in a sentence."""
    for state, name in states(root):
        if state == "??" and not is_needed(name):
            yield f"{name} is left out, since git does not have it."
        elif state != "??":
            yield f"{name} is not committed as it is here; the folder has what is here."


def is_needed(name: str) -> bool:
    return name in NEEDED or name.partition("/")[0] in NEEDED
