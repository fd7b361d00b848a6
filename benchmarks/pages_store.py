"""A store as it is after years of use, for `pages.py`: votes of many people, and rounds that each used all votes so
far.
"""

import itertools
import math

from playground.store.reasons import not_published
from playground.system.messages import Message

TURNS = 5  # of a conversation
ONES_OWN = 5  # every fifth conversation is the visitor's
REPORT = {
    "prompts": 64,
    "replies": 4,
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
}
WORDS = (
    "The tide rises and falls twice a day because the moon pulls on the sea, and on a coast with a narrow bay the "
    "water comes in faster than a person can walk. " * 3
)


def fill(store, visitor, votes, rounds, config, identity):
    """`votes` votes, every `ONES_OWN`th conversation of them by the annotator `visitor`, and `rounds` rounds; `config`
    is what a round keeps of the settings, `identity` the base model's.
    """
    people = [store.annotator(f"person {i}") for i in range(100)]
    side = {
        "policy": 0,
        "base_model": identity["model"],
        "base_hash": identity["hash"],
        "template_hash": "t",
        "sampling": {"temperature": 0.7},
    }
    conversation = who = None
    for i in range(votes):
        if i % TURNS == 0:
            number = i // TURNS
            who = visitor if number % ONES_OWN == 0 else people[number % len(people)]
            conversation = store.new_conversation(who)
        duel = store.start_duel(
            conversation,
            f"Question {i}: why does the sea come and go?",
            [1, 2, 3],
            [{**side, "seed": 2 * i}, {**side, "seed": 2 * i + 1}],
        )
        store.finish_duel(duel, [_reply(i), _reply(i + 7)])
        row = store.duel(duel)
        choice = "abab3"[i % 5].replace("3", "tie")
        store.vote(duel, who, choice, row["left" if choice != "b" else "right"]["message"], None, 2000.0)
        _rounds(store, i + 1, votes, rounds, config)
    store.add_forecasts((v, 0.7, v % 3 != 0) for v in range(1, votes + 1))
    with store.writing() as db:  # the base answers: no version is on disk
        db.execute("update policy set status = 'retired' where status = 'live'")
        db.execute("update policy set status = 'live' where version = 0")


def _reply(i):
    n = 60 + i % 40
    return {
        "text": f"{i}: {WORDS[: 4 * n]}",
        "seed": i,
        "token_ids": list(range(n)),
        "logprobs": [-0.5] * n,
        "finish_reason": "end",
        "first_token_ms": 90.0,
        "total_ms": 1500.0,
    }


def _rounds(store, cast, votes, rounds, config):
    """The round that is due after `cast` votes, if one is."""
    if cast % (votes // rounds):
        return
    store.request_round()
    row = store.take_round("worker", lease_seconds=30, config=config)
    store.record_used_votes(row["id"], ((v, v % 5 == 0) for v in range(1, cast + 1)))
    for step in range(1, 13):
        store.add_metrics(
            row["id"],
            step,
            {
                "reward": 1.2 * (1 - math.exp(-step / 4)),
                "kl": 0.5 * step,
                "beta": 0.05,
                "entropy": 3.0,
                "length": 72.0 - step,
                "clip_fraction": 0.06,
                "explained_variance": 0.5,
            },
        )
    store.update_round(
        row["id"],
        "worker",
        phase="publish",
        step=12,
        steps=12,
        metrics={
            "votes": cast,
            "heldout_accuracy": 0.83,
            "heldout_interval": [0.61, 0.94],
            "cv_accuracy": 0.78,
            "cv_interval": [0.67, 0.86],
            "kl": 5.6,
            "gate_gain": 1.1,
            "cv_reliability": [[p, p, 20] for p in itertools.islice(itertools.count(0.1, 0.2), 5)],
            "phase_seconds": {"reward": 31.0, "ppo": 180.0, "gate": 22.0},
        },
    )
    version = store.add_policy(row["id"], "worker", parent=0)
    if row["id"] % 2:
        store.refuse(
            row["id"], "worker", version, "nowhere", "abc", REPORT, not_published([Message("its gain is not clear")])
        )
    else:
        store.publish(row["id"], "worker", version, "nowhere", "abc", REPORT)
