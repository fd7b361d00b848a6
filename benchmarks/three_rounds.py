"""Three rounds in a row, on 50 votes more each: does the version that answers ever fall back, started from the base or
from the live version?

The votes are on replies of the version that is live, as they would be; its true win rate is over the base's replies to
the held-out prompts. Whole chains are cached by what they were made from, as in `learning.py`.
"""

import gc
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from pydantic import Field

from benchmarks import learning, report, rounds
from benchmarks import pool as pools
from playground.models import loading
from playground.settings import Positive, Settings, SettingsError, read
from playground.store import Store
from training import annotators, simulate
from training.annotators import Person

ROUNDS = 3


class ThreeRoundsSettings(learning.LearningSettings):
    """Rounds in a row on simulated votes."""

    votes: Positive = 50
    """New votes before each round."""
    annotator: str = "brevity,second_person"
    """Who votes, one chain each."""
    json_file: str = Field("", alias="json")
    """File for the rows, as JSON."""


def chain(pool, settings, annotator, votes, start_from, seed, log=print):
    """[{state, reason, win_rate, interval, kl, cv_accuracy}] after each round; the win rate is that of whatever version
    is live then.
    """
    folder = settings.data_dir / "benchmarks" / "three-rounds" / f"{annotator}-{start_from}"
    shutil.rmtree(folder, ignore_errors=True)
    score = annotators.find(annotator)
    job = Settings.like(settings, data_dir=folder, seed=seed, round={"start_from": start_from})
    store, tokenizer, found = Store(job.database), loading.load_tokenizer(job), []
    for n in range(ROUNDS):
        said = simulate.SimulateSettings.like(job, votes=votes, annotator=annotator)
        simulate.make_duels(
            store, said, loading.load_trunk(job), tokenizer, {annotator: Person(score)}, log, skip=n * votes
        )
        gc.collect()
        subprocess.run(
            [sys.executable, "-m", "training.worker", "--once"],
            env={**os.environ, **job.environ()},
            cwd=Path(__file__).parent.parent,
            stdout=sys.stderr,
            check=False,
        )
        row, live = store.last_round(), store.live_policy()
        truth = rounds.truth(pool, job, score, live) if live["version"] else {"win_rate": 0.5, "interval": [0.5, 0.5]}
        found.append(
            {
                "state": row["state"],
                "reason": row["reason"] and str(row["reason"]),
                "live": live["version"],
                **{k: truth[k] for k in ("win_rate", "interval")},
                **{k: row["metrics"].get(k) for k in ("kl", "cv_accuracy")},
            }
        )
        log(
            f"{annotator}, from {start_from}, round {n + 1}: {row['state']}, v{live['version']} is live, true win rate "
            f"{truth['win_rate']:.2f}"
        )
    return found


def run(settings, log=print):
    """The rows."""
    torch.set_num_threads(settings.threads)
    cache, rows, prompts_each = pools.Cache(settings), [], 32 if settings.quick else None
    pool = pools.make_pool(settings, cache, prompts_each, log)
    names = settings.annotator.split(",")[: 1 if settings.quick else None]
    for annotator, start_from in itertools.product(names, ("base",) if settings.quick else ("base", "live")):
        key = {"annotator": annotator, "votes": settings.votes, "start_from": start_from, "seed": settings.seed}
        found = cache.get(
            lambda key=key: chain(pool, settings, **key, log=log),
            *learning.ROUND_CODE,
            simulate,
            pool=len(pool.ids),
            kind="chain",
            **key,
        )
        for n, cell in enumerate(found, 1):
            what = f"{annotator}, from {start_from}, after round {n} ({cell['state']}): true win rate over the base"
            rows.append(report.row(what, cell["win_rate"]))
        rates = [0.5, *(cell["win_rate"] for cell in found)]
        rows.append(
            report.row(
                f"{annotator}, from {start_from}: largest fall of the win rate in one round",
                max(0.0, *(before - after for before, after in itertools.pairwise(rates))),
                "",
                "≤ 0",
            )
        )
    return rows


def main(argv=None):
    try:
        settings = read(argv, ThreeRoundsSettings, "python -m benchmarks.three_rounds")
        report.show(run(settings), settings.json_file)
    except (SettingsError, loading.ModelUnavailable) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
