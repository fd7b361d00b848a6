"""Forecasts between rounds: before the reward head learns from a vote, it predicts how the vote goes, and the store
keeps the prediction.

A forecast is made by a head that has seen only the other, earlier votes, so their hit rate is an honest one. Owns the
features of replies that are kept on disk; a round fits its own reward model.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from playground.models import active, loading
from playground.models.feature_trunk import FeatureTrunk
from playground.models.scorer import ExtractedFeatures, RewardModel
from playground.settings import Settings
from playground.store import Store, StoreUnavailable
from playground.system import memory
from training import preferences, reward
from training.erase import reply_name
from training.preferences import Pair, Preferences, Reply
from training.reward_head import designs, one_thread
from training.reward_validation import Choice, Predictions, choose

log = logging.getLogger(__name__)

MIN_DECIDED = 4  # with fewer votes for A or B there is no forecast
CHOOSE_UP_TO = 200  # votes; up to here heads are chosen for each forecast, which takes 1 to 2 seconds


@dataclass(frozen=True)
class Forecast:
    """What a head predicted of a vote; both are None where too few votes came before."""

    probability: float | None = None  # of the choice that was made
    hit: bool | None = None  # whether the reply with the higher score won; None for a tie


class Forecaster:
    """Forecasts votes as they come in. Its trunk is loaded at the first vote and dropped by `rest`, before a round
    needs the memory.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self._trunk: FeatureTrunk | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._choices: list[Choice] | None = None  # the heads
        self._given_up: set[int] = set()  # votes that could not be forecast

    def step(self) -> bool:
        """Forecast the votes that have no forecast yet; returns whether there were any.

        A failure is logged once and costs these forecasts, nothing else. StoreUnavailable is passed on.
        """
        base_hash = self.store.last_base_hash()
        if base_hash is None:
            return False
        waiting = self.store.votes_to_forecast(base_hash) - self._given_up
        if not waiting:
            return False
        try:
            self.forecast(base_hash, waiting)
        except StoreUnavailable:
            raise
        except Exception:
            log.exception("%d votes could not be forecast", len(waiting))
            self._given_up |= waiting
        return True

    def forecast(self, base_hash: str, waiting: set[int]) -> None:
        """Forecast the votes with the ids `waiting` from all the others, then write the head that all votes give to
        where the chat reads it.
        """
        prefs = preferences.from_store(self.store, base_hash, self.tokenizer, self.settings)
        new_pairs = [pair for pair in prefs.pairs if pair.vote in waiting]
        known = replace(prefs, pairs=[pair for pair in prefs.pairs if pair.vote not in waiting])
        forecasts = self.forecasts(prefs, known, new_pairs)
        if self.settings.chat.candidates > 2:
            self.write_head(prefs, active.head_file(self.settings, base_hash))
        made = {pair.vote: forecast for pair, forecast in zip(new_pairs, forecasts, strict=True)}
        nothing = Forecast()  # of both bad, or the same reply twice
        self.store.add_forecasts(
            [(vote, made.get(vote, nothing).probability, made.get(vote, nothing).hit) for vote in sorted(waiting)]
        )

    def forecasts(self, prefs: Preferences, known: Preferences, new_pairs: Sequence[Pair]) -> list[Forecast]:
        """The Forecast of each of `new_pairs`, by a head fitted on the pairs of `known`."""
        if preferences.count_decided(known.pairs) < MIN_DECIDED or not new_pairs:
            return [Forecast()] * len(new_pairs)
        extracted = self.extract(prefs)
        model = self.fit(extracted, known)
        predictions = Predictions.of(model.raw(extracted.features), model.log_nu, new_pairs)
        probabilities = (-predictions.pair_nll()).exp().tolist()
        margins = predictions.margin.tolist()
        forecasts = []
        for pair, probability, margin in zip(new_pairs, probabilities, margins, strict=True):
            decided = pair.outcome != preferences.TIE
            hit = (margin > 0) == (pair.outcome == preferences.A) if decided else None
            forecasts.append(Forecast(probability, hit))
        return forecasts

    def write_head(self, prefs: Preferences, file: Path) -> None:
        """Write the head that all votes give, once enough of them are decided."""
        if preferences.count_decided(prefs.pairs) < MIN_DECIDED:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        self.fit(self.extract(prefs), prefs).save(partial)
        partial.rename(file)

    def fit(self, extracted: ExtractedFeatures, prefs: Preferences) -> RewardModel:
        with one_thread():
            if self._choices is None or len(prefs.judged) <= CHOOSE_UP_TO:
                self._choices = choose(designs(extracted, prefs, self.settings), prefs, self.settings.seed)
            return reward.fit_model(extracted, prefs, self._choices)

    def rest(self) -> None:
        """Free the trunk's memory, on a GPU too."""
        if self._trunk is not None:
            self._trunk = None
            memory.release()

    # -- parts

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            self._tokenizer = loading.load_tokenizer(self.settings)
        return self._tokenizer

    @property
    def trunk(self) -> FeatureTrunk:
        if self._trunk is None:
            self._trunk = FeatureTrunk(self.settings)
        return self._trunk

    def extract(self, prefs: Preferences) -> ExtractedFeatures:
        return ExtractedFeatures.of(self.features(prefs.replies), self.trunk.parts, prefs.replies)

    def features(self, replies: Sequence[Reply]) -> torch.Tensor:
        """(N, D). The features of each reply are computed once and kept in DATA/features, in a folder for each base
        model, quantisation and choice of layers.
        """
        key = json.dumps([self.store.last_base_hash(), self.settings.reward.quantisation, self.trunk.layers])
        folder = self.settings.data_dir / "features" / _digest(key)
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{reply_name(reply)}.npy" for reply in replies]
        missing = [i for i, file in enumerate(files) if not file.exists()]
        if missing:
            rows = self.trunk.features([replies[i] for i in missing])
            for i, row in zip(missing, rows, strict=True):
                partial = files[i].with_suffix(".partial.npy")
                np.save(partial, row.numpy())
                partial.rename(files[i])
        return torch.from_numpy(np.stack([np.load(file) for file in files]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
