"""Why a round ended without a version, or a trial without a verdict: Messages that rows keep, and what they mean."""

from collections.abc import Iterable

from playground.system.messages import Message, joined, plain

STOPPED = Message("An admin stopped this round.")
LEFT = Message("Fine-tuning on a file ended before it was done. Start it again.")


def not_published(refusals: Iterable[Message]) -> Message:
    """The gate refused the new version, for one reason or several."""
    return Message("The new version was not published: {reason}.", reason=joined(refusals))


def broken(error: str, phase: str, words: Message | str = "") -> Message:
    """An error ended the round: its kind, the phase, and what the error says, which may quote a person."""
    if words:
        return Message("{error} in phase {phase}: {reason}", error=error, phase=phase, reason=words)
    return Message("{error} in phase {phase}.", error=error, phase=phase)


def without_words(reason: Message) -> Message:
    """A failed round's reason without what the error itself said, as everybody may read it."""
    error, phase = reason.values.get("error"), reason.values.get("phase")
    if isinstance(error, str) and isinstance(phase, str):
        return broken(error, phase)
    if not reason.values and " in phase " in reason.template:  # earlier versions stored the English sentence
        return plain(str(reason).partition(": ")[0].rstrip(".") + ".")
    return reason


def by_admin(reason: Message | None) -> Message:
    """An admin decided while a version was on trial, with a reason or without."""
    return Message("an admin decided: {reason}", reason=reason) if reason else Message("an admin decided")


def is_by_admin(reason: Message) -> bool:
    """Whether a trial's reason is one of `by_admin`."""
    return reason.template in (by_admin(None).template, by_admin(plain("…")).template)
