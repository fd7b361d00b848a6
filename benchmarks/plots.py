"""The learning benchmark's cells as pictures: learning curve, calibration, over-optimisation, win rates. Draws what
there is and nothing else.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

Cell = dict[str, Any]  # of `learning_cells.py`, or a row of `rounds_in_a_row.py`

FAR = "far beyond the KL target"  # the arm of `benchmarks/rounds.py` that goes on until the score falls
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.figsize": (7, 4),
    "legend.frameon": False,
    "svg.hashsalt": "nudge",
}


def draw(cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write `learning-*.svg` into `folder`; returns the files. A picture without cells is not drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    models = [c for c in cells if c["kind"] == "reward model" and not c["shuffled"]]
    rounds = [c for c in cells if c["kind"] == "round"]
    far = [c for c in rounds if c["arm"] == FAR and c["curve"]]
    near = [c for c in rounds if c["arm"] != FAR and c["win_rate"] is not None]
    pictures = {
        "accuracy": (accuracy, models),
        "calibration": (calibration, models),
        "win-rate": (win_rate, near),
        "over-optimisation": (over_optimisation, far),
    }
    files = []
    with plt.rc_context(STYLE):
        for name, (picture, some) in pictures.items():
            if some:
                figure, axes = plt.subplots()
                picture(axes, some)
                files.append(folder / f"learning-{name}.svg")
                figure.tight_layout()
                figure.savefig(files[-1], metadata={"Date": None})
                plt.close(figure)
    return files


def draw_chains(rows: Sequence[Cell], file: Path) -> None:
    """Write the picture of `rounds_in_a_row`'s rows into `file`."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        rounds_in_a_row(axes, rows)
        figure.tight_layout()
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)


def by(cells: Sequence[Cell], *names: str) -> dict[tuple, list[Cell]]:
    """Cells grouped by these of their values."""
    groups = defaultdict(list)
    for cell in cells:
        groups[tuple(cell[name] for name in names)].append(cell)
    return groups


def accuracy(axes: Axes, cells: Sequence[Cell]) -> None:
    """Accuracy on held-out prompts against votes: median and range over seeds; flipped votes dashed."""
    for k, (annotator, own) in enumerate(by(cells, "annotator").items()):
        for flip, dashes in ((0.0, "-"), (0.25, "--")):
            sizes = sorted(by([c for c in own if c["flip"] == flip], "n").items())
            if not sizes:
                continue
            n, values = [key[0] for key, _ in sizes], [[c["accuracy"] for c in group] for _, group in sizes]
            axes.plot(
                n,
                [median(v) for v in values],
                dashes,
                marker="o",
                markersize=4,
                color=f"C{k}",
                label=annotator[0] if flip == 0 else None,
            )
            if flip == 0:
                axes.fill_between(n, [min(v) for v in values], [max(v) for v in values], color=f"C{k}", alpha=0.1)
    axes.axhline(0.5, color="grey", linewidth=1)
    axes.set(
        xscale="log",
        xlabel="votes",
        ylabel="accuracy on held-out prompts",
        title="Reward model (dashed: a quarter of the votes flipped)",
    )
    axes.set_xticks(ticks := sorted({c["n"] for c in cells}), ticks)
    axes.minorticks_off()
    axes.legend()


def weighted_mean(entries: list[tuple[float, float, int]]) -> tuple[float, float]:
    """The means of (predicted, observed, count) by their counts."""
    total = sum(count for _, _, count in entries)
    predicted = sum(predicted * count for predicted, _, count in entries) / total
    observed = sum(observed * count for _, observed, count in entries) / total
    return predicted, observed


def calibration(axes: Axes, cells: Sequence[Cell]) -> None:
    """Predicted against observed share of wins, at the number of votes nearest to 100."""
    n = min({c["n"] for c in cells}, key=lambda n: abs(n - 100))
    for k, ((annotator,), own) in enumerate(
        by([c for c in cells if c["n"] == n and c["flip"] == 0], "annotator").items()
    ):
        bins = defaultdict(list)
        for cell in own:
            for predicted, observed, count in cell["reliability"]:
                bins[min(int(predicted * 10), 9)].append((predicted, observed, count))
        points = [weighted_mean(entries) for _, entries in sorted(bins.items())]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=f"C{k}", label=annotator)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    axes.set(
        xlabel="the reward model's probability that a reply is preferred",
        ylabel="share preferred",
        title=f"Calibration on held-out prompts, {n} votes",
    )
    axes.legend()


