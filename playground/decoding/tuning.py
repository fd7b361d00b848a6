"""Which number format and how many threads decode fastest here: measured in a few seconds at the first start, then
remembered in `tuning.json` for this machine and model.
"""

import json
import logging
import os
import platform
import time
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from playground.decoding import fused, graph_forward
from playground.decoding.choose_forward import divergence, most_divergence, transformers_forward_of
from playground.decoding.forward import AnyForward, TokenIds
from playground.decoding.graph_forward import GraphForward
from playground.decoding.number_formats import PARAMETER_BYTES
from playground.models.loading import BaseIdentity
from playground.settings import Settings

log = logging.getLogger(__name__)

# what is measured: a step of a pair of replies
CONTEXT_TOKENS = 192
REPLIES = 2
STEPS = 8
FAR = 2  # times the fastest format's milliseconds

MAX_KL = 0.01  # nats; a format further from the model than this is not chosen
AUTO_FORMATS = ("w8a16", "int8", "bfloat16", "float32")  # that are measured where the settings name none


@dataclass(frozen=True)
class Choice:
    """How versions decode."""

    # one of number_formats.FORMATS, `w8a16` for the compiled step, `graph` for the graph forward, or `plain` for the
    # unmodified transformers forward
    number_format: str
    threads: int
    milliseconds: float | None = None  # of one step of two replies
    nats: float | None = None  # KL of the model's next token to the format's
    slots: int = 0  # pairs of replies that the graph forward decodes at once
    slot_tokens: int = 0  # columns of each

    def forward(self, model: PreTrainedModel) -> AnyForward:
        """This version of the model, ready to run."""
        if self.number_format == "plain":
            return transformers_forward_of(model)
        if self.number_format == "graph":
            return GraphForward(model, self.slots, self.slot_tokens)
        return fused_forward(model, self.number_format)

    def copy_bytes(self, model: PreTrainedModel) -> int:
        """Bytes of main memory that a version's own copy of the weights takes; 0 where it has none there."""
        return PARAMETER_BYTES.get(self.number_format, 0) * sum(weight.numel() for weight in model.parameters())


def fused_forward(model: PreTrainedModel, number_format: str) -> fused.FusedForward:
    """The forward of the Llama family on a CPU, in this format."""
    if number_format == "w8a16":
        from playground.decoding import w8a16  # compiles at the first import, so only where it is wanted

        return w8a16.W8A16Forward(model)
    return fused.FusedForward(model, number_format)


def compiled_step_fits(model: PreTrainedModel) -> bool:
    """Whether `w8a16` serves the model on this machine; the log says why not."""
    try:
        from playground.decoding import w8a16

        return w8a16.fits(model)
    except Exception as error:  # no numba, no OpenMP in torch, no folder that compiled code can be kept in
        log.warning("the compiled step cannot be used here, other formats are: %s: %s", type(error).__name__, error)
        return False


def _formats(settings: Settings, model: PreTrainedModel) -> tuple[str, ...]:
    """The formats among which one is chosen."""
    if settings.decode_format not in ("auto", "w8a16"):
        return (settings.decode_format,)
    if not compiled_step_fits(model):
        return AUTO_FORMATS[1:]
    return AUTO_FORMATS if settings.decode_format == "auto" else ("w8a16",)


def choose(settings: Settings, model: PreTrainedModel, identity: BaseIdentity) -> Choice:
    """The Choice for `model`: what the settings say, else what was measured here before, else a measurement."""
    tokens = settings.chat.context_tokens + settings.chat.reply_tokens
    if settings.decode_format != "plain" and graph_forward.fits(model, tokens):
        return _on_gpu(settings, model)
    if settings.decode_format == "plain" or not fused.fits(model, tokens):
        return Choice("plain", settings.threads)
    file = settings.data_dir / "tuning.json"
    formats = _formats(settings, model)
    key = " ".join(
        [
            platform.machine(),
            _cpu(),
            str(settings.threads),
            torch.__version__,
            identity["hash"][:16],
            ",".join(formats),
        ]
    )
    choices = _read(file)
    if key not in choices:
        choices[key] = asdict(_measure(settings, model, formats))
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(choices, indent=1))
        os.replace(partial, file)  # server and worker may both read it
    choice = Choice(**choices[key])
    log.info(
        "decoding in %s on %d threads, %.1f ms a step of two replies",
        choice.number_format,
        choice.threads,
        choice.milliseconds,
    )
    return choice


