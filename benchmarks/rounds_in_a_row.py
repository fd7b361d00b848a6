"""Rounds in a row on the real model: does every round bring a better version, and does a bad one go again?
`python -m benchmarks.rounds_in_a_row`.

A chain is a chat with simulated people: votes on what the live version writes, with the product's own trials; a round
in a worker process; and the truth about its candidate, refused ones too, on held-out prompts. Each round's figures are
written as they come, to `assets/rounds_in_a_row.jsonl`; a chain that was stopped goes on after its last whole round,
and one whose figures are there is not run again. A round takes minutes to half an hour on two cores.
"""

import gc
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from benchmarks import crowd, plots, report
from benchmarks.crowd import Crowd
from playground.models import loading
from playground.settings import Settings, SettingsError, read
from playground.store import Store
from training import annotators, worker

RESULTS = Path(__file__).parent.parent / "assets" / "rounds_in_a_row.jsonl"
# what an arm changes in the settings
ARMS: dict[str, dict[str, Any]] = {
    "ratchet": {},
    "without duels": {"trial": {"duels": 0}},
    "shuffled votes": {},
    "repeats penalty": {"ppo": {"repeats_penalty": 5.0}},
    "from the base": {  # what a round was before the ratchet
        "round": {"start_from": "base"},
        "ppo": {"kl_target": 6.0, "rollout_tokens": 48},
        "gate": {"prompts": 32, "replies": 1, "better": 0.975, "kl_budget": 12.0},
        "trial": {"duels": 0},
    },
}
BARS = {"brevity": 0.95, "second_person": 0.90, "lists": 0.78, "benchmarks.rounds_in_a_row:longer": 0.78}
TWO_PEOPLE = "brevity,second_person"


def longer(_prompt: str, reply: str) -> float:
    """An annotator for whom more words are better."""
    return len(reply.split())


class ChainSettings(Settings):
    """Chains of rounds on simulated votes."""

    quick: bool = False
    """Two short rounds, in minutes."""
    arm: str = "ratchet"
    """Arms, with commas between: ratchet, without duels, shuffled votes, repeats penalty, from the base."""
    annotator: str = "brevity"
    """Who votes, a chain each, with semicolons between; names with commas between vote in one chat."""
    flip: float = Field(0.0, ge=0, le=0.5)
    """Share of votes that are flipped at random."""
    rounds: int = Field(0, ge=0)
    """Rounds of a chain; 0 takes 6, or 2 with --quick."""
    votes: int = Field(25, ge=4)
    """Votes before each round."""
    eval_prompts: int = Field(0, ge=0)
    """Held-out prompts that the truth is measured on; 0 takes all 96, or 16 with --quick."""
    results: Path = RESULTS
    """File that each round's figures are appended to."""
    plot: Path | None = None
    """File for a picture of all chains whose figures are there, as SVG."""
    only_show: bool = False
    """Show what is known and run nothing."""
    json_file: str = Field("", alias="json")
    """File for the rows, as JSON."""


# -- a chain


