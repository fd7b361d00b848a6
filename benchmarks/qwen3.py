"""A model of Qwen3-0.6B's shape, with random weights, beside its peers: two replies to one prompt by the chat's engine,
by llama.cpp on the same weights in 4 bits, and by two transformers `generate` calls in bf16.

Both sides take their turn in one run, as in `engine.py`. A wrong conversion would compare two models, so what llama.cpp
says with the weights in f16 is set beside what ours says. The files stay in DATA/benchmarks for the next run.
"""

import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from pydantic import Field
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks import llama_cpp, peer, qwen3_shape, report
from benchmarks.engine_site import TOKENS, Run, Site, speed
from benchmarks.report import Log, Row
from playground.decoding import measuring, tuning
from playground.decoding.forward import AnyForward
from playground.models import loading
from playground.settings import Positive, Settings, SettingsError, read
from playground.system.threads import run_in_own_thread

GENERATES = ("generates", peer.pins_of("torch", "transformers", "accelerate"))
PROMPT = 181  # tokens
TYPES = ("Q4_1", "Q4_K_M")  # of llama.cpp's weights
F16 = "f16"


class Qwen3Settings(Settings):
    """Qwen3-0.6B's shape beside llama.cpp and transformers."""

    quick: bool = False
    """A tiny model of the same kind; llama.cpp only where an earlier benchmark has compiled it."""
    repeats: Positive = 3
    """Repetitions of each figure; medians count."""
    json_file: str = Field("", alias="json")
    """File for the rows, as JSON."""


# -- the model's files


def files(settings: Qwen3Settings, log: Log) -> dict[str, Path]:
    """The model as a folder ("model"), and where llama.cpp runs as GGUFs by their type; made where they are missing."""
    folder = settings.data_dir.absolute() / "benchmarks" / ("qwen3-tiny" if settings.quick else "qwen3-0.6b")
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    if not model.exists():
        log(f"making {model}")
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            qwen3_shape.make_folder(
                Path(scratch) / "model", qwen3_shape.TINY if settings.quick else qwen3_shape.QWEN3_600M
            )
            (Path(scratch) / "model").rename(model)
    found = {"model": model}
    if settings.quick and not peer.is_made(settings, llama_cpp.NAME, llama_cpp.PINS):
        return found
    for number_format in (F16, *TYPES):
        found[number_format] = file = folder / f"{number_format}.gguf"
        if not file.exists():
            log(f"making {file}")
            partial = file.with_suffix(".partial")
            if number_format == F16:
                qwen3_shape.write_gguf(AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16), partial)
            else:
                llama_cpp.quantise(settings, found[F16], partial, number_format, log)
            partial.rename(file)
    return found


# -- the peers


def peers(settings: Qwen3Settings, made: dict[str, Path], prompt: list[int], log: Log) -> dict[str, list[Run]]:
    """{peer: what its repetitions took}"""
    job = {
        "model": str(made["model"]),
        "prompt": prompt,
        "tokens": TOKENS,
        "threads": settings.threads,
        "repeats": settings.repeats,
    }
    script = peer.ROOT / "benchmarks" / "peers" / "two_generates.py"
    runs_of = {}
    for name in TYPES:
        if name in made:
            runs_of[f"llama.cpp {name}"] = llama_cpp.run(
                settings, [prompt, prompt], TOKENS, settings.repeats, log, made[name]
            )
    runs_of["two generates"] = peer.run_job([peer.python(settings, *GENERATES, log), script], job, settings.threads)
    return runs_of


def speed_rows(runs_of: dict[str, list[Run]]) -> list[Row]:
    """Tokens a second and first tokens of all, "ours" among them, and their ratios."""
    ours = runs_of["ours"]
    rows = []
    for name, runs in runs_of.items():
        rows.append(report.row(f"{name}: two replies of {TOKENS} tokens, prompt of {PROMPT}", speed(runs), "tokens/s"))
        rows.append(report.row(f"{name}: time to first token", first(runs), "s"))
    for name in (f"llama.cpp {number_format}" for number_format in TYPES):
        theirs = runs_of.get(name)
        rows.append(report.row(f"speed, ours to {name}", speed(ours) / speed(theirs) if theirs else None, "×", "≥ 0.9"))
        rows.append(
            report.row(f"time to first token, ours to {name}", first(ours) / first(theirs) if theirs else None, "×")
        )
    generates = runs_of["two generates"]
    rows.append(report.row("speed, ours to two generates", speed(ours) / speed(generates), "×", "≥ 4"))
    return rows


def first(runs: Sequence[Run]) -> float:
    """Seconds to the first token, in the median run."""
    return median(run["first"] for run in runs)


