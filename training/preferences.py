"""Votes to preference examples, and their split. What a vote says of scores is `likelihood.py`'s, where the scores
come from `reward.py`'s.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from playground.models import prompts
from playground.settings import Settings
from playground.store import Store
from training import imported
from training.likelihood import TIE, A, B

OUTCOMES = {"a": A, "tie": TIE, "b": B}  # of a vote's choice

Row = Mapping[str, Any]  # a row of the store
Reply = tuple[list[int], list[int]]  # prompt ids, completion ids


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt, and which of them is better. `left` and `right` are indices into
    `Preferences.replies`.
    """

    left: int
    right: int
    outcome: int  # A, TIE or B
    weight: float = 1.0
    group: str = ""  # see `Preferences`
    vote: int | None = None  # the vote's id in the store; None for an edited reply and for an imported pair
    imported: bool = False  # judged elsewhere: it trains like a vote, and no figure about votes counts it
    annotator: int | None = None  # who judged it here


@dataclass(frozen=True)
class PointwiseLabel:
    """One reply judged alone, by a thumb or by a both-bad vote. `reply` is an index into `Preferences.replies`."""

    reply: int
    good: bool
    weight: float = 1.0
    group: str = ""
    annotator: int | None = None  # who judged it here


@dataclass(frozen=True)
class CountedVote:
    """A vote's id in the store, and its group."""

    id: int
    group: str


@dataclass
class Preferences:
    """Training examples over a list of distinct replies.

    Every example has a `group`. The split into training and held-out part keeps groups whole. A group is a
    conversation, with those that go on with its dialogue; where there are too few, it is a context (the prompt that was
    replied to).
    """

    replies: list[Reply] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    labels: list[PointwiseLabel] = field(default_factory=list)
    # every vote, both-bad included, so that their number is the one that the page shows
    votes: list[CountedVote] = field(default_factory=list)
    # groups that the reported accuracy is measured on; they are kept out of that fit and out of the rollouts
    heldout: frozenset[str] = frozenset()
    split_by: str = "conversation"

    @property
    def judged(self) -> list[Pair]:
        """The pairs that people judged here."""
        return [pair for pair in self.pairs if not pair.imported]

    def subset(self, keep_group: Callable[[str], bool]) -> "Preferences":
        """The same replies with only the pairs and labels of the groups that `keep_group` accepts."""
        return replace(
            self,
            pairs=[pair for pair in self.pairs if keep_group(pair.group)],
            labels=[label for label in self.labels if keep_group(label.group)],
        )

    def group_of(self, row: Row) -> str:
        """The group of what was said in the store's `row`."""
        if self.split_by == "context":
            return f"context {_digest(row['prompt'])}"
        return f"conversation {_dialogue(row)}"

    def training_part(self) -> "Preferences":
        return self.subset(lambda group: group not in self.heldout)

    def heldout_part(self) -> "Preferences":
        return self.subset(lambda group: group in self.heldout)

    def as_json(self) -> dict[str, Any]:
        """What `preferences.json` in a round's folder holds: records as plain lists, in the order of their fields."""
        return {
            "replies": self.replies,
            "pairs": [astuple(pair) for pair in self.pairs],
            "points": [(label.reply, int(label.good), *astuple(label)[2:]) for label in self.labels],
            "votes": [astuple(vote) for vote in self.votes],
            "heldout": sorted(self.heldout),
            "split_by": self.split_by,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Preferences":
        """The inverse of `as_json`."""
        return cls(
            replies=[(prompt, completion) for prompt, completion in data["replies"]],
            pairs=[Pair(*values) for values in data["pairs"]],
            labels=[PointwiseLabel(reply, bool(good), *rest) for reply, good, *rest in data["points"]],
            votes=[CountedVote(*values) for values in data["votes"]],
            heldout=frozenset(data["heldout"]),
            split_by=data["split_by"],
        )


MIN_CONVERSATIONS = 4


def collect(
    votes: Sequence[Row],
    ratings: Sequence[Row],
    demonstrations: Sequence[Row],
    encode_reply: Callable[[str], list[int]],
    *,
    imported: Sequence[Row] = (),
    heldout_fraction: float,
    annotator_weight: float,
    seed: int,
) -> Preferences:
    """Build Preferences from the store's rows (see `Store.votes_for_training` and its neighbours).

    An edited reply is a pair that its author decided: the text after the edit over the text before it. With fewer than
    four conversations the split is by context, since no part of one conversation could be held out otherwise.
    `annotator_weight` is the largest total weight of one person's examples.

    `imported`: pairs as `imported.pairs` returns them. They are never held out, and the weights of one source add up to
    no more than one person's.
    """
    rows = [*votes, *ratings, *demonstrations]
    few_conversations = len({_dialogue(row) for row in rows}) < MIN_CONVERSATIONS
    prefs = Preferences(split_by="context" if few_conversations else "conversation")
    group_of = prefs.group_of
    index_of: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}

    def add_reply(prompt: Sequence[int], completion: Sequence[int]) -> int:
        key = (tuple(prompt), tuple(completion))
        if key not in index_of:
            index_of[key] = len(prefs.replies)
            prefs.replies.append((list(prompt), list(completion)))
        return index_of[key]

    def add_judgement(pair: Pair, choice: str) -> None:
        if choice == "both_bad":
            # half each: it is one judgement
            label = PointwiseLabel(pair.left, False, pair.weight / 2, pair.group, pair.annotator)
            prefs.labels += [label, replace(label, reply=pair.right)]
        elif pair.left != pair.right:
            prefs.pairs.append(replace(pair, outcome=OUTCOMES[choice]))

    totals = Counter(row["annotator"] for row in rows)
    weight_of = {annotator: min(1.0, annotator_weight / total) for annotator, total in totals.items()}
    for vote in votes:
        group = group_of(vote)
        weight = weight_of[vote["annotator"]]
        prefs.votes.append(CountedVote(vote["vote"], group))
        left = add_reply(vote["prompt"], vote["left_ids"])
        right = add_reply(vote["prompt"], vote["right_ids"])
        pair = Pair(left, right, TIE, weight, group, vote["vote"], annotator=vote["annotator"])
        add_judgement(pair, vote["choice"])
    for rating in ratings:
        reply = add_reply(rating["prompt"], rating["completion"])
        annotator = rating["annotator"]
        good = rating["thumb"] > 0
        prefs.labels.append(PointwiseLabel(reply, good, weight_of[annotator], group_of(rating), annotator))
    for edit in demonstrations:
        after = add_reply(edit["prompt"], encode_reply(edit["after"]))
        before = add_reply(edit["prompt"], edit["completion"])
        if after != before:
            annotator = edit["annotator"]
            prefs.pairs.append(Pair(after, before, A, weight_of[annotator], group_of(edit), annotator=annotator))
    prefs.heldout = held_out([pair.group for pair in prefs.pairs], heldout_fraction, seed)
    source_totals: Counter[str] = Counter()
    for row in imported:
        source_totals[row["source"]] += row["weight"]
    for row in imported:
        weight = row["weight"] * min(1.0, annotator_weight / source_totals[row["source"]])
        left, right = (add_reply(row["prompt"], row[side]) for side in ("left_ids", "right_ids"))
        pair = Pair(left, right, TIE, weight, f"imported {_digest(row['prompt'])}", imported=True)
        add_judgement(pair, row["choice"])
    return prefs


