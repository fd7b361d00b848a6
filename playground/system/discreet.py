"""What may be said of an exception where others read it: its message may quote what a person wrote.

Errors of this project and of the system (files, memory, torch) are written without people's texts, and are said whole.
Of every other one (a template, a tokenizer, a conversion that failed) only the kind and the place are said. Used for
the reason of a failed round and by everything that logs.
"""

import logging
import traceback

OURS = ("playground", "training", "app")
SYSTEM = (OSError, MemoryError, RuntimeError)  # torch raises RuntimeError, out of memory included


def said(error: BaseException) -> str:
    """An error in one line: its kind with its message, or with its place where the message may quote a person."""
    kind = type(error).__name__
    if type(error).__module__.split(".")[0] in OURS or isinstance(error, SYSTEM):
        return f"{kind}: {error}" if str(error) else kind
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return kind
    last = frames[-1]
    return f"{kind} in {last.filename.rsplit('/', 1)[-1]}, line {last.lineno}"


class Formatter(logging.Formatter):
    """As `logging.Formatter`, with exceptions as `said` says them; the frames of a traceback are code and stay."""

    def format(self, record):
        cached, record.exc_text = (
            record.exc_text,
            None,
        )  # as another handler's formatter says it; logging would take that
        try:
            return super().format(record)
        finally:
            record.exc_text = cached

    def formatException(self, ei):  # noqa: N802 (logging's name)
        lines, error = [], ei[1]
        while error is not None:
            frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
            lines.append(f"Traceback (most recent call last):\n{frames}\n{said(error)}")
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "\n\n".join(reversed(lines))


def log_to(stream, form: str) -> None:
    """`logging.basicConfig` at INFO with this formatter."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Formatter(form, "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
