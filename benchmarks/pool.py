"""Replies that simulated people vote on, kept with their features, and the votes; every result is cached by what it was
made from.
"""

import hashlib
import inspect
import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import sqlite_utils
import torch

from benchmarks.report import Log
from playground.models import loading, prompts, sources
from playground.models.feature_trunk import DEPTHS, FeatureTrunk
from playground.settings import Settings
from training import annotators, preferences, rollout
from training.annotators import Person, Score
from training.preferences import OUTCOMES, Pair, Preferences

Indices = tuple[int, int]  # of two replies in a pool


@dataclass
class Pool:
    """Replies of the base to the shipped prompts, with their features."""

    prompts: list[str]  # of each reply, its prompt's text
    texts: list[str]
    ids: list[tuple[list[int], list[int]]]  # (prompt ids, completion ids)
    ended: list[bool]
    heldout: list[bool]  # of each reply, whether its prompt is held out
    features: torch.Tensor  # (N, D)
    parts: list[int]  # widths of the features' parts

    def groups(self, heldout: bool) -> list[list[int]]:
        """Indices of the replies to one prompt, prompt by prompt."""
        wanted = (i for i in range(len(self.ids)) if self.heldout[i] == heldout)
        return [list(group) for _, group in itertools.groupby(wanted, key=lambda i: self.prompts[i])]

    def pairs(self, heldout: bool) -> list[list[Indices]]:
        """All index pairs of replies to one prompt, prompt by prompt."""
        return [list(itertools.combinations(group, 2)) for group in self.groups(heldout)]

    def scores(self, score: Score) -> list[float]:
        """An annotator's score of every reply."""
        return [score(p, t) for p, t in zip(self.prompts, self.texts, strict=True)]


class KnownFeatures:
    """Stands for the trunk: features looked up instead of computed."""

    def __init__(self, pool: Pool, chosen: list[int]) -> None:
        self.parts = pool.parts
        self._rows = pool.features[chosen]

    def features(self, _replies: Any, _on_batch: Any = None) -> torch.Tensor:
        return self._rows


class Cache:
    """Results by what they were made from, in `DATA/benchmarks/NAME.db`."""

    def __init__(self, settings: Settings, name: str = "learning") -> None:
        folder = settings.data_dir / "benchmarks"
        folder.mkdir(parents=True, exist_ok=True)
        self.table = sqlite_utils.Database(folder / f"{name}.db")["result"]

    def get(self, make: Callable[[], Any], *code: ModuleType, **key: Any) -> Any:
        """`make()`, or what it returned before for the same key and the same source of the modules `code`."""
        digest = self._digest(code, key)
        if (cell := self._find(digest)) is not None:
            return cell
        value = make()
        self.table.insert(
            {"id": digest, "key": json.dumps(key, sort_keys=True), "value": json.dumps(value)}, pk="id", replace=True
        )
        return value

    def known(self, *code: ModuleType, **key: Any) -> Any:
        """What `get` would return without making it; None where it has not been made."""
        return self._find(self._digest(code, key))

    def _find(self, digest: str) -> Any:
        row = next(self.table.rows_where("id = ?", [digest]), None) if self.table.exists() else None
        return row and json.loads(row["value"])

    @staticmethod
    def _digest(code: Sequence[ModuleType], key: dict[str, Any]) -> str:
        sources = [hashlib.sha256(inspect.getsource(module).encode()).hexdigest() for module in code]
        return hashlib.sha256(json.dumps([key, sources], sort_keys=True).encode()).hexdigest()


