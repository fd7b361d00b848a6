"""`/metrics`: who may read it, and that its figures are those of the engine and the store."""

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from playground.serving.reply_times import Histogram
from playground.store import VERSION_STATES, StoreUnavailable
from playground.store.errors import Failures, StoreBusy
from playground.web.metrics import Metrics, may_read
from playground.web.proxies import Proxies
from tests.backups import Folder, deaf
from tests.chats import chat, folder, turn  # noqa: F401 (fixtures)
from tests.sites import Site

TOKEN = "a-token-for-Prometheus"


def read(text):
    """{(name, *label values): value} of figures as Prometheus reads them."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


def test_the_figures_are_those_of_the_engine_and_the_store(chat):  # noqa: F811
    metrics = Metrics(chat.store, chat.engine)
    ann = chat.store.annotator("ann")
    view = turn(chat, ann, "A secret of mine", "a")
    chat.vote(ann, view.duel, "tie")  # a changed vote is a vote that was given
    chat.store.request_round()
    chat.engine.close()  # what the turn's end counts is counted now
    text = metrics.text().decode()
    figures = read(text)
    assert {choice: figures["nudge_votes_total", choice] for choice in ("a", "b", "tie", "skip")} == {
        "a": 1,
        "b": 0,
        "tie": 1,
        "skip": 0,
    }
    assert figures["nudge_rounds", "requested"] == 1 and figures["nudge_rounds", "published"] == 0
    assert {labels[1] for labels in figures if labels[0] == "nudge_versions"} == set(VERSION_STATES)
    assert figures["nudge_versions", "published"] == 0, "the base is none"
    assert figures[("nudge_live_version",)] == 0 and figures[("nudge_engine_healthy",)] == 0
    assert figures["nudge_streams", "running"] == figures["nudge_streams", "waiting"] == 0
    assert figures[("nudge_first_token_seconds_count",)] == 2
    assert figures["nudge_first_token_seconds_bucket", "+Inf"] == 2
    assert figures["nudge_resident_memory_bytes", "server"] > 10 << 20
    assert "secret" not in text and "ann" not in text
    chat.vote(ann, view.duel, "b")
    again = read(metrics.text().decode())
    assert again["nudge_votes_total", "b"] == 1 and again["nudge_votes_total", "a"] == 1


def test_a_buckets_count_is_of_all_values_up_to_its_bound():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.add(value)
    assert histogram.read() == ([2, 3, 4], 12.0)


def test_a_store_that_cannot_answer_takes_only_its_own_figures(chat):  # noqa: F811
    class Broken:
        failures = Failures()

        def votes_by_choice(self, after):
            raise StoreUnavailable("The database is busy.")

    Broken.failures.add(StoreBusy("The database is busy."))
    figures = read(Metrics(Broken(), chat.engine).text().decode())
    assert figures["nudge_store_errors_total", "busy"] == 1 and figures[("nudge_engine_healthy",)] == 1
    assert ("nudge_votes_total", "a") not in figures


def test_the_backups_age_grows_until_something_is_saved(chat, tmp_path, monkeypatch):  # noqa: F811
    def figures():
        found = read(Metrics(chat.store, chat.engine, folder.backup).text().decode())
        return found[("nudge_backup_age_seconds",)], found[("nudge_backup_healthy",)]

    assert ("nudge_backup_healthy",) not in read(Metrics(chat.store, chat.engine).text().decode())
    folder = Folder(tmp_path / "first", (tmp_path / "target").as_uri())
    folder.backup._started -= 70  # seconds
    with monkeypatch.context() as patch:
        patch.setattr(folder.backup.target.files, "pipe_file", deaf)
        folder.save()
    age, healthy = figures()
    assert 70 <= age < 100 and healthy == 0
    folder.save()
    age, healthy = figures()
    assert 0 <= age < 30 and healthy == 1


# -- who may read it


@pytest.fixture(scope="module")
def site(folder):  # noqa: F811
    site = Site(folder, metrics={"token": TOKEN}, trusted_proxies="127.0.0.1")
    yield site
    site.stop()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"x-forwarded-for": "127.0.0.1"}, 404),
        ({"x-real-ip": "203.0.113.5"}, 404),
        ({"via": "1.1 proxy"}, 404),
        ({"host": "nudge.example"}, 404),
        ({"x-forwarded-for": "203.0.113.5", "authorization": f"Bearer {TOKEN}"}, 200),
        ({"x-forwarded-for": "203.0.113.5", "authorization": f"Bearer {TOKEN}s"}, 404),
        ({"x-forwarded-for": "203.0.113.5", "authorization": f"Basic {TOKEN}"}, 404),
    ],
)
def test_this_machine_without_a_proxy_or_the_token(site, headers, status):
    """A proxy on this machine must not open it to everybody."""
    with httpx.Client(base_url=site.url) as client:
        answer = client.get("/metrics", headers=headers)
        assert answer.status_code == status
        if status == 404:
            assert answer.json() == client.get("/nothing").json(), "as any route that is not there"
        else:
            assert read(answer.text)[("nudge_live_version",)] == 0


@pytest.mark.parametrize(
    ("peer", "version", "direct"),
    [("127.0.0.1", "1.1", True), ("::1", "1.1", True), ("127.0.0.1", "1.0", False), ("203.0.113.5", "1.1", False)],
)
def test_what_is_direct(peer, version, direct):
    """nginx speaks HTTP/1.0 to an app, under that one's own name, unless it is told otherwise."""
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["direct"])

    scope = {
        "type": "http",
        "path": "/metrics",
        "headers": [(b"host", b"localhost:7860")],
        "client": (peer, 5),
        "http_version": version,
        "direct": True,
    }
    with pytest.raises(StopIteration):
        Proxies(app)(scope, None, None).send(None)
    assert seen == [direct]


def test_without_a_token_in_the_settings_an_empty_one_opens_nothing():
    for header in (b"Bearer ", b"Bearer", b""):
        assert not may_read({"type": "http", "headers": [(b"authorization", header)], "direct": False}, "")
