"""Rounds as a worker leaves them in the store and on disk, in every state, for the tests of the training page."""

import json
import math

from playground.store.reasons import broken, not_published
from playground.system.messages import Message
from tests.stores import cast, take

CONFIG = {
    "ppo.kl_target": 8.0,
    "gate.kl_budget": 60.0,
    "gate.better": 0.75,
    "gate.not_worse": 0.9,
    "gate.length_factor": 8.0,
    "gate.length_drift": 1.75,
    "gate.empty_replies": 0.1,
    "gate.repetition_rise": 0.15,
    "gate.distinct_share": 0.7,
    "gate.ended_fall": 0.25,
    "gate.canary_fall": 1.0,
    "ppo.iterations": 8,
    "round.votes": 16,
    "seed": 0,
    "reward.quantisation": "nf4",
}
REPORT = {
    "prompts": 64,
    "replies": 4,
    "reward_new": 1.2,
    "reward_live": 0.1,
    "gain": 1.1,
    "gain_interval": [0.7, 1.5],
    "better": 0.99,
    "not_worse": 1.0,
    "kl": 5.6,
    "length_new": 60.0,
    "length_live": 66.0,
    "length_base": 72.0,
    "length_votes": [-0.2, 0.1],
    "empty": 0.0,
    "ended_new": 0.9,
    "ended_base": 0.8,
    "repetition_new": 0.02,
    "repetition_base": 0.04,
    "distinct_new": 0.83,
    "distinct_base": 0.85,
    "canary_new": -2.1,
    "canary_base": -1.9,
    "refused_because": [],
}
# as earlier versions wrote it: compared with the live version, and an interval in place of probabilities
OLD_REPORT = {
    **{name: value for name, value in REPORT.items() if name not in ("better", "not_worse", "replies", "length_base")},
    **{f"{figure}_live": REPORT[f"{figure}_base"] for figure in ("length", "ended", "repetition", "distinct")},
}
for figure in ("ended", "repetition", "distinct"):
    del OLD_REPORT[f"{figure}_base"]
SAMPLES = [
    {
        "prompt": f"system\nYou are helpful.\nuser\n{text}\nassistant\n",
        "live": f"A long reply about {text.lower()} <b>that</b> goes on & on.",
        "new": "A short one.",
        "shipped": True,
    }
    for text in ("How do I boil an egg?", "Name a river.", "What is a tide?")
]
METRICS = {
    "votes": 64,
    "heldout_accuracy": 0.83,
    "heldout_interval": [0.61, 0.94],
    "cv_accuracy": 0.78,
    "cv_interval": [0.67, 0.86],
    "cv_calibration_error": 0.07,
    "cv_reliability": [[0.1, 0.15, 12], [0.35, 0.3, 13], [0.5, 0.55, 13], [0.7, 0.66, 13], [0.9, 0.95, 13]],
    "gate_gain": 1.1,
    "kl": 5.6,
    "phase_seconds": {"collect": 0.4, "reward": 31.0, "ppo": 180.0, "gate": 22.0},
}


RUNNING = {
    key: METRICS[key]
    for key in ("votes", "heldout_accuracy", "heldout_interval", "cv_accuracy", "cv_interval", "cv_reliability")
}


def begun(store, changes=None):
    """A round that a worker has taken; its row."""
    store.request_round()
    return take(store, config={**CONFIG, **(changes or {})})


def curves(store, row, steps=12):
    """PPO's curves up to an iteration."""
    for i in range(1, steps + 1):
        store.add_metrics(
            row["id"],
            i,
            {
                "reward": 1.2 * (1 - math.exp(-i / 4)),
                "kl": 0.5 * i,
                "beta": 0.05 + 0.002 * i,
                "entropy": 3.0 - 0.05 * i,
                "length": 72 - i,
                "clip_fraction": 0.05 + 0.01 * (i % 3),
                "explained_variance": min(0.1 * i, 0.7),
            },
        )
    store.update_round(row["id"], "w1", phase="ppo", step=steps, steps=12)


def files(settings, row):
    """What the round left on disk."""
    folder = settings.rounds_dir / f"{row['id']:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gate.json").write_text(json.dumps({**REPORT, "samples": SAMPLES}))
    (folder / "log.txt").write_text(
        f"2026-01-01 10:00:00 round {row['id']}: collect\n2026-01-01 10:04:00 round {row['id']} is over\n"
    )


def published(store, settings, trial=False):
    row = begun(store)
    curves(store, row)
    files(settings, row)
    store.update_round(row["id"], "w1", metrics=METRICS)
    version = store.add_policy(row["id"], "w1", parent=store.live_policy()["version"])
    store.publish(row["id"], "w1", version, "nowhere", "abc", REPORT, trial)
    return row


def refused(store, settings):
    row = begun(store)
    curves(store, row, 8)
    files(settings, row)
    store.update_round(row["id"], "w1", metrics={**METRICS, "kl": 61.3})
    version = store.add_policy(row["id"], "w1", parent=store.live_policy()["version"])
    because = Message(
        "it moved too far from the base: {kl} nats a reply, and the budget is {limit}", kl="61.3", limit="60"
    )
    store.refuse(
        row["id"],
        "w1",
        version,
        "nowhere",
        "abd",
        {**REPORT, "kl": 61.3, "refused_because": [str(because)]},
        not_published([because]),
    )
    return row


def not_enough(store):
    row = begun(store)
    store.end_round(
        row["id"], "w1", "not_enough", Message("Not enough evidence yet. Votes so far: {n}; vote on more replies.", n=1)
    )
    return row


def nothing_left(store):
    row = begun(store)
    store.update_round(row["id"], "w1", phase="reward", metrics={**RUNNING, "started_from": 1, "nothing_left": True})
    reason = Message(
        "Nothing left to learn from these votes: {ties} of {n} on the current version's replies are ties.",
        ties=14,
        n=16,
    )
    store.end_round(row["id"], "w1", "not_enough", reason)
    return row


def failed(store):
    row = begun(store)
    store.end_round(row["id"], "w1", "failed", broken("ValueError", "reward", "<odd>"))
    return row


def running(store, steps=5):
    row = begun(store)
    store.update_round(row["id"], "w1", metrics=RUNNING)
    curves(store, row, steps)
    return row


def votes(store, n):
    """Votes with forecasts, three hits in four."""
    for i in range(n):
        cast(store, "ab"[i % 2], who=store.annotator(f"person {i % 3}"))
        store.add_forecasts([(i + 1, 0.7, i % 4 != 0)])
