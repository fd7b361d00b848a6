"""`python app.py` as a person starts it: it says where it is, ends in order, and tells plainly what is wrong."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from playground.store import Store
from playground.web.http_server import REFUSED_BY_BROWSERS
from tests import fork_server
from tests.fork_server import RealPopen
from tests.test_loop import wait_until
from tests.tiny import tiny_folder

ROOT = Path(__file__).resolve().parent.parent
AT_ONCE = ("--port", 0, "--threads", 1, "--dtype", "float32", "--decode-format", "float32")  # nothing to measure first


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"))


def start(cwd, *flags, popen=RealPopen, **environ):
    """The app in a working directory of its own, so that no `.env` or data of the checkout is seen. As a Python of its
    own; forked by `subprocess.Popen`, where the start itself is not what is tried.
    """
    return popen(
        [sys.executable, ROOT / "app.py", *map(str, flags)],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environ},
    )


def run(cwd, *flags, popen=RealPopen):
    process = start(cwd, *flags, popen=popen)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def address(process):
    """The address that the app prints once it listens."""
    line = process.stdout.readline()
    found = re.fullmatch(r"Nudge is at (http://127\.0\.0\.1:\d+)\n", line)
    assert found, f"got {line!r} and on stderr: {process.stderr.read()}"
    return found[1]


def address_at_start(process):
    """The address that the app logs before it imports anything that takes seconds."""
    line = process.stderr.readline()
    found = re.search(r"starting: (http://127\.0\.0\.1:\d+) says how far it is", line)
    assert found, line
    return found[1]


def check_start(url):
    """It lives, says what it is doing, and is not ready; the first answer waits for nothing that takes seconds."""
    assert httpx.get(f"{url}/healthz", timeout=30).json() == {"status": "ok"}
    ready = httpx.get(f"{url}/readyz", timeout=30)
    assert ready.status_code == 503 and ready.json() == {"ready": False, "starting": "loading the program"}
    assert "Nudge is starting" in httpx.get(url, timeout=30).text


def workers_of(process):
    """The workers of an app that live: one, or none yet."""
    found = []
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.NoSuchProcess):
            if child.name() != fork_server.NAME and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def worker_of(process):
    """The app's worker, as soon as it is there."""
    found = []
    wait_until(lambda: found.extend(workers_of(process)) or found, 120)
    [worker] = found
    return worker


def start_another_worker(process):
    """Kill the worker of an app, and wait for the next."""
    first = worker_of(process)
    first.kill()
    wait_until(lambda: [worker for worker in workers_of(process) if worker.pid != first.pid], 120)


@pytest.mark.parametrize(
    ("number", "popen", "worker_dies"),
    [(signal.SIGTERM, RealPopen, False), (signal.SIGINT, subprocess.Popen, True)],
    ids=["SIGTERM", "SIGINT, after its worker died and was started again"],
)
def test_it_says_where_it_is_and_ends_without_leaving_the_worker(folder, tmp_path, number, popen, worker_dies):
    flags = AT_ONCE if worker_dies else ("--port", 0, "--threads", 1)
    process = start(tmp_path, "--model", folder, *flags, popen=popen)
    try:
        url = address_at_start(process)
        if popen is RealPopen:
            check_start(url)
        assert address(process) == url
        assert re.fullmatch(rf"Admin link, for one browser: {url}/admin/[\w-]{{43}}\n", process.stdout.readline())
        assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
        if worker_dies:
            start_another_worker(process)
        assert httpx.get(f"{url}/readyz").json()["ready"] is True  # a chat does not notice
        worker = worker_of(process)
        assert popen is not RealPopen or "training.worker" in worker.cmdline()
        with httpx.Client(base_url=url) as browser:
            browser.get("/")
            with browser.stream("GET", "/gradio_api/heartbeat/openpage01") as open_page:
                assert open_page.status_code == 200
                process.send_signal(number)
                began = time.monotonic()
                out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert time.monotonic() - began < 15
        assert out == "", "two lines on stdout are enough"
        assert "Traceback" not in err
        assert not worker.is_running()
    finally:
        process.kill()


