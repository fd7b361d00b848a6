"""Which number format and how many threads decode fastest here: measured in a few seconds at the first start,
remembered for this machine and model.
"""

import json
import logging
import os
import platform
import time
from dataclasses import asdict, dataclass
from statistics import median

import torch

from playground.decoding import lean, plain

log = logging.getLogger(__name__)

CONTEXT, ROWS, STEPS = 192, 2, 8  # of one measurement: a duel's
FAITHFUL = 0.01  # nats; a format further from the model than this is not chosen


@dataclass(frozen=True)
class Choice:
    """How versions decode: `number_format` is one of lean.FORMATS, or `plain` for the unmodified transformers
    forward.
    """

    number_format: str
    threads: int
    milliseconds: float | None = None  # of one step of two replies
    nats: float | None = None  # KL of the model's next token to the format's

    def forward(self, model):
        """This version of the model, ready to run."""
        return plain.of(model) if self.number_format == "plain" else lean.Lean(model, self.number_format)


def choose(settings, model, identity):
    """The Choice for `model`: what the settings say, else what was measured here before, else a measurement."""
    if settings.decode_format == "plain" or not lean.fits(model):
        return Choice("plain", settings.threads)
    file = settings.data_dir / "tuning.json"
    machine = " ".join(
        [
            platform.machine(),
            _cpu(),
            str(settings.threads),
            torch.__version__,
            identity["hash"][:16],
            settings.decode_format,
        ]
    )
    known = _known(file)
    if machine not in known:
        formats = ["int8", "bfloat16", "float32"] if settings.decode_format == "auto" else [settings.decode_format]
        known[machine] = asdict(_measure(settings, model, formats))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(known, indent=1))
    choice = Choice(**known[machine])
    log.info(
        "decoding in %s on %d threads, %.1f ms a step of two replies",
        choice.number_format,
        choice.threads,
        choice.milliseconds,
    )
    return choice


def _measure(settings, model, formats):
    ids = torch.randint(0, model.config.vocab_size, (CONTEXT,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.inference_mode():
        truth = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].float(), -1)
    found, before = [], torch.get_num_threads()
    try:
        for number_format in formats:
            forward = lean.Lean(model, number_format)
            for threads in sorted({1, settings.threads}):
                torch.set_num_threads(threads)
                line, times = forward.open(ROWS, CONTEXT - 1, STEPS + 1), []
                forward.read(line, ids[:-1])
                for step in range(STEPS + 1):
                    start = time.perf_counter()
                    logits = forward.step([line], [ids[-1]] * ROWS)
                    times.append(time.perf_counter() - start)
                    if step == 0:
                        said = torch.log_softmax(logits[0], -1)
                        distance = (truth.exp() * (truth - said)).sum().item()
                milliseconds = 1e3 * median(times[1:])
                log.info(
                    "%s on %d threads: %.1f ms a step, %.4f nats from the model",
                    number_format,
                    threads,
                    milliseconds,
                    distance,
                )
                if len(formats) == 1 or distance < FAITHFUL or number_format == "float32":
                    found.append(Choice(number_format, threads, round(milliseconds, 2), round(distance, 6)))
            del forward
    finally:
        torch.set_num_threads(before)
    return min(found, key=lambda choice: choice.milliseconds)


def _known(file):
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _cpu():
    try:
        return (
            next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
            + f" x{os.cpu_count()}"
        )
    except (OSError, StopIteration):
        return f"{platform.processor()} x{os.cpu_count()}"
