"""What the number format of the reward model's trunk costs: accuracy at 100 votes, memory and time, for nf4, int8 and
none.

The accuracy is on held-out prompts, from the same simulated votes in each format, over annotators and seeds; replies
and features are kept in
`DATA/benchmarks/learning.db`. Memory and time are of a process of its own that loads the trunk and reads some of those
replies.
"""

import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

import torch
from pydantic import Field

from benchmarks import learning_cells, report
from benchmarks import pool as pools
from benchmarks.report import Log, Row
from playground.models import feature_trunk, loading
from playground.settings import SettingsError, read
from training import annotators

FORMATS = ("nf4", "int8", "none")
ROOT = Path(__file__).parent.parent


class QuantisationSettings(learning_cells.LearningSettings):
    """The reward model's trunk in each number format."""

    votes: int = Field(100, ge=10)
    """Simulated votes of each reward model."""
    side: Literal["", "nf4", "int8", "none"] = ""
    """Only load this format and read replies from standard input; what the benchmark starts for each format."""


def read_replies(settings: QuantisationSettings) -> dict[str, float]:
    """One side: what loading the trunk and reading the replies on standard input takes."""
    torch.set_num_threads(settings.threads)
    replies = json.load(sys.stdin)
    trunk = feature_trunk.FeatureTrunk(settings.with_values(reward={"quantisation": settings.side}))
    trunk.features(replies[: settings.reward.batch])
    start = time.monotonic()
    trunk.features(replies)
    tokens = sum(len(prompt) + len(completion) for prompt, completion in replies)
    return {
        "tokens_per_second": tokens / (time.monotonic() - start),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measured(settings: QuantisationSettings, quantisation: str, replies: Sequence[Any]) -> dict[str, float]:
    """`read_replies` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.quantisation", "--side", quantisation],
        cwd=ROOT,
        env={**os.environ, **settings.environ()},
        input=json.dumps(replies),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{quantisation} could not be measured:\n{done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout)


def run(settings: QuantisationSettings, log: Log = print) -> list[Row]:
    """The rows."""
    torch.set_num_threads(settings.threads)
    seeds, prompts_each = (1, 32) if settings.quick else (3, None)
    rows, cache = [], pools.Cache(settings)
    for quantisation in FORMATS:
        own = settings.with_values(reward={"quantisation": quantisation})
        pool = pools.make_pool(own, cache, prompts_each, log)
        accuracies = [
            learning_cells.reward_cell(pool, own, name, settings.votes, 0.0, seed)["accuracy"]
            for name, seed in itertools.product(annotators.SHIPPED, range(seeds))
        ]
        side = measured(settings, quantisation, pool.ids[: 32 if settings.quick else 256])
        log(f"{quantisation}: accuracy {median(accuracies):.3f}, {side['peak_mb']:.0f} MB")
        rows.append(
            report.row(
                f"{quantisation}: accuracy on held-out prompts, {settings.votes} votes, median over annotators and "
                "seeds",
                median(accuracies),
            )
        )
        rows.append(report.row(f"{quantisation}: the same, mean", mean(accuracies)))
        rows.append(report.row(f"{quantisation}: peak memory of a process that reads replies", side["peak_mb"], "MB"))
        rows.append(report.row(f"{quantisation}: tokens read", side["tokens_per_second"], "tokens/s"))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    try:
        settings = read(argv, QuantisationSettings, "python -m benchmarks.quantisation")
        if settings.side:
            print(json.dumps(read_replies(settings)))
        else:
            report.show(run(settings), settings.json_file)
    except (SettingsError, loading.ModelUnavailable) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
