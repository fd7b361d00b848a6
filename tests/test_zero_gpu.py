"""Rounds on the GPU of a ZeroGPU Space: in slices, on an admin's quota, and on the CPU where there is none."""

import contextvars
import importlib
import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from gradio.context import LocalContext

import app
import playground.system
from playground.models import loading
from playground.serving import gpu_slices
from playground.serving.gpu_slices import GPUSlices
from playground.settings import Settings, space
from playground.store import STOPPED, Store
from playground.system import safe_logging
from playground.system.messages import loads
from playground.ui.place import place_html
from playground.ui.words import Words
from tests.fake_spaces import Hub
from tests.test_loop import liking, settings_for, wait_until
from tools.space_start import ZERO_GPU
from training import round_slice, simulate
from training.annotators import Person
from training.round import Round


@pytest.fixture
def hub(monkeypatch):
    """The hub of a ZeroGPU Space, with `playground.system.zero_gpu` as it is there."""
    hub = Hub()
    monkeypatch.setitem(sys.modules, "spaces", hub)
    yield hub
    hub.close()
    sys.modules.pop("playground.system.zero_gpu", None)
    vars(playground.system).pop("zero_gpu", None)


@pytest.fixture
def zero_gpu(hub):
    return importlib.import_module("playground.system.zero_gpu")


def in_request(token, call, *args):
    """Call as in the request of a visitor with this token of the hub."""
    context = contextvars.copy_context()
    context.run(LocalContext.request.set, SimpleNamespace(headers={"x-ip-token": token}))
    return context.run(call, *args)


# -- a round


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    """Settings whose store holds 40 votes on the tiny model's replies."""
    settings = settings_for(
        tmp_path_factory.mktemp("voted"),
        round={"lease_seconds": 1.0, "poll_seconds": 0.05},
        ppo={"iterations": 4, "kl_target": 1e9},
        gate={"better": 0.01, "not_worse": 0.01},
        reward={"evidence_confidence": 0, "features": "layers"},
    )
    store = Store(settings.database)
    simulate.make_duels(
        store,
        simulate.SimulateSettings.like(settings, votes=40),
        loading.load_trunk(settings),
        loading.load_tokenizer(settings),
        {"liking": Person(lambda prompt, reply: liking(reply))},
        log=lambda text: None,
    )
    return settings, store


def ended(slices):
    slices._thread.join(120)
    return not slices._thread.is_alive()


def test_a_round_trains_on_the_admins_quota_and_leaves_the_gpu_while_it_is_paused(voted, hub, zero_gpu, monkeypatch):
    settings, store = voted
    for limit in ("LEAVE_SECONDS", "MOST_SECONDS"):  # a pause ends the first slice, however slow the machine is
        monkeypatch.setattr(zero_gpu, limit, 600)
    codes = []
    slices = GPUSlices(store, settings, lambda *a: codes.append(zero_gpu.run(*a)) or 0, app.child_variables(settings))
    admin = store.annotator("admin")
    in_request("first", slices.begin, settings, admin)
    asked = store.last_round()["id"]
    wait_until(lambda: store.last_round()["phase"] == "ppo" and store.last_round()["step"] >= 1, 120)
    store.set_round_command(asked, "pause")
    wait_until(lambda: codes, 30)
    left = store.round(asked)
    time.sleep(1.5 * settings.round.lease_seconds)
    assert store.take_round("worker", lease_seconds=settings.round.lease_seconds) is None, "the lease is kept meanwhile"
    assert codes == [0] and hub.quota == 10_000 - 60, "a pause costs no quota"

    in_request("somebody's", slices.renew, store.annotator("somebody"))
    in_request("second", slices.renew, admin)
    store.set_round_command(asked, None)
    assert ended(slices)
    row = store.round(asked)
    assert row["state"] in ("published", "refused"), row["reason"]
    assert [step for step, _ in store.metrics(asked)["reward"]] == [1, 2, 3, 4]
    assert row["asked"] and row["metrics"]["phase_seconds"]["ppo"] > 0 and left["step"] >= 1
    assert codes == [0, 0] and hub.tokens == ["first", "second"]
    assert place_html(row, Words(), False) == '<p class="place">This round trained on a GPU of ZeroGPU.</p>'
    log = (settings.rounds_dir / f"{asked:04d}" / "log.txt").read_text()
    assert "is left for now" in log and f"ppo goes on after iteration {left['step']}" in log