def make_pool(
    settings: Settings,
    cache: Cache,
    prompts_each: int | None,
    log: Log = print,
    parts: Sequence[str] = ("train", "heldout"),
) -> Pool:
    """Sample and read the pool, or find it in the cache; `prompts_each` limits each part's prompts."""
    tokenizer = loading.load_tokenizer(settings)
    key = {
        "model": sources.resolve(settings).rsplit("/", 1)[-1],
        "temperature": settings.chat.temperature,
        "tokens": settings.chat.reply_tokens,
        "seed": settings.seed,
        "replies": settings.replies,
    }
    lines, ids, ended, held = [], [], [], []
    trunk, end = None, None
    for part in parts:
        texts = (rollout.SEED_PROMPTS / f"{part}.txt").read_text().splitlines()[:prompts_each]
        for start in range(0, len(texts), 8):
            chunk = texts[start : start + 8]
            encoded = [
                prompts.encode([{"role": "user", "content": line}], tokenizer, settings.chat.context_tokens)
                for line in chunk
            ]

            def sample(encoded=encoded, chunk=chunk):
                nonlocal trunk, end
                trunk = trunk or loading.load_trunk(settings)
                end = end or loading.end_tokens(trunk, tokenizer)
                episodes = rollout.Rollouts(trunk).sample(
                    encoded,
                    rollout.generator(settings.seed, *chunk),
                    replies=settings.replies,
                    max_tokens=settings.chat.reply_tokens,
                    temperature=settings.chat.temperature,
                    end_tokens=end,
                )
                done = start + len(chunk)  # noqa: B023, called in this turn
                log(f"{part}: replies to {done} of {len(texts)} prompts")  # noqa: B023
                return [e.completion for e in episodes]

            completions = cache.get(sample, kind="replies", prompts=chunk, **key)
            for i, completion in enumerate(completions):
                lines.append(chunk[i // settings.replies])
                ids.append((encoded[i // settings.replies], completion))
                ended.append(len(completion) < settings.chat.reply_tokens)
                held.append(part == "heldout")
    del trunk
    features, feature_trunk = [], None
    for start in range(0, len(ids), 64):

        def compute(start=start):
            nonlocal feature_trunk
            feature_trunk = feature_trunk or FeatureTrunk(settings)
            log(f"features of {start} to {min(start + 64, len(ids))} of {len(ids)} replies")
            return [feature_trunk.parts, feature_trunk.features(ids[start : start + 64]).tolist()]

        widths, rows = cache.get(
            compute,
            kind="features",
            ids=ids[start : start + 64],
            quantisation=settings.reward.quantisation,
            depths=[settings.reward.layer, *DEPTHS],
            **key,
        )
        features += rows
    texts = [prompts.decode(completion, tokenizer).strip() for _, completion in ids]
    return Pool(lines, texts, ids, ended, held, torch.tensor(features), widths)


def duels(pool: Pool, n: int, seed: int) -> tuple[list[Indices], random.Random]:
    """`n` index pairs (left, right), on different prompts as far as there are any, none held out; and the random source
    that goes on.
    """
    rng = random.Random(f"{seed}/{n}")
    groups = [rng.sample(group, len(group)) for group in pool.pairs(heldout=False)]
    rng.shuffle(groups)
    chosen = [pair for layer in itertools.zip_longest(*groups) for pair in layer if pair][:n]
    return [pair if rng.random() < 0.5 else pair[::-1] for pair in chosen], rng


def choices(
    pool: Pool, pairs: Sequence[Indices], person: Person, rng: random.Random, shuffled: bool = False
) -> list[str]:
    """A person's choice on each of these duels; shuffled, they say nothing about the replies."""
    scores = annotators.standardised(pool.scores(person.score))
    said = [person.vote(scores[a], scores[b], rng) for a, b in pairs]
    if shuffled:
        rng.shuffle(said)
    return said


def vote(pool: Pool, person: Person, n: int, seed: int, shuffled: bool = False) -> tuple[Preferences, list[int]]:
    """`n` votes on the pool: (Preferences, indices of its replies in the pool)."""
    pairs, rng = duels(pool, n, seed)
    said = choices(pool, pairs, person, rng, shuffled)
    chosen = sorted({i for pair in pairs for i in pair})
    at = {i: k for k, i in enumerate(chosen)}
    prefs = preferences.Preferences(
        replies=[pool.ids[i] for i in chosen],
        pairs=[
            Pair(at[left], at[right], OUTCOMES[choice], group=f"conversation {pool.prompts[left]}", vote=k)
            for k, ((left, right), choice) in enumerate(zip(pairs, said, strict=True))
        ],
    )
    return replace(prefs, heldout=preferences.held_out([pair.group for pair in prefs.pairs], 0.2, seed)), chosen
