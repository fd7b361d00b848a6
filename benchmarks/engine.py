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
from collections.abc import Callable, Collection, Sequence
from statistics import mean, median

from transformers import PreTrainedTokenizerBase

import app
from benchmarks import cpu_kind, llama_cpp, peer, report
from benchmarks.engine_site import TOKENS, EngineSettings, Run, Site, speed, text_prompt
from benchmarks.engine_swaps import swap_rows
from benchmarks.report import Log, Row
from playground.decoding import tuning
from playground.models import adapters, loading, sources
from playground.settings import Settings, SettingsError, read
from playground.store import Store
from playground.system.child import Child
from playground.system.threads import run_in_own_thread
from training import rollout, served, simulate
from training.annotators import Person, brevity

GENERATES = ("generates", peer.pins_of("torch", "transformers", "accelerate"))
PROMPT = 181  # tokens
CROWD_TOKENS = 128  # of each reply, where many people write at once

# -- two replies, beside the peers


def peers(settings: EngineSettings, prompt: list[int], log: Log) -> dict[str, list[Run]]:
    """{peer: what its repetitions took}"""
    job = {
        "model": sources.resolve(settings),
        "prompt": prompt,
        "tokens": TOKENS,
        "threads": settings.threads,
        "repeats": settings.repeats,
    }
    generates = peer.ROOT / "benchmarks" / "peers" / "two_generates.py"
    runs_of = {
        "two generates": peer.run_job([peer.python(settings, *GENERATES, log), generates], job, settings.threads)
    }
    if not settings.quick:
        runs_of["llama.cpp"] = llama_cpp.run(settings, [prompt, prompt], TOKENS, settings.repeats, log)
    for name, runs in runs_of.items():
        log(f"{name}: {speed(runs):.1f} tokens/s, first token after {median(r['first'] for r in runs):.2f} s")
    return runs_of


def duel_rows(settings: EngineSettings, site: Site, tokenizer: PreTrainedTokenizerBase, log: Log) -> list[Row]:
    """Two replies to one prompt: ours by the base and by a trained version, and the peers'."""
    prompt = text_prompt(tokenizer, PROMPT)
    assert len(prompt) == PROMPT
    theirs = peers(settings, prompt, log)
    base = site.repeated_duels(prompt, settings.repeats)
    base_policy = site.engine.live
    site.publish(0.01, 1)
    base_again, trained = site.duels_in_turn(prompt, settings.repeats, [base_policy, None])
    untrained = {**theirs, "ours": base}
    first = {name: median(run["first"] for run in runs) for name, runs in untrained.items()}
    rows = [
        report.row(f"{name}: two replies of {TOKENS} tokens, prompt of {PROMPT}", speed(runs), "tokens/s")
        for name, runs in untrained.items()
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
        report.row(
            "speed of a trained version to the base version's, in turn",
            speed(trained) / speed(base_again),
            "×",
            "≥ 0.95",
        )
    )
    return rows + run_in_own_thread(settings.threads, lambda: faithful_rows(settings, site, tokenizer))


# -- faithfulness


