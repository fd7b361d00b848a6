"""The app as a subprocess and headless Chromium before it, for the tests of the page: what a person does and sees.

The real model answers where it is there, a tiny one otherwise. `NUDGE_SCREENSHOTS=folder` keeps pictures of each state.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import pytest

from playground.people.visitor import COOKIE
from playground.settings import Settings
from tests.paced_app import HELD

# the shell has no window to draw and takes a third less CPU time
CHROMIUM = shutil.which("chromium-headless-shell") or "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # windows of one context share a process, which has compiled Gradio's page before
    "--renderer-process-limit=1",
]
ROOT = Path(__file__).resolve().parent.parent
MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not Path(CHROMIUM).exists(),
        reason="Chromium is missing; `make test` as root installs it, or run `apt-get install chromium-headless-shell`",
    ),
]
TUNED = Path(tempfile.mkdtemp(prefix="nudge-tests-")) / "tuning.json"
LEAVING = set()  # pages being left: what Gradio's code says of the streams it then breaks off is no complaint


class App:
    """`python app.py` with a data folder of its own; `url`, `admin_url` for one browser, and `rows` of its database.

    `paced`: a tiny model streams as slowly as the tests need it (`paced_app.py`).
    """

    def __init__(self, folder, *flags, model=None, tokens=None, paced=False):
        self.folder = folder
        from playground.models import sources

        program = ROOT / "tests" / "paced_app.py" if paced else ROOT / "app.py"
        found = sources.resolve(Settings())
        self.real = model is None and Path(found).exists()
        # a tiny model is so fast that it must write more
        model, usual = (Path(found).resolve(), 40) if self.real else (model or tiny(folder), 400)
        tokens = tokens or usual
        command = [
            sys.executable,
            program,
            "--model",
            model,
            "--port",
            0,
            "--threads",
            1,
            "--chat.reply-tokens",
            tokens,
            "--data-dir",
            folder / "data",
            *flags,
        ]
        self.command = list(map(str, command))
        self.admin_cookies = None  # of whoever opened the admin link
        # what this machine decodes fastest with is measured once, not for each module of tests
        if self.real and TUNED.exists():
            (folder / "data").mkdir(exist_ok=True)
            shutil.copy(TUNED, folder / "data")
        self.start()
        if self.real and not TUNED.exists():
            shutil.copy(folder / "data" / TUNED.name, TUNED)

    def start(self):
        self.process = subprocess.Popen(self.command, cwd=self.folder, text=True, stdout=subprocess.PIPE)
        line = self.process.stdout.readline()
        assert line.startswith("Nudge is at "), line
        self.url = line.split()[-1]
        line = self.process.stdout.readline()
        assert line.startswith("Admin link, for one browser: "), line
        self.admin_url = line.split()[-1]

    def stop(self):
        self.process.terminate()
        assert self.process.wait(120) == 0

    @property
    def database(self):
        return self.folder / "data" / "nudge.db"

    def rows(self, sql, *values):
        with sqlite3.connect(self.database) as db:
            return db.execute(sql, values).fetchall()

    @contextmanager
    def held(self):
        """Replies of a paced app have words and stand still until the block ends, however long that takes."""
        held = self.folder / HELD
        held.touch()
        try:
            yield
        finally:
            held.unlink()


def tiny(folder):
    """The tiny model in a folder of its own. Imports torch, which a process that only hands out tests does without."""
    from tests.tiny import tiny_folder

    return tiny_folder(folder / "model")


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    app = App(tmp_path_factory.mktemp("app"), "--no-worker")
    yield app
    app.stop()


@pytest.fixture(scope="session")
def paced(tmp_path_factory):
    """The app with a tiny model that streams at the same pace on every machine, one for all modules that take it."""
    folder = tmp_path_factory.mktemp("paced")
    plain = ("--no-worker", "--dtype", "float32", "--decode-format", "float32")
    # a page on a busy machine keeps up with four updates a second, however long replies stand still
    app = App(folder, *plain, "--chat.stream-hz", 4, model=tiny(folder), tokens=40, paced=True)
    yield app
    app.stop()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def size():
    """Width and height of the screen; a module that means several overrides it."""
    return 1280, 800


@pytest.fixture(scope="module")
def left(browser):
    """Contexts that the visitors of earlier tests have left, under the options they were made with."""
    return defaultdict(list)


@pytest.fixture
def visit(app, browser, left, size):
    """A function that opens the page as a new visitor; at the end no page may have complained in the console.

    A visitor who has left leaves a context without cookies and storage. The next takes it, since it keeps Gradio's page
    compiled: a context of its own for each visitor took a third more CPU time.
    """
    contexts, complaints = [], []

    def new_context(options):
        key = repr(sorted(options.items()))
        context = left[key].pop() if left[key] else browser.new_context(**options)
        context.set_default_timeout(120_000)
        contexts.append((key, context))
        return context

    def open_page(width=size[0], height=size[1], path="", again=None, token=None, **options):
        """`again`: a page whose visitor opens another one. `token`: the cookie of one who has been here."""
        context = again.context if again else new_context({"locale": "en-US", "reduced_motion": "reduce", **options})
        if token:
            context.add_cookies([{"name": COOKIE, "value": token, "url": app.url}])
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": height})
        page.on("console", lambda m: m.type == "error" and page not in LEAVING and complaints.append(m.text))
        page.on("pageerror", lambda error: page in LEAVING or complaints.append(str(error)))
        page.goto(app.url + path)
        page.wait_for_selector("#strip .strip")
        page.wait_for_selector("#hint span")
        return page

    yield open_page
    for key, context in contexts:
        forget(context, app.url)
        left[key].append(context)
    assert complaints == [], complaints


def forget(context, origin):
    """Close the pages of a context, and clear what a site may keep there: whoever comes next is a new visitor."""
    for page in context.pages:
        page.close()
    page = context.new_page()
    kept = {"origin": origin, "storageTypes": "cookies,local_storage,indexeddb,cache_storage,service_workers"}
    context.new_cdp_session(page).send("Storage.clearDataForOrigin", kept)
    page.close()
    context.clear_cookies()
    context.clear_permissions()


# -- gestures and what is seen


def send(page, text):
    page.fill("#message textarea", text)
    page.press("#message textarea", "Enter")


def wait_for_vote(page):
    page.wait_for_selector("#hint :text('Which reply is better?')")


def turn(page, text, choice="a"):
    """One message, both replies, one vote by button."""
    send(page, text)
    wait_for_vote(page)
    page.click(f"#vote-{choice}")
    page.wait_for_selector(f"#vote-{choice}.picked")


def reload(page):
    """Leave the page, with whatever streams, and come back."""
    LEAVING.add(page)
    page.reload()
    page.wait_for_selector("#hint span")
    LEAVING.discard(page)


def reply(page, side):
    """The last thing that a pane's candidate says."""
    return page.locator(f"#chat-{side} .bot").last.inner_text()


