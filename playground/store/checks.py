"""Checks that several parts of the store make: who owns a chat, who holds a round, what can be a key at all. The first
two belong inside a transaction.
"""

import sqlite_utils
from sqlite_utils.db import NotFoundError

from playground.store.errors import StoreError
from playground.system.messages import Message

MOST = 2**63 - 1  # of SQLite's integers

NOT_YOURS = Message("This chat is not yours, or it was deleted.")


class LeaseLost(StoreError):
    """Another worker has taken the round over."""


def is_key(number: int) -> bool:
    """Whether SQLite can hold `number` as a key. Python's integers have no limit, and sqlite3 raises OverflowError."""
    return 0 <= number <= MOST


def check_owner(db: sqlite_utils.Database, conversation: int, annotator: int) -> None:
    """StoreError unless the conversation is the annotator's and not deleted."""
    row = db.execute(
        "select 1 from conversation where id = ? and annotator = ? and deleted is null", [conversation, annotator]
    ).fetchone()
    if row is None:
        raise StoreError(NOT_YOURS)


def check_lease(db: sqlite_utils.Database, round_id: int, owner: str) -> None:
    """LeaseLost unless the round is running and held by the worker `owner`."""
    try:
        row = db.table("round").get(round_id)
    except NotFoundError:
        raise LeaseLost("round {n} does not exist", n=round_id) from None
    if row["owner"] != owner or row["state"] != "running":
        raise LeaseLost(
            "round {n} is {state}, held by {holder}, not by {owner}",
            n=round_id,
            state=row["state"],
            holder=str(row["owner"]),
            owner=owner,
        )
