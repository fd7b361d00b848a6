"""Adapter versions that somebody has tampered with: each is rejected, at start-up and while running, and the version
before goes on answering.
"""

import json
import pickle
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report
from benchmarks.faults.live import Live
from benchmarks.faults.people import PageUnavailable, Person
from benchmarks.faults.running import (
    App,
    DidNotStart,
    Scene,
    rows,
    running,
    tracebacks,
    until,
)

REJECTED_SECONDS = 30  # within which a version is taken or rejected
WEIGHTS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "manifest.json"


@dataclass
class Parts:
    """What a version is written from; a tampering may change it before."""

    tensors: dict
    manifest: dict


class Run:
    """Unpickled, it makes a file: so a pickle that was loaded shows."""

    def __init__(self, file: Path):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, "w")


# -- before it is published: whoever wrote it gave it hashes that fit


def nan(parts: Parts) -> None:
    next(iter(parts.tensors.values())).view(-1)[3] = float("nan")


def wrong_base(parts: Parts) -> None:
    parts.manifest["base"] = {**parts.manifest["base"], "hash": "0" * 64}


def missing_tensor(parts: Parts) -> None:
    parts.tensors.pop(sorted(parts.tensors)[0])


def extra_tensor(parts: Parts) -> None:
    name, tensor = sorted(parts.tensors.items())[0]
    parts.tensors[name.replace("0", "99", 1)] = tensor.clone()


# -- after it was published: in its folder


def flipped_bit(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def truncated(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def rank_changed(folder: Path) -> None:
    change(folder, rank=10**7, alpha=-1)


def targets_wrong(folder: Path) -> None:
    change(folder, targets=[{"a": 1}, 5, None])


def deep_json(folder: Path) -> None:
    (folder / MANIFEST).write_text("[" * 200_000 + "]" * 200_000)


def symlink(folder: Path) -> None:
    """The weights are those of the version before, by a link."""
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder.parent / "v0001" / WEIGHTS)


def pickled(folder: Path) -> None:
    """A pickle under the weights' name, and under the name that transformers falls back to."""
    data = pickle.dumps(Run(folder / "ran"))
    for name in (WEIGHTS, "adapter_model.bin", "pytorch_model.bin"):
        (folder / name).write_bytes(data)


def change(folder: Path, **values) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **values}))


BEFORE: dict[str, Callable[[Parts], None]] = {
    "NaN": nan,
    "wrong base": wrong_base,
    "missing tensor": missing_tensor,
    "extra tensor": extra_tensor,
}
AFTER: dict[str, Callable[[Path], None]] = {
    "flipped bit": flipped_bit,
    "truncated": truncated,
    "rank and alpha changed": rank_changed,
    "targets of the wrong type": targets_wrong,
    "deep JSON": deep_json,
    "symlinked weights": symlink,
    "pickle": pickled,
}
KINDS = (*AFTER, *BEFORE)


def publish(data: Path, kind: str | None) -> int:
    """A further version made of the first one's tensors, a little scaled, and made live; tampered with as `kind`
    says. Returns its number.
    """
    from safetensors.torch import load_file

    from playground.models import adapters

    first = data / "adapters" / "v0001"
    scale = 1 + 1e-3 * secrets.randbelow(100)
    parts = Parts(
        {name: tensor * scale for name, tensor in load_file(first / WEIGHTS).items()},
        json.loads((first / MANIFEST).read_text()),
    )
    if kind in BEFORE:
        BEFORE[kind](parts)
    # in the place of the version that a folder left by an earlier kind may have taken
    version = rows(data / "nudge.db", "select max(version) + 1 from policy")[0][0]
    manifest = parts.manifest
    folder, digest = adapters.write(
        data / "adapters",
        version,
        parts.tensors,
        rank=manifest["rank"],
        alpha=manifest["alpha"],
        targets=manifest["targets"],
        base=manifest["base"],
        parent=1,
        round_id=1,
        scores=manifest["scores"],
    )
    if kind in AFTER:
        AFTER[kind](Path(folder))
    make_live(data / "nudge.db", version, folder, digest)
    return version


