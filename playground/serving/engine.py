"""Runs the one thread that decodes for everybody, and owns the queue of turns that wait for room.

`duel` starts a turn; what it has written so far is read from its `Stream` (`stream.py`). How the turns that run get
their tokens is `advance.py`'s. Which versions can answer is `versions.py`'s: a second thread of the engine calls it to
look for another live version. The engine knows nothing about conversations or pages.
"""

import gc
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from playground.decoding import tuning
from playground.decoding.decoder import Decoding
from playground.decoding.kv_cache_pool import KVCachePool
from playground.decoding.sampling import Sampling
from playground.models import loading, prompts, structure
from playground.models.detokeniser import Detokeniser
from playground.models.lora import LoraPool
from playground.serving.advance import advance, stop_replies
from playground.serving.guests import Guests
from playground.serving.pair_stream import PairStream
from playground.serving.reply_times import ReplyTimes
from playground.serving.stream import Stream
from playground.serving.versions import Match, Policy, Versions, lora_pool_of
from playground.settings import Settings
from playground.store import Store, StoreError
from playground.system import memory, safe_logging, threads
from playground.system.child import Child
from playground.system.gpu_share import StreamingSign
from playground.system.messages import UserFacingError

log = logging.getLogger(__name__)

STORE_PAUSE = 5.0  # seconds until the next look where the store cannot answer
SWITCH_SECONDS = 1e-4  # after which another thread lets the decoder go on, which asks a thousand times a step
# without work, after which free memory goes back to the system: the turns', then that of the threads that served them
IDLE_SECONDS = (5.0, 15.0)
CLOSE_SECONDS = 10  # that each thread has to end


class EngineStopped(UserFacingError):
    """The engine is shutting down and takes no more turns."""


