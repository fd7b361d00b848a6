"""The store: owns the SQLite file, and is the only package that speaks SQL.

Nothing is overwritten: a replaced vote is superseded, a retired policy stays. What rows mean to a chat is
`session.py`'s; to a round, `round.py`'s.
"""

from playground.store.chats import Chats
from playground.store.erasures import Erasures
from playground.store.errors import StoreError, StoreLost, StoreUnavailable
from playground.store.file import File, now
from playground.store.people import People
from playground.store.policies import Policies
from playground.store.reasons import STOPPED
from playground.store.rounds import LeaseLost, Rounds
from playground.store.votes import CHOICES, Votes
from playground.store.watch import Watch

__all__ = ["CHOICES", "STOPPED", "LeaseLost", "Store", "StoreError", "StoreLost", "StoreUnavailable", "now"]


class Store(People, Chats, Votes, Erasures, Rounds, Policies, Watch, File):
    """The database at a path, one method for each thing that is recorded or asked; each module of the package has its
    own.
    """