def make_live(database: Path, version: int, folder: Path, digest: str) -> None:
    """The row of a version that a round has published."""
    import sqlite3

    db = sqlite3.connect(database, timeout=30)
    with db:
        db.execute("update policy set status = 'retired' where status = 'live'")
        db.execute(
            "insert into policy (version, parent, status, path, sha256, created)"
            " values (?, 1, 'live', ?, ?, '2026-01-01T00:00:00Z')",
            [version, str(folder), digest],
        )
    db.close()


def run(scene: Scene) -> list[dict]:
    """The section's rows."""
    live = Live(scene)
    kinds = KINDS[::3] if scene.quick else KINDS
    options = {**live.options, "worker": False, "round.poll-seconds": 0.3}
    at_start, ran = [], []
    for kind in kinds:
        app = App(scene.folder("tampered"), live.model, options, data=live.fresh())
        version = publish(live.data, kind)
        why = started(app, version)
        ran += list(live.data.rglob("ran"))
        if why:
            at_start.append(f"{kind}: {why}")
    loaded, meanwhile = while_running(scene, live, options, kinds)
    ran += list(live.data.rglob("ran"))
    for line in (*at_start, *meanwhile):
        scene.log(f"tampered: {line}")
    return [
        report.row("tampered: a sound version goes live ", int(loaded), "", "≥ 1"),
        report.row(
            f"tampered: kinds not rejected at start-up, of {len(kinds)} {named(at_start)}", len(at_start), "", "≤ 0"
        ),
        report.row(
            f"tampered: not rejected while running, of {len(kinds)} {named(meanwhile)}", len(meanwhile), "", "≤ 0"
        ),
        report.row("tampered: pickles that ran", len(ran), "", "≤ 0"),
    ]


def started(app: App, version: int) -> str:
    """What is wrong after a start with this version live; nothing where it was rejected and v1 answers."""
    try:
        app.start()
    except DidNotStart as error:
        lines = str(error).strip().splitlines()
        return f"the app did not start: {lines[-1] if lines else ''}"[:200]
    try:
        return wrong(app, version, 0)
    finally:
        app.stop()


def while_running(scene: Scene, live: Live, options: dict, kinds: tuple) -> tuple[bool, list[str]]:
    """(whether a sound version was taken, what is wrong by kind), all in one life of the app."""
    refused = []
    with running(scene.folder("tampered-running"), live.model, options, data=live.fresh()) as app:
        for kind in kinds:
            position = app.said_so_far()
            if why := wrong(app, publish(live.data, kind), position):
                refused.append(f"{kind}: {why}")
            if not app.alive:
                break
        good = publish(live.data, None)
        loaded = app.alive and bool(until(lambda: answering(app) == good, REJECTED_SECONDS, pause=0.2))
    return loaded, refused


def wrong(app: App, version: int, position: int) -> str:
    """What is wrong now that a tampered version is published; "" when it was rejected, the one before answers, and
    nothing was thrown.
    """
    status = "select status from policy where version = ?"
    until(lambda: not app.alive or app.rows(status, version)[0][0] == "rejected", REJECTED_SECONDS, pause=0.2)
    if not app.alive:
        return "the app ended"
    if app.rows(status, version)[0][0] != "rejected":
        broken = (tracebacks(app.said(position)) or [""])[-1]
        return f"it is {app.rows(status, version)[0][0]}, and v{answering(app)} answers; {broken}"
    if answering(app) != 1:
        return f"v{answering(app)} answers, not v1"
    try:
        answered = Person(app.url).send(f"Hello {secrets.token_hex(4)}").kept
    except PageUnavailable as error:
        return f"the page does not open: {error}"
    return "" if answered else "no message is answered"


def answering(app: App) -> int | None:
    """The version that answers, as /readyz has it."""
    status, body = app.get("/readyz")
    return json.loads(body).get("version") if status in (200, 503) else None


def named(lines: list[str]) -> str:
    return f"({', '.join(line.split(':')[0] for line in lines)})" if lines else ""
