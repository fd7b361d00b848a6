"""Compiles the decoding step in a process of its own: at the first start, on the core that imports and loading leave
idle. Numba keeps what it compiles, so that this process then only reads it.

What is compiled is in `playground/decoding/compiled_step/`. Imports nothing that takes seconds.
"""

import hashlib
import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
DECODING = ROOT / "playground" / "decoding"
STEP = DECODING / "compiled_step"
MODULE = f"playground.decoding.{STEP.name}.step"
# The package's own __init__ imports transformers, which compiling needs as little as torch.
PROGRAM = f"""
import sys, types
package = types.ModuleType("playground.decoding")
package.__path__ = [{str(DECODING)!r}]
sys.modules[package.__name__] = package
import {MODULE}
"""
LONGEST = 120.0  # seconds that are waited for it; after that this process compiles for itself
_begun: "Compiling | None" = None  # the last one


class Compiling:
    """A process that compiles the decoding step; it has begun."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # where it fails, whoever imports the kernel finds out why
            process_group=0,  # Ctrl-C in the terminal reaches only the parent, which ends this one
        )

    def wait(self) -> None:
        """Return once it has ended, whether or not it could compile."""
        try:
            code = self._process.wait(LONGEST)
            log.debug("the process that compiles ended with exit code %d", code)
        except subprocess.TimeoutExpired:
            self.stop()

    def stop(self) -> None:
        """End it. What is compiled already stays."""
        self._process.kill()
        self._process.wait()


def begin(decode_format: str, device: str) -> Compiling | None:
    """Begin to compile where these settings may want the step and there is a core for it; None elsewhere."""
    global _begun
    wanted = decode_format in ("auto", "w8a16") and device in ("auto", "cpu")
    if not wanted or (os.cpu_count() or 1) < 2 or is_compiled():
        return None
    try:
        _begun = Compiling()
    except OSError as error:  # no memory for another process, say
        log.info("compiling beside the start is left out: %s", error)
        return None
    return _begun


def wait() -> None:
    """Return once nothing compiles the step beside this process: it can be imported then."""
    if _begun:
        _begun.wait()


def stop() -> None:
    """End what compiles the step beside this process."""
    if _begun:
        _begun.stop()


def digest() -> str:
    """Of the names and contents of all that is compiled."""
    sources = hashlib.sha256()
    for file in [*sorted(STEP.glob("*.py")), DECODING / "openmp.py"]:
        sources.update(f"{file.name}\n".encode() + file.read_bytes())
    return sources.hexdigest()[:16]


def is_compiled() -> bool:
    """Whether numba has kept a step that was compiled from its files as they are."""
    return bool(_indexes(MODULE, "step"))


def imported(module: str) -> ModuleType:
    """A module whose functions numba compiles: anew where what it has kept of them is damaged, which may raise
    anything. Any error of an import that fails.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:
        if not _may_be_damage(error) or not _forget(module):
            raise
        log.warning("what numba has kept of %s is compiled anew: %s", module, type(error).__name__)
        return importlib.import_module(module)


def _may_be_damage(error: Exception) -> bool:
    """Whether what numba has kept may be the reason, and not that numba, OpenMP or a folder to write to is missing."""
    if isinstance(error, ImportError):
        return (error.name or "").startswith("numba.")  # a name in a damaged file
    return not isinstance(error, OSError)


def _forget(module: str) -> bool:
    """Remove numba's index files of a module; returns whether there were any, and all of them could be removed."""
    indexes = _indexes(module)
    try:
        for index in indexes:
            index.unlink(missing_ok=True)
    except OSError:
        return False
    return bool(indexes)


def _indexes(module: str, function: str = "*") -> list[Path]:
    """Numba's index files of a module's function, from wherever numba may keep them."""
    package, _, name = module.rpartition(".")
    pattern = f"{name}.{function}_{digest()}-*.nbi"
    if folder := os.environ.get("NUMBA_CACHE_DIR"):
        return [*Path(folder).rglob(pattern)]
    of_user = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "numba")
    return [*ROOT.joinpath(*package.split("."), "__pycache__").glob(pattern), *of_user.rglob(pattern)]
