"""Real people's votes as a reward model reads them: from the file to the features of the trunk."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.pool import Cache
from playground.models import feature_trunk, loading, prompts, sources
from playground.models.scorer import ExtractedFeatures
from playground.settings import Settings
from training import preferences
from training.preferences import TIE, A, B, Pair, Preferences

FOLDS = 5
CHUNK = 32  # replies whose features are kept together


@dataclass(frozen=True)
class VotedPair:
    """Two replies to a prompt, and what several people said of them."""

    prompt: str
    replies: tuple[str, str]
    votes: tuple[int, ...]  # of each person 1, 2 or 0

    @property
    def majority(self) -> int | None:
        """A, TIE or B, as more than half of the people said; None where they did not."""
        vote, count = Counter(self.votes).most_common(1)[0]
        return {1: A, 2: B, 0: TIE}[vote] if 2 * count > len(self.votes) else None


def read_votes(file: Path) -> list[VotedPair]:
    """The rows of a file whose replies differ."""
    pairs = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = "\n\n".join(part for part in (str(row["instruction"]), str(row["input"])) if part)
        replies = (str(row["reply_1"]), str(row["reply_2"]))
        if replies[0] != replies[1]:
            pairs.append(VotedPair(prompt, replies, tuple(row["votes"])))
    return pairs


def agreement(pairs: Sequence[VotedPair]) -> tuple[float, int]:
    """How often one person's vote for a reply is another one's too, and over how many pairs of votes."""
    same = [
        one == other
        for pair in pairs
        for one, other in itertools.combinations(pair.votes, 2)
        if one and other  # neither is a tie
    ]
    return mean(same), len(same)


@dataclass(frozen=True)
class Votes:
    """All votes that have a majority, and the features of their replies."""

    prefs: Preferences
    texts: list[tuple[str, str]]  # (prompt, reply) of each of `prefs.replies`
    features: torch.Tensor  # (N, D), of the trunk
    parts: list[int]  # widths of the features' parts

    def fold(self, k: int, seed: int) -> tuple[list[int], list[Pair]]:
        """Indices of the pairs outside fold `k`, and the decided pairs inside."""
        fold_of = preferences.folds([pair.group for pair in self.prefs.pairs], FOLDS, seed)
        outside = [i for i, pair in enumerate(self.prefs.pairs) if fold_of[pair.group] != k]
        inside = [pair for pair in self.prefs.pairs if fold_of[pair.group] == k and pair.outcome != TIE]
        return outside, inside

    def some(self, indices: Sequence[int]) -> tuple[Preferences, ExtractedFeatures]:
        """These pairs alone, with the features of their replies: what a reward model of these votes would know."""
        pairs = [self.prefs.pairs[i] for i in indices]
        chosen = sorted({reply for pair in pairs for reply in (pair.left, pair.right)})
        place = {reply: k for k, reply in enumerate(chosen)}
        prefs = Preferences(
            replies=[self.prefs.replies[reply] for reply in chosen],
            pairs=[replace(pair, left=place[pair.left], right=place[pair.right]) for pair in pairs],
        )
        return prefs, ExtractedFeatures.of(self.features[chosen], self.parts, prefs.replies)


def make_votes(
    pairs: Sequence[VotedPair], settings: Settings, cache: Cache, log: Callable[[str], None] = print
) -> Votes:
    """Tokenise the replies and read their features, those that the cache lacks."""
    tokenizer = loading.load_tokenizer(settings)
    place: dict[tuple[str, str], int] = {}
    prefs = Preferences()
    for pair in pairs:
        if pair.majority is None:
            continue
        for reply in pair.replies:
            place.setdefault((pair.prompt, reply), len(place))
        left, right = (place[pair.prompt, reply] for reply in pair.replies)
        prefs.pairs.append(Pair(left, right, pair.majority, group=pair.prompt))
    encoded = {
        prompt: prompts.encode([{"role": "user", "content": prompt}], tokenizer, settings.chat.context_tokens)
        for prompt, _ in place
    }
    prefs.replies = [(encoded[prompt], prompts.encode_reply(reply, tokenizer)) for prompt, reply in place]
    features, parts = read_features(prefs.replies, settings, cache, log)
    return Votes(prefs, list(place), features, parts)


def read_features(
    replies: Sequence[feature_trunk.TokenisedReply], settings: Settings, cache: Cache, log: Callable[[str], None]
) -> tuple[torch.Tensor, list[int]]:
    """(features (N, D), widths of their parts), CHUNK replies at a time."""
    trunk = None
    rows: list[list[float]] = []
    parts: list[int] = []
    for start in range(0, len(replies), CHUNK):
        chunk = replies[start : start + CHUNK]

        def compute(chunk: Sequence[feature_trunk.TokenisedReply] = chunk, done: int = start) -> list[Any]:
            nonlocal trunk
            trunk = trunk or feature_trunk.FeatureTrunk(settings)
            log(f"features of replies {done + 1} to {done + len(chunk)} of {len(replies)}")
            return [trunk.parts, trunk.features(chunk).tolist()]

        parts, features_of_part = cache.get(
            compute,
            kind="features",
            model=sources.resolve(settings).rsplit("/", 1)[-1],
            quantisation=settings.reward.quantisation,
            depths=[settings.reward.layer, *feature_trunk.DEPTHS],
            ids=chunk,
        )
        rows += features_of_part
    return torch.tensor(rows), parts
