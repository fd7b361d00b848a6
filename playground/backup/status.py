"""What the page shows of the backup, and the sentences about what is wrong with it."""

from dataclasses import dataclass

from playground.system.messages import Message

HELD = Message(
    "The backup belongs to another data folder, so nothing is saved from here. Name another folder in backup.url; or "
    "keep this data folder and start with an empty one, which restores the backup."
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
    "Nothing is saved from here any more: another app has saved to the same backup. End one of the two and keep its "
    "data folder, whose votes may be nowhere else; then restart the one that stays."
)
UNREACHABLE = Message("The backup cannot be reached or written. The chat goes on, and it is tried again.")
LATE = Message("The backup is late: what people do now is on this disk alone.")
FOLLOWS = Message(
    "Another copy of this app answers and records. This one only shows what there was when it started, and takes over "
    "by itself when the other one has ended."
)
TAKEN_OVER = Message(
    "Another copy of this app has taken over, since this one could not be seen for a while. Nothing is recorded here "
    "any more; what is not in the backup stays in this data folder."
)
ALONE = Message("What is done here is in this data folder alone.")


@dataclass(frozen=True)
class Status:
    """What the page shows: minutes since the database was saved as it was (None: not yet), when the last snapshot was
    made, in words, what is wrong now, and what was wrong at the start. `held`: nothing is saved until a restart.
    `changed`: something was done that is not saved yet. `reads_only`: nothing is recorded here at all.
    """

    minutes: int | None
    snapshot: str = ""
    trouble: Message | None = None
    notices: tuple[Message, ...] = ()
    held: bool = False
    changed: bool = False
    reads_only: bool = False

    @property
    def not_saved(self) -> Message | None:
        """Where nothing is saved until a restart: what is in this data folder alone."""
        if not self.held or self.reads_only:
            return None
        if not self.snapshot:
            return ALONE
        return Message(
            "What was done here since the snapshot of {time} is in this data folder alone.", time=self.snapshot
        )