def _on_gpu(settings: Settings, model: PreTrainedModel) -> Choice:
    """The graph forward where it says what the model says, with room for as many pairs of the longest replies as the
    setting for keys and values holds, and at least for one message's.
    """
    chat = settings.chat
    slot_tokens = chat.context_tokens + 2 * chat.reply_tokens + 2
    forward = GraphForward(model, 2, slot_tokens)
    nats = divergence(forward)
    if nats > most_divergence(forward.lean.dtype):
        log.warning(
            "the graph forward is %.3g nats from the model: decoding with transformers' own, which is slower", nats
        )
        return Choice("plain", settings.threads)
    slots = (settings.kv_cache_mb << 20) // forward.cache_bytes(1, slot_tokens, 0)
    needed = -(-chat.candidates // 2)
    choice = Choice(
        "graph", settings.threads, None, nats, max(needed, min(slots, graph_forward.MAX_SLOTS)), slot_tokens
    )
    log.info(
        "decoding %d pairs of replies at once with kernels of %s, KL to the model %.2g nats",
        choice.slots,
        forward.lean.kernels.name,
        nats,
    )
    return choice


@dataclass(frozen=True)
class _Measurement:
    milliseconds: float  # median of a step
    nats: float  # KL of the model's next token to the format's


def _measure(settings: Settings, model: PreTrainedModel, formats: tuple[str, ...]) -> Choice:
    """The fastest of the formats that are near enough to the model, and its number of threads."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (CONTEXT_TOKENS,), generator=generator).tolist()
    with torch.inference_mode():
        truth = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].float(), -1)
    choices: dict[Choice, float] = {}  # their milliseconds
    threads_before = torch.get_num_threads()
    try:
        for number_format in formats:
            forward = fused_forward(model, number_format)
            for threads in sorted({1, settings.threads}):
                torch.set_num_threads(threads)
                measured = _measure_steps(forward, ids, truth, min(choices.values(), default=inf))
                log.info(
                    "%s on %d threads: %.1f ms a step, KL to the model %.4f nats a token",
                    number_format,
                    threads,
                    measured.milliseconds,
                    measured.nats,
                )
                if len(formats) == 1 or measured.nats < MAX_KL or number_format == "float32":
                    choice = Choice(number_format, threads, round(measured.milliseconds, 2), round(measured.nats, 6))
                    choices[choice] = round(measured.milliseconds, 2)
            del forward  # before the next one takes as much memory
    finally:
        torch.set_num_threads(threads_before)
    return min(choices, key=choices.__getitem__)


def _measure_steps(forward: fused.FusedForward, ids: TokenIds, truth: torch.Tensor, best: float) -> _Measurement:
    """Time steps after `ids`; compare the first one's logits to `truth` (vocabulary,), the model's log-probabilities
    there. One step is enough where it takes far longer than the `best` milliseconds so far.
    """
    cache = forward.new_cache(REPLIES, len(ids) - 1, STEPS + 1)
    forward.prefill(cache, ids[:-1])
    seconds = []
    nats = 0.0
    for step in range(STEPS + 1):
        start = time.perf_counter()
        logits = forward.decode([cache], [ids[-1]] * REPLIES)
        seconds.append(time.perf_counter() - start)
        if step == 0:
            said = torch.log_softmax(logits[0], -1)
            nats = (truth.exp() * (truth - said)).sum().item()
        elif 1e3 * seconds[-1] > FAR * best:
            break
    return _Measurement(1e3 * median(seconds[1:]), nats)  # the first step warms up


def _read(file: Path) -> dict[str, Any]:
    """What earlier starts measured, by machine and model; empty where the file is missing or damaged."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _cpu() -> str:
    """The CPU's name and number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name} x{os.cpu_count()}"
