"""The duel engine beside its peers: two replies to one prompt, many people at once, swaps under load, a round beside
the chat.

Peers, each in an environment of its own, in turn with ours in one run: two transformers `generate` calls in bf16, and
llama.cpp on the very GGUF that our model comes from (Q4_1), with two slots, and with sixteen beside eight people.
Nothing ends a reply, so that every one has all its tokens; all sample from the whole vocabulary at the chat's
temperature. Speed counts the reading of the prompt.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import torch
from pydantic import Field

import app
from benchmarks import llama_cpp, peer, report
from playground.decoding import decoder, kv_cache_pool, tuning
from playground.decoding.sampling import Sampling
from playground.models import adapters, loading, lora, prompts, sources
from playground.serving.engine import Engine
from playground.settings import Positive, Settings, SettingsError, read
from playground.store import Store
from playground.system.child import Child
from playground.system.threads import run_in_own_thread
from training import rollout, served, simulate
from training.annotators import Person, brevity

GENERATES = ("generates", peer.pins_of("torch", "transformers", "accelerate"))
PROMPT, TOKENS = 181, 64
CROWD_TOKENS = 128  # of each reply, where many people write at once


class EngineSettings(Settings):
    """The duel engine beside its peers."""

    quick: bool = False
    """Fewer repetitions and swaps, no round beside the chat, no llama.cpp (which compiles for ten minutes)."""
    repeats: Positive = 5
    """Repetitions of each figure; medians count."""
    swaps: Positive = 1000
    """Versions swapped under running streams."""
    json_file: str = Field("", alias="json")
    """File for the rows, as JSON."""


class Site:
    """An engine with its threads running, over a fresh store, whose replies never end by themselves."""

    def __init__(self, settings, folder, base, tokenizer):
        self.settings = settings.with_values(data_dir=Path(folder), round={"poll_seconds": 0.02})
        (Path(folder) / "tuning.json").write_text((settings.data_dir / "tuning.json").read_text())
        self.engine = Engine(Store(self.settings.database), self.settings, base, tokenizer)
        self.engine.end_tokens = frozenset()
        self.engine.start()

    def publish(self, size, seed):
        """A version of random LoRA tensors, the usual rank and targets; returns its number."""
        store, engine, s = self.engine.store, self.engine, self.settings
        store.request_round()
        round_id = store.take_round("benchmark", lease_seconds=30)["id"]
        version = store.add_policy(round_id, "benchmark", parent=store.live_policy()["version"])
        targets = lora.linear_targets(engine.base)
        tensors = run_in_own_thread(1, lambda: self._random(size, seed, targets))
        path, sha256 = adapters.write(
            s.adapters_dir,
            version,
            tensors,
            rank=s.ppo.lora_rank,
            alpha=s.ppo.lora_alpha,
            targets=targets,
            base=engine.identity,
            parent=0,
            round_id=round_id,
            scores={},
        )
        store.publish(round_id, "benchmark", version, path, sha256, {})
        while engine.live.version != version:
            time.sleep(0.01)
        return version

    def _random(self, size, seed, targets):
        s, noise = self.settings, torch.Generator().manual_seed(seed)
        shape = lora.lora_parameters(
            lora.with_lora(
                lora.tied_copy(self.engine.base), rank=s.ppo.lora_rank, alpha=s.ppo.lora_alpha, targets=targets
            )
        )
        return {k: size * torch.randn(v.shape, generator=noise) for k, v in shape.items()}

    def duel(self, prompt, tokens=TOKENS, seed=0, temperature=0.7):
        """One duel to its end: {"seconds", "first", "both", "stream"}; first: until a reply's first token, both: until
        both have one.
        """
        start = time.perf_counter()
        stream = self.engine.duel(prompt, [seed, seed + 1], Sampling(temperature=temperature, max_tokens=tokens))
        stream.wait(600)
        firsts = sorted(stream.first_token_ms)
        return {
            "seconds": time.perf_counter() - start,
            "first": firsts[0] / 1e3,
            "both": firsts[1] / 1e3,
            "stream": stream,
        }


def text_prompt(tokenizer, tokens, seed=0):
    """Token ids of a chat of this length: shipped lines in a row, cut to fit."""
    lines = (rollout.SEED_PROMPTS / "train.txt").read_text().splitlines()
    frame = prompts.encode([{"role": "user", "content": ""}], tokenizer, 10**6)
    words = tokenizer(" ".join(lines[seed:] + lines[:seed]), add_special_tokens=False)["input_ids"]
    at = len(frame) - 1 - frame[::-1].index(tokenizer.eos_token_id)  # where the empty message stands
    return frame[:at] + words[: tokens - len(frame)] + frame[at:]


# -- two replies, beside the peers


def peers(settings, prompt, log):
    """{peer: what its repetitions took}"""
    job = {
        "model": sources.resolve(settings),
        "prompt": prompt,
        "tokens": TOKENS,
        "threads": settings.threads,
        "repeats": settings.repeats,
    }
    generates = peer.ROOT / "benchmarks" / "peers" / "two_generates.py"
    found = {"two generates": peer.run_job([peer.python(settings, *GENERATES, log), generates], job, settings.threads)}
    if not settings.quick:
        found["llama.cpp"] = llama_cpp.run(settings, [prompt, prompt], TOKENS, settings.repeats, log)
    for name, runs in found.items():
        log(f"{name}: {speed(runs):.1f} tokens/s, first token after {median(r['first'] for r in runs):.2f} s")
    return found


def two_replies(site, prompt, repeats):
    site.duel(prompt, 8)
    found = []
    for seed in range(repeats):
        site.engine.kv_pool.retained.clear()  # each prompt is read whole, as the peers read it
        found.append(site.duel(prompt, seed=2 * seed))
    return found


def speed(found):
    return 2 * TOKENS / median(r["seconds"] for r in found)


def duel_rows(settings, site, tokenizer, log):
    prompt = text_prompt(tokenizer, PROMPT)
    assert len(prompt) == PROMPT
    theirs = peers(settings, prompt, log)
    base = two_replies(site, prompt, settings.repeats)
    site.publish(0.01, 1)
    trained = two_replies(site, prompt, settings.repeats)
    first = {name: median(r["first"] for r in found) for name, found in {**theirs, "ours": base}.items()}
    rows = [
        report.row(f"{name}: two replies of {TOKENS} tokens, prompt of {PROMPT}", speed(found), "tokens/s")
        for name, found in {**theirs, "ours": base}.items()
    ]
    rows += [report.row(f"{name}: time to first token", seconds, "s") for name, seconds in first.items()]
    rows.append(report.row("speed, ours to two generates", speed(base) / speed(theirs["two generates"]), "×", "≥ 3"))
    llama = theirs.get("llama.cpp")
    rows.append(report.row("speed, ours to llama.cpp's", speed(base) / speed(llama) if llama else None, "×", "≥ 1"))
    rows.append(
        report.row(
            "time to first token, ours to llama.cpp's",
            first["ours"] / first["llama.cpp"] if llama else None,
            "×",
            "≤ 0.5",
        )
    )
    rows.append(
        report.row("speed of a trained version to the base version's", speed(trained) / speed(base), "×", "≥ 0.95")
    )
    return rows


# -- faithfulness


def faithful_rows(settings, site, tokenizer):
    """KL of what is served to the model in fp32, on its own replies to held-out prompts, of the base and of a trained
    version.
    """
    exact = loading.load_trunk(settings.with_values(dtype="float32", device="cpu"))
    rows, live = [], site.engine.live
    chosen = rollout.seed_prompts("heldout", tokenizer, 256)[: served.EPISODES]
    tuned = adapters.load(
        site.engine.store.live_policy()["path"], exact, base_hash=loading.base_identity(exact, settings)["hash"]
    )
    for name, model in (("base version", exact), ("trained version", tuned)):
        forward = live.forward if name == "trained version" else live.forward.for_model(site.engine.base)
        episodes = rollout.Rollouts(model).sample(
            chosen,
            rollout.generator("served"),
            replies=1,
            max_tokens=48,
            temperature=0.7,
            end_tokens=frozenset(),
        )
        rows.append(
            report.row(
                f"{name}: KL of the served format to fp32",
                served.divergence(model, forward, episodes),
                "nats a token",
                "≤ 0.005",
            )
        )
    return rows


# -- many people


def crowd_rows(settings, site, tokenizer, log):
    rows, totals = [], {}
    prompts_of_people = [text_prompt(tokenizer, 100 + 10 * i, i) for i in range(8)]
    repeats = max(1, settings.repeats // 2)
    for people in (1, 2, 4, 8):
        times = []
        for _ in range(repeats):
            site.engine.kv_pool.retained.clear()
            found = [None] * people
            threads = [
                threading.Thread(
                    target=lambda i=i, found=found: found.__setitem__(
                        i, site.duel(prompts_of_people[i], CROWD_TOKENS, seed=2 * i)
                    )
                )
                for i in range(people)
            ]
            start = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            seconds = time.perf_counter() - start
            rates = [2 * (CROWD_TOKENS - 1) / (f["seconds"] - f["both"]) for f in found]
            times.append((people * 2 * CROWD_TOKENS / seconds, min(rates) / (sum(rates) / people)))
        totals[people] = median(t for t, _ in times)
        rows.append(report.row(f"{people} at once: all replies together", totals[people], "tokens/s"))
        rows.append(
            report.row(
                f"{people} at once: the slowest person's rate to the mean", min(f for _, f in times), "×", "≥ 0.5"
            )
        )
    rows.append(report.row("8 at once to one, all replies together", totals[8] / totals[1], "×", "≥ 2.5"))
    theirs = None
    if not settings.quick:  # two sequences for each person, each of which reads the prompt
        sequences = [prompt for prompt in prompts_of_people for _ in range(2)]
        runs = llama_cpp.run(settings, sequences, CROWD_TOKENS, repeats, log)
        theirs = len(sequences) * CROWD_TOKENS / median(run["seconds"] for run in runs)
        rows.append(report.row("llama.cpp, 16 sequences: all together", theirs, "tokens/s"))
    rows.append(report.row("8 at once, ours to llama.cpp's", theirs and totals[8] / theirs, "×", "≥ 1"))
    return rows


def prefix_rows(settings, site, tokenizer):
    """The second turn of a conversation of 600 tokens, with and without what the first one read."""
    first, with_it, without = text_prompt(tokenizer, 500), [], []
    for repeat in range(settings.repeats):
        site.engine.kv_pool.retained.clear()
        reply = site.duel(first, 70, seed=repeat)["stream"].decoding.replies[0].token_ids
        second = first + reply + text_prompt(tokenizer, 600)[-30:]
        with_it.append(site.duel(second, 2)["first"])
        site.engine.kv_pool.retained.clear()
        without.append(site.duel(second, 2)["first"])
    return [
        report.row(f"second turn of {len(second)} tokens, time to first token", median(with_it), "s"),
        report.row("the same without the prefix cache", median(without), "s"),
        report.row(
            "time to first token with the prefix cache to without", median(with_it) / median(without), "×", "≤ 0.35"
        ),
    ]


# -- swaps


def swap_rows(settings, site, tokenizer, log):
    """Versions taken live one after the other under streams; every stream's text must be what its own version alone
    says.
    """
    prompt, swaps = text_prompt(tokenizer, 40), 20 if settings.quick else settings.swaps
    min_reused = kv_cache_pool.MIN_REUSED_TOKENS
    kv_cache_pool.MIN_REUSED_TOKENS = len(prompt)  # every stream reads its whole prompt, as `alone` does
    versions = [site.publish(0.02, 10 + n) for n in range(3)]
    store, engine, gaps, wrong, taken = site.engine.store, site.engine, [], 0, 0

    def alone(version):
        row = store.policy(version)
        model = adapters.load(row["path"], engine.base, base_hash=engine.identity["hash"])
        return [
            r.token_ids
            for r in decoder.run(
                engine.live.forward.for_model(model),
                [prompt],
                [0, 1],
                Sampling(temperature=0, max_tokens=16),
                frozenset(),
                n=2,
            )
        ]

    expected, stop, ended = (
        run_in_own_thread(settings.threads, lambda: {v: alone(v) for v in versions}),
        threading.Event(),
        [],
    )

    def person():
        while not stop.is_set():
            stream = engine.duel(prompt, [0, 1], Sampling(temperature=0, max_tokens=16))
            seen, at = 0, time.perf_counter()
            while not stream.wait(0.002):
                if stream.tokens()[0] > seen:
                    gaps.append((time.perf_counter() - at) if seen else 0)
                    seen, at = stream.tokens()[0], time.perf_counter()
            ended.append((stream.policy.version, [r.token_ids for r in stream.decoding.replies], stream.error))

    people = [threading.Thread(target=person) for _ in range(2)]
    for thread in people:
        thread.start()
    for n in range(swaps):
        store.roll_back(versions[n % 3])
        start = time.perf_counter()
        while engine.live.version != versions[n % 3] and time.perf_counter() - start < 60:
            time.sleep(0.01)
        taken += engine.live.version == versions[n % 3]
        if n % 100 == 99:
            log(f"{n + 1} swaps, longest gap {1e3 * max(gaps):.0f} ms")
    stop.set()
    for thread in people:
        thread.join()
    kv_cache_pool.MIN_REUSED_TOKENS = min_reused
    wrong = sum(
        error is not None or (version in expected and said != expected[version]) for version, said, error in ended
    )
    back = []
    for n in range(settings.repeats + 2):
        store.roll_back(versions[n % 2])
        start = time.perf_counter()
        run_in_own_thread(1, engine.versions.follow_store)
        back.append(time.perf_counter() - start)
    return [
        report.row("roll-back until the version before answers", max(back[2:]), "s", "≤ 1"),
        report.row("swaps under load", taken, f"of {swaps}", f"≥ {swaps}"),
        report.row(f"streams dropped or wrong, of {len(ended)}", wrong, "", "≤ 0"),
        report.row("longest gap between two tokens of a stream", 1e3 * max(gaps), "ms", "≤ 250"),
    ]


# -- beside a round


def round_rows(settings, site, tokenizer, log):
    """Speed and first token of the chat while a worker trains on simulated votes."""
    prompt = text_prompt(tokenizer, PROMPT)
    folder = site.settings.data_dir / "beside"
    job = Settings.like(site.settings, data_dir=folder, seed=0)
    said = simulate.SimulateSettings.like(job, votes=48, chat={"reply_tokens": 64})
    store = Store(job.database)
    run_in_own_thread(
        settings.threads,
        lambda: simulate.make_duels(store, said, loading.load_trunk(job), tokenizer, {"brevity": Person(brevity)}, log),
    )
    quiet = two_replies(site, prompt, settings.repeats)
    worker = site.engine.worker_process = Child(
        [sys.executable, "-m", "training.worker"], app.child_environ(job)
    ).start()
    try:
        while (row := store.last_round()) is None or (
            row["state"] in ("requested", "running") and row["phase"] != "ppo"
        ):
            time.sleep(0.5)
        beside = []
        while store.last_round()["state"] == "running" and len(beside) < 3 * settings.repeats:
            beside += two_replies(site, prompt, 1)
            time.sleep(1)
    finally:
        site.engine.worker_process = None
        worker.stop()
    if not beside:
        log(f"the round ended before it could be measured: {store.last_round()['reason']}")
        return []
    return [
        report.row("speed kept while a round trains", speed(beside) / speed(quiet), "×", "≥ 0.8"),
        report.row(
            "time to first token while a round trains to without",
            median(r["first"] for r in beside) / median(r["first"] for r in quiet),
            "×",
            "≤ 2",
        ),
    ]


# -- the process


def process_rows(settings, tokenizer):
    """`python app.py` once warm: until it can answer, and its memory after eight people have chatted at once."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            **settings.environ(),
            "NUDGE_DATA_DIR": folder,
            "NUDGE_WORKER": "false",
            "NUDGE_PORT": "0",
        }
        shutil.copy(settings.data_dir / "tuning.json", folder)
        seconds, peak = [], None
        for _ in range(3):
            start = time.perf_counter()
            server = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.engine_app"],
                env=environment,
                cwd=peer.ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            said = (
                json.loads(line) for line in server.stdout if line.startswith("{")
            )  # the server says where it is, too
            ready = next(said)
            seconds.append(time.perf_counter() - start)
            peak = next(said)["peak_mb"]
            server.wait()
            assert ready["ready"]
    return [
        report.row("warm start until a first token is possible", median(seconds), "s", "≤ 10"),
        report.row("memory of the server, 8 people", peak, "MB", "≤ 1500"),
    ]


