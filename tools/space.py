"""The folder that is a Hugging Face Space: what git has of this repository, checked, installed and started, and the
commands that push it. Nothing is sent anywhere.

`make space`, or `python -m tools.space [--folder FOLDER] [--repo OWNER/NAME] [--no-start]`.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path

from huggingface_hub import SpaceHardware

from tools import space_checks, space_folder, space_start
from tools.space_folder import BUILDS, ROOT

FOLDER = f"{BUILDS}/space"
MOST_REMARKS = 20
FREE = """
A Space on other hardware than ZeroGPU needs a paid plan, or credit. For a free account:
make space ARGS="--hardware zero-a10g"
"""


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Build, check, install and start; returns the exit code: 0 it can be pushed, 1 it cannot, and why is said."""
    options = parser(root).parse_args(argv)
    folder = options.folder.expanduser()
    try:
        space_folder.build(folder, root)
        remark(list(space_folder.remarks(root)))
    except space_folder.CannotBuild as error:
        print(error, file=sys.stderr)
        return 1
    if found := space_checks.problems(folder):
        print("\n".join(found), file=sys.stderr)
        return 1
    files = space_checks.files(folder)
    print(f"{folder}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB.", flush=True)
    if not options.start:
        print("It was neither installed nor started: without --no-start it is.")
    elif not starts(folder, options):
        return 1
    print(f"To push it:\n\n{push_commands(folder, options.repo, options.hardware)}")
    return 0


def parser(root: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.space", description=__doc__)
    add = parser.add_argument
    add("--folder", type=Path, default=root / FOLDER, help="where the folder is made; an earlier build is emptied")
    add("--repo", default="OWNER/nudge", help="the Space that the commands push to")
    add(
        "--hardware",
        choices=[hardware.value for hardware in SpaceHardware],
        default=SpaceHardware.CPU_BASIC.value,
        help="what the Space runs on; zero-a10g is ZeroGPU",
        metavar="HARDWARE",
    )
    add(
        "--start",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="install it in a new environment and start it as each kind of Space (some minutes, 7 GB meanwhile)",
    )
    add("--python", help=f"the Python to install it with; else {space_checks.PYTHON}, where it is here")
    add("--models-dir", type=Path, default=root / "data" / "models", help="where the default model is")
    return parser


def remark(remarks: list[str]) -> None:
    for sentence in islice(remarks, MOST_REMARKS):
        print(f"note: {sentence}", file=sys.stderr)
    if (more := len(remarks) - MOST_REMARKS) > 0:
        print(f"note: and {more} more such files", file=sys.stderr)


def starts(folder: Path, options: argparse.Namespace) -> bool:
    """Whether it installs and starts; each step is printed, and so is why not."""
    try:
        for step in space_start.install_and_start(folder, options.models_dir, options.python):
            print(step, flush=True)
    except space_start.DoesNotStart as error:
        print(error, file=sys.stderr)
        return False
    return True


def push_commands(folder: Path, repo: str, hardware: str) -> str:
    """`hf upload` stores pictures as the hub wants them; a `git push` of them is refused."""
    free = "" if hardware == SpaceHardware.ZERO_A10G.value else FREE
    return f"""hf auth login
hf repos create {repo} --type space --space-sdk gradio --flavor {hardware} --exist-ok
hf upload {repo} {folder} . --type space --delete "*"
{free}
Then in the Space's settings, as variables: NUDGE_ADMINS (user names), NUDGE_BACKUP_URL (hf://buckets/OWNER/NAME/nudge);
as a secret: HF_TOKEN, which may write to that bucket."""


if __name__ == "__main__":
    sys.exit(main())
