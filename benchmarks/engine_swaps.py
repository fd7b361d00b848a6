"""Versions taken live one after the other under running streams: is any stream dropped, wrong or held up?"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from benchmarks import report
from benchmarks.engine_site import EngineSettings, Site, text_prompt
from benchmarks.report import Log, Row
from playground.decoding import decoder, kv_cache_pool
from playground.decoding.sampling import Sampling
from playground.models import adapters
from playground.serving.engine import Engine
from playground.system.threads import run_in_own_thread

PROMPT = 40  # tokens
PEOPLE = 2
SAMPLING = Sampling(temperature=0, max_tokens=16)
SEEDS = [0, 1]
SWAP_SECONDS = 60  # after which a version that does not answer counts as not taken

Replies = list[list[int]]  # token ids of the two replies


@dataclass
class Ended:
    """A stream that has ended, by the version that it began with."""

    version: int
    replies: Replies
    error: str | None


@dataclass
class Readers:
    """People who read one duel after the other until `stop`."""

    engine: Engine
    prompt: list[int]
    ended: list[Ended] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)  # seconds between two tokens of a stream
    stopping: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self.threads = [threading.Thread(target=self._read) for _ in range(PEOPLE)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Return once the streams that run have ended."""
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def _read(self) -> None:
        while not self.stopping.is_set():
            stream = self.engine.duel(self.prompt, SEEDS, SAMPLING)
            seen = 0
            seen_at = time.perf_counter()
            while not stream.wait(0.002):
                if stream.tokens()[0] > seen:
                    self.gaps.append((time.perf_counter() - seen_at) if seen else 0)
                    seen = stream.tokens()[0]
                    seen_at = time.perf_counter()
            replies = [reply.token_ids for reply in stream.decoding.replies]
            self.ended.append(Ended(stream.policy.version, replies, stream.error))


@contextmanager
def whole_prompts(tokens: int) -> Iterator[None]:
    """Within it every stream reads a prompt of this length whole, as `replies_alone` does."""
    before = kv_cache_pool.MIN_REUSED_TOKENS
    kv_cache_pool.MIN_REUSED_TOKENS = tokens
    try:
        yield
    finally:
        kv_cache_pool.MIN_REUSED_TOKENS = before


def replies_alone(engine: Engine, prompt: list[int], version: int) -> Replies:
    """What a version replies while nothing else is decoded."""
    row = engine.store.policy(version)
    model = adapters.load(row["path"], engine.base, base_hash=engine.identity["hash"])
    replies = decoder.run(engine.live.forward.for_model(model), [prompt], SEEDS, SAMPLING, frozenset(), n=2)
    return [reply.token_ids for reply in replies]


def swap(engine: Engine, versions: list[int], swaps: int, readers: Readers, log: Log) -> int:
    """Take the versions live in turn; returns how many of the swaps were taken in time."""
    taken = 0
    for number in range(swaps):
        version = versions[number % len(versions)]
        engine.store.roll_back(version)
        start = time.perf_counter()
        while engine.live.version != version and time.perf_counter() - start < SWAP_SECONDS:
            time.sleep(0.01)
        taken += engine.live.version == version
        if number % 100 == 99:
            log(f"{number + 1} swaps, longest gap {1e3 * max(readers.gaps):.0f} ms")
    return taken


def roll_back_seconds(engine: Engine, versions: list[int], repeats: int) -> list[float]:
    """Seconds until the version before answers, after two that warm up."""
    seconds = []
    for number in range(repeats + 2):
        engine.store.roll_back(versions[number % 2])
        start = time.perf_counter()
        run_in_own_thread(1, engine.versions.follow_store)
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


def swap_rows(settings: EngineSettings, site: Site, tokenizer: PreTrainedTokenizerBase, log: Log) -> list[Row]:
    """Versions taken live one after the other under streams; every stream's text must be what its own version alone
    says.
    """
    prompt = text_prompt(tokenizer, PROMPT)
    swaps = 20 if settings.quick else settings.swaps
    engine = site.engine
    readers = Readers(engine, prompt)
    with whole_prompts(len(prompt)):
        versions = [site.publish(0.02, 10 + number) for number in range(3)]
        expected = run_in_own_thread(
            settings.threads, lambda: {version: replies_alone(engine, prompt, version) for version in versions}
        )
        readers.start()
        try:
            taken = swap(engine, versions, swaps, readers, log)
        finally:
            readers.stop()
    wrong = sum(
        stream.error is not None or (stream.version in expected and stream.replies != expected[stream.version])
        for stream in readers.ended
    )
    seconds = roll_back_seconds(engine, versions, settings.repeats)
    return [
        report.row("roll-back until the version before answers", max(seconds), "s", "≤ 1"),
        report.row("swaps under load", taken, f"of {swaps}", f"≥ {swaps}"),
        report.row(f"streams dropped or wrong, of {len(readers.ended)}", wrong, "", "≤ 0"),
        report.row("longest gap between two tokens of a stream", 1e3 * max(readers.gaps), "ms", "≤ 250"),
    ]
