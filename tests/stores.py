"""Stores and rows in them, for the tests of the store."""

import pytest

from playground.store import Store

BASE = "base hash"


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def file_store(tmp_path):
    return Store(tmp_path / "data" / "nudge.db")


def candidate(seed, policy=0, base_hash=BASE):
    return {
        "policy": policy,
        "base_model": "tiny",
        "base_hash": base_hash,
        "template_hash": "t",
        "sampling": {"temperature": 1.0},
        "seed": seed,
    }


def outcome(text, ids, reason="end"):
    return {
        "text": text,
        "seed": 7,
        "token_ids": ids,
        "logprobs": [-0.123456789] * len(ids),
        "finish_reason": reason,
        "first_token_ms": 5.0,
        "total_ms": 9.0,
    }


def duel(store, who, conversation=None, text="Hello", base_hash=BASE, versions=(0, 0), task=None):
    """A finished duel of the left and the right version; returns its row."""
    conversation = conversation or store.new_conversation(who)
    sides = [candidate(seed, version, base_hash) for seed, version in zip((1, 2), versions, strict=True)]
    d = store.start_duel(conversation, text, [1, 2, 3], sides, task=task)
    store.finish_duel(d, [outcome("left", [4, 2]), outcome("right", [5, 2])])
    return store.duel(d)


def cast(store, choice="a", who=None, conversation=None, base_hash=BASE, versions=(0, 0)):
    """A duel and a vote on it; returns the duel's row."""
    who = who or store.annotator("somebody")
    row = duel(store, who, conversation, base_hash=base_hash, versions=versions)
    store.vote(row["id"], who, choice, row["left" if choice != "b" else "right"]["message"])
    return row


def take(store, owner="w1", lease_seconds=30, **more):
    return store.take_round(owner, lease_seconds=lease_seconds, **more)


def published(store, owner="w1", report=None):
    """Run a round to its publication; returns the version."""
    store.request_round()
    row = take(store, owner)
    version = store.add_policy(row["id"], owner, parent=store.live_policy()["version"])
    store.publish(row["id"], owner, version, f"adapters/v{version:04d}", "abc", report or {})
    return version