def win_rate(axes: Axes, cells: Sequence[Cell]) -> None:
    """True win rate of each round's policy over the base, with its interval over prompts."""
    groups = by(cells, "arm", "n", "flip")
    names = sorted({c["annotator"] for c in cells})
    for k, ((arm, n, flip), own) in enumerate(groups.items()):
        label = f"{arm}, {n} votes" + (f", {flip:.0%} flipped" if flip else "")
        for i, cell in enumerate(own):
            y, (low, high) = (
                names.index(cell["annotator"]) + (k - len(groups) / 2) * 0.7 / len(groups) + 0.04 * (cell["seed"] % 3),
                cell["interval"],
            )
            filled = cell["state"] == "published"
            axes.plot([low, high], [y, y], color=f"C{k}", linewidth=1.5)
            axes.plot(
                cell["win_rate"],
                y,
                "o",
                color=f"C{k}",
                markerfacecolor=f"C{k}" if filled else "white",
                markersize=5,
                label=label if i == 0 else None,
            )
    axes.axvline(0.5, color="grey", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set(
        xlim=(0, 1),
        xlabel="true win rate over the base on held-out prompts",
        title="One round (hollow: the gate refused)",
    )
    axes.legend(fontsize=8, loc="lower left")


def over_optimisation(axes: Axes, cells: Sequence[Cell]) -> None:
    """Proxy reward and true score against √KL (Gao et al. 2022), both in deviations from where they began."""
    for k, ((annotator,), own) in enumerate(by(cells, "annotator").items()):
        for cell in own:
            x = [max(point["kl"], 0) ** 0.5 for point in cell["curve"]]
            for name, dashes in (("proxy", "--"), ("true", "-")):
                y = [point[name] for point in cell["curve"]]
                span = (max(y) - min(y)) or 1
                axes.plot(
                    x,
                    [(v - y[0]) / span for v in y],
                    dashes,
                    marker="o",
                    markersize=3,
                    color=f"C{k}",
                    label=f"{annotator}: {name}",
                )
    axes.set(
        xlabel="√KL to the base (nats a reply)",
        ylabel="change since the start, as a share of its range",
        title="Over-optimisation: proxy reward against true score",
    )
    axes.legend()


def rounds_in_a_row(axes: Axes, rows: Sequence[Cell]) -> None:
    """True win rate of the live version over the base, round by round, a line for each chain with its last interval;
    hollow where a round brought no version. Of a chain that was started over, each round's last row counts.
    """
    for k, ((arm, annotator, _), own) in enumerate(by(rows, "arm", "annotator", "seed").items()):
        name = annotator.rpartition(":")[2].replace("_", " ").replace(",", " and ")
        own = sorted({row["round"]: row for row in own}.values(), key=lambda row: row["round"])
        votes = [0, *(row["round"] * row["votes"] for row in own)]
        live = [0.5, *(row["live_over_base"] for row in own)]
        axes.plot(votes, live, color=f"C{k}", label=name if arm == "ratchet" else f"{name}, {arm}")
        for x, y, row in zip(votes[1:], live[1:], own, strict=True):
            face = f"C{k}" if row["state"] == "published" else "white"
            axes.plot(x, y, "o", color=f"C{k}", markerfacecolor=face, markersize=5)
        low, high = own[-1]["live_interval"]
        axes.plot([votes[-1]] * 2, [low, high], color=f"C{k}", linewidth=1)
    axes.axhline(0.5, color="grey", linewidth=1)
    axes.set(
        ylim=(0.45, 1),
        xlabel="votes, a round after every 25 (hollow: no new version)",
        ylabel="true win rate over the base",
        title="Rounds in a row, held-out prompts",
    )
    axes.legend(fontsize=8)
