"""What the page shows of the backup, and the sentences about what is wrong with it."""

from dataclasses import dataclass

from playground.system.messages import Message

HELD = Message(
    "The backup belongs to another data folder, so nothing is saved there. Name another folder in backup.url, or start "
    "with an empty data folder to restore it."
)
UNREAD = Message(
    "The backup could not be read at the start, so this is an empty database, and nothing of it is saved. Restart the "
    "app to restore the backup."
)
SHARED = Message(
    "Another app has saved to the same backup since this one started, so this one saves nothing any more. Let one run "
    "at a time, and restart this one with an empty data folder."
)
UNREACHABLE = Message("The backup cannot be reached. The chat goes on, and it is tried again.")
LATE = Message("The backup is late: what people do now is on this disk alone.")


@dataclass(frozen=True)
class Status:
    """What the page shows: minutes since the database was saved as it was (None: not yet), when the last snapshot was
    made, in words, what is wrong now, and what was wrong with the snapshots at the start.
    """

    minutes: int | None
    snapshot: str = ""
    trouble: Message | None = None
    notice: Message | None = None
