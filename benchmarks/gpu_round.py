"""Whole rounds on a GPU, on scripted votes: two in one process, as a worker runs them, with a swap after each, and what
they leave in memory; and one in a worker process.
"""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel

from benchmarks import gpu, report
from playground.models import adapters, loading, lora
from playground.settings import Settings
from playground.store import Store
from playground.system import memory
from training import annotators, selftest, simulate, worker
from training import gpu as gpu_memory
from training.round_control import PHASES

ROUND_SECONDS = 60  # of all phases
SWAP_KL = 0.01  # nats a token, between a version on the GPU and the same one in fp32 on the CPU
POLL_SECONDS = 0.05


@contextmanager
def watched(device):
    """The most MB of the device that all processes take meanwhile, beyond those taken before: `peak[0]`."""
    before, peak, done = gpu.used_mb(device), [0.0], threading.Event()

    def watch():
        while not done.wait(POLL_SECONDS):
            peak[0] = max(peak[0], gpu.used_mb(device) - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def jobs(settings):
    """(settings of the votes and the first round, settings of the short rounds after it)."""
    quick = settings.quick
    first = simulate.SimulateSettings.like(
        settings,
        votes=24 if quick else 100,
        annotator="brevity",
        chat={"reply_tokens": 12 if quick else 96},
        round={"auto": False},
        reward={"evidence_confidence": 0.0},
        ppo={"iterations": 2, "rollout_tokens": 8, "episodes": 8} if quick else {},
        gate={"prompts": 8} if quick else {},
    )
    return first, first.with_values(ppo={"iterations": 2 if quick else 4}, gate={"confidence": 0.05})


def duels(settings, store, tokenizer, device, log, skip=0):
    """Fill the store with votes; returns the Stopwatch."""
    trunk = loading.load_trunk(settings)
    people = annotators.people(settings.annotator)
    with gpu.Stopwatch(device) as watch:
        simulate.make_duels(store, settings, trunk, tokenizer, people, log, skip)
    return watch


def in_a_process(settings, store, device, log):
    """Run a worker for one round, as the app does; returns (its row, Stopwatch, peak MB)."""
    out = settings.data_dir / "worker.log"
    with open(out, "w") as file, gpu.Stopwatch(device) as watch, watched(device) as peak:
        subprocess.run(
            [sys.executable, "-m", "training.worker", "--once"],
            env={**os.environ, **settings.environ()},
            cwd=Path(__file__).parent.parent,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    log(out.read_text()[-6000:])
    return store.last_round(), watch, peak[0]


def phase_rows(row, what):
    """Rows of the seconds of each phase, and of their sum."""
    seconds = row["metrics"].get("phase_seconds", {})
    if not seconds:
        return [gpu.not_measured(f"{what}: phases")]
    rows = [report.row(f"{what}: {phase}", seconds[phase], "s") for phase in PHASES if phase in seconds]
    return [*rows, report.row(f"{what}: all phases", sum(seconds.values()), "s", f"≤ {ROUND_SECONDS}")]


def ended_well(row):
    """1 where the round went through all its phases, whatever the gate said."""
    return int(row["state"] in ("published", "refused"))


def swap(settings: Settings, store: Store, pool: lora.LoraPool, device: torch.device) -> tuple[float, PreTrainedModel]:
    """Load the last round's version over the pool's base; returns (KL to the CPU's fp32 in nats a token, model)."""
    version = store.round_policy(store.last_round()["id"])
    where = {"base_hash": loading.base_identity(pool.base, settings)["hash"], "expected_sha256": version["sha256"]}
    model = adapters.load(version["path"], pool.base, **where, pool=pool)
    on_cpu = settings.with_values(device="cpu", dtype="float32")
    truth = adapters.load(version["path"], loading.load_trunk(on_cpu), **where)
    total = tokens = 0
    with torch.inference_mode():
        for episode in selftest.fixed_episodes(pool.base):
            ids = torch.tensor([episode.prompt + episode.completion])
            expected = torch.log_softmax(truth(ids).logits.float(), -1)
            actual = torch.log_softmax(model(ids.to(device)).logits.float().cpu(), -1)
            total += (expected.exp() * (expected - actual)).sum().item()
            tokens += ids.numel()
    return total / tokens, model


def begun(settings, device, log):
    """(settings of the round, store with its votes, tokenizer, [the row of writing them])."""
    first = jobs(settings)[0]
    first.data_dir.mkdir(parents=True, exist_ok=True)
    store, tokenizer = Store(first.database), loading.load_tokenizer(first)
    written = duels(first, store, tokenizer, device, log)
    memory.release()
    what = f"{first.votes} voted duels of {first.chat.reply_tokens} tokens"
    return first, store, tokenizer, [report.row(what, written.seconds, "s")]


def in_a_worker(settings, device, log):
    """Rows: a round in a worker process of its own."""
    first, store, _, rows = begun(settings, device, log)
    row, watch, peak = in_a_process(first, store, device, log)
    return [
        *rows,
        *round_rows(row, "worker's round", peak, log),
        report.row("worker's round: need that was computed before it", needed_mb(first), "MB"),
        report.row("worker's round: its process, from start to end", watch.seconds, "s"),
    ]


def needed_mb(settings):
    return gpu_memory.need(gpu_memory.with_room_used(settings)) / 1e6


def round_rows(row, what, peak, log):
    """Rows of a round that has ended, from its row in the store and its peak on the device in MB."""
    figures = row["metrics"]
    log(f"{what}: {row['state']} {row['reason'] or ''} {figures}")
    parts = sorted(figures.get("part_seconds", {}).items(), key=lambda part: -part[1])
    return [
        *phase_rows(row, what),
        *[report.row(f"{what}: part {name}", seconds, "s") for name, seconds in parts],
        report.row(f"{what}: ends by itself", ended_well(row), "", "≥ 1"),
        report.row(f"{what}: {row['state']}; gain", figures.get("gate_gain")),
        report.row(f"{what}: KL", figures.get("kl"), "nats a reply"),
        report.row(f"{what}: KL of what is served to what was trained", figures.get("served_kl"), "nats a token"),
        report.row(f"{what}: peak on the device", peak, "MB"),
    ]


def rounds(settings, device, log):
    """Rows: a round, a short one after it on more votes, and a swap after each, in this process, as a worker and a
    server would; and what they leave in memory.
    """
    first, store, tokenizer, rows = begun(settings, device, log)
    short = jobs(settings)[1]
    rows.append(report.row("round 1: need that was computed before it", needed_mb(first), "MB"))
    pool = lora.LoraPool(loading.load_trunk(first))
    left_mb = [gpu.allocated_mb(device)]  # of tensors: before the rounds and after each
    for number, own in ((1, first), (2, short)):
        if number > 1:
            duels(own.with_values(votes=own.votes // 4), store, tokenizer, device, log, skip=own.votes * number)
        store.request_round()
        with gpu.Stopwatch(device) as watch, watched(device) as peak:
            row = worker.run_once(store, own, "benchmark", auto=False)
        rows += round_rows(row, f"round {number}", peak[0], log)
        rows.append(report.row(f"round {number}: from start to end", watch.seconds, "s"))
        kl, model = swap(own, store, pool, device)
        pool.release(model)
        del model
        memory.release()
        left_mb.append(gpu.allocated_mb(device))
        what = f"version of round {number}: KL of the device to fp32 on the CPU"
        rows.append(report.row(what, kl, "nats", f"≤ {SWAP_KL}"))
    growth = left_mb[2] / left_mb[1] if left_mb[1] else None
    return [
        *rows,
        report.row("tensors before the rounds", left_mb[0], "MB"),
        report.row("tensors after one round and swap", left_mb[1], "MB"),
        report.row("tensors after two rounds and swaps, over those after one", growth, "", "≤ 1.05"),
    ]


SECTIONS = {"rounds": rounds, "worker": in_a_worker}
