"""Log lines and error reports that do not quote people: an exception's message may contain what a person wrote.

Errors of this project and of the system (files, memory, torch) are written without people's texts, so their messages
are shown. Of every other error (a template, a tokenizer, a failed conversion) only the kind and the place are shown.
Used for the reason of a failed round and by everything that logs.

Lines are for people, or with `write_as` for programs. A JSON line has even less: the template of the message, and of
its values those that cannot be somebody's words (`value_of`).
"""

import json
import logging
import math
import re
import traceback
from datetime import UTC, datetime
from pathlib import PurePath
from types import TracebackType
from typing import Any, Literal, TextIO

from playground.system import log_ids
from playground.system.messages import Message

OUR_PACKAGES = ("playground", "training", "app")
NUMBERS = re.compile(r"[\d\s.,:;%+()-]{1,60}( UTC)?", re.ASCII)  # numbers and times, as they are read
SYSTEM_ERRORS = (OSError, MemoryError, RuntimeError)  # torch raises RuntimeError, also when it is out of memory

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Loggable(str):
    """A text for a log line that is known to quote nobody, such as a phase or a number format."""


def describe_error(error: BaseException) -> Loggable:
    """An error in one line: its kind with its message, or with its place where the message may quote a person."""
    return Loggable(_described(error))


def _described(error: BaseException) -> str:
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


class JsonFormatter(Formatter):
    """One JSON object a line: time, level, logger, message (its template), values, the ids of the request, the duel and
    the version where they are known, error and traceback where there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": str(record.msg),
        }
        arguments = record.args if isinstance(record.args, tuple) else (record.args,)
        if record.msg == "%s" and isinstance(arguments[0], Message):
            line["message"] = arguments[0].template  # a sentence for people is all of the line
            if values := numbers_of(arguments[0]):
                line["values"] = values
        elif record.args:
            line["values"] = [value_of(argument) for argument in arguments]
        line |= getattr(record, "ids", None) or log_ids.current()
        if record.exc_info and record.exc_info[1]:
            line["error"] = describe_error(record.exc_info[1])
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def value_of(argument: object) -> Any:
    """A value of a log line as far as it cannot be somebody's words: a number, a time, a path, a Loggable, an error as
    `describe_error` tells it, a Message with the numbers in it; else None.
    """
    if isinstance(argument, float) and not math.isfinite(argument):
        return str(argument)  # JSON has no such number
    if isinstance(argument, int | float | Loggable):
        return argument
    if isinstance(argument, PurePath):
        return str(argument)
    if isinstance(argument, Message):
        values = numbers_of(argument)
        return {"message": argument.template, "values": values} if values else argument.template
    if isinstance(argument, BaseException):
        return describe_error(argument)
    return argument if isinstance(argument, str) and NUMBERS.fullmatch(argument) else None


def numbers_of(message: Message) -> dict[str, Any]:
    """The numbers of a sentence for people, by their places. Its texts may be what a person wrote."""
    found = {name: value_of(value) for name, value in message.values.items()}
    return {name: value for name, value in found.items() if value is not None}


def write_as(log_format: Literal["text", "json"]) -> None:
    """Write log lines in this form from now on; `configure_logging` begins with text."""
    if log_format == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonFormatter())


def configure_logging(stream: TextIO, line_format: str) -> None:
    """`logging.basicConfig` at level INFO with this module's formatter. Clients that log the address of each request,
    which may hold a signature that lets anybody in, say warnings alone.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Formatter(line_format, "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for client in ("httpx", "httpx2"):
        logging.getLogger(client).setLevel(logging.WARNING)
