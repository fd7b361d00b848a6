"""The people behind the votes: who has enough of them to be told apart, what is assumed of each, and the file with
each one's own taste.

A person's taste is the shared one and a deviation of their own, both with a ridge prior (a mixed model; of its prior
variance the share `own` is the deviation's). A person may also say tie more readily than others, lean to the left
side, or vote without looking (lapses). Fits heads by nothing: `reward_head.py` does.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from playground.models.scorer import PersonalHead, RewardModel
from training.likelihood import TIE
from training.preferences import Pair, PointwiseLabel, Preferences

FEWEST = 8  # votes for A or B from which on a person is told apart
MOST = 20  # people who are told apart, those with most votes


@dataclass(frozen=True)
class People:
    """Who is told apart, and what is assumed of each before a fit."""

    ids: tuple[int, ...] = ()
    lapses: tuple[float, ...] = ()  # of each, the share of votes that are given without looking
    own: float = 0.0  # share of each one's own taste in the prior variance; 0: all have the same

    @classmethod
    def of(cls, prefs: Preferences) -> "People":
        """Those with enough votes, of whom nothing is assumed yet."""
        decided = count_decided(prefs)
        ids = [annotator for annotator, n in decided.most_common(MOST) if n >= FEWEST]
        return cls(tuple(ids), (0.0,) * len(ids))

    def places(self, judgements: Iterable[Pair | PointwiseLabel]) -> torch.Tensor:
        """Of each judgement the place of its person in `ids`, or −1: (N,) int64."""
        place: dict[int | None, int] = {annotator: k for k, annotator in enumerate(self.ids)}
        return torch.tensor([place.get(one.annotator, -1) for one in judgements], dtype=torch.long)

    def lapse_of(self, places: torch.Tensor) -> torch.Tensor | None:
        """The lapse rate (N,) of the judgements with these places; None where nobody has any."""
        if not any(self.lapses):
            return None
        return torch.tensor([*self.lapses, 0.0], dtype=torch.double)[places]  # −1 is the last


NOBODY = People()


def count_decided(prefs: Preferences) -> Counter[int]:
    """How many votes for A or B each person has given."""
    return Counter(
        pair.annotator
        for pair in prefs.pairs
        if pair.annotator is not None and pair.vote is not None and pair.outcome != TIE
    )


def save(model: RewardModel, file: Path) -> None:
    """Write each person's own heads; `RewardModel.save` leaves them out."""
    tensors = {}
    for annotator, heads in model.people.items():
        for k, head in enumerate(heads):
            tensors[f"{annotator}/{k}/weight"] = head.weight.contiguous()
            tensors[f"{annotator}/{k}/influence"] = head.influence.contiguous()
    save_file(tensors, file)


def load(model: RewardModel, file: Path) -> None:
    """Read them into the model of the same round. Rounds of earlier versions have no such file."""
    if not file.exists():
        return
    tensors = load_file(file)
    for annotator in sorted({int(name.partition("/")[0]) for name in tensors}):
        model.people[annotator] = [
            PersonalHead(tensors[f"{annotator}/{k}/weight"], tensors[f"{annotator}/{k}/influence"])
            for k in range(len(model.heads))
        ]