class Chain:
    """One arm's rounds with one annotator and one seed."""

    def __init__(self, settings: ChainSettings, arm: str, annotator: str) -> None:
        self.settings, self.arm, self.annotator = settings, arm, annotator
        self.rounds = settings.rounds or (2 if settings.quick else 6)
        self.key = {
            "arm": arm,
            "annotator": annotator,
            "flip": settings.flip,
            "votes": settings.votes,
            "seed": settings.seed,
            "quick": settings.quick,
        }
        name = "-".join(f"{value}" for value in self.key.values()).replace(":", ".").replace(" ", "_")
        self.folder = settings.data_dir / "benchmarks" / "rounds-in-a-row" / name
        short = {"ppo": {"iterations": 3, "episodes": 16, "rollout_tokens": 32}, "gate": {"prompts": 8, "replies": 2}}
        quick = short if settings.quick else {}
        self._chat: Crowd | None = None
        self._held_out: crowd.HeldOut = {}  # written once, whoever loads the models again
        self.job = Settings.like(settings, data_dir=self.folder, worker=False, **(quick | ARMS[arm]))
        self.on_gpu = loading.device_of(self.job).type == "cuda"  # where a process takes longer to start than to train

    def known(self) -> list[dict[str, Any]]:
        """Figures of the rounds that are done."""
        file = self.settings.results
        lines = file.read_text().splitlines() if file.exists() else []
        rows = [row for row in map(json.loads, lines) if all(row.get(name) == self.key[name] for name in self.key)]
        by_round = {row["round"]: row for row in rows}  # the last one, where a chain was started over
        return [by_round[number] for number in sorted(by_round)][: self.rounds]

    def run(self) -> list[dict[str, Any]]:
        done = self.known()
        if len(done) >= self.rounds or self.settings.only_show:
            return done
        if not (self.folder / "nudge.db").exists():  # it was run elsewhere: the chain starts over
            done = []
        if not done:
            shutil.rmtree(self.folder, ignore_errors=True)
        store = Store(self.job.database)
        for number in range(len(done) + 1, self.rounds + 1):
            written = json.dumps(self.key | self._round(store, number))
            with self.settings.results.open("a") as file:
                file.write(written + "\n")
            row = json.loads(written)
            done.append(row)
            print(_sentence(row), flush=True)
        return done

    def _round(self, store: Store, number: int) -> dict[str, Any]:
        """Votes, a round, and the truth."""
        began = time.monotonic()
        chat = self._crowd(store)
        there = store.one("select count(*) as n from vote")["n"]  # of a chain that was stopped in the middle of a round
        votes = chat.vote(number * self.settings.votes - there, there, self.arm == "shuffled votes")
        voted = store.live_policy()["version"]
        start = time.monotonic()
        if self.on_gpu:
            store.request_round()
            worker.run_once(store, self.job, "chain", auto=False)
        else:
            self._run_worker(self.folder / f"worker {number}.log")
            chat = self._crowd(store)
        minutes = (time.monotonic() - start) / 60
        row = store.last_round()
        assert row is not None  # the worker ran one
        live = store.live_policy()["version"]
        candidate = store.round_policy(row["id"])
        metrics = row["metrics"]
        names = (
            "cv_accuracy",
            "e_value",
            "started_from",
            "kl_start",
            "kl_target",
            "kl",
            "gate_gain",
            "gate_share",
            "served_kl",
            "features",
        )
        return {
            "round": number,
            "machine": "GPU" if self.on_gpu else f"CPU, {torch.backends.cpu.get_cpu_capability()}",
            "state": row["state"],
            "reason": row["reason"] and str(row["reason"]),
            "voted_on": voted,
            "pairs": votes,
            "live": live,
            "minutes": round(minutes, 2),
            "phase_seconds": metrics.get("phase_seconds"),
            "curve": self._curve(store, row["id"]),
            **{name: metrics.get(name) for name in names},
            **self._truth(chat, store, live, candidate, voted),
            "all_minutes": round((time.monotonic() - began) / 60, 2),
        }

    @staticmethod
    def _curve(store: Store, round_id: int) -> list[list[float]]:
        """[KL, reward] of each iteration of PPO."""
        rows = store.rows(
            """select k.value as kl, r.value as reward from metric k join metric r on r.round = k.round
               and r.step = k.step and r.name = 'reward' where k.round = ? and k.name = 'kl' order by k.step""",
            round_id,
        )
        return [[round(row["kl"], 2), round(row["reward"], 2)] for row in rows]

    def _crowd(self, store: Store) -> Crowd:
        """The people of this chain, with the models loaded."""
        if self._chat is None:
            people = annotators.people(self.annotator, flip=self.settings.flip)
            tokenizer = loading.load_tokenizer(self.job)
            self._chat = Crowd(store, self.job, loading.load_trunk(self.job), tokenizer, people, self._held_out)
        return self._chat

    def _run_worker(self, log: Path) -> None:
        """One round in a process of its own, which gets the memory for itself."""
        self._chat = None
        gc.collect()
        with log.open("w") as output:
            subprocess.run(
                [sys.executable, "-m", "training.worker", "--once"],
                env={**os.environ, **self.job.environ()},
                cwd=Path(__file__).parent.parent,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )

    def _truth(
        self, chat: Crowd, store: Store, live: int, candidate: dict[str, Any] | None, before: int
    ) -> dict[str, Any]:
        """How good the live version and the round's candidate truly are."""
        eval_prompts = self.settings.eval_prompts or (16 if self.settings.quick else 96)
        base = chat.held_out(0, 4, eval_prompts)
        replies = {0: base}

        def of(version: int) -> list[list[crowd.Reply]]:
            if version not in replies:
                replies[version] = chat.held_out(version, 2, eval_prompts)
            return replies[version]

        rate, interval = chat.win_rate(of(live), base) if live else (0.5, (0.5, 0.5))
        truth: dict[str, Any] = {"live_over_base": rate, "live_interval": interval}
        if live:
            truth["live_figures"] = crowd.figures(of(live), base)
        if candidate:
            version = candidate["version"]
            truth["over_base"], truth["interval"] = chat.win_rate(of(version), base)
            truth["over_before"], truth["before_interval"] = chat.win_rate(of(version), of(before))
            truth["figures"] = crowd.figures(of(version), base)
            truth["samples"] = [group[0].text for group in of(version)[:3]]
        return truth


