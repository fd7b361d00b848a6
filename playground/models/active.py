"""Active learning: which two of several replies a person is asked about, by the reward head that the last votes gave.

thompson  double Thompson sampling (Dwaracherla et al. 2024): two heads are drawn from the posterior, and each shows the
          reply that it likes best. So pairs are shown whose better reply is still uncertain. The probability of the
          pair is stored with it.
best      the best of the first half of the candidates against the best of the second half: best-of-n, until PPO has
          caught up.

The worker writes the head to a file after every vote; while there is none, the first two candidates are the pair.
"""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from playground.models import feature_trunk, scorer
from playground.settings import Settings
from playground.system.threads import run_in_own_thread

log = logging.getLogger(__name__)

MAX_REDRAWS = 30  # heads drawn for a second favourite that is not the first; then any other reply is taken
DRAWS = 1000  # heads that the favourites' shares are counted over


class Pair(NamedTuple):
    """The two replies that are shown, and how they were picked (as `Store.finish_duel` records it)."""

    first: int = 0  # index of the left reply
    second: int = 1  # index of the right reply
    pairing: str = "same_policy"
    probability: float = 1.0  # of these two, in either order


class DrawnPair(NamedTuple):
    """Two indices drawn from the favourites' shares."""

    first: int
    second: int
    probability: float  # of these two, in either order


def head_file(settings: Settings, base_hash: str) -> Path:
    """Where the worker writes the head that the last votes give on this base model."""
    return settings.data_dir / "reward" / f"{base_hash[:16]}.safetensors"


class Picker:
    """Picks pairs by the newest head; its trunk is loaded at the first pick. One pick at a time, from any thread."""

    def __init__(self, settings: Settings, base_hash: str) -> None:
        self.settings = settings
        self.file = head_file(settings, base_hash)
        self._trunk: feature_trunk.FeatureTrunk | None = None
        self._model: scorer.RewardModel | None = None
        self._model_time: int | None = None  # when the file that `_model` is from was written, in ns
        self._lock = threading.Lock()

    def pair(self, prompt: list[int], completions: Sequence[list[int]], seed: int) -> Pair:
        """The Pair among these replies (token ids). If picking fails, it is the first two."""
        if all(completions):
            try:
                with self._lock:
                    replies = [(prompt, completion) for completion in completions]
                    generator = torch.Generator().manual_seed(seed)
                    return run_in_own_thread(self.settings.threads, lambda: self._pick(replies, generator))
            except Exception:
                log.exception("the pair could not be picked; the first two are shown")
        return Pair()

    def _pick(self, replies: list[feature_trunk.TokenisedReply], generator: torch.Generator) -> Pair:
        if not self.file.exists():
            return Pair()
        if self._trunk is None:
            self._trunk = feature_trunk.FeatureTrunk(self.settings)
        model = self._newest(self._trunk)
        if model is None:
            return Pair()
        features = model.features(self._trunk, replies)
        if self.settings.chat.pick == "thompson":
            drawn = pair(favourites(model, features, generator), generator)
            swapped = bool(torch.randint(2, (), generator=generator))  # else the favourite would mostly be left
            left, right = (drawn.second, drawn.first) if swapped else (drawn.first, drawn.second)
            return Pair(left, right, "active", drawn.probability)
        scores = model.raw(features)
        half = len(replies) // 2
        return Pair(int(scores[:half].argmax()), half + int(scores[half:].argmax()))

    def _newest(self, trunk: feature_trunk.FeatureTrunk) -> scorer.RewardModel | None:
        """The model in the file; None where it was written under other settings, so that it reads other features."""
        written = self.file.stat().st_mtime_ns
        if written != self._model_time:
            model = scorer.RewardModel.load(self.file)
            self._model_time = written
            self._model = model if model.parts[:-1] == trunk.parts else None
        return self._model


def favourites(model: scorer.RewardModel, features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Share of heads drawn from the posterior that each of n replies (features (n, D)) is the favourite of: (n,), sums
    to 1.
    """
    scores = model.posterior_draws(features, DRAWS, generator)  # (DRAWS, n)
    return torch.bincount(scores.argmax(1), minlength=len(features)) / DRAWS


def pair(shares: torch.Tensor, generator: torch.Generator) -> DrawnPair:
    """Draw two of n replies by the favourites' shares (n,), n at least 2."""
    first = int(torch.multinomial(shares, 1, generator=generator))
    second = int(torch.multinomial(second_favourite(shares, first), 1, generator=generator))
    one_order = shares[first] * second_favourite(shares, first)[second]
    other_order = shares[second] * second_favourite(shares, second)[first]
    return DrawnPair(first, second, (one_order + other_order).item())


def second_favourite(shares: torch.Tensor, first: int) -> torch.Tensor:
    """Probabilities (n,) of the second reply given the first: the shares of the others, or any of them alike after
    MAX_REDRAWS heads that like the first.
    """
    others = shares.double().clone()
    others[first] = 0
    evenly = torch.ones_like(others) / (len(shares) - 1)
    evenly[first] = 0
    if not others.any():
        return evenly
    gave_up = (1 - others.sum()).clamp(min=0) ** MAX_REDRAWS
    return (1 - gave_up) * others / others.sum() + gave_up * evenly
