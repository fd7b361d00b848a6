"""A slice of a round: a program that goes on with a round for a short time and leaves it where it is, so that the next
slice or a worker goes on from there. `python -m training.round_slice --round-id 3 --owner NAME --until 1764295200`.

It takes no lease: who starts it has the lease under the name `owner`, and keeps it. It is killed where it does not end
in time, which loses no more than a worker that is killed.
"""

import functools
import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from playground.models import loading
from playground.settings import space
from playground.store import LeaseLost, Store, StoreError, is_fine_tuning
from playground.store.reasons import LEFT
from training import program, worker
from training.program import ProgramSettings
from training.round import Round
from training.round_control import RoundLeft

log = logging.getLogger("training.round_slice")


class SliceSettings(ProgramSettings):
    """A slice of a training round of Nudge."""

    round_id: int = Field(ge=1)
    """The round to go on with."""
    owner: str = Field(min_length=1, max_length=200)
    """The name under which its lease is held."""
    until: float = Field(gt=0)
    """When to leave the round, in seconds since the epoch."""


class RoundSlice(Round):
    """A round that is left at the time `until` (in seconds since the epoch), or where an admin pauses it."""

    def __init__(self, *args: Any, until: float) -> None:
        super().__init__(*args)
        self.until = time.monotonic() + until - time.time()

    def run(self) -> None:
        """As of any round. A GPU that fails is no fault of the round: RoundLeft."""
        try:
            super().run()
        except (torch.AcceleratorError, torch.OutOfMemoryError):
            log.exception("the GPU failed in round %s", self.id)
            raise RoundLeft from None


def run(store: Store, settings: SliceSettings) -> None:
    """Go on with the round until it is over or the time is. StoreError where the store cannot answer."""
    row = store.round(settings.round_id)
    if is_fine_tuning(row):
        store.end_round(row["id"], settings.owner, "failed", LEFT)
        return
    kind = functools.partial(RoundSlice, until=settings.until)
    worker.run_taken(store, settings, row, settings.owner, kind)


def main(argv: Sequence[str] | None = None) -> None:
    settings = program.begin(argv, SliceSettings, "python -m training.round_slice")
    if settings.device == "auto" and loading.device_of(settings).type != "cuda":
        sys.exit(space.NO_GPU)
    program.prepare(settings)
    try:
        run(Store(settings.database, patience=program.PATIENCE, create=False), settings)
    except LeaseLost as error:
        log.warning("the lease is lost: %s", error)
    except StoreError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
