"""What answers while the app starts, and how the app takes over the same socket."""

import asyncio
import inspect
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from numba.core import caching

from playground.decoding.compiled_step import step  # its import has numba keep the step
from playground.settings import Settings
from playground.system import compiling
from playground.system.messages import Message
from playground.web import http_server
from playground.web.starting import RELOAD_SECONDS, Starting
from tests.browsing import MARKS as BROWSER
from tests.waits import until
from training import int8_kernel


def ask(settings, method, path, **headers):
    """The answer to one request while the start loads the model."""
    starting = Starting(settings)
    starting.say(Message("loading the model"))

    async def request():
        transport = httpx.ASGITransport(starting.answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(request())


@pytest.fixture
def settings():
    return Settings(_env_file=None)


# -- the answers


def test_the_app_lives_before_it_is_ready(settings):
    alive, ready = ask(settings, "GET", "/healthz"), ask(settings, "GET", "/readyz")
    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (503, {"ready": False, "starting": "loading the model"})


@pytest.mark.parametrize("path", ["/", "/?shared=abc", "/admin/token", "/assets/index.js"])
def test_a_page_says_what_the_start_does_and_asks_again(settings, path):
    answer = ask(settings, "GET", path)
    assert answer.status_code == 503 and answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "Nudge is starting" in answer.text and "loading the model…" in answer.text
    assert f'http-equiv="refresh" content="{RELOAD_SECONDS}">' in answer.text  # the same address, with its parameters
    assert answer.headers["retry-after"] == str(RELOAD_SECONDS) and answer.headers["cache-control"] == "no-store"


def test_the_page_is_in_the_browsers_language(settings):
    chinese = ask(settings, "GET", "/", **{"accept-language": "zh-CN,zh;q=0.9"}).text
    assert '<html lang="zh-CN">' in chinese and "正在加载模型…" in chinese
    assert '<html lang="en">' in ask(settings, "GET", "/", **{"accept-language": "fr"}).text


def test_the_page_loads_nothing_and_says_so_in_its_policy(settings):
    answer = ask(settings, "GET", "/")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script|src=|href=|@import|url\(", answer.text)


def test_a_gesture_of_a_page_that_is_still_open_is_told_to_wait(settings):
    answer = ask(settings, "POST", "/gradio_api/run/predict", **{"accept-language": "zh-CN"})
    assert answer.status_code == 503 and "正在启动" in answer.json()["error"]  # where Gradio's page reads it


def test_another_host_is_refused_as_by_the_app(settings):
    assert ask(settings, "GET", "/", host="evil.example").status_code == 421
    assert ask(settings.with_values(allowed_hosts="evil.example"), "GET", "/", host="evil.example").status_code == 503


@pytest.mark.parametrize("path", ["/nudge/healthz", "/healthz"])
def test_below_a_path_health_is_where_the_app_has_it(settings, path):
    assert ask(settings.with_values(root_path="/nudge"), "GET", path).status_code == 200


def test_below_a_path_the_page_is_in_the_folder_of_that_name(settings):
    below = settings.with_values(root_path="/nudge")
    assert ask(below, "GET", "/nudge").headers["location"] == "/nudge/"
    assert "Nudge is starting" in ask(below, "GET", "/nudge/").text


# -- the app takes over


def chat():
    """An app that has a lifespan, like Gradio's."""
    app = FastAPI()
    app.state.began = False
    app.router.on_startup.append(lambda: setattr(app.state, "began", True))

    @app.get("/")
    def page():
        assert app.state.began
        return "the chat"

    return app


class Served:
    """`make` is what builds the app; the server runs while the block does."""

    def __init__(self, make, ready=lambda: None):
        sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        starting = Starting(Settings(_env_file=None))
        self.web = http_server.Web(starting.answer, lambda: None, make=make, ready=ready)
        self.thread = threading.Thread(target=self.web.run, args=([sock],))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.web.should_exit = True
        self.thread.join(20)


def test_no_request_is_lost_while_the_app_takes_over():
    """Also those of connections that are open: one server has them before and after."""
    begin, stop = threading.Event(), threading.Event()
    answers = [[], [], []]  # of each visitor

    def make():
        begin.wait(20)
        return chat()

    def visitor(served, own, keep_alive):
        with httpx.Client() as client:
            while not stop.is_set():
                own.append((client if keep_alive else httpx).get(served.url).status_code)

    with Served(make) as served:
        ways = zip(answers, (True, True, False), strict=True)
        visitors = [threading.Thread(target=visitor, args=(served, own, keep)) for own, keep in ways]
        for thread in visitors:
            thread.start()
        try:
            until(lambda: all(len(own) >= 5 for own in answers))
            begin.set()
            until(lambda: all(own.count(200) >= 5 for own in answers))
        finally:
            stop.set()
            for thread in visitors:
                thread.join(20)
    for own in answers:
        assert set(own) == {200, 503}
        assert own == sorted(own, reverse=True), "the page of the start came back"


def test_the_app_is_announced_before_anybody_meets_it():
    announced = []
    served = Served(chat, lambda: announced.append(served.web._switch.app))
    starting = served.web._switch.app
    with served:  # the app may be made before this block begins
        until(lambda: httpx.get(served.url).status_code == 200)
        assert announced == [starting] and httpx.get(served.url).json() == "the chat"


def test_an_app_that_cannot_be_made_ends_the_server_and_says_why():
    with Served(lambda: 1 / 0) as served:
        served.thread.join(20)
        assert not served.thread.is_alive()
    assert isinstance(served.web.error, ZeroDivisionError) and not served.web.making


class TestInABrowser:
    pytestmark = BROWSER

    def test_the_page_opens_the_chat_by_itself(self, browser):
        begin = threading.Event()

        def make():
            begin.wait(60)
            return chat()

        with Served(make) as served:
            page = browser.new_page(locale="zh-CN")
            complaints = []
            page.on("console", lambda m: m.type == "error" and "503" not in m.text and complaints.append(m.text))
            page.goto(served.url + "/?shared=abc")
            page.wait_for_selector("text=正在启动")
            begin.set()
            page.wait_for_selector("text=the chat")
            assert page.url.endswith("/?shared=abc") and complaints == []
            page.close()


# -- compiling beside it


def test_the_step_is_compiled_as_this_process_needs_it_and_without_torch():
    """Numba keeps it under the module's name and its functions' code: what another program keeps must be found here."""
    program = compiling.PROGRAM + "\nprint([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "NUMBA_DEBUG_CACHE": "1", "PYTHONPATH": str(compiling.ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "data loaded" in done.stdout and "data saved" not in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("decode_format", "device", "begins"),
    [("auto", "auto", True), ("w8a16", "cpu", True), ("int8", "auto", False), ("auto", "cuda", False)],
)
def test_it_is_compiled_where_it_is_wanted_and_not_there_yet(monkeypatch, tmp_path, decode_format, device, begins):
    monkeypatch.setattr(compiling, "PROGRAM", "")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert compiling.is_compiled() and compiling.begin(decode_format, device) is None
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiling, "_begun", None)
    begun = compiling.begin(decode_format, device)
    assert (begun is not None) == begins
    compiling.wait()
    if begun:
        assert begun._process.returncode == 0
    compiling.stop()  # after it has ended, too


