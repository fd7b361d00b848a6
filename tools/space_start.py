"""Whether a Space's folder installs and starts: its requirements in a new virtual environment, then `app.py` as each of
the three kinds of Space starts it, until the page answers. Everything is in a temporary folder, which is removed.

The home is there and cannot be written to, also where this program runs as root. The app listens on 127.0.0.1, on a
free port, so that nobody else reaches it meanwhile. The hub is not asked: the model of the models folder answers.
"""

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from tools.space_checks import PYTHON, pinned_version

SPACE = {"SPACE_ID": "ann/nudge", "SPACE_HOST": "ann-nudge.hf.space", "SYSTEM": "spaces"}
CPU_BASIC = {**SPACE, "CPU_CORES": "2", "MEMORY": "16Gi", "ACCELERATOR": "none"}
T4_SMALL = {**SPACE, "CPU_CORES": "4", "MEMORY": "15Gi", "ACCELERATOR": "t4-small"}
ZERO_GPU = {**SPACE, "SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": "http://device-api.zero"}
# what `hf_oauth: true` in the head sets
SIGN_IN = {
    "OAUTH_CLIENT_ID": "client",
    "OAUTH_CLIENT_SECRET": "client",
    "OAUTH_SCOPES": "openid profile",
    "OPENID_PROVIDER_URL": "https://huggingface.co",
}
ALONE = "requirements.txt alone"
AS_THE_HUB = "requirements.txt and what the hub adds"
# each kind with its variables, and what is installed for it; in this order, since the second installs more
KINDS = {
    "CPU basic": (CPU_BASIC, ALONE),
    "T4 small": (T4_SMALL, ALONE),
    "ZeroGPU": (ZERO_GPU, AS_THE_HUB),
}
INSTALL_SECONDS = 3600
START_SECONDS = 900  # a first start measures what is fastest
END_SECONDS = 60
ASK_SECONDS = 0.5
LOG_LINES = 30  # of a start that failed
CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24  # <linux/capability.h>, <linux/prctl.h>


class DoesNotStart(Exception):
    """The folder does not install or does not start; the message says why."""


@dataclass(frozen=True)
class Started:
    """One start: seconds until the page answered, and until everything had ended."""

    kind: str
    answered: float
    ended: float


def install_and_start(folder: Path, models: Path, python: str | None = None) -> Iterator[str]:
    """Install and start `folder`, and say after each step what was done. DoesNotStart where something fails.

    `models`: the folder of the converted default model. `python`: the one to make the environment with, else the one
    that a Space has where it is here.
    """
    requirements = (folder / "requirements.txt").read_text(encoding="utf-8")
    if not any(models.glob("*/model.safetensors")):
        raise DoesNotStart(f"There is no model in {models}: run make setup.")
    python = python or python_of_a_space()
    yield f"installing {ALONE}, with {version_of(python)}" + ("" if is_of_a_space(python) else NOT_OF_A_SPACE)
    with tempfile.TemporaryDirectory(prefix="nudge-space-") as name:
        place = Path(name)
        environment = place / "environment"
        begun = time.monotonic()
        run([python, "-m", "venv", environment])
        install(environment, ["-r", folder / "requirements.txt"])
        yield f"installed in {time.monotonic() - begun:.0f} s, {megabytes(environment)} MB"
        installed = ALONE
        for kind, (variables, wanted) in KINDS.items():
            if wanted != installed:
                added = [f"gradio[oauth,mcp]=={pinned_version('gradio', requirements)}"]
                added += ["uvicorn>=0.14.0", "websockets>=10.4", "spaces"]  # as the hub's logs of builds have it
                install(environment, ["-r", folder / "requirements.txt", *added])
                installed = wanted
                yield f"added what the hub does: {', '.join(added)}"
            done = start(kind, folder, place / kind.replace(" ", "-"), environment, {**variables, **SIGN_IN}, models)
            yield f"{kind}: /healthz and the page answered after {done.answered:.0f} s, ended in {done.ended:.1f} s"


# -- the environment

NOT_OF_A_SPACE = f"; a Space has {PYTHON}, which is not here"


def python_of_a_space() -> str:
    """A Python of the version that a Space has; the one that runs this where there is none."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [shutil.which(f"python{PYTHON}"), *map(str, sorted(root.glob(f"versions/{PYTHON}*/bin/python{PYTHON}")))]
    return next((python for python in found if python and is_of_a_space(python)), sys.executable)


def is_of_a_space(python: str) -> bool:
    return version_of(python).startswith(f"Python {PYTHON}.")


def version_of(python: str) -> str:
    """What it calls itself; "" where it does not run."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return ""


