"""Between rounds: the reward head is refitted after every vote, and says beforehand how the vote would go; what it said
is kept.

A forecast is made by a head that has seen only the votes before it, so their hit rate is an honest one. Owns the
features that it keeps on disk; rounds fit their own reward model.
"""

import hashlib
import json
import logging
from dataclasses import replace

import numpy as np
import torch

from playground.models import active, loading, prompts, scorer
from playground.store import StoreUnavailable
from training import preferences, reward
from training.erase import reply_name

log = logging.getLogger(__name__)

MIN_DECIDED = 4  # fewer votes for A or B say nothing about the next
CHOOSE_UP_TO = 200  # votes up to which view and penalty are chosen anew for each forecast, which takes a second or two


class Forecaster:
    """Forecasts votes as they come in. Its trunk is loaded at the first vote and dropped by `rest`, before a round
    needs the memory.
    """

    def __init__(self, store, settings):
        self.store, self.settings = store, settings
        self._trunk = self._tokenizer = self._choice = None
        self._given_up = set()

    def step(self):
        """Forecast the votes that have none yet; whether there were any. A failure is logged once and costs these
        forecasts, nothing else; StoreUnavailable is passed on."""
        base_hash = self.store.last_base_hash()
        waiting = self.store.votes_to_forecast(base_hash) - self._given_up if base_hash else None
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

    def forecast(self, base_hash, waiting):
        """Forecast the votes `waiting` (ids) from all the others, then leave the head that all of them give where the
        chat finds it.
        """
        prefs = preferences.from_store(self.store, base_hash, self.encode_reply, self.settings)
        fresh = [p for p in prefs.pairs if p[5] in waiting]
        known = replace(prefs, pairs=[p for p in prefs.pairs if p[5] not in waiting])
        chances = self.chances(prefs, known, fresh)
        if self.settings.candidates > 2:
            self.leave_head(prefs, active.head_file(self.settings, base_hash))
        self.store.add_forecasts([(p[5], *chance) for p, chance in zip(fresh, chances, strict=True)])
        self.store.add_forecasts(
            [(vote, None, None) for vote in waiting - {p[5] for p in fresh}]
        )  # both bad, or twice the same reply

    def chances(self, prefs, known, fresh):
        """[(probability of what was voted, whether the better-scored side won or None of a tie)] of fresh pairs; (None,
        None) from too few votes.
        """
        if sum(p[2] != preferences.TIE for p in known.pairs) < MIN_DECIDED or not fresh:
            return [(None, None)] * len(fresh)
        reading = self.read(prefs)
        model = self.fit(reading, known)
        said = reward.Predictions.of(model.raw(reading.features), model.log_nu, fresh)
        chance = (-preferences.pair_nll(said.delta / 2, -said.delta / 2, said.outcome, said.log_nu)).exp().tolist()
        hit = [
            None if o == preferences.TIE else bool((d > 0) == (o == preferences.A))
            for d, o in zip(said.delta.tolist(), said.outcome.tolist(), strict=True)
        ]
        return list(zip(chance, hit, strict=True))

    def leave_head(self, prefs, file):
        """Write the head that all votes give, once enough of them decided."""
        if sum(p[2] != preferences.TIE for p in prefs.pairs) >= MIN_DECIDED:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            self.fit(self.read(prefs), prefs).save(partial)
            partial.rename(file)

    def fit(self, reading, prefs):
        with reward.one_thread():
            if self._choice is None or len(prefs.pairs) <= CHOOSE_UP_TO:
                self._choice = reward.choose(reward.designs(reading, prefs, self.settings), prefs, self.settings.seed)
            return reward.fit_model(reading, prefs, *self._choice)

    def rest(self):
        """Give the trunk's memory back."""
        self._trunk = None

    # -- parts

    def encode_reply(self, text):
        self._tokenizer = self._tokenizer or loading.load_tokenizer(self.settings)
        return prompts.encode_reply(text, self._tokenizer)

    @property
    def trunk(self):
        self._trunk = self._trunk or scorer.FeatureTrunk(self.settings)
        return self._trunk

    def read(self, prefs):
        return scorer.Reading.of(self.features(prefs.replies), self.trunk.parts, prefs.replies)

    def features(self, replies):
        """(N, D); each reply is read once and kept in DATA/features, in a folder for each base model and way of reading
        it.
        """
        key = json.dumps([self.store.last_base_hash(), self.settings.reward_quantisation, self.trunk.layers])
        folder = self.settings.data_dir / "features" / _digest(key)
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{reply_name(reply)}.npy" for reply in replies]
        missing = [i for i, file in enumerate(files) if not file.exists()]
        for i, row in zip(missing, self.trunk.features([replies[i] for i in missing]) if missing else [], strict=True):
            partial = files[i].with_suffix(".partial.npy")
            np.save(partial, row.numpy())
            partial.rename(files[i])
        return torch.from_numpy(np.stack([np.load(file) for file in files]))


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:32]