# -- the same model


def same_model_rows(
    settings: Qwen3Settings, made: dict[str, Path], forward: AnyForward, prompt: list[int], log: Log
) -> list[Row]:
    """Whether llama.cpp has the model that we have: what each says after the prompt, and what rounding changes."""
    served = after(forward, prompt)
    model = measuring.next_token(forward.model, prompt)
    rows = [report.row("KL of the served format to the model", kl(model, served), "nats", "≤ 0.005")]
    if F16 not in made:
        return rows
    theirs = {name: said_by_llama(settings, made[name], prompt, log) for name in (F16, *TYPES)}
    rows += [
        report.row("the same model: KL of llama.cpp in f16 to ours", kl(theirs[F16], served), "nats", "≤ 0.005"),
        report.row("the same, had we one prompt token less", kl(theirs[F16], after(forward, prompt[1:])), "nats"),
        report.row("the same most likely token", int(theirs[F16].argmax() == served.argmax())),
    ]
    for name in TYPES:
        rows.append(report.row(f"KL of llama.cpp in f16 to its {name}", kl(theirs[F16], theirs[name]), "nats"))
    return rows


@torch.inference_mode()
def after(forward: AnyForward, prompt: list[int]) -> torch.Tensor:
    """Log-probabilities (vocabulary,) after the prompt, whose last token is a decoding step."""
    cache = forward.new_cache(2, len(prompt) - 1, 1)
    forward.prefill(cache, prompt[:-1])
    return torch.log_softmax(forward.decode([cache], prompt[-1:] * 2)[0].float(), -1)


def said_by_llama(settings: Settings, gguf: Path, prompt: list[int], log: Log) -> torch.Tensor:
    """llama.cpp's log-probabilities (vocabulary,) after the prompt."""
    return torch.log_softmax(torch.from_numpy(llama_cpp.next_token(settings, gguf, prompt, log)), -1)


def kl(truth: torch.Tensor, said: torch.Tensor) -> float:
    """KL, in nats, of two distributions, given as log-probabilities (vocabulary,)."""
    return (truth.exp() * (truth - said)).sum().item()


# -- the run


def choose(settings: Settings, base: PreTrainedModel) -> list[Row]:
    """Measure the formats as a first start does, with nothing remembered."""
    start = time.perf_counter()
    run_in_own_thread(1, lambda: tuning.compiled_step_fits(base))
    compiled = time.perf_counter() - start
    identity = loading.base_identity(base, settings)
    start = time.perf_counter()
    choice = run_in_own_thread(settings.threads, lambda: tuning.choose(settings, base, identity))
    seconds = time.perf_counter() - start
    name = f"{choice.number_format} on {choice.threads} of {settings.threads} threads"
    return [
        report.row("the compiled step: made, or read from its cache", compiled, "s"),
        report.row("formats measured, and one chosen", seconds, "s"),
        report.row(f"decoding in {name}: a step of two replies", choice.milliseconds, "ms"),
    ]


def run(settings: Qwen3Settings, log: Log = print) -> list[Row]:
    """All rows."""
    settings = settings.with_values(device="cpu")
    made = files(settings, log)
    settings = settings.with_values(model=str(made["model"]))
    random_tokens = random.Random(0)
    shape = qwen3_shape.TINY if settings.quick else qwen3_shape.QWEN3_600M
    prompt = [random_tokens.randrange(shape["vocab_size"]) for _ in range(PROMPT)]
    runs_of = peers(settings, made, prompt, log)
    base = run_in_own_thread(settings.threads, lambda: loading.load_trunk(settings))
    tokenizer = loading.load_tokenizer(settings)
    with tempfile.TemporaryDirectory() as folder:
        fresh = settings.with_values(data_dir=Path(folder))  # without what earlier runs have measured
        rows = [report.instruction_sets(), *choose(fresh, base)]
        (Path(folder) / "site").mkdir()
        site = Site(fresh, Path(folder) / "site", base, tokenizer)
        try:
            runs_of = {"ours": site.repeated_duels(prompt, settings.repeats), **runs_of}
            rows += speed_rows(runs_of)
            forward = site.engine.live.forward
            rows += run_in_own_thread(settings.threads, lambda: same_model_rows(settings, made, forward, prompt, log))
        finally:
            site.engine.close()
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    try:
        settings = read(argv, Qwen3Settings, "python -m benchmarks.qwen3")
        rows = run(settings)
    except (SettingsError, peer.SideFailed, loading.ModelUnavailable) as error:
        sys.exit(str(error))
    report.show(rows, settings.json_file)


if __name__ == "__main__":
    main()