def slice_of(settings, store, seconds):
    """What `zero_gpu.run` starts, in this process."""

    def run(command, environ, port):
        round_id, owner = command[command.index("--round-id") + 1], command[command.index("--owner") + 1]
        given = {"round_id": int(round_id), "owner": owner, "until": time.time() + seconds}
        round_slice.run(store, round_slice.SliceSettings.like(settings, **given))
        return 0

    return run


def test_a_round_that_gets_nowhere_in_its_minutes_goes_on_on_the_cpu(voted):
    settings, store = voted
    slices = GPUSlices(store, settings, slice_of(settings, store, 0), {})
    in_request("token", slices.begin, settings, store.annotator("admin"))
    assert ended(slices)
    row = store.take_round("worker", lease_seconds=settings.round.lease_seconds)
    assert (row["phase"], row["attempts"]) == ("collect", 1)
    assert "minute that ZeroGPU gives" in place_html(row, Words(), False)
    store.end_round(row["id"], "worker", "failed")


def test_a_gpu_that_fails_is_no_failure_of_the_round(voted, monkeypatch):
    settings, store = voted

    def fails(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Round, "_collect", fails)
    slices = GPUSlices(store, settings, slice_of(settings, store, 30), {})
    in_request("token", slices.begin, settings, store.annotator("admin"))
    assert ended(slices)
    row = store.take_round("worker", lease_seconds=settings.round.lease_seconds)
    assert (row["state"], row["phase"], row["attempts"]) == ("running", "collect", 1)
    store.end_round(row["id"], "worker", "failed")


# -- when ZeroGPU or somebody else says no


def slices_of(store, run, **settings):
    settings = Settings(_env_file=None, round={"lease_seconds": 0.3, "poll_seconds": 0.02}, **settings)
    slices = GPUSlices(store, settings, run, {})
    in_request("token", slices.begin, settings, store.annotator("admin"))
    return slices


def nothing(*_):
    return 0


def test_without_quota_the_worker_takes_the_round_and_admins_read_why(hub, zero_gpu):
    store = Store()
    hub.quota = zero_gpu.GPU_SECONDS - 1
    assert ended(slices_of(store, zero_gpu.run))
    row = store.take_round("worker", lease_seconds=30)
    assert row is not None and row["attempts"] == 1
    told = "ZeroGPU gave no GPU, so this round went on on the CPU."
    assert place_html(row, Words(), False) == f'<p class="place">{told}</p>'
    assert "ZeroGPU quota exceeded: You have exceeded" in place_html(row, Words(), True)


def test_a_call_that_zero_gpu_ends_leaves_the_round_to_the_worker(hub, zero_gpu, monkeypatch):
    """As where a call takes longer than it asked for."""
    monkeypatch.setattr(gpu_slices, "COMMAND", (sys.executable, "-c", "import time; time.sleep(2)"))
    store = Store()
    hub.abort = 0.2
    assert ended(slices_of(store, zero_gpu.run))
    row = store.take_round("worker", lease_seconds=30)
    assert row["metrics"]["left_gpu_words"] == "ZeroGPU worker error: GPU task aborted"


def test_a_slice_without_a_gpu_is_not_trained_on_the_few_seconds_of_a_cpu(monkeypatch):
    monkeypatch.setattr(safe_logging, "configure_logging", lambda *_: None)
    with pytest.raises(SystemExit) as exited:
        round_slice.main(["--round-id", "1", "--owner", "w", "--until", "1", "--data-dir", "nowhere"])
    assert exited.value.code == space.NO_GPU
    store = Store()
    assert ended(slices_of(store, lambda *_: space.NO_GPU))
    row = store.take_round("worker", lease_seconds=30)
    assert loads(row["metrics"]["left_gpu"]) == gpu_slices.NOT_GIVEN


def test_a_stopped_round_ends_without_another_slice():
    store = Store()
    calls = []

    def run(*_):
        calls.append(store.last_round()["id"])
        store.set_round_command(calls[0], "stop")
        return 0

    assert ended(slices_of(store, run)) and len(calls) == 1
    assert (store.last_round()["state"], store.last_round()["reason"]) == ("failed", STOPPED)