def test_below_a_path_it_says_the_whole_address_and_the_admin_link_outlives_a_restart(folder, tmp_path):
    command = ("--model", folder, *AT_ONCE, "--no-worker", "--root-path", "/nudge")
    with httpx.Client() as browser:
        for start_number in (1, 2):
            process = start(tmp_path, *command, popen=subprocess.Popen)
            try:
                url = re.fullmatch(r"Nudge is at (http://127\.0\.0\.1:\d+/nudge)\n", process.stdout.readline())[1]
                link = re.fullmatch(
                    rf"Admin link, for one browser: ({url}/admin/[\w-]{{43}})\n", process.stdout.readline()
                )[1]
                if start_number == 1:
                    answer = browser.get(link)
                    assert answer.status_code == 303 and answer.headers["location"] == "/nudge/"
                assert httpx.get(f"{url}/").status_code == 200
            finally:
                process.terminate()
                process.communicate(timeout=120)
    store = Store(tmp_path / "data" / "nudge.db")
    assert store.signed_in(store.annotator(browser.cookies["nudge_id"])) == "owner"


@pytest.mark.parametrize("busy", [True, False], ids=["in a round", "at once"])
def test_a_worker_ends_with_a_server_that_is_killed(folder, tmp_path, busy):
    """It went on with its round for minutes, beside the worker of the next server; one whose server was killed while it
    started stayed for ever."""
    if busy:
        store = Store(tmp_path / "data" / "nudge.db")
        store.request_round()
    process = start(tmp_path, "--model", folder, *AT_ONCE, popen=subprocess.Popen)
    try:
        address(process)
        worker = worker_of(process)
        wait_until(lambda: not busy or store.last_round()["state"] != "requested")
    finally:
        process.kill()
    worker.wait(120)
    process.communicate()


def test_ctrl_c_ends_a_start_at_once(folder, tmp_path):
    """It waited until the model was loaded and measured."""
    process = start(tmp_path, "--model", folder, "--port", 0, NUMBA_CACHE_DIR=str(tmp_path))
    try:
        check_start(address_at_start(process))
        children = psutil.Process(process.pid).children()  # one compiles, where there is a core for it
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        out, err = process.communicate(timeout=120)
        assert time.monotonic() - began < 5
        assert (process.returncode, out) == (0, "") and "Traceback" not in err
        assert not any(child.is_running() for child in children)
    finally:
        process.kill()


def test_a_setting_out_of_range_is_named_with_what_is_accepted(tmp_path):
    code, _, err = run(tmp_path, "--port", 70000)
    assert code == 1
    assert "--port (NUDGE_PORT): got '70000'; accepted: an integer at least 0 and at most 65535" in err
    assert "Traceback" not in err


def test_a_missing_model_says_what_to_do(tmp_path):
    code, out, err = run(tmp_path, "--model", "nobody/nothing", "--port", 0, popen=subprocess.Popen)
    assert code == 1
    assert "'nobody/nothing' could not be loaded" in err and "make setup" in err and "browsers" not in err
    assert "Traceback" not in err and out == ""


def test_a_busy_port_says_so_at_once(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run(tmp_path, "--port", port)
    assert code == 1
    assert f"port {port}" in err and "--port" in err and "Traceback" not in err


def test_a_port_that_browsers_refuse_is_named(tmp_path):
    port = next(port for port in sorted(REFUSED_BY_BROWSERS) if port > 1024 and is_free(port))
    _, _, err = run(tmp_path, "--model", "nobody/nothing", "--port", port, popen=subprocess.Popen)
    assert f"browsers refuse to open port {port}: pass another --port" in err


def is_free(port):
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True


def test_a_data_folder_that_cannot_be_written_says_so(folder, tmp_path):
    (tmp_path / "file").write_text("")
    where = ("--data-dir", tmp_path / "file")
    code, _, err = run(tmp_path, "--model", folder, "--port", 0, *where, popen=subprocess.Popen)
    assert code == 1
    assert "--data-dir" in err and "Traceback" not in err
