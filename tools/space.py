"""The folder that is a Hugging Face Space: what git has of this repository, checked, and the commands that push it.

`make space`, or `python -m tools.space [--folder FOLDER] [--repo OWNER/NAME]`. Nothing is sent anywhere.
"""

import argparse
import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import SpaceHardware
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "build/space"
CODE = ("app.py", "playground", "training")  # what runs on a Space
# comes with PyTorch for CUDA; comes with a Space of Gradio. Each is imported there alone
BROUGHT_ELSEWHERE = {"triton", "spaces"}
# https://huggingface.co/docs/hub/spaces-config-reference
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
SHORT_DESCRIPTION = 60  # characters
LARGEST_FILE = 10 << 20  # bytes; larger ones need another way of storing them
LARGEST_SPACE = 1 << 30  # bytes
SECRETS = {
    "a token of Hugging Face": re.compile(rb"\bhf_[A-Za-z0-9]{30,}"),
    "a key of AWS": re.compile(rb"\bAKIA[0-9A-Z]{16}\b"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a password's hash": re.compile(rb"\$argon2id\$v=\d+\$m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]{16,}"),
}
PRIVATE_NAMES = re.compile(r"(^|/)(\.env|users\.txt|.*\.(pem|key|db|sqlite))$")


def build(folder: Path, root: Path = ROOT) -> None:
    """Copy every file that git knows into `folder`, which is emptied before."""
    shutil.rmtree(folder, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, place)


def problems(folder: Path) -> list[str]:
    """Everything that would keep this folder from being a Space that works; each in a sentence."""
    requirements = (folder / "requirements.txt").read_text()
    return [
        *front_matter_problems(front_matter(folder / "README.md"), folder, requirements),
        *size_problems(folder),
        *secret_problems(folder),
        *import_problems(folder, requirements),
    ]


def front_matter(readme: Path) -> Mapping[str, Any]:
    """The YAML between the two lines `---` at the top; empty where there is none."""
    found = re.match(r"---\n(.*?)\n---\n", readme.read_text(), re.S)
    return (yaml.safe_load(found[1]) or {}) if found else {}


def front_matter_problems(head: Mapping[str, Any], folder: Path, requirements: str) -> Iterator[str]:
    pinned = re.search(r"^gradio(?:\[.*?\])?==(\S+)", requirements, re.M)
    expected = {"sdk": "gradio", "sdk_version": pinned and pinned[1], "python_version": "3.12", "hf_oauth": True}
    for key, value in expected.items():
        if head.get(key) != value:
            yield f"README.md: {key} is {head.get(key)!r} and has to be {value!r}"
    for key in ("title", "emoji", "license", "short_description"):
        if not head.get(key):
            yield f"README.md: {key} is missing"
    for key in ("colorFrom", "colorTo"):
        if head.get(key) not in COLOURS:
            yield f"README.md: {key} is {head.get(key)!r}, not one of {', '.join(sorted(COLOURS))}"
    if not (folder / str(head.get("app_file"))).is_file():
        yield f"README.md: app_file is {head.get('app_file')!r}, and there is no such file"
    if len(str(head.get("short_description", ""))) > SHORT_DESCRIPTION:
        yield f"README.md: short_description has more than {SHORT_DESCRIPTION} characters"
    if head.get("suggested_hardware") not in {hardware.value for hardware in SpaceHardware}:
        yield f"README.md: suggested_hardware is {head.get('suggested_hardware')!r}, which the hub does not have"
    if not all(re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)) for model in head.get("models") or [""]):
        yield "README.md: models are no list of hub ids"


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def size_problems(folder: Path) -> Iterator[str]:
    sizes = {path.relative_to(folder): path.stat().st_size for path in files(folder)}
    for path, size in sizes.items():
        if size > LARGEST_FILE:
            yield f"{path} has {size} bytes; at most {LARGEST_FILE} are taken"
    if sum(sizes.values()) > LARGEST_SPACE:
        yield f"the folder has {sum(sizes.values())} bytes; at most {LARGEST_SPACE} are taken"


def secret_problems(folder: Path) -> Iterator[str]:
    for path in files(folder):
        name = path.relative_to(folder).as_posix()
        if PRIVATE_NAMES.search(name):
            yield f"{name} is no file for others"
        content = path.read_bytes()
        for what, pattern in SECRETS.items():
            if pattern.search(content):
                yield f"{name} has {what} in it"


def import_problems(folder: Path, requirements: str) -> Iterator[str]:
    """Modules that the code imports and that nothing in `requirements` brings. Only what is imported at the top of a
    module counts: what is imported later may be optional.
    """
    provided = brought_by([line for line in requirements.splitlines() if line.strip() and line[0] != "#"])
    distributions = metadata.packages_distributions()
    known = sys.stdlib_module_names | BROUGHT_ELSEWHERE | {"app", "playground", "training"}
    for path in (path for part in CODE for path in [folder / part, *(folder / part).rglob("*.py")] if path.is_file()):
        for module in sorted(top_imports(path) - known):
            if not provided & {normal(name) for name in distributions.get(module, [])}:
                yield f"{path.relative_to(folder)} imports {module}, which requirements.txt does not bring"


def top_imports(path: Path) -> set[str]:
    """The first names of all modules that a file imports outside of functions and conditions."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def brought_by(lines: list[str]) -> set[str]:
    """The names of the distributions that these requirements install here, with what those require."""
    names: set[str] = set()
    waiting = [Requirement(line.split(" #")[0].strip()) for line in lines]
    while waiting:
        requirement = waiting.pop()
        name, extras = normal(requirement.name), requirement.extras or {""}
        wanted = not requirement.marker or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
        if not wanted or (name in names and extras == {""}):
            continue
        names.add(name)
        try:
            needed = map(Requirement, metadata.requires(requirement.name) or [])
        except metadata.PackageNotFoundError:
            continue
        waiting += [n for n in needed if not n.marker or any(n.marker.evaluate({"extra": e}) for e in extras)]
    return names


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def push_commands(folder: Path, repo: str) -> str:
    """`hf upload` stores pictures as the hub wants them; a `git push` of them is refused."""
    return f"""hf auth login
hf repos create {repo} --type space --space-sdk gradio --exist-ok
hf upload {repo} {folder} . --type space --delete "*"

Then in the Space's settings, as variables: NUDGE_ADMINS (user names), NUDGE_BACKUP_URL (hf://buckets/OWNER/NAME/nudge);
as a secret: HF_TOKEN, which may write to that bucket."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.space", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / FOLDER, help="where the folder is made; it is emptied")
    parser.add_argument("--repo", default="OWNER/nudge", help="the Space that the commands push to")
    options = parser.parse_args(argv)
    build(options.folder)
    found = problems(options.folder)
    for problem in found:
        print(problem, file=sys.stderr)
    if found:
        return 1
    total = sum(path.stat().st_size for path in files(options.folder))
    print(f"{options.folder}: {len(files(options.folder))} files, {total / 1e6:.1f} MB. To push it:\n")
    print(push_commands(options.folder, options.repo))
    return 0


if __name__ == "__main__":
    sys.exit(main())
