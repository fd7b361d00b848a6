"""`/metrics`: figures for Prometheus, from what the engine and the store know already. Nothing of what people write is
in them, and nobody's name or address.

Everything is read when somebody asks; only the times of replies are counted before, by the engine, as each turn ends.
"""

import hmac
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import psutil
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.datastructures import Headers
from starlette.types import Scope

from playground.backup import Backup
from playground.serving.engine import Engine
from playground.serving.reply_times import Histogram
from playground.store import CHOICES, ROUND_STATES, VERSION_STATES, Store, StoreError

CONTENT_TYPE = CONTENT_TYPE_LATEST


def may_read(scope: Scope, token: str) -> bool:
    """Whether a request may read the figures: it comes from this machine, through no proxy, or it has the bearer token
    of the settings (`token`; "" is none).
    """
    if scope.get("direct"):  # set by `Proxies`
        return True
    scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(), token.encode())
    return bool(token) and scheme.lower() == "bearer" and right


class Metrics(Collector):
    """The figures of one server."""

    def __init__(self, store: Store, engine: Engine, backup: Backup | None = None) -> None:
        self.store = store
        self.engine = engine
        self.backup = backup
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._lock = threading.Lock()
        # votes never change and get growing ids, so each look counts only those since the last one
        self._votes: Counter[str] = Counter(dict.fromkeys(CHOICES, 0))
        self._last_vote = 0

    def text(self) -> bytes:
        """All figures as Prometheus reads them."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._serving()
        yield from self._processes()
        yield from self._saved()
        errors = CounterMetricFamily(
            "nudge_store_errors", "Times that the database could not do what was asked.", labels=["kind"]
        )
        for kind, count in sorted(self.store.failures.read().items()):
            errors.add_metric([kind], count)
        yield errors
        try:
            yield from list(self._stored())
        except StoreError:  # counted above; what does not need the store is still reported
            return

    def _serving(self) -> Iterator[Metric]:
        """What the engine does now, and how fast it was."""
        streams = GaugeMetricFamily("nudge_streams", "Turns that the engine has.", labels=["state"])
        streams.add_metric(["running"], self.engine.running)
        streams.add_metric(["waiting"], self.engine.waiting)
        yield streams
        started = self.engine.first_in_line()
        wait = time.monotonic() - started if started else 0.0
        yield GaugeMetricFamily("nudge_queue_wait_seconds", "How long the first turn in line has waited.", wait)
        times = self.engine.reply_times
        yield family("nudge_first_token_seconds", "From a turn's start to a reply's first token.", times.first_token)
        yield family("nudge_tokens_per_second", "Of a reply, after its first token.", times.tokens_per_second)
        yield GaugeMetricFamily("nudge_live_version", "The version that answers.", self.engine.live.version)
        healthy = int(self.engine.healthy)
        yield GaugeMetricFamily("nudge_engine_healthy", "1 while the threads of the engine run.", healthy)

    def _processes(self) -> Iterator[Metric]:
        """Memory of the server and its worker, and whether that one runs."""
        memory = GaugeMetricFamily("nudge_resident_memory_bytes", "Memory of a process.", labels=["process"])
        memory.add_metric(["server"], psutil.Process().memory_info().rss)
        worker = self.engine.worker_process
        if worker and worker.process:
            with suppress(psutil.Error):  # it has just ended
                memory.add_metric(["worker"], psutil.Process(worker.process.pid).memory_info().rss)
        yield memory
        if worker:
            yield GaugeMetricFamily("nudge_worker_up", "1 while the worker's process runs.", int(worker.is_running))
            yield CounterMetricFamily("nudge_worker_ends", "Times that the worker ended by itself.", worker.ends)

    def _saved(self) -> Iterator[Metric]:
        """How the backup stands, where there is one."""
        if self.backup:
            text = "Since the database was last known to be saved as it was; since the start where nothing is saved."
            yield GaugeMetricFamily("nudge_backup_age_seconds", text, self.backup.age())
            healthy = int(self.backup.status().trouble is None)
            yield GaugeMetricFamily("nudge_backup_healthy", "0 while something is wrong with the backup.", healthy)

    def _stored(self) -> Iterator[Metric]:
        """What the store counts. StoreError where it cannot answer."""
        votes = CounterMetricFamily("nudge_votes", "Votes that were given, changed ones included.", labels=["choice"])
        for choice, count in self._count_votes().items():
            votes.add_metric([choice], count)
        yield votes
        waiting = self.store.new_votes()
        yield GaugeMetricFamily("nudge_new_votes", "Votes that count, since the last round began.", waiting)
        rounds = GaugeMetricFamily("nudge_rounds", "Rounds by their state.", labels=["state"])
        states = self.store.rounds_by_state()
        for state in ROUND_STATES:
            rounds.add_metric([state], states.get(state, 0))
        yield rounds
        versions = GaugeMetricFamily("nudge_versions", "Versions by what became of them.", labels=["state"])
        became = self.store.versions_by_state()
        for state in VERSION_STATES:
            versions.add_metric([state], became.get(state, 0))
        yield versions

    def _count_votes(self) -> Counter[str]:
        with self._lock:
            for row in self.store.votes_by_choice(after=self._last_vote):
                self._votes[row["choice"]] += row["n"]
                self._last_vote = max(self._last_vote, row["last"])
            return Counter(self._votes)


def family(name: str, text: str, histogram: Histogram) -> Metric:
    """A histogram as Prometheus knows it."""
    counts, total = histogram.read()
    bounds = [*map(str, histogram.bounds), "+Inf"]
    metric = HistogramMetricFamily(name, text)
    metric.add_metric([], list(zip(bounds, counts, strict=True)), total)
    return metric
