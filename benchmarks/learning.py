"""Does it learn from few votes, and does it know when it has not? Simulated votes whose hidden score is known, from
vote to published policy.

Reward-model rows: medians over seeds on held-out prompts, which are never voted on. Round rows: real rounds in a worker
process, and the new policy's true win rate over the base. The measurements are `learning_cells.py`'s; what has not been
run is shown as not run.
"""

import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import gold, plots, report
from benchmarks.learning_cells import Cell, Cells, LearningSettings, refit_seconds
from benchmarks.report import Log, Row
from playground.models import loading
from playground.settings import SettingsError, read
from training import annotators

NAMES = list(annotators.SHIPPED)


def median_of(cells: Iterable[Cell], name: str) -> float | None:
    """The median of a figure over the cells that have it; None where none has."""
    values = [cell[name] for cell in cells if cell[name] is not None]
    return median(values) if values else None


def measured(cells: Iterable[Cell | None]) -> list[Cell]:
    """The cells that have been run."""
    return [cell for cell in cells if cell]


# -- reward models


def reward_rows(cells: Cells, sizes: Sequence[int], seeds: int) -> list[Row]:
    """Every annotator, number of votes and share of flipped votes."""
    rows: list[Row] = []
    for flip, annotator, n in itertools.product((0.0, 0.1, 0.25), NAMES, sizes):
        if flip == 0.1 and n != 100:
            continue
        own = measured(cells.reward(annotator=annotator, n=n, flip=flip, seed=seed) for seed in range(seeds))
        noise = f", {flip:.0%} flipped" if flip else ""
        bar = {0.0: "≥ 0.8", 0.25: "≥ 0.65"}.get(flip) if n == 100 else None
        rows += one_reward_rows(f"{annotator}, {n} votes{noise}", own, bar, cells.log)
    n = max(n for n in sizes if n <= 100)
    keys = [
        {"annotator": NAMES[seed % len(NAMES)], "n": n, "flip": 0.0, "seed": seed, "shuffled": True}
        for seed in range(4 * seeds)
    ]
    shuffled = measured(cells.reward(**key) for key in keys)
    enough = sum(cell["enough"] for cell in shuffled) if shuffled else None
    seconds, pairs = refit_seconds(cells.pool, 100 if cells.settings.quick else 1000)
    return [
        *rows,
        report.row(f"shuffled votes, {n}: accuracy on held-out prompts", median_of(shuffled, "accuracy"), ""),
        report.row(f"shuffled votes, {n}: called enough evidence", enough, f"of {len(shuffled)}"),
        report.row(f"refit of the head, {pairs} votes", seconds, "s", "≤ 2"),
    ]


def one_reward_rows(what: str, own: Sequence[Cell], bar: str | None, log: Log) -> list[Row]:
    """The figures of one annotator's reward models from one number of votes, one cell for each seed."""
    accuracy = median_of(own, "accuracy")
    rows = [report.row(f"{what}: accuracy on held-out prompts", accuracy, "", bar)]
    if not own:
        return rows
    matched = median_of(own, "matched")
    enough = sum(cell["enough"] for cell in own)
    of_one_length = "not known" if matched is None else f"{matched:.2f}"
    log(f"{what}: accuracy {accuracy:.2f}, pairs of one length {of_one_length}, enough {enough} of {len(own)}")
    return [
        *rows,
        report.row(f"{what}: the same, pairs of one length", matched, ""),
        report.row(f"{what}: NLL", median_of(own, "nll"), "nats"),
        report.row(f"{what}: calibration error", median_of(own, "ece"), ""),
        report.row(f"{what}: called enough evidence", enough, f"of {len(own)}"),
    ]


# -- rounds


def rate_rows(what: str, cells: Sequence[Cell | None], bar: str | None) -> list[Row]:
    """Win rate, KL and publications of rounds that differ in their seed alone."""
    run = measured(cells)
    done = [cell for cell in run if cell["win_rate"] is not None]
    interval = f", median of {len(done)} seeds" if done else ""
    if len(done) == 1:
        low, high = done[0]["interval"]
        interval = f", one seed [{low:.2f}, {high:.2f}]"
    published = sum(cell["state"] == "published" for cell in run) if run else None
    return [
        report.row(f"{what}: true win rate over the base{interval}", median_of(done, "win_rate"), "", bar),
        report.row(f"{what}: KL to the base", median_of(done, "kl"), "nats a reply"),
        report.row(f"{what}: published", published, f"of {len(run)}"),
    ]


