"""What the page shows of the backup, and the sentences about what is wrong with it."""

from dataclasses import dataclass

from playground.system.messages import Message

HELD = Message(
    "The backup belongs to another data folder, so nothing is saved there. Name another folder in backup.url, or start "
    "with an empty data folder to restore it."
)
UNREAD = Message(
    "The backup could not be read at the start, so nothing is saved there. Restart the app once it can be read: that "
    "restores it, and keeps today's database beside it."
)
GONE = Message(
    "This data folder was saved in the backup before, and now nothing is there, so nothing is saved. Mount what "
    "backup.url names and restart the app; or remove backup.json from the data folder to begin a new backup."
)
FULL = Message("The disk has no room for a copy of the database, so the backup waits. Make room in the data folder.")
SHARED = Message(
    "Another app has saved to the same backup since this one started, so this one saves nothing any more. Let one run "
    "at a time, and restart this one with an empty data folder."
)
UNREACHABLE = Message("The backup cannot be reached. The chat goes on, and it is tried again.")
LATE = Message("The backup is late: what people do now is on this disk alone.")


@dataclass(frozen=True)
class Status:
    """What the page shows: minutes since the database was saved as it was (None: not yet), when the last snapshot was
    made, in words, what is wrong now, and what was wrong at the start.
    """

    minutes: int | None
    snapshot: str = ""
    trouble: Message | None = None
    notices: tuple[Message, ...] = ()
