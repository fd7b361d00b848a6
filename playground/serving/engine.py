"""Owns the base model, the versions that can answer, and the one thread that decodes.

A version is a `Policy`: a module tree of its own over the base's tensors, with its LoRA copied in before anyone sees it
and never written to again. Taking a version live is one pointer; a turn keeps the version it started with. A second
thread watches the store for another live version, builds and checks it, and flips the pointer; at most two versions are
resident, so a third waits until the one before has no streams. The engine knows nothing about conversations or pages.
"""

import gc
import logging
import sys
import threading
import time
from dataclasses import dataclass, field, replace

import torch

from playground.decoding import decoder, tuning
from playground.decoding.decoder import Decoding, Sampling
from playground.decoding.prefixes import Memory
from playground.models import adapters, loading, prompts
from playground.models.prompts import Detokeniser
from playground.store import StoreError
from playground.system import discreet, memory, threads
from playground.system.messages import UserFacingError

log = logging.getLogger(__name__)

CANARIES = [request for request, _ in prompts.canaries()[:3]]  # read by every new version while people wait for it
RESIDENT = 2  # versions in memory, the one that is being built included
STORE_PAUSE = 5.0  # seconds until the next look where the store cannot answer
SWITCH_SECONDS = 1e-4  # after which another thread lets the decoder go on, which asks a thousand times a step
CANARY_KL = 5.0  # nats, mean over the canaries' next-token distributions


class EngineStopped(UserFacingError):
    """The engine is shutting down and takes no more turns."""


class VersionGone(Exception):
    """The version that is asked for answers no more."""


@dataclass(eq=False)
class Policy:
    """An immutable version that the engine can run."""

    version: int
    model: torch.nn.Module
    forward: object  # `lean.Lean` or `plain.Plain` of the model
    weights_sha256: str | None = None  # of a version's file of weights; None for the base
    streams: int = 0  # turns that are pinned to it; changed under the engine's lock


@dataclass(eq=False)
class Stream:
    """One duel's replies as they grow, one for each seed. The engine's thread writes; anyone may read, `wait` or
    `stop`.
    """

    policy: Policy
    prompt: list
    seeds: list
    sampling: Sampling
    stops: tuple = ()  # texts where a reply ends
    decoding: Decoding | None = None
    nbytes: int = 0  # of its keys and values
    place: int = 0  # in the line of those who wait for room; 0 once it runs
    reused: int = 0  # tokens of the prompt that an earlier turn had read
    detokenisers: list = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    first_token_ms: list = field(init=False)
    total_ms: list = field(init=False)
    error: str | None = None
    admitted: threading.Event = field(default_factory=threading.Event)  # it has left the line of those who wait
    finished: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)
    stopped: set = field(default_factory=set)  # replies that are to end while the others go on

    def __post_init__(self):
        self.first_token_ms, self.total_ms = ([None] * len(self.seeds) for _ in range(2))

    def texts(self):
        """The texts so far."""
        if not self.decoding:
            return [""] * len(self.seeds)
        return [
            prompts.before(d.text, self.stops, not r.finish_reason)
            for d, r in zip(self.detokenisers, self.decoding.replies, strict=True)
        ]

    def tokens(self):
        """How many tokens each reply has so far."""
        return [len(r.token_ids) for r in self.decoding.replies] if self.decoding else [0] * len(self.seeds)

    def stop(self, reply=None):
        """End every reply at the next step, or the one with this index alone."""
        if reply is None:
            self.stopping.set()
        else:
            self.stopped.add(reply)

    def growing(self, reply):
        """Whether the reply with this index is still written."""
        return not self.finished.is_set() and not (self.decoding and self.decoding.replies[reply].finish_reason)

    def wait(self, timeout):
        """Wait until the stream has ended, at most `timeout` seconds; return whether it has."""
        return self.finished.wait(timeout)

    def so_far(self):
        """What both replies have said by now, as `results` has it; the finish_reason of one that grows is None."""
        sides = []
        for text, seed, reply, first in zip(
            self.texts(), self.seeds, self.decoding.replies, self.first_token_ms, strict=True
        ):
            n = min(len(reply.token_ids), len(reply.logprobs))  # the engine's thread may be between the two
            sides.append(
                {
                    "text": text.strip(),
                    "seed": seed,
                    "token_ids": reply.token_ids[:n],
                    "logprobs": reply.logprobs[:n],
                    "finish_reason": reply.finish_reason,
                    "first_token_ms": first,
                    "total_ms": None,
                }
            )
        return sides

    def results(self, shown=(0, 1)):
        """Once it has ended: what `Store.finish_duel` records of the two replies that are shown."""
        sides = []
        for i in shown:
            reply = self.decoding.replies[i] if self.decoding else None
            sides.append(
                {
                    "text": self.texts()[i].strip(),
                    "seed": self.seeds[i],
                    "token_ids": reply.token_ids if reply else [],
                    "logprobs": reply.logprobs if reply else [],
                    "finish_reason": "error" if self.error else reply.finish_reason if reply else "stopped",
                    "first_token_ms": self.first_token_ms[i],
                    "total_ms": self.total_ms[i],
                }
            )
        return sides