def faithful_rows(settings: EngineSettings, site: Site, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """KL of what is served to the model in fp32, on its own replies to held-out prompts, of the base and of a trained
    version.
    """
    exact = loading.load_trunk(settings.with_values(dtype="float32", device="cpu"))
    rows: list[Row] = []
    live = site.engine.live
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


def duels_at_once(site: Site, prompts_of_people: Sequence[list[int]]) -> tuple[float, list[Run]]:
    """A duel for each prompt, all at once: seconds until all have ended, and what each took."""
    runs: dict[int, Run] = {}

    def chat(person: int) -> None:
        runs[person] = site.duel(prompts_of_people[person], CROWD_TOKENS, seed=2 * person)

    threads = [threading.Thread(target=chat, args=[person]) for person in range(len(prompts_of_people))]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start, list(runs.values())


def crowd_rows(settings: EngineSettings, site: Site, tokenizer: PreTrainedTokenizerBase, log: Log) -> list[Row]:
    """Replies to one, two, four and eight people at once; eight beside llama.cpp."""
    rows: list[Row] = []
    totals: dict[int, float] = {}  # tokens a second of all together, by the number of people
    prompts_of_people = [text_prompt(tokenizer, 100 + 10 * person, person) for person in range(8)]
    repeats = max(1, settings.repeats // 2)
    for people in (1, 2, 4, 8):
        speeds, slowest = [], []
        for _ in range(repeats):
            site.forget_prompts()
            seconds, runs = duels_at_once(site, prompts_of_people[:people])
            rates = [2 * (CROWD_TOKENS - 1) / (run["seconds"] - run["both"]) for run in runs]
            speeds.append(people * 2 * CROWD_TOKENS / seconds)
            slowest.append(min(rates) / mean(rates))
        totals[people] = median(speeds)
        rows.append(report.row(f"{people} at once: all replies together", totals[people], "tokens/s"))
        rows.append(report.row(f"{people} at once: the slowest person's rate to the mean", min(slowest), "×", "≥ 0.5"))
    rows.append(report.row("8 at once to one, all replies together", totals[8] / totals[1], "×", "≥ 2.5"))
    theirs = None
    if not settings.quick:  # two sequences for each person, each of which reads the prompt
        sequences = [prompt for prompt in prompts_of_people for _ in range(2)]
        runs = llama_cpp.run(settings, sequences, CROWD_TOKENS, repeats, log)
        theirs = len(sequences) * CROWD_TOKENS / median(run["seconds"] for run in runs)
        rows.append(report.row("llama.cpp, 16 sequences: all together", theirs, "tokens/s"))
    rows.append(report.row("8 at once, ours to llama.cpp's", theirs and totals[8] / theirs, "×", "≥ 1"))
    return rows


def prefix_rows(settings: EngineSettings, site: Site, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """The second turn of a conversation of 600 tokens, with and without what the first one read."""
    first = text_prompt(tokenizer, 500)
    with_it, without = [], []
    for repeat in range(settings.repeats):
        site.forget_prompts()
        reply = site.duel(first, 70, seed=repeat)["stream"].decoding.replies[0].token_ids
        second = first + reply + text_prompt(tokenizer, 600)[-30:]
        with_it.append(site.duel(second, 2)["first"])
        site.forget_prompts()
        without.append(site.duel(second, 2)["first"])
    return [
        report.row(f"second turn of {len(second)} tokens, time to first token", median(with_it), "s"),
        report.row("the same without the prefix cache", median(without), "s"),
        report.row(
            "time to first token with the prefix cache to without", median(with_it) / median(without), "×", "≤ 0.35"
        ),
    ]


# -- beside a round


def round_rows(settings: EngineSettings, site: Site, tokenizer: PreTrainedTokenizerBase, log: Log) -> list[Row]:
    """Speed and first token of the chat while a worker trains on simulated votes."""
    prompt = text_prompt(tokenizer, PROMPT)
    folder = site.settings.data_dir / "beside"
    job = Settings.like(site.settings, data_dir=folder, seed=0)
    votes = simulate.SimulateSettings.like(job, votes=48, chat={"reply_tokens": 64})
    store = Store(job.database)
    run_in_own_thread(
        settings.threads,
        lambda: simulate.make_duels(
            store, votes, loading.load_trunk(job), tokenizer, {"brevity": Person(brevity)}, log
        ),
    )
    quiet = site.repeated_duels(prompt, settings.repeats)
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
            beside += site.repeated_duels(prompt, 1)
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
            median(run["first"] for run in beside) / median(run["first"] for run in quiet),
            "×",
            "≤ 2",
        ),
    ]


# -- the process


def process_rows(settings: EngineSettings) -> list[Row]:
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
            # the server also prints its address
            answers = (json.loads(line) for line in server.stdout if line.startswith("{"))
            ready = next(answers)
            seconds.append(time.perf_counter() - start)
            peak = next(answers)["peak_mb"]
            server.wait()
            assert ready["ready"]
    return [
        report.row("warm start until a first token is possible", median(seconds), "s", "≤ 10"),
        report.row("memory of the server, 8 people", peak, "MB", "≤ 1500"),
    ]


def asked_parts(settings: EngineSettings, names: Collection[str]) -> Collection[str]:
    """The parts that the settings ask for. SettingsError for one that there is not."""
    wanted = [name for name in settings.only.split(",") if name]
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise SettingsError(f"--only: {', '.join(unknown)}: choose among {', '.join(names)}")
    return wanted or names


def run(settings: EngineSettings, log: Log = print) -> list[Row]:
    """The rows of all parts, shown as far as they are while it runs."""
    settings = settings.with_values(device="cpu")
    if settings.quick:
        settings = settings.with_values(repeats=2)
    base = run_in_own_thread(settings.threads, lambda: loading.load_trunk(settings))
    tokenizer = loading.load_tokenizer(settings)
    choice = run_in_own_thread(
        settings.threads, lambda: tuning.choose(settings, base, loading.base_identity(base, settings))
    )
    rows = [
        report.instruction_sets(settings.cpu),
        report.row(
            f"decoding in {choice.number_format} on {choice.threads} of {settings.threads} threads: a step of two "
            "replies",
            choice.milliseconds,
            "ms",
        ),
    ]
    with tempfile.TemporaryDirectory() as folder:
        site = Site(settings, folder, base, tokenizer)
        try:
            parts: dict[str, Callable[[], list[Row]]] = {
                "duel": lambda: duel_rows(settings, site, tokenizer, log),
                "crowd": lambda: crowd_rows(settings, site, tokenizer, log),
                "prefix": lambda: prefix_rows(settings, site, tokenizer),
                "swaps": lambda: swap_rows(settings, site, tokenizer, log),
                "round": lambda: [] if settings.quick else round_rows(settings, site, tokenizer, log),
                "process": lambda: process_rows(settings),
            }
            for name in asked_parts(settings, parts):
                rows += parts[name]()
                report.show(rows)
        finally:
            site.engine.close()
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    try:
        settings = read(argv, EngineSettings, "python -m benchmarks.engine")
        cpu_kind.limit(settings.cpu, "benchmarks.engine", sys.argv[1:] if argv is None else argv)
        rows = run(settings)
    except (SettingsError, peer.SideFailed, loading.ModelUnavailable) as error:
        sys.exit(str(error))
    report.show(rows, settings.json_file)


if __name__ == "__main__":
    main()
