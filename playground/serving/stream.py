"""One turn's replies while they are streamed: what the engine writes and what a chat reads."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from playground.decoding.decoder import Decoding
from playground.decoding.sampling import Sampling
from playground.models import prompts
from playground.models.detokeniser import Detokeniser
from playground.serving.versions import Policy
from playground.system import log_ids


class ReplyRecord(TypedDict):
    """What `Store.finish_duel` records of one reply."""

    text: str
    seed: int
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str | None  # None while the reply grows
    first_token_ms: float | None  # since the turn began; None before there is one
    total_ms: float | None


@dataclass(eq=False)
class Stream:
    """One turn's replies as they grow, one for each seed. The engine's thread writes; any thread may read, `wait` or
    `stop`.
    """

    policy: Policy
    prompt: list[int]
    seeds: Sequence[int]
    sampling: Sampling
    stops: tuple[str, ...] = ()  # texts where a reply ends
    decoding: Decoding | None = None  # None while the stream waits for room
    nbytes: int = 0  # of its keys and values
    place: int = 0  # in the queue for room, from 1; 0 once it runs
    reused: int = 0  # tokens of the prompt that an earlier turn had read
    detokenisers: list[Detokeniser] = field(default_factory=list)  # of each reply, once it runs
    logged_as: log_ids.Ids = field(default_factory=log_ids.current)  # what a log line about it is about
    started: float = field(default_factory=time.monotonic)
    first_token_ms: list[float | None] = field(init=False)  # of each reply, since `started`
    total_ms: list[float | None] = field(init=False)
    error: str | None = None
    admitted: threading.Event = field(default_factory=threading.Event)  # it has left the queue
    finished: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)
    stopped: set[int] = field(default_factory=set)  # replies that are to end while the others go on

    def __post_init__(self) -> None:
        self.first_token_ms = [None] * len(self.seeds)
        self.total_ms = [None] * len(self.seeds)

    @property
    def policies(self) -> list[Policy]:
        """The version that writes each reply."""
        return [self.policy] * len(self.seeds)

    def elapsed_ms(self) -> float:
        return 1e3 * (time.monotonic() - self.started)

    def texts(self) -> list[str]:
        """The texts so far."""
        if not self.decoding:
            return [""] * len(self.seeds)
        return [
            prompts.before(detokeniser.text, self.stops, growing=not reply.finish_reason)
            for detokeniser, reply in zip(self.detokenisers, self.decoding.replies, strict=True)
        ]

    def tokens(self) -> list[int]:
        """How many tokens each reply has so far."""
        if not self.decoding:
            return [0] * len(self.seeds)
        return [len(reply.token_ids) for reply in self.decoding.replies]

    def stop(self, reply: int | None = None) -> None:
        """End every reply at the next step, or only the one with this index."""
        if reply is None:
            self.stopping.set()
        else:
            self.stopped.add(reply)

    def growing(self, reply: int) -> bool:
        """Whether the reply with this index is still being written."""
        if self.finished.is_set():
            return False
        return not (self.decoding and self.decoding.replies[reply].finish_reason)

    def wait(self, timeout: float | None) -> bool:
        """Wait until the stream has ended, at most `timeout` seconds; returns whether it has."""
        return self.finished.wait(timeout)

    def so_far(self) -> list[ReplyRecord]:
        """Every reply as it is now, in the form of `results`, for a stream that runs."""
        replies = self.decoding.replies if self.decoding else []
        records: list[ReplyRecord] = []
        for i, (text, reply) in enumerate(zip(self.texts(), replies, strict=True)):
            n = min(len(reply.token_ids), len(reply.logprobs))  # the engine's thread may be between the two
            records.append(
                {
                    "text": text.strip(),
                    "seed": self.seeds[i],
                    "token_ids": reply.token_ids[:n],
                    "logprobs": reply.logprobs[:n],
                    "finish_reason": reply.finish_reason,
                    "first_token_ms": self.first_token_ms[i],
                    "total_ms": None,
                }
            )
        return records

    def results(self, shown: Sequence[int] = (0, 1)) -> list[ReplyRecord]:
        """Once the stream has ended: the records of the two replies that are shown."""
        texts = self.texts()
        records: list[ReplyRecord] = []
        for i in shown:
            reply = self.decoding.replies[i] if self.decoding else None
            reason: str | None = reply.finish_reason if reply else "stopped"
            records.append(
                {
                    "text": texts[i].strip(),
                    "seed": self.seeds[i],
                    "token_ids": reply.token_ids if reply else [],
                    "logprobs": reply.logprobs if reply else [],
                    "finish_reason": "error" if self.error else reason,
                    "first_token_ms": self.first_token_ms[i],
                    "total_ms": self.total_ms[i],
                }
            )
        return records
