"""The versions that can answer: which one is live, how another one is built and checked, and when one is unloaded.

A version is a `Policy`: a module tree of its own over the base's tensors, with its LoRA copied in before anyone sees it
and never written to again. Taking a version live is one pointer; a turn keeps the version it started with. At most
RESIDENT versions are in memory besides the base, so a third one waits until the one before the live one has no streams.
Others, the guests, may be there for people who compare versions (`guests.py`); they never keep a new version waiting.

While the live version is on trial, the one before it is kept in memory too, and `follow_trial` ends the trial when the
votes say enough.
"""

import logging
import random
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from playground.decoding.choice import Choice
from playground.decoding.forward import AnyForward, DrawingForward
from playground.decoding.kv_cache_pool import KVCachePool
from playground.decoding.sampling import of_chat
from playground.models import adapter_reading, adapters, lora, trial
from playground.models.loading import BaseIdentity, EndTokens
from playground.models.lora import LoraPool, LoraShape
from playground.serving.canaries import Canaries
from playground.settings import Settings
from playground.store import Store, StoreError
from playground.system.safe_logging import Loggable

log = logging.getLogger(__name__)

RESIDENT = 2  # versions in memory besides the base, the one that is being built included


class VersionGone(Exception):
    """The requested version is not in memory (any more)."""

    def __init__(self, version: int) -> None:
        super().__init__(f"v{version} is not in memory")
        self.version = version


@dataclass(eq=False)
class Policy:
    """An immutable version that the engine can run."""

    version: int
    model: PreTrainedModel
    forward: AnyForward  # of the model
    weights_sha256: str | None = None  # of a version's file of weights; None for the base
    streams: int = 0  # turns that are pinned to it; changed under the lock of Versions


@dataclass(frozen=True)
class OnTrial:
    """The live version while it is on trial, and the one before it."""

    new: Policy
    before: Policy


@dataclass(frozen=True)
class Match:
    """The two versions that a turn compares, and with what probability they were chosen."""

    left: Policy
    right: Policy
    probability: float


def lora_pool_of(base: PreTrainedModel, settings: Settings) -> LoraPool:
    """With models made ahead for as many trained versions as are in memory, of the shape that rounds give them."""
    pool = LoraPool(base)
    shape = LoraShape(settings.ppo.lora_rank, settings.ppo.lora_alpha, tuple(lora.linear_targets(base)))
    pool.prepare(RESIDENT, shape)
    return pool