def test_a_step_of_other_sources_is_not_compiled(monkeypatch):
    """Numba itself looks at one file alone."""
    assert compiling.is_compiled()
    monkeypatch.setattr(compiling, "digest", lambda: "0" * 16)
    assert not compiling.is_compiled()


def test_a_process_without_a_home_may_compile(monkeypatch):
    for name in ("HOME", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where the user has no entry either
    beside_its_source = (compiling.STEP / "__pycache__").glob(f"step.step_{compiling.digest()}-*.nbi")
    assert compiling.is_compiled() == any(beside_its_source)


@pytest.mark.parametrize(
    ("compiled", "program"),
    [
        (step.step, "from playground.decoding import tuning; print(tuning.compiled_step_fits(tiny_model()))"),
        (int8_kernel.product, "from training import int8_products; print(int8_products.RoundedWeight.fits(WEIGHT))"),
    ],
    ids=["step", "training"],
)
def test_what_numba_keeps_is_compiled_anew_where_it_is_damaged(tmp_path, compiled, program):
    """No start used the compiled step any more, and training multiplied in fp32, until somebody deleted the file."""
    program = f"import torch; from tests.tiny import tiny_model; WEIGHT = torch.zeros(192, 192); {program}"

    def fits():
        environ = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(compiling.ROOT)}
        done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip() == "True"

    source = Path(inspect.getfile(compiled.__wrapped__))
    folder = tmp_path / caching._CacheLocator.get_suitable_cache_subpath(str(source))
    shutil.copytree(compiled._cache.cache_path, folder)
    files = list(folder.glob(f"{source.stem}.{compiled.__wrapped__.__qualname__}-*.nbc"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:1000])
    assert fits() and any(file.stat().st_size > 1000 for file in files)


@pytest.mark.parametrize(
    ("error", "anew"),
    [
        (AttributeError("_rebtild_env"), True),
        (ModuleNotFoundError(name="numba.cpre"), True),
        (MemoryError(), True),
        (EOFError(), True),
        (ModuleNotFoundError(name="numba"), False),
        (ModuleNotFoundError(name="playground.decoding.openmp"), False),
        (PermissionError(), False),
    ],
    ids=repr,
)
def test_a_damaged_file_may_raise_anything(tmp_path, monkeypatch, error, anew):
    index = tmp_path / "step.nbi"
    index.touch()
    monkeypatch.setattr(compiling, "_indexes", lambda module: [index] if index.exists() else [])

    def import_module(module):
        if index.exists():
            raise error
        return module

    monkeypatch.setattr(compiling.importlib, "import_module", import_module)
    if anew:
        assert compiling.imported("x") == "x" and not index.exists()
    else:
        with pytest.raises(type(error)):
            compiling.imported("x")
        assert index.exists(), "it may be used another time"


def test_where_a_file_cannot_be_removed_the_error_is_that_of_the_import(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "_indexes", lambda module: [tmp_path])
    monkeypatch.setattr(compiling, "_may_be_damage", lambda error: True)
    with pytest.raises(ModuleNotFoundError, match="playground.nothing"):
        compiling.imported("playground.nothing")


def test_each_source_of_the_step_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(compiling, "DECODING", tmp_path)
    monkeypatch.setattr(compiling, "STEP", tmp_path / "step")
    (tmp_path / "step").mkdir()
    digests = set()
    for name, text in (
        ("openmp.py", "a"),
        ("openmp.py", "b"),
        ("step/a.py", "ab"),
        ("step/a.py", "a"),
        ("step/b.py", "b"),
    ):
        (tmp_path / name).write_text(text)
        digests.add(compiling.digest())
    assert len(digests) == 5


def test_a_step_that_takes_for_ever_to_compile_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(compiling, "PROGRAM", "import time; time.sleep(600)")
    monkeypatch.setattr(compiling, "LONGEST", 0.1)
    process = compiling.Compiling()
    monkeypatch.setattr(compiling, "_begun", process)
    compiling.wait()
    assert process._process.returncode is not None
