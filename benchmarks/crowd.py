"""Simulated people in front of a chat whose model learns: they vote on pairs of the version that answers and, while it
is on trial, on blind pairs of it with the version before and with the base. The trial is the product's own.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from playground.decoding.sampling import Sampling
from playground.models import adapters, loading, prompts, trial
from playground.models.lora import LoraPool
from playground.settings import Settings
from playground.store import Store
from training import gate, repetition, rollout, simulate
from training.annotators import Person
from training.rollout import Episode

SCALE_LINES = 64


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of an annotator's score on the base's replies: what a score's unit is."""

    mean: float
    deviation: float

    def __call__(self, score: float) -> float:
        return (score - self.mean) / self.deviation


@dataclass(frozen=True)
class Reply:
    """A reply as it was sampled, and its text."""

    version: int
    episode: Episode
    text: str


HeldOut = dict[tuple[int, int, int], list[list[Reply]]]  # (version, replies a prompt, prompts) -> replies by prompt


class Crowd:
    """People, the store of their chat, and every version that they meet."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        trunk: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        people: dict[str, Person],
        held_out: HeldOut | None = None,
    ) -> None:
        self.store, self.settings, self.trunk, self.tokenizer = store, settings, trunk, tokenizer
        self.people = people
        self.identity = loading.base_identity(trunk, settings)
        self.end_tokens = loading.end_tokens(trunk, tokenizer)
        self.pool = LoraPool(trunk)
        self._held_out: HeldOut = {} if held_out is None else held_out
        self.lines = (rollout.SEED_PROMPTS / "train.txt").read_text().splitlines()
        random.Random(settings.seed).shuffle(self.lines)

    @cached_property
    def scale(self) -> dict[str, Scale]:
        """What the unit of each person's score is, from the base's replies."""
        lines = self.lines[:SCALE_LINES]
        base = self.replies(0, lines, "scale")
        scales = {}
        for name, person in self.people.items():
            scores = [person.score(line, reply.text) for line, reply in zip(lines, base, strict=True)]
            scales[name] = Scale(mean(scores), float(np.std(scores)) or 1.0)
        return scales

    # -- replies

    def replies(self, version: int, lines: Sequence[str], name: str, replies: int = 1) -> list[Reply]:
        """`replies` of a version to each line, line by line; `name` is a part of the seed."""
        model = self.trunk
        row = self.store.policy(version)
        if version and row:
            model = adapters.load(
                row["path"],
                self.trunk,
                base_hash=self.identity["hash"],
                expected_sha256=row["sha256"],
                pool=self.pool,
            )
        encoded = simulate.encode_lines(lines, self.tokenizer, self.settings)
        try:
            episodes = rollout.Rollouts(model).sample(
                encoded,
                rollout.generator(self.settings.seed, name, version),
                replies=replies,
                max_tokens=self.settings.chat.reply_tokens,
                temperature=self.settings.chat.temperature,
                end_tokens=self.end_tokens,
            )
        finally:
            if model is not self.trunk:
                self.pool.release(model)
        return [Reply(version, episode, prompts.reply_text(episode.completion, self.tokenizer)) for episode in episodes]

    # -- votes

    def vote(self, n: int, skip: int, shuffled: bool = False) -> dict[str, int]:
        """`n` votes, each on a message of its own; `skip` is how many messages earlier votes were on. With `shuffled`
        a coin decides. Returns how many votes were on which kind of pair, and the wins of the version that answers.
        """
        rng = random.Random(f"{self.settings.seed}/votes/{skip}")
        counts = {"own": 0, "before": 0, "base": 0, "wins": 0, "losses": 0}
        done = 0
        while done < n:  # a version that is rolled back makes room for another one in the middle
            lines = [self.lines[(skip + i) % len(self.lines)] for i in range(done, n)]
            done += self._vote_on_live(lines, skip + done, rng, counts, shuffled)
        return counts

    def _vote_on_live(
        self, lines: list[str], skip: int, rng: random.Random, counts: dict[str, int], shuffled: bool
    ) -> int:
        """Votes on these lines as long as the same version answers; returns how many."""
        live = self.store.live_policy()["version"]
        on_trial = self.store.open_trial()
        own = self.replies(live, lines, f"own {skip}", 2)
        others: dict[str, list[Reply]] = {}
        if on_trial:
            others["before"] = self.replies(on_trial["against"], lines, f"before {skip}")
            others["base"] = self.replies(0, lines, f"base {skip}")
        for i, line in enumerate(lines):
            opponent, probability = None, 1.0
            if on_trial:
                opponent, probability = trial.opponent(rng, self.settings, on_trial["against"] == 0)
            other = others[opponent][i] if opponent else own[2 * i + 1]
            counts[opponent or "own"] += 1
            sides = [own[2 * i], other]
            rng.shuffle(sides)
            choice = self._choice(line, sides, rng, shuffled)
            pairing = "champion_challenger" if opponent else "same_policy"
            self._record(line, sides, choice, pairing, probability)
            if on_trial and self._ends(on_trial, counts):
                if self.store.live_policy()["version"] != live:
                    return i + 1
                on_trial = None
        return len(lines)

    def _choice(self, line: str, sides: Sequence[Reply], rng: random.Random, shuffled: bool) -> tuple[str, str]:
        """(who, what they chose)."""
        name = rng.choice(sorted(self.people))
        if shuffled:
            return name, rng.choice("ab")
        person = self.people[name]
        left, right = (self.scale[name](person.score(line, reply.text)) for reply in sides)
        return name, person.vote(left, right, rng)

    def _ends(self, on_trial: dict, counts: dict[str, int]) -> bool:
        """Whether the trial is over; it is ended as the server would end it."""
        tally = trial.tally_of(self.store, on_trial)
        counts["wins"], counts["losses"] = tally.wins, tally.losses
        verdict = trial.verdict(tally, self.settings)
        if verdict:
            reason = trial.reason(verdict, tally, on_trial["against"])
            self.store.end_trial(on_trial["version"], verdict, reason)
        return verdict is not None

    def _record(
        self, line: str, sides: Sequence[Reply], choice: tuple[str, str], pairing: str, probability: float
    ) -> None:
        chat = self.settings.chat
        sampling = Sampling(chat.temperature, chat.top_p, chat.top_k, chat.reply_tokens).as_dict()
        columns = [
            {
                "policy": reply.version,
                "base_model": self.identity["model"],
                "base_hash": self.identity["hash"],
                "template_hash": loading.template_hash(self.tokenizer),
                "sampling": sampling,
                "seed": 0,
            }
            for reply in sides
        ]
        written = [
            {
                "text": reply.text,
                "seed": 0,
                "token_ids": reply.episode.completion,
                "logprobs": [],
                "finish_reason": "end" if reply.episode.ended else "length",
                "first_token_ms": 0,
                "total_ms": 0,
            }
            for reply in sides
        ]
        name, chosen = choice
        person = self.store.annotator(f"simulated {name}", kind="simulated")
        duel = self.store.start_duel(self.store.new_conversation(person), line, sides[0].episode.prompt, columns)
        self.store.finish_duel(duel, written, pairing=pairing, probability=probability)
        recorded = self.store.duel(duel)
        assert recorded is not None  # it was recorded a moment ago
        self.store.vote(duel, person, chosen, recorded["left"]["message"])

    # -- the truth

    def held_out(self, version: int, replies: int, prompts_at_most: int) -> list[list[Reply]]:
        """Replies of a version to each held-out prompt."""
        key = (version, replies, prompts_at_most)
        if key not in self._held_out:
            answers = self.replies(version, heldout_lines()[:prompts_at_most], "held out", replies)
            self._held_out[key] = [answers[i : i + replies] for i in range(0, len(answers), replies)]
        return self._held_out[key]

    def win_rate(self, ours: list[list[Reply]], theirs: list[list[Reply]]) -> tuple[float, tuple[float, float]]:
        """How often, by the people's scores, a reply of ours is better than one of theirs to the same prompt; and an
        interval over prompts. A tie is half a win; several people count the same.
        """
        by_prompt = []
        for line, a, b in zip(heldout_lines(), ours, theirs, strict=False):
            wins = []
            for person in self.people.values():
                scores_a = [person.score(line, reply.text) for reply in a]
                scores_b = [person.score(line, reply.text) for reply in b]
                wins += [(x > y) + 0.5 * (x == y) for x in scores_a for y in scores_b]
            by_prompt.append(mean(wins))
        return mean(by_prompt), gate.interval(np.array(by_prompt), 0.95, 0)


def heldout_lines() -> list[str]:
    return (rollout.SEED_PROMPTS / "heldout.txt").read_text().splitlines()


def figures(ours: list[list[Reply]], base: list[list[Reply]]) -> dict[str, float]:
    """Length, repetition and distinct-2 of replies to the held-out prompts, beside the base's."""
    ids, base_ids = (
        [repetition.without_end(reply.episode) for group in side for reply in group[:1]] for side in (ours, base)
    )
    distinct, distinct_base = repetition.distinct_at_equal_length(ids, base_ids)
    return {
        "length": mean(len(reply) for reply in ids),
        "length_base": mean(len(reply) for reply in base_ids),
        "repetition": mean(repetition.repeated(reply) for reply in ids),
        "repetition_base": mean(repetition.repeated(reply) for reply in base_ids),
        "distinct_share": distinct / distinct_base,
        "ended": mean(float(group[0].episode.ended) for group in ours),
    }