class Versions:
    """Owns the resident versions; version 0 is the base. `follow_store` is called by one thread at a time, the other
    methods by any.
    """

    def __init__(
        self,
        *,
        store: Store,
        settings: Settings,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        identity: BaseIdentity,
        choice: Choice,
        end_tokens: EndTokens,
        kv_pool: KVCachePool,
        lora_pool: LoraPool,
        spare_core: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """`spare_core` is entered while a version is built: the decoder then leaves a core to this thread."""
        self.end_tokens = end_tokens
        self.answering = False  # whether turns have been answered since the start; set by the engine
        self.store = store
        self.settings = settings
        self._base = base
        self._identity = identity
        self._kv_pool = kv_pool
        self._spare_core = spare_core
        self._lock = threading.Lock()
        self.live = Policy(0, base, choice.forward(base))
        self.on_trial: OnTrial | None = None
        self._resident = {0: self.live}
        self._guests: set[int] = set()  # versions that are in memory to be compared alone; changed under the lock
        self._lora_pool = lora_pool
        self._canaries = Canaries(self.live.forward, tokenizer, settings.chat.context_tokens)

    # -- for turns

    def match(self, rng: random.Random) -> Match | None:
        """Two versions for the next turn to compare, while the live one is on trial; None where both replies are to be
        by the live version. The sides are drawn at random.
        """
        on_trial = self.on_trial
        if on_trial is None or on_trial.new is not self.live:
            return None
        drawn, probability = trial.opponent(rng, self.settings, on_trial.before.version == 0)
        if drawn is None:
            return None
        other = on_trial.before if drawn == "before" else self._resident[0]
        if rng.random() < 0.5:
            return Match(on_trial.new, other, probability)
        return Match(other, on_trial.new, probability)

    def pin(self, policy: Policy | None = None) -> Policy:
        """The live version, or `policy` if it is still in memory (else VersionGone). It stays in memory until
        `unpin`.
        """
        with self._lock:
            policy = policy or self.live
            if self._resident.get(policy.version) is not policy:
                raise VersionGone(policy.version)
            policy.streams += 1
            return policy

    def unpin(self, policy: Policy) -> None:
        with self._lock:
            policy.streams -= 1

    # -- following the store

    def follow_store(self) -> bool:
        """Make the store's live version the one that answers. A version that cannot be used is rejected in the store
        with the reason, and the version that was answering stays. Returns whether the version that answers is the
        store's.
        """
        while True:
            row = self.store.live_policy()
            if row["version"] == self.live.version:
                if not self.answering:
                    self._prepare(self.live)
                return True
            policy = self._resident.get(row["version"])
            if policy is None:
                if not self._make_room():
                    return False  # the version before the live one still has streams
                policy = self._try(row)
            if policy:
                break
        with self._lock:
            self._resident[policy.version] = policy
            self.live = policy
            self._guests.discard(policy.version)
        log.info("now answering: v%s", policy.version)
        return True

    def _try(self, row: dict[str, Any]) -> Policy | None:
        """The version of a row of the store, built and checked. If that raises, whatever it is, the version is rejected
        and None is returned.
        """
        policy = None
        try:
            with self._spare_core():
                policy = self._build(row)
                self._admit(policy)
                return policy
        except StoreError:  # not the version's fault
            raise
        except Exception as error:  # RecursionError and MemoryError among them
            if row["version"] == 0:
                raise  # there is no other version to fall back on
            reason = f"v{row['version']} cannot be loaded: {adapter_reading.in_words(error)}"
            if isinstance(error, adapter_reading.BadAdapter):
                reason = str(error)
        log.error("version v%s is rejected: %s", row["version"], reason)
        weights = policy.weights_sha256 if policy else None
        self.store.reject_live(row["version"], reason, self._last_good(row["version"]), weights)
        return None

    def _last_good(self, bad: int) -> int:
        """The version to fall back on: the one that answers. Right after a restart, when only the base is in memory, it
        is the nearest version that the bad one descends from, in the end the base.
        """
        if self.live.version or self.answering:
            return self.live.version
        return self.store.last_good_before(bad)

    def _make_room(self) -> bool:
        """Unload the version before the live one; returns False while it has streams. Until then it is kept, so that
        going back to it takes no time.
        """
        with self._lock:
            unused = [p for p in self._resident.values() if p is not self.live and not p.streams]
            for policy in unused:
                self._unload(policy)
            return len(self._resident.keys() - {0} - self._guests) < RESIDENT

    # -- for people who compare versions

    def in_memory(self) -> list[int]:
        """The versions that can reply at once, newest first."""
        with self._lock:
            return sorted(self._resident, reverse=True)

    def resident(self, version: int) -> Policy:
        """A version that is in memory; VersionGone where it is not."""
        policy = self._resident.get(version)
        if policy is None:
            raise VersionGone(version)
        return policy

    def pin_all(self, versions: Sequence[int]) -> list[Policy]:
        """`pin` for several versions by number: all of them, or none and VersionGone."""
        with self._lock:
            policies = [self.resident(version) for version in versions]
            for policy in policies:
                policy.streams += 1
            return policies

    def dismiss_guests(self, keep: Collection[int]) -> int:
        """Unload the guests that have no streams and are not among `keep`; returns how many guests there still are."""
        with self._lock:
            for version in self._guests - set(keep):
                policy = self._resident[version]
                if not policy.streams:
                    self._unload(policy)
            return len(self._guests)

    def add_guest(self, row: dict[str, Any]) -> None:
        """Build and check the version of a row of the store and have it in memory as a guest. Its row stays as it is,
        whatever `_build` and `_admit` raise.
        """
        with self._spare_core():
            policy = self._build(row)
            self._admit(policy)
        with self._lock:
            self._resident[policy.version] = policy
            self._guests.add(policy.version)

    def _unload(self, policy: Policy) -> None:
        """Forget a version, with the lock held. The base is always kept: its tensors are there anyway."""
        self._kv_pool.forget(policy.forward)
        if isinstance(policy.forward, DrawingForward):
            policy.forward.unload()
        if policy.version:
            del self._resident[policy.version]
            self._guests.discard(policy.version)
            self._lora_pool.release(policy.model)

    # -- the live version on trial

    def follow_trial(self) -> None:
        """End the live version's trial where the votes say enough; else have both of its versions in memory."""
        row = self.store.open_trial()
        if row is None or row["version"] != self.live.version:
            self.on_trial = None
            return
        if not self.settings.trial.duels:  # it was begun before the setting was changed
            self.on_trial = None
            self.store.end_trial(row["version"], "undecided", trial.NO_TRIALS)
            return
        tally = trial.tally_of(self.store, row)
        verdict = trial.verdict(tally, self.settings)
        if verdict:
            self.on_trial = None
            self.store.end_trial(row["version"], verdict, trial.reason(verdict, tally, row["against"]))
            log.info("v%s after %d wins and %d losses: %s", row["version"], tally.wins, tally.losses, Loggable(verdict))
        elif self.on_trial is None or self.on_trial.new is not self.live:
            before = self._before(row)
            self.on_trial = OnTrial(self.live, before) if before else None

    def _before(self, trial_row: dict[str, Any]) -> Policy | None:
        """The version that the live one is compared with, built if it is not in memory; None while there is no room for
        it. Where it cannot be used, the trial ends undecided.
        """
        version = trial_row["against"]
        policy = self._resident.get(version)
        if policy or not self._make_room():
            with self._lock:
                self._guests.discard(version)
            return policy
        row = self.store.policy(version)
        try:
            with self._spare_core():
                policy = self._build(row or {"version": version})
                self._admit(policy)
        except StoreError:
            raise
        except Exception as error:
            log.error("the trial of v%s ends: %s", trial_row["version"], adapter_reading.in_words(error))
            self.store.end_trial(trial_row["version"], "undecided", trial.gone(version))
            return None
        with self._lock:
            self._resident[version] = policy
        return policy

    def _build(self, row: dict[str, Any]) -> Policy:
        """The version of a row, read from disk and checked; BadAdapter where it cannot be used."""
        manifest, tensors = adapter_reading.read(
            adapters.place(self.settings.adapters_dir, row["path"]),
            base_hash=self._identity["hash"],
            expected_sha256=row["sha256"],
        )
        weights = manifest["files"][adapter_reading.WEIGHTS]["sha256"]
        earlier = self.store.quarantined(row["version"], weights)
        if earlier:
            raise adapter_reading.BadAdapter(
                f"v{row['version']} has the very weights of v{earlier['version']}, which was rejected: "
                f"{earlier['reason']}"
            )
        model = adapters.build(manifest, tensors, self._lora_pool)
        return Policy(row["version"], model, self.live.forward.for_model(model), weights)

    def _admit(self, policy: Policy) -> None:
        """Check a version that was just built, BadAdapter as `Canaries.check`, and prepare it."""
        self._canaries.check(policy.version, policy.forward, self.end_tokens)
        self._prepare(policy)

    def _prepare(self, policy: Policy) -> None:
        """Make what the version's first reply would otherwise wait for."""
        if isinstance(policy.forward, DrawingForward):
            policy.forward.prepare(of_chat(self.settings.chat))
