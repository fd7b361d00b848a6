"""Which request, pair of replies and version a log line is about, so that JSON lines can be found by them.

The ids belong to a context: a request's own, or a turn's. Threads that work for it later take the dict along
(`current`), as a stream does for the engine's thread.
"""

from contextvars import ContextVar

Ids = dict[str, str | int]  # request, duel and version, as far as they are known

_ids: ContextVar[Ids | None] = ContextVar("log_ids", default=None)


def begin(request: str = "") -> None:
    """From now on this context has ids of its own, with the request's."""
    _ids.set({"request": request} if request else {})


def current() -> Ids:
    """The ids of this context, which others may add to."""
    ids = _ids.get()
    if ids is None:
        ids = {}
        _ids.set(ids)
    return ids
