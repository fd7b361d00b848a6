"""Owns the base model, the versions that can answer, and the one thread that decodes.

A version is a `Policy`: a module tree of its own over the base's tensors, with its LoRA copied in before anyone sees it and never written to
again. Taking a version live is one pointer; a turn keeps the version it started with. A second thread watches the store for another live
version, builds and checks it, and flips the pointer; at most two versions are resident, so a third waits until the one before has no streams.
The engine knows nothing about conversations or pages.
"""

import logging
import queue
import threading
import time
from dataclasses import dataclass, field

import torch

from playground import adapters, models, prompts
from playground.decoder import Decoding, Sampling
from playground.prompts import Detokeniser

log = logging.getLogger(__name__)

CANARIES = [request for request, _ in prompts.canaries()[:3]]  # two forwards each, while people wait for the swap
CANARY_KL = 5.0  # nats, mean over the canaries' next-token distributions


class EngineStopped(Exception):
    """The engine is shutting down and takes no more turns."""


@dataclass(eq=False)
class Policy:
    """An immutable version that the engine can run."""

    version: int
    model: torch.nn.Module
    streams: int = 0  # turns that are pinned to it; changed under the engine's lock


@dataclass(eq=False)
class Stream:
    """One duel's replies as they grow, one for each seed. The engine's thread writes; anyone may read, `wait` or `stop`."""

    policy: Policy
    prompt: list
    seeds: list
    sampling: Sampling
    decoding: Decoding | None = None
    detokenisers: list = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    first_token_ms: list = field(init=False)
    total_ms: list = field(init=False)
    error: str | None = None
    finished: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self):
        self.first_token_ms, self.total_ms = ([None] * len(self.seeds) for _ in range(2))

    def texts(self):
        """The texts so far."""
        return [d.text for d in self.detokenisers] or [""] * len(self.seeds)

    def tokens(self):
        """How many tokens each reply has so far."""
        return [len(r.token_ids) for r in self.decoding.replies] if self.decoding else [0] * len(self.seeds)

    def stop(self):
        """End both replies at the next step."""
        self.stopping.set()

    def wait(self, timeout):
        """Wait until the stream has ended, at most `timeout` seconds; return whether it has."""
        return self.finished.wait(timeout)

    def results(self, shown=(0, 1)):
        """Once it has ended: what `Store.finish_duel` records of the two replies that are shown."""
        sides = []
        for i in shown:
            reply = self.decoding.replies[i] if self.decoding else None
            sides.append({
                "text": self.texts()[i].strip(), "seed": self.seeds[i], "token_ids": reply.token_ids if reply else [], "logprobs": reply.logprobs if reply else [],
                "finish_reason": "error" if self.error else reply.finish_reason if reply else "stopped",
                "first_token_ms": self.first_token_ms[i], "total_ms": self.total_ms[i]})
        return sides


