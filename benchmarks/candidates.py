"""What several candidates a message gain between two rounds, and what they cost: `python -m benchmarks.candidates`.

Gain: the reward head of the last 10, 20 or 40 votes picks the best of four replies of the base to held-out prompts, or
of two, as `--chat.candidates 4 --chat.pick best` shows on each side; how often is it truly better than a random reply?
Also where the head reads only how the replies begin, so that the page could stream from there on. Our pick is set
beside a random one, which has .50.

Cost: the seconds until a message's first words can be shown, and until both replies are whole, with two candidates and
with four.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from pydantic import Field

from benchmarks import pool as pools
from benchmarks import report
from benchmarks.engine_site import TOKENS, Site, text_prompt
from benchmarks.learning_cells import REWARD_CODE, best_of_cell
from benchmarks.pool import Pool
from benchmarks.report import Log, Row
from playground.decoding import tuning
from playground.decoding.sampling import Sampling
from playground.models import feature_trunk, loading
from playground.models.feature_trunk import DEPTHS, FeatureTrunk
from playground.settings import Positive, Settings, SettingsError, read

NAMES = ("brevity", "lists", "second_person", "question", "formality")
BEGINNINGS = (16, 32)  # tokens of a reply that a head may read
CODE = (*REWARD_CODE, feature_trunk)


class CandidatesSettings(Settings):
    """Best of several candidates."""

    quick: bool = False
    """A few prompts, two people of each taste, one number of votes, in minutes."""
    repeats: Positive = 5
    """Repetitions of each time; medians count."""
    replies: int = Field(4, ge=2)
    """Replies to each prompt, the number of candidates."""
    prompts: int = Field(64, ge=8)
    """Prompts to vote on, and held-out prompts to pick on."""
    seeds: int = Field(5, ge=1)
    """Simulated people with each taste."""
    json_file: str = Field("", alias="json")
    """File for the rows, as JSON."""


# -- gain


def beginnings(pool: Pool, tokens: int, settings: CandidatesSettings, cache: pools.Cache, log: Log) -> Pool:
    """The pool with what a head reads of the first `tokens` tokens of each reply; its texts stay whole."""
    ids = [(prompt, completion[:tokens]) for prompt, completion in pool.ids]
    trunk: FeatureTrunk | None = None
    rows: list[list[float]] = []
    for start in range(0, len(ids), 64):

        def compute(start: int = start) -> list[list[float]]:
            nonlocal trunk
            trunk = trunk or FeatureTrunk(settings)
            log(f"features of the first {tokens} tokens of {start} to {min(start + 64, len(ids))} of {len(ids)}")
            return trunk.features(ids[start : start + 64]).tolist()

        rows += cache.get(
            compute,
            kind="features of beginnings",
            ids=ids[start : start + 64],
            quantisation=settings.reward.quantisation,
            depths=[settings.reward.layer, *DEPTHS],
        )
    return replace(pool, ids=ids, features=torch.tensor(rows))


def win_rates(pool: Pool, others: Pool, settings: CandidatesSettings, name: str, votes: int, seed: int) -> list[float]:
    """How often the pick among each held-out prompt's candidates `others` truly beats the base's other replies to it:
    the best of two, and of all of them.
    """
    cells = [best_of_cell(pool, others, settings, name, votes, 0.0, seed, among) for among in (2, None)]
    return [cell["win_rate"] for cell in cells]


def gain_rows(settings: CandidatesSettings, log: Log) -> list[Row]:
    cache = pools.Cache(settings, "candidates")
    prompts, seeds, sizes = (8, 2, (20,)) if settings.quick else (settings.prompts, settings.seeds, (10, 20, 40))
    pool = pools.make_pool(settings, cache, prompts, log)
    others = pools.make_pool(settings.with_values(seed=settings.seed + 1), cache, prompts, log, ("heldout",))
    arms: list[tuple[str, Pool, Pool]] = [("whole replies", pool, others)]
    for tokens in BEGINNINGS:
        read = [beginnings(replies, tokens, settings, cache, log) for replies in (pool, others)]
        arms.append((f"the first {tokens} tokens", read[0], read[1]))
    rows = []
    for what, read_pool, read_others in arms:
        for votes in sizes:
            best_of = {}
            for name in NAMES:
                rates = [
                    cache.get(
                        lambda name=name, seed=seed, a=read_pool, b=read_others, votes=votes: win_rates(
                            a, b, settings, name, votes, seed
                        ),
                        *CODE,
                        kind="picks",
                        read=what,
                        annotator=name,
                        votes=votes,
                        seed=seed,
                        prompts=prompts,
                    )
                    for seed in range(seeds)
                ]
                of_two, of_all = (median(column) for column in zip(*rates, strict=True))
                best_of[name] = of_all
                where = f"{name}, {votes} votes, by {what}"
                rows.append(report.row(f"{where}: best of {settings.replies}, win rate over a random reply", of_all))
                rows.append(report.row(f"{where}: best of two, the same", of_two))
            reached = sum(rate >= 0.6 for rate in best_of.values())
            bar = "≥ 3" if (votes, what) == (20, "whole replies") else None
            rows.append(report.row(f"{votes} votes, by {what}: tastes with .60 or more", reached, "of 5", bar))
    return rows


# -- cost


def cost_rows(settings: CandidatesSettings, log: Log) -> list[Row]:
    """Seconds with two candidates, streamed, and with `replies` of them, whole or from their 16th token on."""
    base, tokenizer = loading.load_trunk(settings), loading.load_tokenizer(settings)
    tuning.choose(settings, base, loading.base_identity(base, settings))
    trunk = FeatureTrunk(settings)
    prompt = text_prompt(tokenizer, 181)
    repeats = 2 if settings.quick else settings.repeats
    with tempfile.TemporaryDirectory() as folder:
        site = Site(settings, folder, base, tokenizer)
        two = site.repeated_duels(prompt, repeats)
        whole = [several(site, trunk, prompt, settings.replies, TOKENS, seed) for seed in range(repeats)]
        begun = [several(site, trunk, prompt, settings.replies, BEGINNINGS[0], seed) for seed in range(repeats)]
        site.engine.close()
    n = settings.replies
    shown = median(run["first"] for run in two)
    complete = median(run["seconds"] for run in two)
    all_read = median(run["shown"] for run in whole)
    begin_read = median(run["shown"] for run in begun)
    left = (TOKENS - BEGINNINGS[0]) / TOKENS * complete
    return [
        report.row("two candidates: first words", shown, "s"),
        report.row(f"two candidates: both whole ({TOKENS} tokens)", complete, "s"),
        report.row("two candidates: tokens shown", 2 * TOKENS / complete, "tokens/s"),
        report.row(f"{n} candidates, whole replies read: first words, and both whole", all_read, "s"),
        report.row(f"{n} candidates, whole replies read: tokens shown", 2 * TOKENS / all_read, "tokens/s"),
        report.row(f"{n} candidates, to two: until both are whole", all_read / complete, "times"),
        report.row(f"{n} candidates, the first {BEGINNINGS[0]} tokens read: first words", begin_read, "s"),
        report.row(
            f"{n} candidates, the first {BEGINNINGS[0]} tokens read: until both are whole, to two",
            (begin_read + left) / complete,
            "times (the rest of the reply by the speed of two)",
        ),
    ]


def several(site: Site, trunk: FeatureTrunk, prompt: list[int], n: int, tokens: int, seed: int) -> dict[str, Any]:
    """`n` candidates of `tokens` tokens, and the trunk's reading of them: {"shown": seconds}."""
    site.forget_prompts()
    start = time.perf_counter()
    seeds = [n * seed + k for k in range(n)]
    stream = site.engine.duel(prompt, seeds, Sampling(temperature=0.7, max_tokens=tokens))
    stream.wait(600)
    trunk.features([(prompt, reply.token_ids) for reply in stream.decoding.replies])
    return {"shown": time.perf_counter() - start}


def run(settings: CandidatesSettings, log: Log = print) -> list[Row]:
    torch.set_num_threads(settings.threads)
    return [*cost_rows(settings, log), *gain_rows(settings, log)]


def main(argv: Sequence[str] | None = None) -> None:
    try:
        settings = read(argv, CandidatesSettings, "python -m benchmarks.candidates")
        report.show(run(settings), settings.json_file)
    except (SettingsError, loading.ModelUnavailable) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
