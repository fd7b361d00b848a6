"""What people took back leaves every file: the rest of what `Store.delete_conversation`, `forget` and `allow_training`
began.

Owns which files of a round, of the features and of the reward head hold people's texts or what was read from them. Runs
where the files are written, in the worker, so that nobody else writes there at the same time. Each step can be done
twice; an erasure counts as done only once all of it is gone.
"""

import hashlib
import json
import logging
import os
import re
import time
from pathlib import Path

from playground.store import Store

log = logging.getLogger(__name__)

WORKING = (
    "preferences.json",
    "reward.safetensors",
    "ppo.pt",
)  # what only a running round needs, and which tells of its votes; and all *.partial
KEPT = ("log.txt",)  # what outlives a round that begins again
STAMPED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")  # a line that we wrote, and no exception
PATIENCE = 5.0  # seconds to wait for the others at the database
# times as long as the last erasure took, nothing is erased: copying a large database for each of many deletions would
# hold up the chat
REST = 10


class Eraser:
    """Finishes erasures, one call of `step` at a time; made by whoever runs rounds."""

    def __init__(self, store: Store, settings):
        self.store, self.settings = store, settings
        self._not_before = 0.0  # on the monotonic clock

    def step(self) -> bool:
        """Erase what is asked for and due; whether anything was finished. What cannot be erased now (a busy database)
        is tried again later.

        A running round that has read what is to be erased holds it until it has begun again: then nothing is finished
        yet.
        """
        if time.monotonic() < self._not_before:
            return False
        asked = self.store.unfinished_erasures()
        if not asked:
            return False
        began = time.monotonic()
        self.store.blank_deleted()
        active = self._active_round()
        for round_id in self.store.rounds_to_clear():
            if round_id != active:
                clear_ended(folder_of(self.settings, round_id))
        self._clear_unmarked(active)
        forget_features(self.settings, self.store)
        forget_heads(self.settings)
        held = active is not None and self.store.must_begin_again(active)
        gone = not held and self.store.scrub(PATIENCE, rewrite=True)
        if gone:
            self.store.finish_erasures(asked)
            self.store.scrub(PATIENCE)
            log.info("%d erasures are done", len(asked))
        took = time.monotonic() - began
        self._not_before = time.monotonic() + REST * took
        return gone

    def tidy(self) -> None:
        """Take away what rounds left that have ended, whichever way: also one that was killed between its end
        and this.
        """
        active = self._active_round()
        for folder in self._folders():
            if int(folder.name) != active:
                remove(folder, WORKING)

    def _clear_unmarked(self, active):
        """Rounds of earlier versions did not say whose prompts their samples are: none of those stay."""
        for folder in self._folders():
            if int(folder.name) != active and not marked(folder / "gate.json"):
                clear_ended(folder)

    def _folders(self):
        rounds = self.settings.rounds_dir
        return [folder for folder in rounds.iterdir() if folder.name.isdigit()] if rounds.exists() else []

    def _active_round(self):
        row = self.store.last_round()
        return row["id"] if row and row["state"] in ("requested", "running") else None


def folder_of(settings, round_id: int) -> Path:
    return settings.rounds_dir / f"{round_id:04d}"


def begin_anew(folder: Path) -> None:
    """Leave nothing in a round's folder but its log: whatever is there comes from votes that may have been
    taken back.
    """
    if folder.exists():
        for file in folder.iterdir():
            if file.name not in KEPT:
                file.unlink()


def remove(folder: Path, names) -> None:
    """Remove these files of a folder, and what was left half written."""
    for file in [*(folder / name for name in names), *folder.glob("*.partial")]:
        file.unlink(missing_ok=True)


def clear_ended(folder: Path) -> None:
    """Take people's texts out of what a round has left: samples on their prompts, and what an exception may have said
    in its log.
    """
    if not folder.exists():
        return
    remove(folder, WORKING)
    report, text = folder / "gate.json", folder / "log.txt"
    if report.exists():
        found = json.loads(report.read_text())
        shipped = [sample for sample in found.get("samples", []) if sample.get("shipped") is True]
        if shipped != found.get("samples", []):
            write(report, json.dumps({**found, "samples": shipped}))
    if text.exists():
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        own = [line for line in lines if STAMPED.match(line)]
        if own != lines:
            write(text, "".join(own))


def marked(report: Path) -> bool:
    """Whether each sample of a gate's report says if its prompt is a shipped one; so does one without samples, or no
    report at all.
    """
    if not report.exists():
        return True
    return all("shipped" in sample for sample in json.loads(report.read_text()).get("samples", []))


def write(path: Path, text: str) -> None:
    """Replace a file at once; what was there is gone from the folder when this returns."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


# -- what was read from replies


def reply_name(reply) -> str:
    """The name under which the features of a reply (prompt ids, completion ids) are kept."""
    return hashlib.sha256(json.dumps(reply).encode()).hexdigest()[:32]


def forget_features(settings, store) -> None:
    """Drop the features of every reply that nobody may learn from any more. (What a person wrote instead of a reply is
    read anew when needed.)
    """
    folder = settings.data_dir / "features"
    if folder.exists():
        kept = {reply_name(reply) for reply in store.replies_for_training()}
        for file in folder.glob("*/*.npy"):
            if file.name.split(".")[0] not in kept:
                file.unlink(missing_ok=True)


def forget_heads(settings) -> None:
    """Drop the heads by which the chat picks pairs: they were fitted on what was taken back. The next vote leaves a new
    one.
    """
    for file in (settings.data_dir / "reward").glob("*"):
        file.unlink(missing_ok=True)