def _sentence(row: dict[str, Any]) -> str:
    truth = (
        f", over base {row['over_base']:.2f}, over the one before {row['over_before']:.2f}"
        if "over_base" in row
        else ""
    )
    return (
        f"{row['arm']}, {row['annotator']}, seed {row['seed']}, round {row['round']}: {row['state']} after "
        f"{row['minutes']:.1f} min{truth}; v{row['live']} is live, {row['live_over_base']:.2f} over base"
    )


# -- the table


def rows_of(chain: Chain, done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bars of one chain."""
    who = f"{chain.annotator.rpartition(':')[2]}, {chain.arm}, seed {chain.settings.seed}"
    if chain.settings.flip:
        who += f", {chain.settings.flip:.0%} flipped"
    if not done:
        return [report.row(f"{who}: win rate over base", None)]
    live = [0.5, *(row["live_over_base"] for row in done)]
    whole = len(done) >= 6 and chain.arm == "ratchet" and not chain.settings.flip
    bar = BARS.get(chain.annotator) if whole else None
    falls = [before - after for before, after in itertools.pairwise(live)]
    brought = sum(row["state"] == "published" for row in done)
    shares = [row["live_figures"]["distinct_share"] for row in done if row.get("live_figures")]
    last = done[-1]["live_interval"]
    return [
        report.row(
            f"{who}: win rate over base after {len(done)} rounds",
            live[-1],
            f"[{last[0]:.2f}, {last[1]:.2f}]",
            bar and f"≥ {bar}",
        ),
        report.row(f"{who}: rounds that brought a version", brought, f"of {len(done)}", "≥ 4" if bar else None),
        report.row(f"{who}: largest fall of the live version", max(0.0, *falls), "", "≤ 0.03"),
        report.row(f"{who}: least distinct-2 of the live version", min(shares, default=1.0), "of the base's", "≥ 0.6"),
        report.row(f"{who}: minutes a round", sum(row["minutes"] for row in done) / len(done)),
    ]


def run(settings: ChainSettings) -> list[dict[str, Any]]:
    """The rows of all chains that are asked for."""
    torch.set_num_threads(settings.threads)
    rows = []
    for arm, annotator in itertools.product(settings.arm.split(","), settings.annotator.split(";")):
        if arm not in ARMS:
            raise SettingsError(f"--arm: got {arm!r}; accepted: {', '.join(ARMS)}")
        chain = Chain(settings, arm, annotator)
        rows += rows_of(chain, chain.run())
    return rows


def main(argv: list[str] | None = None) -> None:
    try:
        settings = read(argv, ChainSettings, "python -m benchmarks.rounds_in_a_row")
        report.show(run(settings), settings.json_file)
        if settings.plot:
            lines = settings.results.read_text().splitlines()
            plots.draw_chains([row for row in map(json.loads, lines) if not row["quick"]], settings.plot)
    except (SettingsError, loading.ModelUnavailable) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