class Engine:
    """Decodes duels over `base` (the frozen trunk) with the store's live version; `start()` and `close()` run its threads."""

    def __init__(self, store, settings, base, tokenizer):
        self.store, self.settings, self.base, self.tokenizer = store, settings, base, tokenizer
        self.identity = models.base_identity(base, settings)
        self.template_hash = models.template_hash(tokenizer)
        self.end_tokens = models.end_tokens(base, tokenizer)
        self.live = Policy(0, base)
        self._resident = {0: self.live}
        self._lock = threading.Lock()
        self._waiting = queue.SimpleQueue()
        self._closing = threading.Event()
        self._threads = []

    def start(self):
        """Bring up the live version (or the last good one) and the two threads."""
        self.follow_store()
        for target, name in ((self._decode, "decode"), (self._watch, "versions")):
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def close(self):
        """End every stream and both threads."""
        self._closing.set()
        self._waiting.put(None)
        for thread in self._threads:
            thread.join(10)

    @property
    def healthy(self):
        return bool(self._threads) and all(t.is_alive() for t in self._threads)

    # -- duels

    def duel(self, prompt, seeds, sampling):
        """Start a reply for each seed to one prompt (token ids) with the live version; returns their Stream at once."""
        if self._closing.is_set():
            raise EngineStopped("The server is shutting down. Send your message again in a moment.")
        with self._lock:
            policy = self.live
            policy.streams += 1
        stream = Stream(policy, prompt, seeds, sampling)
        self._waiting.put(stream)
        return stream

    def _decode(self):
        """The engine thread: take new duels in, give each running one a step in turn, sleep when there are none."""
        torch.set_num_threads(self.settings.threads)
        running = []
        while not self._closing.is_set():
            while not self._waiting.empty() or not running:
                stream = self._waiting.get()
                if stream is None:
                    break
                running.append(stream)
            for stream in list(running):
                self._step(stream)
                if stream.finished.is_set():
                    running.remove(stream)
        while not self._waiting.empty():
            running.append(self._waiting.get())
        for stream in filter(None, running):
            stream.stop()
            self._step(stream)

    def _step(self, stream):
        try:
            if stream.decoding is None:
                stream.decoding = Decoding(stream.policy.model, [stream.prompt], stream.seeds, stream.sampling, self.end_tokens, n=len(stream.seeds))
                stream.detokenisers = [Detokeniser(self.tokenizer) for _ in stream.seeds]
            if stream.stopping.is_set():
                stream.decoding.stop()
            for side, token in stream.decoding.step():
                stream.first_token_ms[side] = stream.first_token_ms[side] or 1e3 * (time.monotonic() - stream.started)
                stream.detokenisers[side].add(token)
            for side, reply in enumerate(stream.decoding.replies):
                if reply.finish_reason and stream.total_ms[side] is None:
                    stream.total_ms[side] = 1e3 * (time.monotonic() - stream.started)
        except Exception as error:  # one broken turn must not end the thread that serves everyone
            log.exception("a turn failed")
            stream.error = str(error)
        if stream.error or stream.decoding.done:
            stream.decoding and stream.decoding.stop()
            with self._lock:
                stream.policy.streams -= 1
            self._release()
            stream.finished.set()

    # -- versions

    def _watch(self):
        while not self._closing.wait(self.settings.poll_seconds):
            try:
                self.follow_store()
            except Exception:
                log.exception("looking for a new version failed; trying again")

    def follow_store(self):
        """Make the store's live version the one that answers. One that fails a check is rejected in the store with the reason, and the
        version that was answering stays. Returns whether the version that answers is the store's."""
        row = self.store.live_policy()
        if row["version"] == self.live.version:
            return True
        policy = self._resident.get(row["version"])
        if policy is None:
            if len(self._resident) > 1 and not self._release():
                return False  # the version before last still has streams
            try:
                policy = self._build(row)
                self._canary(policy)
            except (adapters.BadAdapter, OSError) as error:
                log.error("version v%s is rejected: %s", row["version"], error)
                fallback = self._last_good(row["version"])
                self.store.reject_live(row["version"], str(error), fallback)
                return self.live.version == fallback or self.follow_store()
        with self._lock:
            self._resident[policy.version] = policy
            self.live = policy
        self._release()
        log.info("now answering: v%s", policy.version)
        return True

    def _last_good(self, bad):
        """The version to fall back on: the one that answers; right after a restart, the bad version's parent."""
        if self.live.version or self._threads:
            return self.live.version
        return self.store.policy(bad)["parent"] or 0

    def _release(self):
        """Let go of versions that neither answer nor have streams; return whether only the live one is left. Version 0 is the base and costs nothing."""
        with self._lock:
            self._resident = {v: p for v, p in self._resident.items() if p is self.live or p.streams}
            return len(self._resident) <= 1

    def _build(self, row):
        if row["version"] == 0:
            return Policy(0, self.base)
        return Policy(row["version"], adapters.load(row["path"], self.base, base_hash=self.identity["hash"], expected_sha256=row["sha256"]))

    @torch.inference_mode()
    def _canary(self, policy):
        """A version must give finite logits, stay near the base, and not end its reply at once on plain requests."""
        divergences, instant_ends = [], 0
        for text in CANARIES:
            ids = self.tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=False)
            ids = ids.to(next(self.base.parameters()).device)
            new, old = (torch.log_softmax(m(input_ids=ids, logits_to_keep=1).logits[0, -1].float(), -1) for m in (policy.model, self.base))
            if not torch.isfinite(new).all():
                raise adapters.BadAdapter(f"v{policy.version} gives logits that are not finite")
            divergences.append((new.exp() * (new - old)).sum().item())
            instant_ends += sum(new[i].exp().item() for i in self.end_tokens) > 0.5
        if instant_ends == len(CANARIES):
            raise adapters.BadAdapter(f"v{policy.version} ends its reply at once on every plain request")
        if (mean := sum(divergences) / len(divergences)) > CANARY_KL:
            raise adapters.BadAdapter(f"v{policy.version} is {mean:.1f} nats from the base on plain requests; at most {CANARY_KL} is accepted")
