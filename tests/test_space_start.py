"""The start of a Space's folder that `make space` makes: as the Space, with a home that cannot be written to, and
nothing left of it afterwards. A small program stands in for the app.
"""

import sys
import time

import psutil
import pytest

from playground.settings import space
from tools import space_start
from tools.space_start import DoesNotStart

APP = """
import os, signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
{first}
class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"gradio")
    def log_message(self, *_): pass
signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))
HTTPServer((os.environ["NUDGE_HOST"], int(os.environ["NUDGE_PORT"])), Page).serve_forever()
"""
CHILD = "import subprocess\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(987)'])"


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a folder whose app does `first` before it serves, and ends with `code`."""
    monkeypatch.setattr(space_start, "ASK_SECONDS", 0.05)
    (tmp_path / "environment" / "bin").mkdir(parents=True)
    (tmp_path / "environment" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "folder").mkdir()

    def start(first="", code=0, kind="CPU basic"):
        (tmp_path / "folder" / "app.py").write_text(APP.format(first=first, code=code))
        variables, _ = space_start.KINDS[kind]
        places = tmp_path / "folder", tmp_path / "place", tmp_path / "environment"
        return space_start.start(kind, *places, {**variables, "MARK": str(tmp_path)}, tmp_path / "models")

    yield start
    assert processes_of(tmp_path) == []


def processes_of(mark):
    """What runs with the variable MARK of a test."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MARK") == str(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize(("kind", "expected"), [("CPU basic", "cpu"), ("T4 small", "gpu"), ("ZeroGPU", "zero-gpu")])
def test_each_kind_is_started_with_its_variables(start, tmp_path, kind, expected):
    assert space.kind_of(space_start.KINDS[kind][0]) == expected
    assert "SPACE_ID" in space_start.KINDS[kind][0]
    begun = time.monotonic()
    done = start("open('environ', 'w').write(os.environ['SPACE_ID'] + os.environ['HOME'])", kind=kind)
    assert 0 < done.answered < time.monotonic() - begun and done.ended >= 0
    place = tmp_path / "place"
    assert (place / "app" / "environ").read_text() == f"ann/nudge{place / 'home'}"
    assert not (tmp_path / "folder" / "environ").exists()  # what is pushed stays as it was


def test_the_home_cannot_be_written_to(start, tmp_path):
    """As root, too, whom a folder's mode does not hold back."""
    done = start(
        "try: open(os.environ['HOME'] + '/x', 'w')\nexcept PermissionError: open('refused', 'w')",
    )
    assert done.kind == "CPU basic" and (tmp_path / "place" / "app" / "refused").exists()


@pytest.mark.parametrize(
    ("first", "code", "said"),
    [
        ("import nothing_of_the_requirements", 0, "No module named 'nothing_of_the_requirements'"),
        (
            "print('Admin link: http://x/admin/abc'); sys.exit(3)",
            0,
            "ended by itself, with 3:\nAdmin link: http://x/admin/…",
        ),
        ("", 7, "app.py ended with 7"),
        (CHILD, 0, "app.py has left 1 processes"),
    ],
)
def test_an_app_that_does_not_start_or_end_as_it_should_is_named_and_ended(start, monkeypatch, first, code, said):
    if first == CHILD:  # what it leaves never ends
        monkeypatch.setattr(space_start, "END_SECONDS", 1.5)
    with pytest.raises(DoesNotStart) as error:
        start(first, code)
    assert said in str(error.value)


def test_an_app_that_does_not_answer_is_ended(start, monkeypatch):
    monkeypatch.setattr(space_start, "START_SECONDS", 0.5)
    with pytest.raises(DoesNotStart, match=r"has not answered for 0\.5 s"):
        start(f"{CHILD}\nimport time; time.sleep(987)")


def test_the_python_of_a_space_is_taken_where_it_is(tmp_path, monkeypatch):
    """Also where it is only among pyenv's, and what is first on the path does not run."""
    shim, real = tmp_path / "bin" / "python3.12", tmp_path / "versions" / "3.12.9" / "bin" / "python3.12"
    for file, does in ((shim, "exit 127"), (real, "echo Python 3.12.9")):
        file.parent.mkdir(parents=True)
        file.write_text(f"#!/bin/sh\n{does}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:/usr/bin:/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert space_start.python_of_a_space() == str(real)
    real.unlink()
    assert space_start.python_of_a_space() == sys.executable


def test_requirements_that_do_not_install_are_named(tmp_path):
    """`pip` itself runs; there is no such file, so nothing is asked of a network."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    with pytest.raises(DoesNotStart, match="no-such-requirements"):
        space_start.install(tmp_path, ["-r", tmp_path / "no-such-requirements.txt"])
    with pytest.raises(DoesNotStart, match="no-such-python"):
        space_start.run([tmp_path / "no-such-python", "-m", "venv"])


def test_without_a_model_nothing_is_installed(tmp_path):
    (tmp_path / "requirements.txt").touch()
    with pytest.raises(DoesNotStart, match="There is no model in"):
        list(space_start.install_and_start(tmp_path, tmp_path / "models"))
