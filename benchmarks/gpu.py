"""What a round and the chat take on a GPU: `python -m benchmarks.gpu [--quick] [--json FILE] [--only train,decode]`.

The parts are `gpu_models.py`, `gpu_round.py`, `gpu_ppo.py`, `gpu_qlora.py` and `gpu_beside.py` (training) and
`gpu_decode.py` (the chat). A section that
fails does not end the others: its row says "not run", and its error is printed. Without CUDA, `--quick` runs the same
sections on the CPU, with whatever `--model` names.
"""

import gc
import importlib
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import Field

from benchmarks import report
from benchmarks.report import Log, Row
from playground.models import loading
from playground.settings import Settings, SettingsError, read
from playground.system import memory

PARTS = {"train": ("gpu_models", "gpu_ppo", "gpu_round", "gpu_qlora", "gpu_beside"), "decode": ("gpu_decode",)}

# its settings, the device, and where to log; returns rows
Section = Callable[[Settings, torch.device, Log], Sequence[Row]]


class GpuSettings(Settings):
    """Training and decoding on a GPU."""

    quick: bool = False
    """Fewer votes, iterations and repetitions; runs without CUDA too."""
    only: str = ""
    """Parts to run, with commas between: train, decode, or a section of training by its name. Empty runs all."""
    json_file: str = Field("", alias="json")
    """File for the rows, as JSON; it is written after each section."""


def not_measured(what):
    """The row of a section that could not be run."""
    return report.row(f"{what}: not measured", None)


def used_mb(device):
    """MB of a GPU that are taken, by all processes; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / 1e6


def allocated_mb(device):
    """MB of tensors of this process on a device."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e6
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()) / 1e6


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """`with Stopwatch(device) as watch: …`, then `watch.seconds` and, on a GPU, `watch.peak_mb` of tensors."""

    def __init__(self, device):
        self.device = device
        self.seconds = self.peak_mb = None

    def __enter__(self):
        synchronise(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._start = time.monotonic()
        return self

    def __exit__(self, *_error):
        synchronise(self.device)
        self.seconds = time.monotonic() - self._start
        if self.device.type == "cuda":
            self.peak_mb = torch.cuda.max_memory_allocated(self.device) / 1e6


def sections(settings: GpuSettings) -> list[tuple[str, Section]]:
    """[(name, function of (settings, device, log) that returns rows)] of the parts that the settings name, in their
    order.
    """
    wanted = [name for name in settings.only.split(",") if name]
    known = []
    for part, modules in PARTS.items():
        for module in modules:
            if part == "decode":
                known.append((part, part, _decode))
            else:
                known += [(part, name, run) for name, run in _sections_of(module).items()]
    names = {name for part, name, _ in known} | set(PARTS)
    if unknown := set(wanted) - names:
        raise SettingsError(f"--only: {', '.join(sorted(unknown))}: choose among {', '.join(sorted(names))}")
    chosen = [(name, run) for word in wanted for part, name, run in known if word in (part, name)]
    return list(dict.fromkeys(chosen)) if wanted else [(name, run) for _, name, run in known]


def _sections_of(module):
    return importlib.import_module(f"benchmarks.{module}").SECTIONS


def _decode(settings, device, _log):
    return importlib.import_module("benchmarks.gpu_decode").rows(settings.quick, device)


def card(device):
    """Rows that say where the figures are from."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    torch.zeros(1, device=device)
    return [
        report.row("device", name),
        report.row("torch", torch.__version__),
        report.row("taken before anything runs", used_mb(device), "MB"),
    ]


def run(settings: GpuSettings, log: Log = print) -> list[Row]:
    """The rows; also written to the JSON file after each section."""
    device = loading.device_of(settings)
    if device.type != "cuda" and not settings.quick:
        raise SettingsError("--device: there is no CUDA here; --quick runs without it")
    torch.set_num_threads(settings.threads)
    rows = card(device)
    with tempfile.TemporaryDirectory() as scratch:
        for name, section in sections(settings):
            start = time.monotonic()
            own = settings.with_values(data_dir=Path(scratch) / name)
            try:
                rows += section(own, device, log)
            except Exception:  # the other sections may still say something
                log(f"{name} failed:\n{traceback.format_exc()}")
                rows.append(not_measured(name))
            memory.release()
            seconds = time.monotonic() - start
            log(f"[{name}: {seconds:.0f} s]")
            rows.append(report.row(f"{name}: seconds of the benchmark", seconds, "s"))
            if settings.json_file:
                Path(settings.json_file).write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    return rows


def main(argv=None):
    try:
        settings = read(argv, GpuSettings, "python -m benchmarks.gpu")
        memory.let_gpu_segments_grow()
        report.show(run(settings), settings.json_file)
    except (SettingsError, loading.ModelUnavailable) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