def run(settings, log=print):
    """The rows."""
    settings = settings.with_values(device="cpu")
    if settings.quick:
        settings = settings.with_values(repeats=2)
    base, tokenizer = (
        run_in_own_thread(settings.threads, lambda: loading.load_trunk(settings)),
        loading.load_tokenizer(settings),
    )
    choice = run_in_own_thread(
        settings.threads, lambda: tuning.choose(settings, base, loading.base_identity(base, settings))
    )
    rows = [
        report.row(
            f"decoding in {choice.number_format} on {choice.threads} of {settings.threads} threads: a step of two "
            "replies",
            choice.milliseconds,
            "ms",
        )
    ]
    with tempfile.TemporaryDirectory() as folder:
        site = Site(settings, folder, base, tokenizer)
        try:
            for part in (
                lambda: duel_rows(settings, site, tokenizer, log),
                lambda: run_in_own_thread(settings.threads, lambda: faithful_rows(settings, site, tokenizer)),
                lambda: crowd_rows(settings, site, tokenizer, log),
                lambda: prefix_rows(settings, site, tokenizer),
                lambda: swap_rows(settings, site, tokenizer, log),
                *([] if settings.quick else [lambda: round_rows(settings, site, tokenizer, log)]),
            ):
                rows += part()
                report.show(rows)
        finally:
            site.engine.close()
    return rows + process_rows(settings, tokenizer)


def main(argv=None):
    try:
        settings = read(argv, EngineSettings, "python -m benchmarks.engine")
        rows = run(settings)
    except (SettingsError, peer.SideFailed, loading.ModelUnavailable) as error:
        sys.exit(str(error))
    report.show(rows, settings.json_file)


if __name__ == "__main__":
    main()
