"""The store: owns the SQLite file, and is the only package that contains SQL.

Nothing is overwritten: a replaced vote is superseded, a retired policy stays. What rows mean to a chat is up to
`playground/chat/session.py`, and what they mean to a round to `training/round.py`.
"""

from playground.store.bases import Bases
from playground.store.checks import LeaseLost
from playground.store.conversations import Conversations
from playground.store.corrections import Corrections
from playground.store.database import Row, now
from playground.store.duels import Duels
from playground.store.errors import StoreError, StoreLost, StoreUnavailable
from playground.store.filters import Filters
from playground.store.history import History
from playground.store.imported import Imported, ImportedRow, Origin
from playground.store.judged import Judged
from playground.store.keys import Keys
from playground.store.people import People
from playground.store.policies import VERSION_STATES, Policies
from playground.store.quality import Quality
from playground.store.queue import Queue, QueuedPrompt
from playground.store.reasons import STOPPED
from playground.store.rounds import ROUND_STATES, Rounds, is_fine_tuning, is_paused
from playground.store.sign_ins import ProviderSays, SignIns
from playground.store.snapshots import Snapshots
from playground.store.training_data import TrainingData
from playground.store.trials import Trials
from playground.store.votes import CHOICES, Votes
from playground.store.watch import Watch

__all__ = [
    "CHOICES",
    "ROUND_STATES",
    "STOPPED",
    "VERSION_STATES",
    "Filters",
    "ImportedRow",
    "Origin",
    "LeaseLost",
    "ProviderSays",
    "QueuedPrompt",
    "Row",
    "Store",
    "StoreError",
    "StoreLost",
    "StoreUnavailable",
    "is_fine_tuning",
    "is_paused",
    "now",
]


class Store(
    Bases,
    People,
    SignIns,
    Keys,
    Conversations,
    Duels,
    Votes,
    TrainingData,
    Corrections,
    Judged,
    Imported,
    Queue,
    Quality,
    Rounds,
    Policies,
    Trials,
    History,
    Watch,
    Snapshots,
):
    """The database at a path, with one method for each thing that is recorded or asked.

    Each part is a module of this package and derives from `Database`, which owns the file. The parts do not call each
    other, but for `Snapshots`, which is built on `Erasures`; what several of them need is in `database.py` and
    `checks.py`.
    """