class Engine:
    """Decodes duels over `base` (the frozen trunk) with the store's live version; `start()` and `close()` run its
    threads.
    """

    def __init__(self, store, settings, base, tokenizer):
        self.store, self.settings, self.base, self.tokenizer = store, settings, base, tokenizer
        self.identity = loading.base_identity(base, settings)
        self.template_hash = loading.template_hash(tokenizer)
        self.end_tokens, self.positions = loading.end_tokens(base, tokenizer), loading.positions(base.config)
        self.choice = threads.apart(settings.threads, lambda: tuning.choose(settings, base, self.identity))
        self.live, self._forms, self._canaries = threads.apart(settings.threads, self._first)
        self._resident = {0: self.live}
        self._memory = Memory(settings.kv_cache_mb << 20)
        self._lock = threading.Lock()
        self.neighbour = None  # a Child that stands still while someone waits for a first token
        self._running = []  # streams that the engine's thread decodes
        self._waiting = []  # streams without room yet, the longest waiting first; changed under the lock
        # another version, on a core that the decoder then leaves to it: a team that shares a core waits at every
        # product
        self._building = False
        self._stepping = threading.Lock()  # held during a step
        self._work = threading.Event()
        self._closing = threading.Event()
        self._threads = []

    def start(self):
        """Bring up the live version (or the last good one) and the two threads."""
        sys.setswitchinterval(SWITCH_SECONDS)
        threads.apart(self.settings.threads, self.follow_store)
        memory.trim()  # building left as much freed as it kept
        # what is here stays; to look through all of it again would hold every stream for a quarter of a second
        gc.freeze()
        for target, name in ((self._decode, "decode"), (self._watch, "versions")):
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def _first(self):
        """The base as a policy, layers for versions with the usual LoRA, and what the base says next to each canary:
        [(token ids, log-probabilities)].
        """
        base = Policy(0, self.base, self.choice.forward(self.base))
        requests = prompts.encode_those_that_fit(CANARIES, self.tokenizer, self.settings.context_tokens)
        shape = self.settings.lora_rank, self.settings.lora_alpha, tuple(loading.linear_targets(self.base))
        forms = adapters.Forms(self.base)
        forms.prepare(RESIDENT, *shape)
        return base, forms, [(ids, _next_token(base.forward, ids)) for ids in requests]

    def close(self):
        """End every stream and both threads."""
        self._closing.set()
        self._work.set()
        for thread in self._threads:
            thread.join(10)

    @property
    def waiting(self):
        """How many duels stand in the line for room."""
        return len(self._waiting)

    @property
    def healthy(self):
        return bool(self._threads) and all(t.is_alive() for t in self._threads)

    # -- duels

    def duel(self, prompt, seeds, sampling, stop_text="", policy=None):
        """Start a reply for each seed to one prompt (token ids) with the live version, or with `policy` while it is
        there (else VersionGone); returns their Stream at once."""
        if self._closing.is_set():
            raise EngineStopped("The server is shutting down. Send your message again in a moment.")
        if self.positions:
            sampling = replace(sampling, max_tokens=max(1, min(sampling.max_tokens, self.positions - len(prompt))))
        with self._lock:
            policy = policy or self.live
            if self._resident.get(policy.version) is not policy:
                raise VersionGone(f"v{policy.version} has been let go of")
            policy.streams += 1
            stops = prompts.stops_of(self.tokenizer, stop_text)
            stream = Stream(policy, prompt, seeds, sampling, stops, place=len(self._waiting) + 1)
            self._waiting.append(stream)
        self._work.set()
        return stream

    def _decode(self):
        """The engine thread: step while there is work, sleep while there is none."""
        cores = None
        while not self._closing.is_set():
            self._work.clear()
            with self._stepping:
                if cores != (cores := max(1, self.choice.threads - self._building)):
                    threads.use(cores)
                working = self.step()
            if not working:
                self._work.wait()
        with self._lock:
            left = self._running + self._waiting
        for stream in left:
            self._finish(stream)

    def step(self):
        """One pass of the engine's thread: let waiting duels in where there is room, read a part of one prompt, give
        every growing reply a token. Returns whether any duel is running."""
        self._admit()
        if self.neighbour:
            waits = any(None in stream.first_token_ms for stream in self._running)
            (self.neighbour.hold if waits else self.neighbour.release)()
        for stream in self._running:
            if stream.stopping.is_set():
                self._finish(stream)
            elif stream.stopped:
                self._stop_replies(stream)
        self._advance([stream for stream in self._running if not stream.finished.is_set()])
        self._running, before = [stream for stream in self._running if not stream.finished.is_set()], self._running
        return bool(before)

    def _admit(self):
        """Take in the streams that have waited longest, as long as their keys and values have room."""
        full = False
        for stream in list(self._waiting):
            if stream.stopping.is_set():
                self._leave_line(stream)
                self._finish(stream)
                continue
            if full:
                continue  # whoever stops leaves the line, and nobody overtakes
            try:  # one broken turn must not end the thread that serves everyone
                forward, nbytes = (
                    stream.policy.forward,
                    stream.policy.forward.line_bytes(len(stream.seeds), len(stream.prompt), stream.sampling.max_tokens),
                )
                full = not self._memory.take(nbytes)
            except Exception as error:
                self._leave_line(stream)
                self._fail(stream, error)
                continue
            if full:
                continue
            stream.nbytes = nbytes
            self._leave_line(stream)
            try:
                stream.detokenisers = [Detokeniser(self.tokenizer) for _ in stream.seeds]
                stream.decoding = Decoding(forward, stream.prompt, stream.seeds, stream.sampling, self.end_tokens)
                stream.reused = self._memory.begin(forward, stream.decoding.line, stream.prompt)
                self._running.append(stream)
            except Exception as error:
                self._fail(stream, error)

    def _leave_line(self, stream):
        with self._lock:
            self._waiting.remove(stream)
            stream.place = 0
            for place, other in enumerate(self._waiting, 1):
                other.place = place
        stream.admitted.set()

    def _stop_replies(self, stream):
        """End the replies that somebody stopped one by one, where they are."""
        try:
            sides = list(stream.stopped)
            for side in sides:
                reply = stream.decoding.replies[side]
                if not reply.finish_reason:
                    stream.decoding.end(reply, "stopped")
                    stream.total_ms[side] = 1e3 * (time.monotonic() - stream.started)
            stream.stopped.difference_update(sides)
        except Exception as error:
            self._fail(stream, error)

    def _advance(self, running):
        """Read a part of the prompt that has waited longest, then add one token to every reply that grows, version by
        version.
        """
        if reading := next((stream for stream in running if stream.decoding.reading), None):
            try:
                reading.decoding.read()
            except Exception as error:
                self._fail(reading, error)
        for policy in {id(s.policy): s.policy for s in running}.values():
            streams = {id(s.decoding): s for s in running if s.policy is policy and not s.finished.is_set()}
            failures, added = [], []
            try:
                added = decoder.step([s.decoding for s in streams.values()], failures)
            except Exception as error:
                failures = [decoder.Failure(s.decoding, error) for s in streams.values()]
            for decoding, side, token in added:
                try:
                    self._show(streams[id(decoding)], side, token)
                except Exception as error:
                    failures.append(decoder.Failure(decoding, error))
            for failure in failures:  # each alone: the others have their token
                self._fail(streams[id(failure.decoding)], failure.error)
        for stream in running:
            if stream.decoding.done and not stream.finished.is_set():
                self._finish(stream)

    def _show(self, stream, side, token):
        now = 1e3 * (time.monotonic() - stream.started)
        stream.first_token_ms[side] = stream.first_token_ms[side] or now
        text, reply = stream.detokenisers[side].add(token), stream.decoding.replies[side]
        if not reply.finish_reason and any(stop in text for stop in stream.stops):
            stream.decoding.end(reply, "end")
        if reply.finish_reason:
            stream.total_ms[side] = now

    def _fail(self, stream, error):
        log.error("a turn failed", exc_info=error)
        if not stream.finished.is_set():
            stream.error = discreet.said(error)  # it may have failed on another person's message
            self._finish(stream)

    def _finish(self, stream):
        """End what still grows, give back the room and let go of the version."""
        if stream.decoding:
            try:
                stream.decoding.stop()
            except Exception:  # its room is given back whatever its forward says
                log.exception("the end of a turn failed")
                stream.error = stream.error or "its keys and values could not be kept"
        for side, total in enumerate(stream.total_ms):
            stream.total_ms[side] = total or 1e3 * (time.monotonic() - stream.started)
        if stream.nbytes:
            self._memory.give_back(
                stream.nbytes,
                stream.policy.forward,
                None if stream.error or not stream.decoding else stream.decoding.line,
            )
        with self._lock:
            stream.policy.streams -= 1
        stream.admitted.set()
        stream.finished.set()

    # -- versions

    def _watch(self):
        threads.use(1)
        while not self._closing.wait(self.settings.poll_seconds):
            try:
                self.follow_store()
            except StoreError as error:
                log.warning("looking for a new version failed; trying again: %s", error)
                self._closing.wait(STORE_PAUSE)
            except Exception:
                log.exception("looking for a new version failed; trying again")

    def follow_store(self):
        """Make the store's live version the one that answers. One that cannot be used is rejected in the store with the
        reason, and the version that was answering stays. Returns whether the version that answers is the store's."""
        while True:
            row = self.store.live_policy()
            if row["version"] == self.live.version:
                return True
            policy = self._resident.get(row["version"])
            if policy is None:
                if not self._make_room():
                    return False  # the version before last still has streams
                policy = self._try(row)
            if policy:
                break
        with self._lock:
            self._resident[policy.version] = policy
            self.live = policy
        log.info("now answering: v%s", policy.version)
        return True

    def _try(self, row):
        """The version of a row, built and checked. Whatever that raises is the version's fault: it is rejected, and
        None is returned."""
        self._building, policy = True, None
        with self._stepping:
            pass  # the step that still has all cores has ended
        try:
            policy = self._build(row)
            self._canary(policy)
            return policy
        except StoreError:  # nothing of the version's
            raise
        except Exception as error:  # RecursionError and MemoryError among them
            if row["version"] == 0:
                raise  # there is nothing below the base
            reason = f"v{row['version']} cannot be loaded: {adapters.in_words(error)}"
            if isinstance(error, adapters.BadAdapter):
                reason = str(error)
        finally:
            self._building = False
        log.error("version v%s is rejected: %s", row["version"], reason)
        weights = policy.weights_sha256 if policy else None
        self.store.reject_live(row["version"], reason, self._last_good(row["version"]), weights)
        return None

    def _last_good(self, bad):
        """The version to fall back on: the one that answers; right after a restart, the nearest that the bad one
        descends from, at last the base."""
        if self.live.version or self._threads:
            return self.live.version
        return self.store.last_good_before(bad)

    def _make_room(self):
        """Let go of the version before the live one, which stays until then, so that going back to it takes no time;
        False while it has streams.
        """
        with self._lock:
            gone = [p for p in self._resident.values() if p is not self.live and not p.streams]
            for policy in gone:
                del self._resident[policy.version]
                self._memory.forget(policy.forward)
                self._forms.give_back(policy.model)
            return len(self._resident) <= 1

    def _build(self, row):
        if row["version"] == 0:
            return Policy(0, self.base, self.live.forward.sibling(self.base))
        manifest, tensors = adapters.read(
            adapters.place(self.settings.adapters_dir, row["path"]),
            base_hash=self.identity["hash"],
            expected_sha256=row["sha256"],
        )
        weights = manifest["files"][adapters.WEIGHTS]["sha256"]
        if before := self.store.quarantined(row["version"], weights):
            raise adapters.BadAdapter(
                f"v{row['version']} has the very weights of v{before['version']}, which was rejected: "
                f"{before['reason']}"
            )
        model = adapters.build(manifest, tensors, self._forms)
        return Policy(row["version"], model, self.live.forward.sibling(model), weights)

    def _canary(self, policy):
        """A version must give finite logits, stay near the base, and not end its reply at once on plain requests."""
        divergences, instant_ends = [], 0
        for ids, old in self._canaries:
            new = _next_token(policy.forward, ids)
            if not torch.isfinite(new).all():
                raise adapters.BadAdapter(f"v{policy.version} gives logits that are not finite")
            divergences.append((new.exp() * (new - old)).sum().item())
            instant_ends += sum(new[i].exp().item() for i in self.end_tokens if isinstance(i, int)) > 0.5
        if instant_ends == len(self._canaries):
            raise adapters.BadAdapter(f"v{policy.version} ends its reply at once on every plain request")
        if (mean := sum(divergences) / len(divergences)) > CANARY_KL:
            raise adapters.BadAdapter(
                f"v{policy.version} is {mean:.1f} nats from the base on plain requests; at most {CANARY_KL} is accepted"
            )


def _next_token(forward, ids):
    """Log-probabilities (vocabulary,) of the token after a prompt."""
    line = forward.open(1, len(ids), 1)
    logits = forward.read(line, ids)
    forward.end(line)
    return torch.log_softmax(logits, -1)