def round_rows(cells: Cells, quick: bool) -> list[Row]:
    """Real rounds, run in the order in which they say most."""
    if quick:
        return rate_rows("brevity, 50 votes", [cells.round(annotator="brevity", n=50, seed=0)], None)

    def rounds_of(names: Iterable[str], **key: Any) -> dict[str, Cell | None]:
        return {name: cells.round(annotator=name, n=100, seed=0, **key) for name in names}

    best = {name: [cells.best_of(8, annotator=name, n=100, seed=seed) for seed in range(3)] for name in NAMES}
    clean = {(name, 0): cells.round(annotator=name, n=100, seed=0) for name in NAMES}
    shuffled = [
        cells.round(annotator=NAMES[seed % len(NAMES)], n=100, seed=seed, arm="shuffled votes") for seed in range(10)
    ]
    noisy = {name: [cells.round(annotator=name, n=100, flip=0.25, seed=seed) for seed in range(3)] for name in NAMES}
    length = rounds_of(("brevity", "formality"), arm="length-only reward")
    far = rounds_of(("second_person",), arm="far beyond the KL target")
    pessimistic = rounds_of(NAMES, arm="pessimistic reward (λ = 1)")
    peer = {name: cells.last_token(annotator=name, n=100, seed=0) for name in NAMES}
    if cells.settings.rounds == "run":
        gold.make(cells.pool, cells.cache, cells.settings, cells.log)
    golden = [cells.round(annotator=gold.NAME, n=100, seed=0, arm=arm) for arm in ("PPO", "far beyond the KL target")]
    few = {(name, n): cells.round(annotator=name, n=n, seed=0) for name in NAMES for n in (25, 50, 200, 400)}
    clean |= {(name, seed): cells.round(annotator=name, n=100, seed=seed) for seed in (1, 2) for name in NAMES}

    of_name = {name: [clean[name, seed] for seed in range(3)] for name in NAMES}
    rows: list[Row] = []
    for name in NAMES:
        rows += rate_rows(f"{name}, 100 votes", of_name[name], "≥ 0.85" if name == "brevity" else "≥ 0.65")
    for name in NAMES:
        rows += rate_rows(f"{name}, 100 votes, 25% flipped", noisy[name], "≥ 0.6")
    for name in NAMES:
        what = f"{name}, 100 votes, best of 8 by the same reward model: true win rate"
        rows.append(report.row(what, median_of(measured(best[name]), "win_rate"), ""))
    for name in NAMES:
        rows += peer_rows(name, cells, peer[name])
    rows += shuffled_rows(shuffled)
    for what, arm in (
        ("length-only reward", length),
        ("pessimistic reward (λ = 1)", pessimistic),
        ("far beyond the KL target", far),
    ):
        for name, cell in arm.items():
            rows += rate_rows(f"{what}, {name}, 100 votes", [cell], None)
    for what, cell in zip(("", "far beyond the KL target, "), golden, strict=True):
        rows += rate_rows(f"{what}gold reward model, 100 votes", [cell], None)
    for (name, n), cell in few.items():
        rows += rate_rows(f"{name}, {n} votes", [cell], None)
    for level, name in itertools.product((0.6, 0.7), NAMES):
        by_votes = {n: [few[name, n]] for n in (25, 50, 200, 400)} | {100: of_name[name]}
        rows.append(votes_needed_row(name, level, by_votes))
    return rows + cost_rows(measured(clean.values()))


def peer_rows(name: str, cells: Cells, peer: Cell | None) -> list[Row]:
    """Our reward model's accuracy beside that of `last_token.py`, on the same pairs."""
    theirs = ours = None
    if peer:
        theirs = max(peer["accuracies"])
        ours = cells.reward(annotator=name, n=100, flip=0.0, seed=0)["accuracy"]
    return [
        report.row(
            f"{name}, 100 votes: accuracy of a LoRA with a last-token head, its best epoch on these very pairs", theirs
        ),
        report.row(f"{name}, 100 votes: ours above it", ours - theirs if peer else None, "", "≥ 0.05"),
    ]


def shuffled_rows(cells: Sequence[Cell | None]) -> list[Row]:
    """Rounds on votes that say nothing: none may be published."""
    run = measured(cells)
    published = sum(cell["state"] == "published" for cell in run) if run else None
    return [
        report.row(f"shuffled votes, 100: published, of {len(run)} rounds", published, "", "≤ 0"),
        *rate_rows("shuffled votes, 100", cells, None),
    ]


def votes_needed_row(name: str, level: float, by_votes: dict[int, list[Cell | None]]) -> Row:
    """The fewest votes from which the median round has a true win rate of `level`."""
    rates = {n: median_of(measured(cells), "win_rate") for n, cells in by_votes.items()}
    reached = [n for n, rate in rates.items() if rate is not None and rate >= level]
    return report.row(f"{name}: votes needed for a true win rate of {level:.0%}", min(reached, default=None), "votes")


def cost_rows(cells: Sequence[Cell]) -> list[Row]:
    """Time and memory of a round on 100 votes."""
    timed = [cell for cell in cells if cell["kl"] is not None]  # a round that ended before PPO is a short one
    peak = max(cell["peak_mb"] for cell in timed) if timed else None
    return [
        report.row("a round on 100 votes", median_of(timed, "minutes"), "minutes", "≤ 15"),
        report.row("its worker's peak memory", peak, "MB", "≤ 2500"),
    ]


def run(settings: LearningSettings, log: Log = print) -> tuple[list[Row], list[Cell]]:
    """All cells, then the rows: (rows, cells)."""
    torch.set_num_threads(settings.threads)
    cells = Cells(settings, log)
    sizes, seeds = ((25, 50), 2) if settings.quick else ((25, 50, 100, 200, 400), 5)
    rows = reward_rows(cells, sizes, seeds) + round_rows(cells, settings.quick)
    return rows, cells.used


def main(argv: Sequence[str] | None = None) -> None:
    try:
        settings = read(argv, LearningSettings, "python -m benchmarks.learning")
        rows, cells = run(settings)
    except (SettingsError, loading.ModelUnavailable) as error:
        sys.exit(str(error))
    report.show(rows, settings.json_file)
    if settings.plots:
        plots.draw(cells, Path(settings.plots))


if __name__ == "__main__":
    main()
