"""Whether a folder is a Space that works, as far as that can be told without starting it: the head of its README, its
sizes, what it imports, the torch that it asks for.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import SpaceHardware
from packaging.requirements import Requirement

from tools.space_folder import CODE
from tools.space_secrets import secret_problems

PYTHON = "3.12"  # of the two that ZeroGPU has (3.12.12 and 3.10.13), the one that the app runs on
# comes with PyTorch for CUDA; comes with a Space of Gradio. Each is imported there alone
BROUGHT_ELSEWHERE = {"triton", "spaces"}
# those of ZeroGPU's list (https://huggingface.co/docs/hub/spaces-zerogpu, September 2026) that were seen on it; look
# there, and add the one that requirements.txt goes to
ZERO_GPU_TORCH = ("2.8.0", "2.11.0", "2.12.1", "2.13.0")
LARGEST_FILE = 10 << 20  # bytes; larger ones need another way of storing them
LARGEST_SPACE = 1 << 30  # bytes

# -- the head of the README: https://huggingface.co/docs/hub/spaces-config-reference and …/spaces-oauth
SHORT_DESCRIPTION = 60  # characters
SIGNED_IN = 43200  # minutes that a sign-in lasts at most
COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
# what an app may ask people for besides `openid` and `profile`, which every Space has
SCOPES = {
    *("openid", "profile", "email", "read-billing", "inference-api", "write-discussions", "jobs", "webhooks"),
    *("read-repos", "contribute-repos", "write-repos", "manage-repos", "read-memberships"),
}
# keys that the hub knows, and that are not checked
OTHERS = {
    *("suggested_storage", "app_build_command", "app_port", "base_path", "fullWidth", "header", "datasets", "tags"),
    *("thumbnail", "pinned", "disable_embedding", "startup_duration_timeout", "custom_headers", "preload_from_hub"),
}


def is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_list_of(form: str, value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(is_text(one) and re.fullmatch(form, one) for one in value)


def is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


# (what it has to be, whether it is)
Rule = tuple[str, Callable[[Any], bool]]
COLOUR: Rule = (f"one of {', '.join(COLOURS)}", lambda value: value in COLOURS)
TEXT: Rule = ("a text", is_text)
NEEDED: dict[str, Rule] = {
    "title": TEXT,
    "emoji": ("an emoji", lambda value: is_text(value) and not value.isascii() and len(value) <= 8),
    "colorFrom": COLOUR,
    "colorTo": COLOUR,
    "short_description": (
        f"a text of at most {SHORT_DESCRIPTION} characters",
        lambda value: is_text(value) and len(value) <= SHORT_DESCRIPTION,
    ),
    "license": TEXT,
    "sdk": ("gradio, the only one that ZeroGPU has", lambda value: value == "gradio"),
    "python_version": (f'"{PYTHON}", in quotes', lambda value: value == PYTHON),
    "suggested_hardware": (
        "one of the hub's: " + ", ".join(hardware.value for hardware in SpaceHardware),
        lambda value: value in {hardware.value for hardware in SpaceHardware},
    ),
    "models": ("a list of hub ids", lambda value: is_list_of(r"[\w.-]+/[\w.-]+", value)),
    "hf_oauth": ("true, or nobody can sign in", lambda value: value is True),
    "hf_oauth_expiration_minutes": (
        f"a whole number from 1 to {SIGNED_IN}",
        lambda value: is_whole(value, 1, SIGNED_IN),
    ),
}
POSSIBLE: dict[str, Rule] = {
    "hf_oauth_scopes": (
        "a list of " + ", ".join(sorted(SCOPES)),
        lambda value: is_list_of(r"[a-z-]+", value) and set(value) <= SCOPES,
    ),
    "hf_oauth_authorized_org": (
        "the name of an organisation, or a list of them",
        lambda value: is_list_of(r"[A-Za-z0-9][\w.-]*", value if isinstance(value, list) else [value]),
    ),
}
CHECKED_HERE = {"sdk_version", "app_file"}  # against the requirements and the folder


def problems(folder: Path) -> list[str]:
    """Everything that would keep this folder from being a Space that works; each in a sentence."""
    requirements = (folder / "requirements.txt").read_text(encoding="utf-8")
    return [
        *front_matter_problems(folder, requirements),
        *torch_problems(requirements),
        *size_problems(folder),
        *secret_problems(folder, files(folder)),
        *import_problems(folder, requirements),
    ]


def front_matter(readme: Path) -> Mapping[str, Any]:
    """The YAML between the two lines `---` at the top. ValueError says why there is none."""
    found = re.match(r"---\n(.*?)\n---\n", readme.read_text(encoding="utf-8"), re.S)
    if not found:
        raise ValueError("README.md has no head between two lines of ---")
    try:
        head = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise ValueError(f"README.md: the head is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(head, Mapping):
        raise ValueError("README.md: the head has no keys")
    return head


def front_matter_problems(folder: Path, requirements: str) -> Iterator[str]:
    try:
        head = front_matter(folder / "README.md")
    except ValueError as error:
        yield str(error)
        return
    pinned = pinned_version("gradio", requirements)
    rules = {
        **NEEDED,
        "sdk_version": (f"{pinned!r}, as requirements.txt has it", lambda value: value == pinned),
        "app_file": ("a file of the folder", lambda value: is_text(value) and (folder / value).is_file()),
        **{key: rule for key, rule in POSSIBLE.items() if key in head},
    }
    for key, (wanted, fits) in rules.items():
        if key not in head:
            yield f"README.md: {key} is missing; it has to be {wanted}"
        elif not fits(head[key]):
            yield f"README.md: {key} is {head[key]!r} and has to be {wanted}"
    for key in head.keys() - NEEDED.keys() - POSSIBLE.keys() - CHECKED_HERE - OTHERS:
        yield f"README.md: the hub does not know the key {key}"


def pinned_version(package: str, requirements: str) -> str | None:
    found = re.search(rf"^{package}(?:\[.*?\])?==([^\s;#]+)", requirements, re.M)
    return found and found[1]


def torch_problems(requirements: str) -> Iterator[str]:
    pinned = pinned_version("torch", requirements)
    if pinned not in ZERO_GPU_TORCH:
        yield (
            f"requirements.txt has torch {pinned}, of which it is not known whether ZeroGPU has it: compare "
            "https://huggingface.co/docs/hub/spaces-zerogpu, and add it to tools/space_checks.py"
        )


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def size_problems(folder: Path) -> Iterator[str]:
    sizes = {path.relative_to(folder): path.stat().st_size for path in files(folder)}
    for path, size in sizes.items():
        if size > LARGEST_FILE:
            yield f"{path} has {size} bytes; at most {LARGEST_FILE} are taken"
    if sum(sizes.values()) > LARGEST_SPACE:
        yield f"the folder has {sum(sizes.values())} bytes; at most {LARGEST_SPACE} are taken"


# -- imports


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
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
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
