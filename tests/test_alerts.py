"""Events that are posted for the operator, and that nobody waits for the target."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from playground.backup import status
from playground.serving.alerts import REPEAT_SECONDS, Alerts
from playground.settings import Settings, SettingsError
from playground.store import StoreUnavailable
from playground.system import webhook
from playground.system.messages import plain
from playground.system.webhook import Webhook, post
from tests.backups import Folder, deaf
from tests.stores import cast, published, store, take  # noqa: F401 (fixtures)


def until(true):
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def target():
    """A local HTTP server: `url`, `got` (the bodies), and `answers`, the statuses of the next answers (then 204)."""
    got, answers = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            status = answers.pop(0) if answers else 204
            if status == 204:
                got.append(json.loads(body))
            self.send_response(status)
            self.send_header("location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}/hook", got=got, answers=answers)
    server.shutdown()
    server.server_close()


# -- what is reported


def alerts_and_events(store, worker=None, clock=time.monotonic, backup=None):  # noqa: F811
    """(Alerts that have looked once, the events that they tell from now on)."""
    events = []
    alerts = Alerts(store, events.append, worker, clock, backup)
    alerts.look()
    return alerts, events


def test_what_was_before_the_start_is_not_reported(store):  # noqa: F811
    published(store)
    alerts, events = alerts_and_events(store)
    alerts.look()
    assert events == []


def test_a_round_that_published_one_that_was_refused_and_a_version_that_was_rolled_back(store):  # noqa: F811
    alerts, events = alerts_and_events(store)
    version = published(store)
    store.request_round()
    row = take(store)
    alerts.look()
    refused = store.add_policy(row["id"], "w1", parent=version)
    store.refuse(row["id"], "w1", refused, "nowhere", "abc", {}, plain("Ottokar's secret"))
    store.reject_live(version, "Ottokar's secret", 0)
    alerts.look()
    alerts.look()
    assert [(event["event"], event.get("round"), event["version"]) for event in events] == [
        ("round_published", 1, 1),
        ("round_refused", 2, 2),
        ("version_rejected", None, 1),
    ]
    assert events[0]["text"] == "Round 1 was published: version v1."
    assert events[2]["text"] == "Version v1 was rejected; v0 answers now."
    assert "Ottokar" not in json.dumps(events)


def test_a_version_that_an_admin_withdraws_is_reported_too(store):  # noqa: F811
    version = published(store)
    alerts, events = alerts_and_events(store)
    store.withdraw(version, store.annotator("ann"), "bad")
    alerts.look()
    assert [event["event"] for event in events] == ["version_rolled_back"]


def test_a_round_that_failed_is_not_among_them(store):  # noqa: F811
    alerts, events = alerts_and_events(store)
    store.request_round()
    store.end_round(take(store)["id"], "w1", "failed", plain("broken"))
    alerts.look()
    assert events == []


def test_a_worker_that_keeps_ending_is_reported_now_and_then(store):  # noqa: F811
    now, worker = [0.0], SimpleNamespace(ends=0)
    alerts, events = alerts_and_events(store, worker, lambda: now[0])
    for at, ends in ((0.0, 1), (1.0, 2), (REPEAT_SECONDS + 1, 2), (REPEAT_SECONDS + 2, 3)):
        now[0], worker.ends = at, ends
        alerts.look()
    assert [(event["event"], event["ends"]) for event in events] == [("worker_down", 1), ("worker_down", 3)]


def test_a_backup_in_trouble_is_reported_once_and_again_when_it_comes_back_later(tmp_path, monkeypatch):
    now, folder = [0.0], Folder(tmp_path / "first", (tmp_path / "target").as_uri())
    alerts, events = alerts_and_events(folder.store, None, lambda: now[0], folder.backup)

    def looks(at):
        now[0] = at
        cast(folder.store)
        folder.save()
        alerts.look()

    looks(0.0)
    assert events == []
    for begin in (1.0, 5.0, REPEAT_SECONDS + 5):  # the second trouble comes too soon after the first
        with monkeypatch.context() as patch:
            patch.setattr(folder.backup.target.files, "pipe_file", deaf)
            looks(begin)
            looks(begin + 1)
        looks(begin + 2)
    assert [event["event"] for event in events] == ["backup_late"] * 2
    assert events[0]["text"] == str(status.UNREACHABLE) and events[0]["age"] == 0


def test_a_look_that_the_store_could_not_answer_loses_nothing(store, monkeypatch):  # noqa: F811
    alerts, events = alerts_and_events(store)
    published(store)

    def busy(after):
        raise StoreUnavailable("The database is busy.")

    with monkeypatch.context() as patched:
        patched.setattr(store, "lost_versions", busy)
        with pytest.raises(StoreUnavailable):
            alerts.look()
    alerts.look()
    assert [event["event"] for event in events] == ["round_published"]


# -- how it is posted


def test_events_arrive_in_their_order_after_failures(target):
    target.answers += [500, 302, 404]
    hook = Webhook(target.url, first_pause=0.001).start()
    for n in range(3):
        hook.put({"event": "é", "n": n})
    until(lambda: len(target.got) == 3)
    assert target.got == [{"event": "é", "n": n} for n in range(3)]
    until(lambda: hook.waiting == 0)
    hook.close()


def test_a_target_that_is_gone_is_tried_with_growing_pauses_and_blocks_nobody(monkeypatch):
    monkeypatch.setattr(webhook, "MOST_EVENTS", 100)
    times = []

    def refused(url, body):
        times.append(time.monotonic())
        raise ConnectionRefusedError

    hook = Webhook("http://127.0.0.1:1/", refused, first_pause=0.01).start()
    began = time.monotonic()
    for n in range(1000):
        hook.put({"n": n})
    assert time.monotonic() - began < 1 and hook.waiting == 100
    until(lambda: len(times) >= 4)
    hook.close()
    first, second, third, fourth = times[:4]
    assert second - first >= 0.01 and third - second >= 0.02 and fourth - third >= 0.04


def test_an_event_that_is_never_taken_makes_room_for_the_next(target):
    target.answers += [410] * webhook.TRIES
    hook = Webhook(target.url, first_pause=0.0).start()
    hook.put({"n": 1})
    hook.put({"n": 2})
    until(lambda: target.got == [{"n": 2}])
    hook.close()


def test_a_target_that_points_elsewhere_is_not_followed(target):
    target.answers.append(307)
    with pytest.raises(OSError, match="307"):
        post(target.url, b"{}")
    assert target.got == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "http://", "https:///x", "nudge", "http://a b"])
def test_only_http_is_an_address(url):
    with pytest.raises(SettingsError):
        Settings(_env_file=None).with_values(alerts={"url": url})


def test_a_round_keeps_neither_address_nor_token():
    settings = Settings(_env_file=None, alerts={"url": "https://a/of-nobody-else"}, metrics={"token": "x" * 16})
    assert "of-nobody-else" not in str(settings.recorded()) and "x" * 16 not in str(settings.recorded())
    assert settings.recorded()["ppo.lr"] == 5e-4