def _dialogue(row: Row) -> int:
    """The first conversation of a row's dialogue."""
    return row.get("dialogue") or row["conversation"]


def from_store(
    store: Store,
    base_hash: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    obey: imported.Obey = imported.go_on,
) -> Preferences:
    """Preferences of all that people said about replies of this base model, and of pairs that were imported. `obey` is
    called before each of these.
    """
    return collect(
        store.votes_for_training(base_hash),
        store.ratings_for_training(base_hash),
        store.demonstrations(base_hash),
        lambda text: prompts.encode_reply(text, tokenizer),
        imported=imported.pairs(store, tokenizer, settings, obey),
        heldout_fraction=settings.preferences.heldout_fraction,
        annotator_weight=settings.preferences.annotator_weight,
        seed=settings.seed,
    )


# -- the split


def held_out(groups: Sequence[str], fraction: float, seed: int) -> frozenset[str]:
    """Whole groups that together have about `fraction` of the entries of `groups` (one entry an example). The choice
    depends only on the groups' names and the seed.
    """
    distinct = sorted(set(groups), key=lambda group: _digest(seed, group))
    sizes = Counter(groups)
    chosen: set[str] = set()
    total = 0
    for group in distinct[:-1]:
        size = sizes[group]
        fits = total + size <= fraction * len(groups)
        first_of_at_most_half = not chosen and size <= len(groups) / 2
        if fits or first_of_at_most_half:
            chosen.add(group)
            total += size
        if total >= fraction * len(groups):
            break
    return frozenset(chosen)


def folds(groups: Iterable[str], k: int, seed: int) -> dict[str, int]:
    """Assign each group to one of at most `k` folds: {group: fold}."""
    distinct = sorted(set(groups), key=lambda group: _digest(seed, "fold", group))
    return {group: i % k for i, group in enumerate(distinct)}


def _digest(*key: object) -> str:
    return hashlib.sha256("/".join(map(str, key)).encode()).hexdigest()


# -- counts


def count_correct(score_a: np.ndarray, score_b: np.ndarray, outcome: np.ndarray) -> tuple[float, int]:
    """(correct, decided): `decided` pairs are no ties, and the scores order `correct` of them as the vote did. Equal
    scores count half. Arrays (N,).
    """
    decided = outcome != TIE
    voted_sign = np.where(outcome == A, 1, -1)[decided]
    agreement = voted_sign * np.sign(score_a - score_b)[decided]
    return float((agreement > 0).sum() + 0.5 * (agreement == 0).sum()), int(decided.sum())


def count_decided(pairs: Collection[Pair]) -> int:
    """How many pairs are no ties."""
    return sum(pair.outcome != TIE for pair in pairs)
