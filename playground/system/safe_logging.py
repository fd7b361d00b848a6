"""Log lines and error reports that do not quote people: an exception's message may contain what a person wrote.

Errors of this project and of the system (files, memory, torch) are written without people's texts, so their messages
are shown. Of every other error (a template, a tokenizer, a failed conversion) only the kind and the place are shown.
Used for the reason of a failed round and by everything that logs.
"""

import logging
import traceback
from types import TracebackType
from typing import TextIO

OUR_PACKAGES = ("playground", "training", "app")
SYSTEM_ERRORS = (OSError, MemoryError, RuntimeError)  # torch raises RuntimeError, also when it is out of memory

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def describe_error(error: BaseException) -> str:
    """An error in one line: its kind with its message, or with its place where the message may quote a person."""
    kind = type(error).__name__
    is_ours = type(error).__module__.split(".")[0] in OUR_PACKAGES
    if is_ours or isinstance(error, SYSTEM_ERRORS):
        return f"{kind}: {error}" if str(error) else kind
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return kind
    last = frames[-1]
    file_name = last.filename.rsplit("/", 1)[-1]
    return f"{kind} in {file_name}, line {last.lineno}"


class Formatter(logging.Formatter):
    """A `logging.Formatter` that writes exceptions as `describe_error` does. Tracebacks quote code only and stay."""

    def format(self, record: logging.LogRecord) -> str:
        # logging reuses `exc_text`, which another handler's formatter may have filled with the full message
        text_of_others = record.exc_text
        record.exc_text = None
        try:
            return super().format(record)
        finally:
            record.exc_text = text_of_others

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802 (logging's name)
        parts: list[str] = []
        error = ei[1]
        while error is not None:
            frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
            parts.append(f"Traceback (most recent call last):\n{frames}\n{describe_error(error)}")
            following = error.__cause__
            if following is None and not error.__suppress_context__:
                following = error.__context__
            error = following
        return "\n\n".join(reversed(parts))


def configure_logging(stream: TextIO, line_format: str) -> None:
    """`logging.basicConfig` at level INFO with this module's formatter."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Formatter(line_format, "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
