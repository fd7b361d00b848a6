"""Which two of several replies a person is asked about, by the reward head as the last votes left it.

thompson  double Thompson sampling (Dwaracherla et al. 2024): two heads are drawn from the posterior, and each shows the
reply that it likes best.
          Pairs that might both be the best are asked about, and what the votes have settled is not. The chance of the
          pair is kept with it.
best      the best of the first half of the candidates against the best of the second: best-of-n, until PPO has caught
up.

The worker leaves the head in a file after every vote; without one the first two candidates are the pair.
"""

import logging
import threading
from typing import NamedTuple

import torch

from playground.models import scorer
from playground.system.threads import run_in_own_thread

log = logging.getLogger(__name__)

TRIES = 30  # heads drawn for a second favourite that is not the first; then any other reply will do
DRAWS = 1000  # heads that the favourites' shares are counted over


class Pair(NamedTuple):
    """Indices of the left and the right reply, how they were picked (as `Store.finish_duel` has it),
    and the chance with which this pair was.
    """

    first: int = 0
    second: int = 1
    pairing: str = "same_policy"
    probability: float = 1.0


def head_file(settings, base_hash):
    """Where the worker leaves the head that the last votes give on this base model."""
    return settings.data_dir / "reward" / f"{base_hash[:16]}.safetensors"


class Picker:
    """Picks pairs by the newest head; its trunk is loaded at the first pick. One pick at a time, from any thread."""

    def __init__(self, settings, base_hash):
        self.settings, self.file = settings, head_file(settings, base_hash)
        self._trunk = self._model = self._read = None
        self._lock = threading.Lock()

    def pair(self, prompt, completions, seed):
        """The Pair among these replies (token ids). A reply that could not be read costs the choice and never the
        replies.
        """
        if all(completions):
            try:
                with self._lock:
                    replies = [(prompt, completion) for completion in completions]
                    return run_in_own_thread(
                        self.settings.threads, lambda: self._pair(replies, torch.Generator().manual_seed(seed))
                    )
            except Exception:
                log.exception("the pair could not be picked; the first two are shown")
        return Pair()

    def _pair(self, replies, generator):
        model = self._newest()
        if model is None:
            return Pair()
        x = model.features(self._trunk, replies)
        if self.settings.pick == "thompson":
            *both, chance = pair(favourites(model, x, generator), generator)
            left = torch.randint(2, (), generator=generator)  # or the favourite would mostly stand there
            return Pair(both[left], both[1 - left], "active", chance)
        scores, half = model.raw(x), len(replies) // 2
        return Pair(scores[:half].argmax().item(), half + scores[half:].argmax().item())

    def _newest(self):
        if not self.file.exists():
            return None
        self._trunk = self._trunk or scorer.FeatureTrunk(self.settings)
        if (written := self.file.stat().st_mtime_ns) != self._read:
            model, self._read = scorer.RewardModel.load(self.file), written
            self._model = model if model.parts[:-1] == self._trunk.parts else None  # written under other settings
        return self._model


def favourites(model, features, generator):
    """Share of heads drawn from a RewardModel's posterior that each of n replies (features (n, D)) is the favourite of:
    (n,), sums to 1.
    """
    x = model.design(features)
    noise = torch.randn(model.factor.shape[1], DRAWS, generator=generator)
    scores = (x @ model.weight)[:, None] + x @ model.basis @ model.factor @ noise  # (n, DRAWS)
    return torch.bincount(scores.argmax(0), minlength=len(features)) / DRAWS


def pair(shares, generator):
    """(first, second, probability that these two are picked, in either order) for the favourites' shares (n,), n at
    least 2.
    """
    first = torch.multinomial(shares, 1, generator=generator).item()
    second = torch.multinomial(second_favourite(shares, first), 1, generator=generator).item()
    chance = sum(shares[i] * second_favourite(shares, i)[j] for i, j in ((first, second), (second, first)))
    return first, second, chance.item()


def second_favourite(shares, first):
    """Chances (n,) of the second reply given the first: the shares of the others, or evenly any of them after TRIES
    heads that like the first.
    """
    others = shares.double().clone()
    others[first] = 0
    evenly = torch.ones_like(others) / (len(shares) - 1)
    evenly[first] = 0
    if not others.any():
        return evenly
    in_vain = (1 - others.sum()).clamp(min=0) ** TRIES
    return (1 - in_vain) * others / others.sum() + in_vain * evenly