def messages(page, side):
    return page.locator(f"#chat-{side} [data-testid=user], #chat-{side} [data-testid=bot]").count()


def becomes(page, read, wanted):
    """Wait until `read()`, of the database say, gives what is wanted."""
    until = time.monotonic() + 120
    while (got := read()) != wanted and time.monotonic() < until:
        page.wait_for_timeout(50)
    assert got == wanted


def lengths(page):
    return [len(reply(page, side)) for side in "ab"]


def growing(page):
    """Wait until both replies have words and still grow."""
    page.wait_for_function(
        "[...document.querySelectorAll('#chat-a .bot')].at(-1)?.innerText.length > 5 && "
        "[...document.querySelectorAll('#chat-b .bot')].at(-1)?.innerText.length > 5 && "
        "document.querySelector('#stop')?.offsetParent"
    )


def become_admin(page, app):
    """Make this page's visitor an admin: by the app's admin link, which works once, and later as the same visitor
    again.
    """
    if app.admin_cookies:
        page.context.add_cookies(app.admin_cookies)
        return reload(page)
    LEAVING.add(page)
    page.goto(app.admin_url)
    page.wait_for_selector("#hint span")
    LEAVING.discard(page)
    app.admin_cookies = page.context.cookies()


def tab(page, name):
    page.click(f"#tab-{name}-button")


def shot(page, name, **options):
    folder = os.environ.get("NUDGE_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(500)
        page.screenshot(path=Path(folder) / f"{name}.png", **options)
