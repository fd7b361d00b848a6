"""Who waits for versions to compare that are not in memory. The versions that are loaded for that alone are the guests.

Owns the line of those who wait. What is in memory, and how a version is built and checked, is `versions.py`'s. There is
room for two guests, so that any two versions can be compared. They are loaded together for the one who has waited
longest: two people who each had one and waited for the other's place would wait forever.
"""

import logging
import threading
from collections.abc import Sequence
from types import TracebackType

import torch

from playground.models import adapter_reading, export
from playground.serving.versions import Policy, VersionGone, Versions
from playground.store import StoreError
from playground.system import memory
from playground.system.messages import Message

log = logging.getLogger(__name__)

GUESTS = 2  # versions in memory beside those that answer, the one before the live one, and the base
BUILDING = 2  # times the memory that a version keeps is taken while it is built


class Invitation:
    """Versions that somebody wants to compare. As a context manager it ends what was asked for, whatever happens.

    Once `answered` is set, either `policies` are the versions in their order, which stay in memory until the end, or
    `refusal` says why not.
    """

    def __init__(self, guests: "Guests", versions: Sequence[int]) -> None:
        self.versions = versions
        self.answered = threading.Event()
        self.policies: list[Policy] = []
        self.refusal: Message | None = None
        self._guests = guests

    def __enter__(self) -> "Invitation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guests.leave(self)


class Guests:
    """`follow` is called by the thread that follows the store, the other methods by any."""

    def __init__(self, versions: Versions, copy_bytes: int) -> None:
        """`copy_bytes`: what a version takes of the main memory; 0 where that is little or not known."""
        self.versions = versions
        self._copy_bytes = copy_bytes
        self._lock = threading.Lock()  # may be held while that of Versions is taken, never the other way round
        self._waiting: list[Invitation] = []  # the longest waiting first

    def invite(self, versions: Sequence[int], may_load: bool) -> Invitation:
        """Ask for versions. They are there at once where all are in memory; others are loaded where `may_load`."""
        invitation = Invitation(self, versions)
        with self._lock:
            try:
                invitation.policies = self.versions.pin_all(versions)
                invitation.answered.set()
            except VersionGone as gone:
                if may_load:
                    self._waiting.append(invitation)
                else:
                    invitation.refusal = not_in_memory(gone.version)
                    invitation.answered.set()
        return invitation

    def leave(self, invitation: Invitation) -> None:
        """End an invitation: its versions may be unloaded, and nothing more is loaded for it."""
        with self._lock:
            if invitation in self._waiting:
                self._waiting.remove(invitation)
            policies, invitation.policies = invitation.policies, []
        for policy in policies:
            self.versions.unpin(policy)

    @property
    def waiting(self) -> int:
        """How many invitations are not answered yet."""
        return len(self._waiting)

    def follow(self) -> None:
        """Answer those who wait, in their order, as far as there is room for their versions."""
        for invitation in list(self._waiting):
            if not self._follow(invitation):
                return

    def _follow(self, invitation: Invitation) -> bool:
        """Load what is missing and answer; returns False where there is no room yet."""
        missing = [version for version in invitation.versions if version not in self.versions.in_memory()]
        try:
            if missing and self.versions.dismiss_guests(invitation.versions) + len(missing) > GUESTS:
                return False
            refusal = self._load(missing)
        except BaseException:  # the store fails, say: without an answer this would be tried again at every look
            self._answer(invitation, not_loaded(missing[0]))
            raise
        self._answer(invitation, refusal)
        return True

    def _load(self, missing: Sequence[int]) -> Message | None:
        """Load versions; returns why one of them cannot be had, or None."""
        for version in missing:
            row = self.versions.store.policy(version)
            if row is None or not export.may_reply(row):
                return not_in_use(version)
            if memory.available() < BUILDING * self._copy_bytes:
                return no_memory(version)
            try:
                self.versions.add_guest(row)
            except StoreError:
                raise
            except (MemoryError, torch.OutOfMemoryError):
                return no_memory(version)
            except Exception as error:
                log.error("v%s cannot be compared: %s", version, adapter_reading.in_words(error))
                return not_loaded(version)
        return None

    def _answer(self, invitation: Invitation, refusal: Message | None) -> None:
        with self._lock:
            if invitation not in self._waiting:
                return  # nobody waits for it any more
            self._waiting.remove(invitation)
            invitation.refusal = refusal
            if refusal is None:
                invitation.policies = self.versions.pin_all(invitation.versions)
        invitation.answered.set()


# -- why a version cannot be compared


def not_in_memory(version: int) -> Message:
    return Message("Version v{n} is not in memory. Pick one of those that are.", n=version)


def not_in_use(version: int) -> Message:
    return Message(
        "Version v{n} cannot be compared: there is none, it was withdrawn, or it never was in use.", n=version
    )


def not_loaded(version: int) -> Message:
    return Message("Version v{n} could not be loaded.", n=version)


def no_memory(version: int) -> Message:
    return Message("There is no memory for version v{n} beside those that are loaded.", n=version)