class Engine:
    """Decodes turns over `base` (the frozen trunk) with the store's live version; `start()` and `close()` run its
    threads.
    """

    def __init__(
        self, store: Store, settings: Settings, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.store = store
        self.settings = settings
        self.base = base
        self.tokenizer = tokenizer
        self.identity = loading.base_identity(base, settings)
        self.template_hash = loading.template_hash(tokenizer)
        self.end_tokens = loading.end_tokens(base, tokenizer)
        self.positions = structure.positions(base.config)
        # before the choice, which may wait for a step that is still being compiled
        lora_pool = threads.run_in_own_thread(settings.threads, lambda: lora_pool_of(base, settings))
        self.choice = threads.run_in_own_thread(settings.threads, lambda: tuning.choose(settings, base, self.identity))
        self.kv_pool = KVCachePool(settings.kv_cache_mb << 20)
        self.versions = threads.run_in_own_thread(settings.threads, lambda: self._make_versions(lora_pool))
        forward = self.versions.live.forward
        self.choice = threads.run_in_own_thread(settings.threads, lambda: tuning.timed(self.choice, forward))
        self.slowness = tuning.slowness(self.choice, settings)  # shown to everybody where replies grow slowly
        if self.slowness:
            log.warning("%s", self.slowness)
        self.guests = Guests(self.versions, self.choice.copy_bytes(base))
        self.reply_times = ReplyTimes()
        self.worker_process: Child | None = None  # is held while a turn waits for a first token
        # by which a worker on the same GPU sees that replies stream
        self.streaming_sign: StreamingSign | None = None
        if base.device.type == "cuda":
            self.streaming_sign = StreamingSign(settings.streaming_file)
        self._running: list[Stream] = []  # that the engine's thread decodes
        self._waiting: list[Stream] = []  # without room yet, the longest waiting first; changed under the lock
        self._lock = threading.Lock()
        # whether a version is built, on a core that the decoder then leaves to it: threads that share a core with
        # another one's wait at every matrix product
        self._building = False
        self._stepping = threading.Lock()  # held during a step
        self._work = threading.Event()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def _make_versions(self, lora_pool: LoraPool) -> Versions:
        return Versions(
            store=self.store,
            settings=self.settings,
            base=self.base,
            tokenizer=self.tokenizer,
            identity=self.identity,
            choice=self.choice,
            end_tokens=self.end_tokens,
            kv_pool=self.kv_pool,
            lora_pool=lora_pool,
            spare_core=self._spare_core,
        )

    def start(self) -> "Engine":
        """Bring up the live version (or the last good one) and the two threads."""
        sys.setswitchinterval(SWITCH_SECONDS)
        threads.run_in_own_thread(self.settings.threads, self.versions.follow_store)
        threads.run_in_own_thread(self.settings.threads, self.versions.follow_trial)
        self.versions.answering = True
        memory.trim()  # building has freed about as much memory as it kept
        # what is here stays; a collection that looks through all of it would stop every stream for a quarter of a
        # second
        gc.freeze()
        self._start_thread("decode", self._decode)
        self._start_thread("versions", self._watch)
        return self

    def _start_thread(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def close(self) -> None:
        """End every stream and both threads."""
        self._closing.set()
        self._work.set()
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)

    @property
    def live(self) -> Policy:
        """The version that answers."""
        return self.versions.live

    @property
    def waiting(self) -> int:
        """How many turns wait for room."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many turns are decoded."""
        return len(self._running)

    def first_in_line(self) -> float | None:
        """When the turn began that has waited longest, on the monotonic clock; None while nobody waits."""
        with self._lock:
            return self._waiting[0].started if self._waiting else None

    @property
    def healthy(self) -> bool:
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    # -- turns

    def duel(
        self,
        prompt: list[int],
        seeds: Sequence[int],
        sampling: Sampling,
        stop_text: str = "",
        policy: Policy | None = None,
    ) -> Stream:
        """Start a reply for each seed to one prompt (token ids) with the live version, or with `policy` while it is in
        memory (else VersionGone); returns their Stream at once. EngineStopped while shutting down.
        """
        if self._closing.is_set():
            raise EngineStopped("The server is shutting down. Send your message again in a moment.")
        if self.positions:
            room = self.positions - len(prompt)
            sampling = replace(sampling, max_tokens=max(1, min(sampling.max_tokens, room)))
        stops = prompts.stops_of(self.tokenizer, stop_text)
        stream = Stream(self.versions.pin(policy), prompt, seeds, sampling, stops)
        with self._lock:
            self._waiting.append(stream)
            stream.place = len(self._waiting)
        self._work.set()
        return stream

    def match_duel(
        self, match: Match, prompt: list[int], seeds: Sequence[int], sampling: Sampling, stop_text: str = ""
    ) -> PairStream:
        """Start one reply by each of two versions, a seed for each. Raises as `duel`."""
        left = self.duel(prompt, seeds[:1], sampling, stop_text, match.left)
        try:
            return PairStream(left, self.duel(prompt, seeds[1:2], sampling, stop_text, match.right))
        except Exception:
            left.stop()
            raise

    def _decode(self) -> None:
        """The engine's thread: step while there is work, sleep while there is none."""
        cores_in_use = None
        while not self._closing.is_set():
            self._work.clear()
            with self._stepping:
                cores = max(1, self.choice.threads - self._building)
                if cores != cores_in_use:
                    threads.set_threads(cores)
                    cores_in_use = cores
                working = self.step()
            if not working:
                self._wait_for_work()
        with self._lock:
            left = self._running + self._waiting
        for stream in left:
            self._finish(stream)

    def _wait_for_work(self) -> None:
        """Sleep. What a crowd has left goes back to the system meanwhile."""
        for seconds in IDLE_SECONDS:
            if self._work.wait(seconds):
                return
            memory.release()
        self._work.wait()

    def step(self) -> bool:
        """One pass of the engine's thread: admit waiting turns where there is room, prefill a part of one prompt, give
        every growing reply a token. Returns whether any turn is running.
        """
        self._admit()
        self._hold_worker()
        running = {stream.decoding: stream for stream in self._running if stream.decoding}
        if running and self.streaming_sign:
            self.streaming_sign.show()
        for decoding, stream in running.items():
            if stream.stopping.is_set():
                self._finish(stream)
            elif stream.stopped:
                stop_replies(decoding, stream, self._fail)
        growing = {decoding: stream for decoding, stream in running.items() if not stream.finished.is_set()}
        advance(growing, self._fail)
        for decoding, stream in growing.items():
            if decoding.done and not stream.finished.is_set():
                self._finish(stream)
        self._running = [stream for stream in self._running if not stream.finished.is_set()]
        return bool(running)

    def _hold_worker(self) -> None:
        """Pause the worker's process while a turn waits for its first token."""
        if not self.worker_process:
            return
        if any(None in stream.first_token_ms for stream in self._running):
            self.worker_process.pause()
        else:
            self.worker_process.resume()

    def _admit(self) -> None:
        """Start the streams that have waited longest, as long as there is room for their keys and values."""
        full = False
        for stream in list(self._waiting):
            if stream.stopping.is_set():
                self._leave_queue(stream)
                self._finish(stream)
                continue
            if full:
                continue  # nobody overtakes; but who stops further back may still leave the queue
            try:  # one broken turn must not end the thread that serves everyone
                forward = stream.policy.forward
                nbytes = forward.cache_bytes(len(stream.seeds), len(stream.prompt), stream.sampling.max_tokens)
                full = not self.kv_pool.reserve(nbytes)
            except Exception as error:
                self._leave_queue(stream)
                self._fail(stream, error)
                continue
            if full:
                continue
            stream.nbytes = nbytes
            self._leave_queue(stream)
            try:
                stream.detokenisers = [Detokeniser(self.tokenizer) for _ in stream.seeds]
                decoding = Decoding(forward, stream.prompt, stream.seeds, stream.sampling, self.end_tokens)
                stream.decoding = decoding
                stream.reused = self.kv_pool.reuse_prefix(forward, decoding.cache, stream.prompt)
                self._running.append(stream)
            except Exception as error:
                self._fail(stream, error)

    def _leave_queue(self, stream: Stream) -> None:
        with self._lock:
            self._waiting.remove(stream)
            stream.place = 0
            for place, other in enumerate(self._waiting, 1):
                other.place = place
        stream.admitted.set()

    def _fail(self, stream: Stream, error: Exception) -> None:
        ids = {**stream.logged_as, "version": stream.policy.version}
        log.error("a turn failed", exc_info=error, extra={"ids": ids})
        if not stream.finished.is_set():
            stream.error = safe_logging.describe_error(error)  # its own message may quote another person's
            self._finish(stream)

    def _finish(self, stream: Stream) -> None:
        """End what still grows, release the memory and unpin the version."""
        if stream.decoding:
            try:
                stream.decoding.stop()
            except Exception:  # the memory must be released whatever the forward raises
                log.exception("the end of a turn failed")
                stream.error = stream.error or "its keys and values could not be kept"
        for i, total in enumerate(stream.total_ms):
            stream.total_ms[i] = total or stream.elapsed_ms()
        if stream.nbytes:
            cache = None if stream.error or not stream.decoding else stream.decoding.cache
            self.kv_pool.release(stream.nbytes, stream.policy.forward, cache)
        self.versions.unpin(stream.policy)
        stream.admitted.set()
        stream.finished.set()
        self.reply_times.add(stream)

    # -- versions

    def _watch(self) -> None:
        """The versions' thread: follow the store."""
        threads.set_threads(1)
        while not self._closing.wait(self.settings.round.poll_seconds):
            try:
                self.versions.follow_store()
                self.versions.follow_trial()
                self.guests.follow()
            except StoreError as error:
                log.warning("looking for a new version failed; trying again: %s", error)
                self._closing.wait(STORE_PAUSE)
            except Exception:
                log.exception("looking for a new version failed; trying again")

    @contextmanager
    def _spare_core(self) -> Iterator[None]:
        """The decoder leaves a core to the thread that is in this context."""
        self._building = True
        try:
            with self._stepping:
                pass  # the step that still has all cores has ended
            yield
        finally:
            self._building = False
