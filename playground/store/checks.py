"""Checks that several parts of the store make inside their transactions: who owns a chat, and who holds a round."""

import sqlite_utils
from sqlite_utils.db import NotFoundError

from playground.store.errors import StoreError

NOT_YOURS = "This chat is not yours, or it was deleted."


class LeaseLost(StoreError):
    """Another worker has taken the round over."""


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
        raise LeaseLost(f"round {round_id} does not exist") from None
    if row["owner"] != owner or row["state"] != "running":
        raise LeaseLost(f"round {round_id} is {row['state']}, held by {row['owner']}, not by {owner}")
