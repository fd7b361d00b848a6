"""One training round on votes of the pool, in a worker process of its own, and the truth about the policy that came of
it.

`round_cell` writes the votes into a store, runs `python -m benchmarks.rounds JOB` there, and compares the new policy
with the base on held-out prompts. The process is the worker's own code; it also notes the annotator's true score of
every rollout, for the over-optimisation curve.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np

from benchmarks import pool as pools
from playground.models import adapters, loading, prompts
from playground.settings import Settings, read
from playground.store import Store
from playground.system import memory
from training import annotators, gate, program, simulate, worker
from training.rollout import Episode
from training.round import Round

ARMS = {
    "PPO": {},
    "length-only reward": {"reward": {"features": "length", "evidence_confidence": 0.0}},
    "shuffled votes": {},
    "pessimistic reward (λ = 1)": {"reward": {"pessimism": 1.0}},
    "far beyond the KL target": {
        "ppo": {"kl_target": 60.0, "iterations": 24, "kl_coefficient": 0.0},
        "gate": {"kl_budget": 1000.0, "length_factor": 1000.0},
    },
}


@dataclass
class Base:
    """What every comparison needs of the base, once: its replies to the held-out prompts are the pool's."""

    identity: dict
    template: str


def round_cell(pool, base, settings, annotator, n, flip, seed, arm="PPO", log=print):
    """Run one round on `n` votes; returns what it says of itself and how often its policy truly beats the base."""
    folder = settings.data_dir / "benchmarks" / "round"
    shutil.rmtree(folder, ignore_errors=True)
    job = Settings.like(settings, data_dir=folder, seed=seed, worker=False, **ARMS[arm])
    score = annotators.find(annotator)
    pairs, rng = pools.duels(pool, n, seed)
    said = pools.choices(pool, pairs, annotators.Person(score, flip=flip), rng, shuffled=arm == "shuffled votes")
    votes = []
    for (a, b), choice in zip(pairs, said, strict=True):
        episodes = tuple(Episode(*pool.ids[i], pool.ended[i]) for i in (a, b))
        votes.append(
            simulate.Vote(
                line=pool.prompts[a],
                prompt=pool.ids[a][0],
                episodes=episodes,
                texts=(pool.texts[a], pool.texts[b]),
                annotator=annotator,
                choice=choice,
            )
        )
    store = Store(job.database)
    simulate.record(store, job, base.identity, base.template, 0, votes)

    start = time.monotonic()
    (folder / "job.json").write_text(json.dumps({"annotator": annotator}))
    with open(folder / "worker.log", "w") as out:
        subprocess.run(
            [sys.executable, "-m", "benchmarks.rounds", str(folder / "job.json")],
            env={**os.environ, **job.environ()},
            cwd=Path(__file__).parent.parent,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=True,
        )
    minutes = (time.monotonic() - start) / 60
    row, observed = store.last_round(), json.loads((folder / "observed.json").read_text())
    metrics = row["metrics"]
    figures = {
        "state": row["state"],
        "reason": row["reason"] and str(row["reason"]),
        "minutes": minutes,
        "peak_mb": observed["peak_mb"],
        "curve": observed["curve"],
        "cv_accuracy": metrics.get("cv_accuracy"),
        "features": metrics.get("features"),
        "kl": metrics.get("kl"),
        "gate_gain": metrics.get("gate_gain"),
        "win_rate": None,
        "interval": None,
        "score_before": None,
        "score_after": None,
    }
    policy = store.row("select * from policy where round = ?", row["id"])
    if policy:
        figures |= truth(pool, job, score, policy)
    log(
        f"{arm}, {annotator}, {n} votes, {flip:.0%} flipped, seed {seed}: {row['state']} after {minutes:.1f} min"
        + (f", KL {figures['kl']:.1f}, true win rate {figures['win_rate']:.2f}" if policy else "")
    )
    return figures


def truth(pool, settings, score, policy):
    """How often the policy's reply to a held-out prompt beats the base's replies by the annotator's score, with an
    interval over prompts.
    """
    trunk, tokenizer = loading.load_trunk(settings), loading.load_tokenizer(settings)
    tuned = adapters.load(
        policy["path"],
        trunk,
        base_hash=loading.base_identity(trunk, settings)["hash"],
        expected_sha256=policy["sha256"],
    )
    groups = pool.groups(heldout=True)
    lines = [pool.prompts[group[0]] for group in groups]
    job = simulate.SimulateSettings.like(settings, eval_prompts=len(lines))
    asked, replies = simulate.held_out_replies(tuned, job, tokenizer, loading.end_tokens(trunk, tokenizer), "after")
    assert asked == lines
    new = [score(line, reply) for line, reply in zip(lines, replies, strict=True)]
    old = [[score(line, pool.texts[i]) for i in group] for line, group in zip(lines, groups, strict=True)]
    wins = np.array([mean((a > b) + 0.5 * (a == b) for b in others) for a, others in zip(new, old, strict=True)])
    low, high = gate.interval(wins, 0.95, 0)
    return {
        "win_rate": float(wins.mean()),
        "interval": [low, high],
        "score_before": mean(map(mean, old)),
        "score_after": mean(new),
        "samples": list(zip(lines, replies, strict=True))[:4],
    }


class Observed(Round):
    """A round that also notes, of each batch of replies it scores, the KL so far, the proxy reward and the
    true score.
    """

    annotator = None
    curve = []

    def score(self, episodes):
        rewards = super().score(episodes)
        replies = [
            (
                prompts.decode(e.prompt, self.models.tokenizer),
                prompts.decode(e.completion, self.models.tokenizer).strip(),
            )
            for e in episodes
        ]
        self.curve.append(
            {
                "phase": self.store.round(self.id)["phase"],
                "proxy": rewards.mean().item(),
                "true": mean(self.annotator(prompt, reply) for prompt, reply in replies),
            }
        )
        return rewards


def main(path):
    """The worker's side: run the requested round in the folder that the environment names."""
    settings, job = read([]), json.loads(Path(path).read_text())
    store = Store(settings.database)
    Observed.annotator = staticmethod(annotators.find(job["annotator"]))
    program.be_quiet(settings)
    memory.return_freed_memory()
    memory.limit_onednn_cache()
    wanted = store.request_round()
    worker.run_once(store, settings, "benchmark", auto=False, kind=Observed)
    steps = {
        m["step"]: m["value"]
        for m in store.rows("select step, value from metric where round = ? and name = 'kl' order by step", wanted)
    }
    curve = [
        {**point, "kl": kl}
        for point, kl in zip([c for c in Observed.curve if c["phase"] == "ppo"], steps.values(), strict=False)
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Path(path).with_name("observed.json").write_text(json.dumps({"curve": curve, "peak_mb": round(peak)}))


if __name__ == "__main__":
    main(sys.argv[1])