def test_a_round_that_a_worker_has_stays_with_it():
    store = Store()
    store.request_round()
    store.take_round("worker", lease_seconds=30)
    slices = slices_of(store, nothing)
    assert slices._thread is None and store.last_round()["owner"] == "worker"


def test_the_end_of_the_app_leaves_the_round_to_the_next_worker_at_once():
    store = Store()
    closed = threading.Event()
    slices = slices_of(store, lambda *_: 0 if closed.wait(20) else 1)
    slices.close()
    closed.set()
    assert ended(slices)
    row = store.take_round("worker", lease_seconds=30)
    assert row is not None and row["owner"] == "worker" and "left_gpu" not in row["metrics"]


# -- the marked function


def test_a_program_that_does_not_end_in_time_is_killed(zero_gpu, monkeypatch):
    monkeypatch.setattr(zero_gpu, "MOST_SECONDS", 0.2)
    began = time.monotonic()
    program = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert zero_gpu.run.__wrapped__(program, {}, 1) == zero_gpu.KILLED
    assert time.monotonic() - began < 10


def test_the_program_is_told_when_to_leave_and_is_none_of_zero_gpus(zero_gpu, monkeypatch, tmp_path):
    """`spaces` lets torch in a process with this variable say that there is CUDA, which there is now."""
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    said = tmp_path / "said"
    write = f"import os, sys; open({str(said)!r}, 'w').write(repr([sys.argv[1:], os.environ.get('SPACES_ZERO_GPU')]))"
    assert zero_gpu.run.__wrapped__([sys.executable, "-c", write], {"NUDGE_PORT": "1"}, 1) == 0
    (until_name, until, pid_name, pid), variable = eval(said.read_text())
    assert (until_name, pid_name, int(pid), variable) == ("--until", "--server-pid", os.getpid(), None)
    assert 0 < float(until) - time.time() <= zero_gpu.LEAVE_SECONDS


def test_the_fork_gives_up_the_servers_connections_alone(zero_gpu):
    server = socket.create_server(("127.0.0.1", 0))
    other = socket.create_server(("127.0.0.1", 0))
    browser = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    child = os.fork()
    if not child:
        zero_gpu.give_up_connections(server.getsockname()[1])
        is_open = [os.path.exists(f"/proc/self/fd/{s.fileno()}") for s in (server, accepted, other, browser)]
        os._exit(0 if is_open == [False, False, True, True] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    accepted.send(b"still open here")
    assert browser.recv(20) == b"still open here"
    for sock in (server, other, browser, accepted):
        sock.close()


@pytest.mark.parametrize(("device", "has_slices"), [("auto", True), ("cpu", False)])
def test_a_zero_gpu_space_has_a_marked_function_and_says_so(hub, monkeypatch, device, has_slices):
    """The hub ends a Space that does not."""
    monkeypatch.setattr(space, "KIND", "zero-gpu")
    assert (app.gpu_slices(Settings(_env_file=None, device=device), Store()) is not None) == has_slices
    assert hub.reported and len(hub.marked) == 1


def test_elsewhere_nothing_of_zero_gpu_is_imported(monkeypatch):
    monkeypatch.setattr(space, "KIND", "gpu")
    assert app.gpu_slices(Settings(_env_file=None), Store()) is None
    assert "playground.system.zero_gpu" not in sys.modules


# -- the start

STAND_IN = """
import sys
before = {"torch", "gradio"} & sys.modules.keys()
sys.exit(f"loaded before: {before}" if before else 0)
"""
BUILD = "import app; from playground.settings import Settings; app.App(Settings(_env_file=None)).build()"


def test_the_package_is_loaded_before_gradio_and_torch(tmp_path):
    """Gradio's own try to load the real one fails quietly, and after torch was asked about CUDA it refuses to be
    loaded: the app ended at its start.
    """
    (tmp_path / "spaces.py").write_text(STAND_IN)
    environ = {**os.environ, **ZERO_GPU, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}", "NUDGE_DECODE_FORMAT": "float32"}
    done = subprocess.run([sys.executable, "-c", BUILD], env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
