"""What the page takes with 10,000 votes and 200 rounds in the store: the server's work at each gesture, what a person
waits for in Chromium, the first paint beside Gradio's own chat page, and how fast replies stream into the page before
and after its other tabs have been opened.

The app is `python app.py` without its worker; of the gestures none waits for the model. The server's work is from a
request's start to its answer's end, on loopback.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median

import psutil
from playwright.sync_api import sync_playwright
from pydantic import Field

from benchmarks import pages_store, report
from playground.models import loading
from playground.people import visitor
from playground.settings import Settings, SettingsError, read
from playground.store import Store

ROOT = Path(__file__).parent.parent
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
]
TOKEN = "x" * 43
STORY = "Tell me a long story about a ship and its crew."
IDLE_SECONDS = 20
PICKED = (
    "document.querySelector('#timeline label:nth-child({})').innerText"
    ".includes(' ' + document.querySelector('#round-summary h2').innerText + ' ')"
)
# gesture: what is clicked, and what is on screen once it is painted
GESTURES = {
    "vote": ("#vote-b", "document.querySelector('#badge-b .chosen')"),
    "change the vote": ("#vote-a", "document.querySelector('#badge-a .chosen')"),
    "say why": ("#tags label:nth-child(3)", "document.querySelector('#tags label:nth-child(3) input:checked')"),
    "undo the turn": ("#undo", "document.querySelector('#message textarea').value"),
    "new chat": ("#new-chat", "document.querySelector('#chat-a .placeholder')"),
    "open an earlier chat": ("#chats label:nth-child(6)", "document.querySelector('#chat-a .bot')"),
    "open My votes": ("#tab-votes-button", "document.querySelector('#my-votes tbody tr')?.offsetParent"),
    "open Training": ("#tab-training-button", "document.querySelector('#round-summary h2')?.offsetParent"),
    "pick a round": ("#timeline label:nth-child(9)", PICKED.format(9)),
    "pick the newest round": ("#timeline label:nth-child(1)", PICKED.format(1)),
    "open Watch": ("#tab-watch-button", "document.querySelector('#note-length')?.offsetParent"),
    "back to Chat": ("#tab-chat-button", "document.querySelector('#chat-a')?.offsetParent"),
}
PAINTED = """async ([target, done]) => {
  const element = document.querySelector(target), began = performance.now(), seen = new Function('return ' + done);
  element.click();
  while (!seen()) {
    if (performance.now() - began > 20000) throw Error('never painted: ' + done);
    await new Promise(requestAnimationFrame);
  }
  await new Promise(requestAnimationFrame);
  return performance.now() - began;
}"""


class PagesSettings(Settings):
    """The page with a full store: gestures and first paint."""

    quick: bool = False
    """A tenth of the votes and rounds, and fewer repeats."""
    json_file: str = Field("", alias="json")
    """File to write the rows to."""
    votes: int = Field(10_000, ge=100)
    """Votes in the store."""
    rounds: int = Field(200, ge=10)
    """Rounds in the store."""
    repeats: int = Field(7, ge=1)
    """How often each gesture is made, and each page opened."""


class Served:
    """A web server as a process; `url` once it answers."""

    def __init__(self, command, path, environ=()):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *map(str, command(self.port))],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **dict(environ), "GRADIO_ANALYTICS_ENABLED": "False"},
        )
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(self.url + path, timeout=5).read()
                return
            except OSError:
                time.sleep(0.2)
        raise SystemExit(f"{' '.join(map(str, command(self.port)))} ended, or did not answer within two minutes")

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def first_paint(browser, url, ready, repeats):
    """Median seconds until something is painted, and until `ready` is there, for a new visitor without a cache."""
    painted, usable = [], []
    for _ in range(repeats):
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        page = context.new_page()
        page.goto(url, wait_until="commit")
        page.wait_for_selector(ready)
        usable.append(page.evaluate("performance.now()") / 1e3)
        painted.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1e3)
        context.close()
    return median(painted), median(usable)


def idle(browser, url, ready, server):
    """Shares of a core that the browser and the server (a process) take for an open page on which nothing changes."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector(ready)
    page.wait_for_timeout(5000)  # what a page does when it is opened is over
    chromium = [p for p in psutil.Process().children(recursive=True) if CHROMIUM in " ".join(p.cmdline())]
    before = cpu_seconds(chromium), cpu_seconds([server])
    page.wait_for_timeout(1000 * IDLE_SECONDS)
    after = cpu_seconds(chromium), cpu_seconds([server])
    shares = [(now - then) / IDLE_SECONDS for now, then in zip(after, before, strict=True)]
    context.close()
    return shares


def cpu_seconds(processes):
    """Seconds of CPU that these processes have taken."""
    return sum(sum(process.cpu_times()[:2]) for process in processes if process.is_running())