def install(environment: Path, what: list[str | Path]) -> None:
    pip = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "--quiet", *what])
    run([*pip, "check"])


def run(command: list[str | Path]) -> None:
    """Run a command of the installation. DoesNotStart with its last lines where it fails."""
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, env=environ)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DoesNotStart(str(error)) from None
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("WARNING")]
        raise DoesNotStart("\n".join([" ".join(map(str, command)), *lines[-LOG_LINES:]]))


def megabytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*")) // 1_000_000


# -- the app


def start(
    kind: str, folder: Path, place: Path, environment: Path, variables: Mapping[str, str], models: Path
) -> Started:
    """Start a copy of `folder` in the new folder `place` until its page answers, and end it. DoesNotStart where it does
    not answer, does not end as it should, or leaves something running.
    """
    copy, home, log = place / "app", place / "home", place / "log"
    shutil.copytree(folder, copy)
    home.mkdir(mode=0o500)
    (place / "tmp").mkdir()
    port = free_port()
    environ = {
        "PATH": f"{environment / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "TMPDIR": str(place / "tmp"),
        "LANG": "C.UTF-8",
        "NUDGE_HOST": "127.0.0.1",
        "NUDGE_PORT": str(port),
        "NUDGE_MODELS_DIR": str(models.resolve()),
        "HF_HUB_OFFLINE": "1",
        **variables,
    }
    begun = time.monotonic()
    with log.open("w") as out, process([environment / "bin" / "python", "app.py"], copy, environ, out) as app:
        answered = wait_for_the_page(app, f"http://127.0.0.1:{port}", log) - begun
        ended = end(app, log)
    if any(home.iterdir()):
        raise DoesNotStart(f"{kind}: the home could be written to, so this start proves nothing about it.")
    return Started(kind, answered, ended)


@contextmanager
def process(command: list[str | Path], cwd: Path, environ: Mapping[str, str], out: object) -> Iterator[psutil.Popen]:
    """A running program, in a session of its own; whatever is left of it is killed at the end."""
    app = psutil.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=respect_modes,
    )
    try:
        yield app
    finally:
        for left in family(app):
            with suppress(psutil.NoSuchProcess):
                left.kill()
        app.wait()


def respect_modes() -> None:
    """Let what this process becomes be held to the modes of files, also as root."""
    if sys.platform == "linux" and os.geteuid() == 0:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def family(app: psutil.Popen) -> list[psutil.Process]:
    """The app and everything that it has started and that runs."""
    with suppress(psutil.NoSuchProcess):
        return [*app.children(recursive=True), psutil.Process(app.pid)]
    return []


def wait_for_the_page(app: psutil.Popen, url: str, log: Path) -> float:
    """The time (monotonic, in seconds) at which `/healthz`, `/readyz` and the page have answered. DoesNotStart where
    the app ends before, or takes START_SECONDS.
    """
    until = time.monotonic() + START_SECONDS
    with httpx2.Client(base_url=url, timeout=30, trust_env=False) as client:
        while time.monotonic() < until:
            if app.poll() is not None:
                raise DoesNotStart(f"app.py ended by itself, with {app.returncode}:\n{tail(log)}")
            with suppress(httpx2.HTTPError):
                if all(client.get(path).status_code == 200 for path in ("/healthz", "/readyz", "/")):
                    page = client.get("/").text
                    if "gradio" not in page:
                        raise DoesNotStart(f"The page is none of Gradio's:\n{page[:2000]}")
                    return time.monotonic()
            time.sleep(ASK_SECONDS)
    raise DoesNotStart(f"app.py has not answered for {START_SECONDS} s:\n{tail(log)}")


def end(app: psutil.Popen, log: Path) -> float:
    """End the app as a Space does; returns the seconds it took. DoesNotStart where it fails or leaves something."""
    begun = time.monotonic()
    running = family(app)
    app.send_signal(signal.SIGTERM)
    try:
        code = app.wait(END_SECONDS)
    except psutil.TimeoutExpired:
        raise DoesNotStart(f"app.py has not ended {END_SECONDS} s after SIGTERM:\n{tail(log)}") from None
    if code:
        raise DoesNotStart(f"app.py ended with {code}:\n{tail(log)}")
    _, left = psutil.wait_procs(running, timeout=END_SECONDS)
    for one in left:
        one.kill()
    if left:
        raise DoesNotStart(f"app.py has left {len(left)} processes")
    return time.monotonic() - begun


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def tail(log: Path) -> str:
    """The last lines of a log, without what only its owner may read."""
    text = re.sub(r"/admin/[\w-]+", "/admin/…", log.read_text(errors="replace"))
    return "\n".join(text.splitlines()[-LOG_LINES:])
