"""Erase what people took back from every file: the rest of what `Store.delete_conversation`, `forget` and
`allow_training` began in the database.

Owns which files of a round, of the features and of the reward head hold people's texts or what was computed from them.
Runs in the worker, which writes these files, so that nobody else writes them at the same time. Each step can be done
twice; an erasure counts as done only once all of it is gone.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from playground.settings import Settings
from playground.store import Store
from training.preferences import Reply

log = logging.getLogger(__name__)

# files that only a running round needs and that reveal its votes; all *.partial files are treated likewise
WORKING = ("preferences.json", "reward.safetensors", "people.safetensors", "ppo.pt", "served.json")
JOB_FILES = ".job.partial"  # a folder in the data folder: what is being sent to a job, and what came from it
KEPT = ("log.txt",)  # what is kept of a round that begins again
STAMPED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")  # how a line of our own in a log begins; an exception's do not
PATIENCE = 5.0  # seconds to wait for other users of the database
# After an erasure that took t seconds, nothing is erased for REST·t seconds: copying a large database for each of many
# deletions would hold up the chat.
REST = 10


class Eraser:
    """Finishes erasures, one call of `step` at a time. Whoever runs rounds has one."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self._not_before = 0.0  # on the monotonic clock

    def step(self) -> bool:
        """Erase what is asked for and due; returns whether anything was finished. What cannot be erased now, because
        the database is busy, is tried again later.

        While a running round has read what is to be erased and has not yet begun again without it, nothing is finished.
        """
        if time.monotonic() < self._not_before:
            return False
        erasures = self.store.unfinished_erasures()
        if not erasures:
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
        round_has_read_it = active is not None and self.store.must_begin_again(active)
        erased = not round_has_read_it and self.store.scrub(PATIENCE, rewrite=True)
        if erased:
            self.store.finish_erasures(erasures)
            self.store.scrub(PATIENCE)
            log.info("%d erasures are done", len(erasures))
        seconds = time.monotonic() - began
        self._not_before = time.monotonic() + REST * seconds
        return erased

    def tidy(self) -> None:
        """Remove the working files of rounds that have ended, also of one whose worker was killed right after its
        end, and what a worker that was killed has left of a job's files.
        """
        shutil.rmtree(self.settings.data_dir / JOB_FILES, ignore_errors=True)
        active = self._active_round()
        for folder in self._folders():
            if int(folder.name) != active:
                remove(folder, WORKING)

    def _clear_unmarked(self, active: int | None) -> None:
        """Clear rounds of earlier versions, which did not record whose prompts their samples are."""
        for folder in self._folders():
            if int(folder.name) != active and not marked(folder / "gate.json"):
                clear_ended(folder)

    def _folders(self) -> list[Path]:
        rounds = self.settings.rounds_dir
        if not rounds.exists():
            return []
        return [folder for folder in rounds.iterdir() if folder.name.isdigit()]

    def _active_round(self) -> int | None:
        row = self.store.last_round()
        return row["id"] if row and row["state"] in ("requested", "running") else None


def folder_of(settings: Settings, round_id: int) -> Path:
    """Where a round keeps its files."""
    return settings.rounds_dir / f"{round_id:04d}"


def remove_all_but_log(folder: Path) -> None:
    """Remove all files of a round but its log: they were computed from votes that may have been taken back."""
    if folder.exists():
        for file in folder.iterdir():
            if file.name not in KEPT:
                file.unlink()


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove these files of a folder, and those that are half written."""
    for file in [*(folder / name for name in names), *folder.glob("*.partial")]:
        file.unlink(missing_ok=True)


def clear_ended(folder: Path) -> None:
    """Remove people's texts from the files of a round that has ended: samples on their prompts, and the lines of
    exceptions in its log.
    """
    if not folder.exists():
        return
    remove(folder, WORKING)
    report_file = folder / "gate.json"
    if report_file.exists():
        report = json.loads(report_file.read_text())
        samples = report.get("samples", [])
        shipped = [sample for sample in samples if sample.get("shipped") is True]
        if shipped != samples:
            write(report_file, json.dumps({**report, "samples": shipped}))
    log_file = folder / "log.txt"
    if log_file.exists():
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        own_lines = [line for line in lines if STAMPED.match(line)]
        if own_lines != lines:
            write(log_file, "".join(own_lines))


def marked(report: Path) -> bool:
    """Whether each sample of a gate's report says if its prompt is a shipped one. True too for a report without samples
    or no report.
    """
    if not report.exists():
        return True
    return all("shipped" in sample for sample in json.loads(report.read_text()).get("samples", []))


def write(path: Path, text: str) -> None:
    """Replace a file in one step; when this returns, its old content is gone from the folder."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


# -- what was computed from replies


def reply_name(reply: Reply) -> str:
    """The name under which the features of a reply (prompt ids, completion ids) are kept."""
    return hashlib.sha256(json.dumps(reply).encode()).hexdigest()[:32]


def forget_features(settings: Settings, store: Store) -> None:
    """Delete the features of every reply that may no longer be learned from. (What a person wrote instead of a reply
    is not among the store's replies; its features are computed again when needed.)
    """
    folder = settings.data_dir / "features"
    if folder.exists():
        kept = {reply_name(reply) for reply in store.replies_for_training()}
        for file in folder.glob("*/*.npy"):
            if file.name.split(".")[0] not in kept:
                file.unlink(missing_ok=True)


def forget_heads(settings: Settings) -> None:
    """Delete the heads by which the chat picks pairs: they were fitted on what was taken back. A new one is written
    after the next vote.
    """
    for file in (settings.data_dir / "reward").glob("*"):
        file.unlink(missing_ok=True)