def gestures(browser, url, repeats):
    """({gesture: milliseconds until painted}, {event: milliseconds of the server}), medians."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.add_cookies([{"name": visitor.COOKIE, "value": TOKEN, "url": url}])
    page = context.new_page()
    html = urllib.request.urlopen(url).read().decode()
    config = json.loads(re.search(r"window\.gradio_config = (.*?);</script>", html, re.S)[1])
    names, worked, painted = event_names(config), {}, {name: [] for name in GESTURES}

    def finished(request):
        if request.url.endswith("/run/predict"):
            timing = request.timing
            worked.setdefault(names[json.loads(request.post_data)["fn_index"]], []).append(
                timing["responseEnd"] - timing["requestStart"]
            )

    page.on("requestfinished", finished)
    page.goto(url)
    page.wait_for_selector(".badge.chosen, .badge.drawn")
    page.click("#sidebar .toggle-button")
    for _ in range(repeats):
        for name, (target, done) in GESTURES.items():
            page.wait_for_selector(target, state="visible")
            page.wait_for_timeout(250)
            painted[name].append(page.evaluate(PAINTED, [target, done]))
        page.wait_for_timeout(3500)  # for the moments at which an open page looks by itself
    context.close()
    return {name: median(values) for name, values in painted.items()}, {
        name: median(values) for name, values in worked.items()
    }


def streaming(browser, url, store, repeats):
    """(tokens of a reply a second, share of the time in which the page's main thread works), medians: into a new page,
    and into one whose tabs have all been opened.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#hint .idle")
    fresh = [streamed(page, store) for _ in range(repeats)]
    for tab in [*page.get_by_role("tab").all()[1:], page.get_by_role("tab").first]:
        tab.click()
        page.wait_for_timeout(1500)
    opened = [streamed(page, store) for _ in range(repeats)]
    context.close()
    return [tuple(median(values) for values in zip(*page, strict=True)) for page in (fresh, opened)]


def streamed(page, store):
    """(tokens a second, share of the main thread) of one pair of replies, from its first words on."""
    metrics = page.context.new_cdp_session(page)
    metrics.send("Performance.enable")
    page.click("#new-chat:enabled, #chat-a .placeholder")
    page.wait_for_selector("#hint .idle")
    page.fill("#message textarea", STORY)
    page.click("#send")
    page.wait_for_selector("#chat-a .bot .prose p, #chat-b .bot .prose p")
    began, busy = time.monotonic(), task_seconds(metrics)
    page.wait_for_selector("#hint .voting, #hint .same")
    seconds, busy = time.monotonic() - began, task_seconds(metrics) - busy
    tokens = [
        row["tokens"]
        for row in store.rows("select json_array_length(token_ids) as tokens from generation order by id desc limit 2")
    ]
    return max(tokens) / seconds, busy / seconds


def task_seconds(metrics):
    """Seconds that a page's main thread has worked."""
    return next(m["value"] for m in metrics.send("Performance.getMetrics")["metrics"] if m["name"] == "TaskDuration")


def event_names(config):
    """{fn_index: "component.event, component.event"} as the page's config has them."""
    ids = {c["id"]: c["props"].get("elem_id") or c["type"] for c in config["components"]}
    return {
        d["id"]: ", ".join(dict.fromkeys(f"{ids.get(target, 'page')} {event}" for target, event in d["targets"]))
        for d in config["dependencies"]
    }


def measure(settings, log=print):
    """All rows."""
    votes, rounds, repeats = (
        (settings.votes // 10, settings.rounds // 10, 3)
        if settings.quick
        else (settings.votes, settings.rounds, settings.repeats)
    )
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "nudge.db")
        log(f"filling a store with {votes:,} votes and {rounds} rounds")
        identity = loading.base_identity(loading.load_trunk(settings), settings)
        config = settings.flat("json")
        pages_store.fill(store, store.annotator(TOKEN), votes, rounds, config, identity)
        ours = Served(
            lambda port: ["app.py", "--no-worker", "--data-dir", folder, "--port", port], "/readyz", settings.environ()
        )
        plain = Served(lambda port: ["benchmarks/peers/plain_gradio.py", port], "/")
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
                log("first paint, ours and Gradio's own chat page")
                paint, usable = first_paint(browser, ours.url, "#hint span", repeats)
                plain_paint, plain_usable = first_paint(browser, plain.url, "textarea", repeats)
                log("an open page on which nothing changes")
                idle_browser, idle_server = idle(browser, ours.url, "#hint span", psutil.Process(ours.process.pid))
                plain_idle, _ = idle(browser, plain.url, "textarea", psutil.Process(plain.process.pid))
                log("gestures")
                painted, worked = gestures(browser, ours.url, repeats)
                log("replies that stream")
                (fresh, fresh_busy), (opened, opened_busy) = streaming(browser, ours.url, store, repeats)
        finally:
            ours.stop()
            plain.stop()
    rows = [
        report.row("first paint", paint, "s", "≤ 2"),
        report.row("first paint to that of a bare gr.ChatInterface", paint / plain_paint, "×"),
        report.row("until the chat can be used", usable, "s", "≤ 2"),
        report.row("until it can be used to that of a bare gr.ChatInterface", usable / plain_usable, "×"),
    ]
    rows += [
        report.row("an open page, nothing changes: share of a core in the browser", idle_browser, "", "≤ 0.1"),
        report.row("the same of a bare gr.ChatInterface", plain_idle),
        report.row("the same in the server", idle_server, "", "≤ 0.02"),
    ]
    rows += [report.row(f"{name}: click to painted", value, "ms", "≤ 100") for name, value in painted.items()]
    rows += [
        report.row(f"server: {name}", value, "ms", "≤ 100")
        for name, value in sorted(worked.items(), key=lambda item: -item[1])
    ]
    rows += [
        report.row("replies stream into a new page", fresh, "tokens/s"),
        report.row(
            "replies stream into a page whose tabs have all been opened, to a new page", opened / fresh, "×", "≥ 0.9"
        ),
        report.row("main thread of a new page while replies stream", fresh_busy, "of the time"),
        report.row("main thread of a page whose tabs have all been opened", opened_busy, "of the time", "≤ 0.8"),
    ]
    return rows


def main(argv=None):
    try:
        settings = read(argv, PagesSettings, "python -m benchmarks.pages")
    except SettingsError as error:
        sys.exit(str(error))
    report.show(measure(settings), settings.json_file)


if __name__ == "__main__":
    main()
