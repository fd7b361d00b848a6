"""Models as people have them, in small (`tests/architectures.py`): each starts as the app does and answers twice, or
is refused in one sentence.

The app's own `main` runs in a process forked from one that has imported everything, so that fifty starts take minutes
and not half an hour.
"""

import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report
from benchmarks.faults.people import PageUnavailable, Person
from benchmarks.faults.running import (
    ENVIRON,
    ROOT,
    TINY,
    Scene,
    flags_of,
    tracebacks,
    until,
)

START_SECONDS, TURNS = 180, 2
PRELOAD = [
    "app",
    "torch",
    "transformers",
    "peft",
    "gradio",
    "playground.server",
    "playground.serving.engine",
    "playground.chat.session",
    "playground.system.child",
    "tests.architectures",
]
FEW = 5  # of each with --quick


@dataclass(frozen=True)
class Case:
    """`refusal` is what the refusing sentence must hold; None for one that must answer."""

    name: str
    kind: str  # the table of tests/architectures.py: ARCHITECTURES or FOLDERS
    refusal: str | None = None


def cases(quick: bool) -> list[Case]:
    """All of both tables, or with `quick` some spread over them."""
    from tests import architectures

    sound = [Case(name, "ARCHITECTURES") for name in architectures.ARCHITECTURES]
    odd = [Case(name, "FOLDERS", folder.refusal) for name, folder in architectures.FOLDERS.items()]
    if quick:
        sound, odd = sound[:: len(sound) // FEW], odd[:: len(odd) // FEW]
    return [*sound, *odd]


def start(case: Case, folder: str) -> None:
    """In a process of its own: make the model, then be the app. What it prints goes to files of the folder."""
    os.setpgid(0, 0)
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    import app
    from tests import architectures

    made = Path(folder, "model")
    made.mkdir()
    make = getattr(architectures, case.kind)[case.name]
    model = getattr(make, "make", make)(made)
    Path("made").write_text(str(model))
    options = {
        **TINY,
        "model": model,
        "data-dir": Path(folder, "data"),
        "port": 0,
        "worker": False,
        "decode-format": "auto",
        "chat.reply-tokens": 12,
    }
    code = app.main(flags_of(options))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def verdict(case: Case, url: str, exit_code: int | None, err: str, answered: int, harmed: bool) -> str:
    """What is not as expected; "" where all is."""
    if harmed:
        return "it ran code from the model's files"
    if broken := tracebacks(err):
        return f"a traceback: {broken[-1]}"
    sentence = err.strip().splitlines()[-1] if err.strip() else ""
    if case.refusal is None:
        return (
            "" if answered == TURNS else f"{answered} of {TURNS} messages answered; exit code {exit_code}; {sentence}"
        )
    if url:
        return "it started, and should have been refused"
    if exit_code is None or exit_code <= 0:
        return f"exit code {exit_code}"
    return "" if case.refusal in err else f"the sentence does not hold {case.refusal!r}: {sentence}"


def tried(case: Case, folder: Path, context) -> str:
    """Start one, chat with it, end it; what is not as expected."""
    process = context.Process(target=start, args=(case, str(folder)), daemon=False)
    process.start()
    try:
        until(lambda: not process.is_alive() or "Nudge is at" in _read(folder / "out"), START_SECONDS, pause=0.1)
        out = _read(folder / "out")
        url = next((line.split()[-1] for line in out.splitlines() if line.startswith("Nudge is at ")), "")
        answered = chat(url) if url else 0
        if process.is_alive() and not url:
            return f"neither started nor refused in {START_SECONDS} s"
        code = None if url else process.exitcode
    finally:
        end(process)
    return verdict(case, url, code, _read(folder / "err"), answered, any(folder.rglob("harm")))


def chat(url: str) -> int:
    """How many messages got two replies and a vote."""
    try:
        page = Person(url, timeout=60)
    except PageUnavailable:
        return 0
    answered = 0
    for i in range(TURNS):
        sent, voted = page.turn(f"Hello, number {i}", "a")
        answered += sent.kept and voted.kept
    return answered


def end(process: multiprocessing.Process) -> None:
    """In order, else by force."""
    if process.is_alive():
        os.kill(process.pid, signal.SIGTERM)
        process.join(20)
    if process.is_alive():
        process.kill()
        process.join()


def run(scene: Scene) -> list[dict]:
    """The section's rows."""
    try:
        chosen = cases(scene.quick)
    except ImportError as error:
        return [report.row(f"architectures: not run, tests/architectures.py is missing ({error})", None, "", "≤ 0")]
    os.environ.update(ENVIRON)
    context, wrong = multiprocessing.get_context("forkserver"), {}
    context.set_forkserver_preload(PRELOAD)
    for i, case in enumerate(chosen):
        folder = scene.folder(f"architectures-{i}")
        if why := tried(case, folder, context):
            wrong[case] = why
            scene.log(f"architectures: {case.name}: {why}"[:400])
    rows = [
        _row("architectures that answer", [c for c in chosen if c.kind == "ARCHITECTURES"], wrong),
        _row("odd folders that work", [c for c in chosen if c.kind == "FOLDERS" and c.refusal is None], wrong),
        _row("odd folders that are refused in one sentence", [c for c in chosen if c.refusal is not None], wrong),
    ]
    if scene.counts.get("default_model"):
        rows.append(default_model(scene))
    return rows


def default_model(scene: Scene) -> dict:
    """The usual model, as `make setup` left it."""
    from benchmarks.faults.running import running

    with running(
        scene.folder("default-model"),
        "",
        {"models-dir": ROOT / "data" / "models", "worker": False, "decode-format": "auto", "dtype": "auto"},
    ) as app:
        return report.row("architectures: the usual model answers", chat(app.url), "messages", f"≥ {TURNS}")


def _row(what: str, of: list[Case], wrong: dict[Case, str]) -> dict:
    names = [case.name for case in of if case in wrong]
    return report.row(
        f"{what}, of {len(of)}{f' (not: {chr(44).join(names)})' if names else ''}",
        len(of) - len(names),
        "",
        f"≥ {len(of)}",
    )


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
