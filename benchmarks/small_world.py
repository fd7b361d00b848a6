"""Many rounds of learning in a world so small that ten seeds of every arm take minutes:
`python -m benchmarks.small_world`.

The policy is a distribution over words, a reply is a handful of independent draws from it, and the best policy at a
given KL to the base is known in closed form, so that PPO's noise is out of the way. The likelihood of votes, the reward
head, the test for evidence, the gate, the step and the trial are the project's own code. It answers how far a round
may go and who should judge it, not how fast a real model learns.

Four worlds. kind: what people like grows without end in the direction that they vote for. mixed: it turns after
a while, since words that come again and again bore them. harmful: votes on the base's replies are coin flips,
and every push makes replies worse. shuffled: people like what they like in the kind world, and every vote is a coin
flip.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from pydantic import Field

from benchmarks import report
from playground.models import trial
from playground.models.trial import Tally, Verdict
from playground.settings import Settings, read
from training import evidence, gate, ratchet, reward_head, reward_validation
from training.preferences import A, B, Pair, Preferences
from training.ratchet import EndedTrial

WORDS = 60
LENGTH = 24  # words of a reply
FIRST_STEP = 3.0  # nats a reply by which the first round of a ratchet may move
GATE_DRAWS = 400
ARMS = ("product", "ratchet", "ratchet with trial")
WORLDS = ("kind", "mixed", "harmful", "shuffled")
WORSE = 0.45  # win rate over the base below which a version is a worse one


class SmallWorldSettings(Settings):
    """Chains of rounds in a world of words: the product of today, a ratchet, and one whose versions are on trial."""

    quick: bool = False
    """Three seeds and four rounds."""
    json_file: str = Field("", alias="json")
    """File to write the rows to."""
    seeds: int = Field(0, ge=0)
    """Chains of each arm; 0 takes 10, or 3 with --quick."""
    rounds: int = Field(0, ge=0)
    """Rounds of a chain; 0 takes 8, or 4 with --quick."""
    votes: int = Field(25, ge=4)
    """Votes before each round."""


@dataclass(frozen=True)
class Policy:
    """A distribution over words, `logits` (WORDS,), and its KL to the base in nats a reply."""

    logits: np.ndarray
    kl: float = 0.0

    @property
    def probabilities(self) -> np.ndarray:
        weights = np.exp(self.logits - self.logits.max())
        return weights / weights.sum()

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Counts of words (n, WORDS) of n replies."""
        return rng.multinomial(LENGTH, self.probabilities, size=n).astype(float)


