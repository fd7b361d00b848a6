"""A data folder with a published version in it, made once by a real round on a tiny model, and given afresh to each section that needs one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.faults.running import ENVIRON, ROOT, Scene, flags_of, rows

VOTES = 40
OWN = {"model", "data_dir"}  # what App sets
# so wide that whatever the tiny model learns is let through
GATE = {"gate_confidence": 0.1, "evidence_confidence": 0.0, "kl_budget": 1000.0, "length_factor": 1000.0, "length_drift": 1000.0, "empty_replies": 1.0, "repetition_rise": 1.0, "distinct_share": 0.0,
        "ended_fall": 1.0, "canary_fall": 100.0}


class NotPublished(Exception):
    """The round that should have made the first version did not publish one; the message has its reason."""


class Live:
    """`model`, the `options` that rounds of seconds need, and `fresh()`: `data`, always at the same path, as it was after the first round."""

    def __init__(self, scene: Scene):
        self.folder = scene.scratch / "live"
        self.data, self._saved = self.folder / "data", self.folder / "saved"
        self.model = self.folder / "model"
        self.options = self._options()
        if not self._saved.exists():
            scene.log("a first round, for a version that is live")
            self._make()
            shutil.copytree(self.data, self._saved)

    def _settings(self):
        from tests.test_loop import settings_for
        return settings_for(self.folder, round_votes=12, reply_tokens=24, **GATE)

    def _options(self) -> dict:
        settings = self._settings()
        return {name.replace("_", "-"): getattr(settings, name) for name in sorted(settings.model_fields_set - OWN)}

    def _make(self) -> None:
        """Votes by taste, and one round on them in a worker process."""
        from playground import models
        from playground.store import Store
        from tests.test_loop import liking
        from training import simulate
        from training.annotators import Person
        settings = self._settings()
        job = simulate.SimulateSettings(**{**settings.model_dump(), "votes": VOTES})
        simulate.make_duels(Store(settings.database), job, models.load_trunk(settings), models.load_tokenizer(settings), {"liking": Person(lambda prompt, reply: liking(reply))}, log=lambda text: None)
        command = [sys.executable, "-m", "training.worker", "--once", *flags_of({**self.options, "model": self.model, "data-dir": self.data})]
        ended = subprocess.run(command, cwd=ROOT, env={**os.environ, **ENVIRON}, capture_output=True, text=True, timeout=600)
        if not rows(self.data / "nudge.db", "select version from policy where status = 'live' and version > 0"):
            raise NotPublished(f"{ended.stdout[-300:]} {ended.stderr[-1000:]}")

    def fresh(self) -> Path:
        """The data folder as after the first round."""
        shutil.rmtree(self.data, ignore_errors=True)
        shutil.copytree(self._saved, self.data)
        return self.data
