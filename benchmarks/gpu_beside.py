"""One GPU for chat and training: how fast the chat writes, and how soon, alone and beside PPO in another process."""

import gc
import itertools
import statistics
import sys
import time

from benchmarks import gpu_side, report
from playground.decoding.sampling import Sampling
from playground.models import loading
from playground.serving.engine import Engine
from playground.store import Store
from training import rollout

KEPT = 0.8  # share of its tokens a second that the chat keeps
LATER = 2  # times the first token may take
REPLY_SECONDS = 30
PAUSE = 0.02  # seconds between two messages


def answered(engine, prompts, reply_tokens, seconds):
    """(tokens a second of the two replies to a message while they stream, median milliseconds to a first token)."""
    tokens, streamed, first_ms = 0, 0.0, []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stream = engine.duel(
            next(prompts), [len(first_ms), 1000 + len(first_ms)], Sampling(0.7, max_tokens=reply_tokens)
        )
        if not stream.finished.wait(REPLY_SECONDS) or stream.error:
            raise RuntimeError(stream.error or f"no reply within {REPLY_SECONDS} s")
        tokens += sum(len(reply.token_ids) for reply in stream.decoding.replies)
        streamed += max(stream.total_ms) - max(stream.first_token_ms)
        first_ms.append(max(stream.first_token_ms))
        time.sleep(PAUSE)
    return 1e3 * tokens / streamed, statistics.median(first_ms)


def iterations_a_second(file, since):
    """PPO iterations a second of the process that writes `file`, between the first and the last line since then."""
    times = [line["time"] for line in gpu_side.lines(file) if line["time"] >= since]
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None


def beside(settings, device, log):
    """Rows: the chat alone, and beside PPO on the same device."""
    seconds = 1.0 if settings.quick and device.type == "cpu" else 8.0
    reply_tokens = settings.chat.reply_tokens
    own = settings.with_values(ppo={"episodes": min(32, settings.ppo.episodes)})
    own.data_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = loading.load_tokenizer(own)
    engine = Engine(Store(own.database), own, loading.load_trunk(own), tokenizer)
    engine.end_tokens = frozenset()  # replies of one length
    prompts = itertools.cycle(rollout.seed_prompts("train", tokenizer, own.ppo.rollout_context))
    switching = sys.getswitchinterval()
    engine.start()
    try:
        answered(engine, prompts, reply_tokens, seconds / 4)  # warms up
        alone, first_alone = answered(engine, prompts, reply_tokens, seconds)
        with gpu_side.running("train", own) as (child, file):
            gpu_side.wait_until_ready(file)
            since = time.monotonic()
            time.sleep(seconds)
            training_alone = iterations_a_second(file, since)
            engine.worker_process = child
            since = time.monotonic()
            shared, first_shared = answered(engine, prompts, reply_tokens, seconds)
            training_shared = iterations_a_second(file, since)
            engine.worker_process = None
            child.resume()
    finally:
        engine.close()
        gc.unfreeze()
        sys.setswitchinterval(switching)
    training_kept = training_shared / training_alone if training_shared and training_alone else None
    return [
        report.row("chat alone: two replies, tokens a second", alone, "tokens/s"),
        report.row("chat beside PPO: two replies, tokens a second", shared, "tokens/s"),
        report.row("chat beside PPO: of its tokens a second", shared / alone, "share", f"≥ {KEPT}"),
        report.row("chat alone: first token", first_alone, "ms"),
        report.row("chat beside PPO: first token", first_shared, "ms"),
        report.row("chat beside PPO: first token to that alone", first_shared / first_alone, "times", f"≤ {LATER}"),
        report.row("PPO without chat", training_alone, "iterations/s"),
        report.row("PPO beside chat", training_shared, "iterations/s"),
        report.row("PPO beside chat: of its iterations a second", training_kept, "share"),
        report.row("PPO beside chat: share of the time that it may take", settings.gpu_share, "share"),
    ]


SECTIONS = {"beside": beside}