class World:
    """The base, and what people think of a reply (in units of a vote's noise)."""

    def __init__(self, kind: str, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        self.kind = kind
        self.base = Policy(-np.log(np.arange(1, WORDS + 1)))
        self.liked = rng.standard_normal(WORDS)  # what a word is worth
        deviation = np.sqrt(self.base.probabilities @ (self.liked - self.base.probabilities @ self.liked) ** 2 * LENGTH)
        self.liked = 1.5 * (self.liked - self.base.probabilities @ self.liked) / deviation

    def worth(self, counts: np.ndarray) -> np.ndarray:
        """(N,) of replies (N, WORDS)."""
        if self.kind == "harmful":  # how unlike the base a reply is, above what chance makes of it
            expected = LENGTH * self.base.probabilities
            unlike = ((counts - expected) ** 2 / expected).sum(1) / WORDS
            return -4 * np.maximum(unlike - 1.5, 0)
        worth = counts @ self.liked
        if self.kind == "mixed":  # the same words again and again
            repeats = (counts * (counts - 1)).sum(1) / LENGTH
            usual = float((LENGTH - 1) * (self.base.probabilities**2).sum())
            worth = worth - 6 * np.maximum(repeats - usual - 0.3, 0)
        return worth

    def prefers_first(self, first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Bradley–Terry votes on pairs of replies (N,)."""
        margin = self.worth(first) - self.worth(second)
        if self.kind == "shuffled":
            margin = 0 * margin
        return rng.random(len(margin)) < 1 / (1 + np.exp(-margin))

    def win_rate(self, policy: Policy, rng: np.random.Generator, pairs: int = 4000) -> float:
        """The true win rate over the base; a tie is half a win."""
        margin = self.worth(policy.sample(pairs, rng)) - self.worth(self.base.sample(pairs, rng))
        return float(np.mean(margin > 0) + 0.5 * np.mean(margin == 0))


def tilted(base: Policy, values: np.ndarray, kl: float) -> Policy:
    """The policy of most expected value at this KL to the base: base · exp(t·values), by bisection of t."""

    def at(t: float) -> Policy:
        policy = Policy(base.logits + t * values)
        p = policy.probabilities
        return replace(policy, kl=float(LENGTH * (p @ (np.log(p) - np.log(base.probabilities)))))

    low, high = 0.0, 1.0
    while at(high).kl < kl and high < 1e3:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle).kl < kl else (low, middle)
    return at(low)


class Chain:
    """The rounds of one arm in one world."""

    def __init__(self, arm: str, world: World, settings: SmallWorldSettings, seed: int) -> None:
        self.arm, self.world, self.settings, self.seed = arm, world, settings, seed
        self.rng = np.random.default_rng([seed, 2])
        self.draw = random.Random(seed)
        self.live = self.before = world.base
        self.trials: list[EndedTrial] = []
        self.replies: list[np.ndarray] = []
        self.pairs: list[Pair] = []
        self.on_trial: Tally | None = None
        self.versus_base = Tally(0, 0)  # of the live version and those that it goes on from

    def run(self, rounds: int) -> Iterator[float]:
        """The live version's true win rate over the base after each round."""
        for number in range(rounds):
            self.collect_votes()
            self.end_trial("undecided")
            if ratchet.retreats(self.versus_base):
                self.live, self.versus_base = self.world.base, Tally(0, 0)
            candidate = self.train(number)
            if candidate is not None:
                self.before, self.live = self.live, candidate
                self.on_trial = Tally(0, 0) if self.arm == "ratchet with trial" else None
            yield self.world.win_rate(self.live, self.rng)

    def collect_votes(self) -> None:
        for _ in range(self.settings.votes):
            opponent = None
            if self.on_trial:
                opponent, _ = trial.opponent(self.draw, self.settings, self.before is self.world.base)
            other = {None: self.live, "before": self.before, "base": self.world.base}[opponent]
            first, second = self.live.sample(1, self.rng), other.sample(1, self.rng)
            won = bool(self.world.prefers_first(first, second, self.rng)[0])
            place = len(self.replies)
            self.replies += [first[0], second[0]]
            self.pairs.append(Pair(place, place + 1, A if won else B, group=str(place), vote=place))
            if opponent and other is self.world.base:
                self.versus_base = Tally(self.versus_base.wins + won, self.versus_base.losses + (not won))
            if self.on_trial and opponent == "before":
                self.on_trial = Tally(self.on_trial.wins + won, self.on_trial.losses + (not won))
                if verdict := trial.verdict(self.on_trial, self.settings):
                    self.end_trial(verdict)

    def end_trial(self, verdict: Verdict) -> None:
        """A trial's end changes how far the next round may go, and which version answers."""
        if self.on_trial is None:
            return
        self.trials.append(EndedTrial(verdict, self.on_trial))
        self.on_trial = None
        if verdict == "rolled_back":
            self.live = self.before

    def train(self, number: int) -> Policy | None:
        """The policy of a round where it passes the gate, else None."""
        counts = torch.from_numpy(np.stack(self.replies))
        prefs = Preferences(replies=[([], [])] * len(counts), pairs=self.pairs)

        def designs_of(part: Preferences, rows: list[int], known: int) -> dict[str, torch.Tensor]:
            seen = counts[rows]
            usual = seen[:known]
            x = ((seen - usual.mean(0)) / (usual.std(0).clamp_min(1e-6) * WORDS**0.5)).float()
            return {"words": x @ reward_head.span(x, part)}

        centre, scale = counts.mean(0), counts.std(0).clamp_min(1e-6) * WORDS**0.5
        design = ((counts - centre) / scale).float()
        basis = reward_head.span(design, prefs)
        x = design @ basis
        with reward_head.one_thread():
            [choice] = reward_validation.choose({"words": x}, prefs, self.seed)
            penalty = choice.penalty
            known = evidence.assess(designs_of, prefs, self.settings)
            folds, _ = reward_validation.cross_validate(
                prefs, self.seed, lambda part: reward_head.fitted_scores(x, part, penalty)
            )
            head = reward_head.fit_head(x, prefs, penalty)
        if not known.enough:
            return None
        weight = (basis @ head.weight).double() / scale
        kl = 6.0
        if self.arm != "product":
            kl = self.live.kl + ratchet.step(FIRST_STEP, self.trials, folds.accuracy() or 0.5)
        candidate = tilted(self.world.base, weight.numpy(), kl)
        noise = torch.randn(head.influence.shape[1], GATE_DRAWS, generator=torch.Generator().manual_seed(number))
        heads = weight[:, None] + (basis @ (head.influence @ noise)).double() / scale[:, None]
        return candidate if self.passes(candidate, heads.numpy(), number) else None

    def passes(self, candidate: Policy, heads: np.ndarray, number: int) -> bool:
        """The gate's question, by heads (WORDS, draws) from the posterior."""
        gate_settings = self.settings.gate
        prompts, replies = (32, 1) if self.arm == "product" else (gate_settings.prompts, gate_settings.replies)
        n = prompts * replies
        gains = ((candidate.sample(n, self.rng) - self.live.sample(n, self.rng)) @ heads).T
        means = gate.mean_gains(gains, prompts, number)
        if self.arm == "product":
            return gate.central(means, 0.95)[0] > 0
        return bool(np.mean(means > 0) >= gate_settings.better and np.mean(means > -0.1) >= gate_settings.not_worse)


def run(settings: SmallWorldSettings, log: Callable[[str], None] = print) -> list[dict]:
    """The rows of all worlds and arms."""
    seeds = settings.seeds or (3 if settings.quick else 10)
    rounds = settings.rounds or (4 if settings.quick else 8)
    rows = []
    for kind in WORLDS:
        for arm in ARMS:
            chains = np.array(
                [list(Chain(arm, World(kind, seed), settings, seed).run(rounds)) for seed in range(seeds)]
            )  # (seeds, rounds)
            log(f"{kind}, {arm}: " + " ".join(f"{rate:.2f}" for rate in chains.mean(0)))
            bar = "≥ 0.45" if (kind, arm) == ("harmful", "ratchet with trial") else None
            what = f"{kind} world, {arm}: win rate over base after {rounds} rounds"
            rows.append(report.row(what, float(chains[:, -1].mean()), f"mean of {seeds}", bar))
            falls = np.maximum(chains[:, :-1] - chains[:, 1:], 0).max(1)
            rows.append(report.row(f"{kind} world, {arm}: largest fall in a round", float(falls.mean())))
            worse = int(((chains < WORSE).sum(1) > 1).sum())
            bar = f"≤ {seeds // 10}" if (kind, arm) == ("shuffled", "ratchet with trial") else None
            what = f"{kind} world, {arm}: chains that show a worse version for more than one round"
            rows.append(report.row(what, worse, f"of {seeds}", bar))
    return rows


def main(argv: list[str] | None = None) -> None:
    settings = read(argv, SmallWorldSettings, "python -m benchmarks.small_world")
    report.show(run(settings), settings.json_file)


if __name__ == "__main__":
    main()
