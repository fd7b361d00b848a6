"""The benchmark of faults: that it aims at everything, sees what is wrong, and keeps its books; and a short run
against a real server.
"""

import json
import random
import socket
import sqlite3
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import uvicorn
from fastapi import APIRouter, FastAPI
from fastapi.responses import PlainTextResponse
from starlette.routing import Mount

from benchmarks.faults import __main__ as faults
from benchmarks.faults import (
    aims,
    architectures,
    disk,
    fuzz,
    kills,
    mutate,
    people,
    raw,
    running,
    tampered,
)
from benchmarks.faults.mutate import AimedRequest, Handler, Mutator, Surface

SECRET, COPIED = "mark0123456789abcdef", "markfedcba9876543210"
COPY = f"/tmp/gradio/{'0' * 64}/.env"


# -- what is aimed at


class Wrapped:
    """What stands in front of an app, as the allowlist does."""

    def __init__(self, app):
        self.app = app


def test_routes_behind_mounts_middleware_and_included_routers_are_found():
    """FastAPI keeps an included router as one object without a path: sixty of Gradio's routes were not aimed at."""
    inner, router, outer = FastAPI(openapi_url=None), APIRouter(prefix="/api"), FastAPI(openapi_url=None)
    router.add_api_route("/join", lambda: None, methods=["POST"])
    inner.include_router(router)
    outer.add_api_route("/healthz", lambda: None)
    outer.router.routes.append(Mount("/sub", app=Wrapped(inner)))
    found = {
        (path, method) for path, method in aims.routes(Wrapped(outer)) if "docs" not in path and "redoc" not in path
    }
    assert ("/healthz", "GET") in found
    assert ("/sub/api/join", "POST") in found


@pytest.fixture
def surface() -> Surface:
    handlers = [Handler(0, 1, False, ((5, "click"),)), Handler(7, 3, True, ((6, "input"),))]
    cookies = {"person": [f"nudge_id={'p' * 43}"], "owner": [f"nudge_id={'o' * 43}"]}
    return Surface(
        "127.0.0.1:7860",
        [("/a/{x:path}", "GET"), ("/b", "POST")],
        handlers,
        ["/secret/.env", "/secret/nudge.db"],
        "victims-own",
        cookies,
    )


def test_every_route_and_handler_is_asked_plainly_by_each_role(surface: Surface):
    plain = list(Mutator(random.Random(0), surface).plain())
    assert len(plain) == len(mutate.ROLES) * (len(surface.routes) + len(surface.handlers))
    for role in mutate.ROLES:
        targets = [aimed.request.target for aimed in plain if aimed.role == role]
        assert targets == [b"/a/x", b"/b", b"/gradio_api/run/predict", b"/gradio_api/queue/join"]


def test_who_asks_shows_in_cookie_and_host(surface: Surface):
    for aimed in Mutator(random.Random(0), surface).plain():
        headers = dict(aimed.request.headers)
        assert headers.get(b"Cookie", b"").decode() == (surface.cookies.get(aimed.role) or [""])[0]
        assert headers[b"Host"] == (b"127.0.0.1:7860" if aimed.role == "owner" else b"nudge.example:7860")


def test_each_handler_is_given_a_file_as_value(surface: Surface):
    bodies = [json.loads(aimed.request.body) for aimed in Mutator(random.Random(0), surface).known()]
    assert [body["fn_index"] for body in bodies] == [0, 0, 7, 7]
    assert {value["path"] for body in bodies for value in body["data"]} == {"/secret/.env", "/secret/nudge.db"}


def test_the_same_seed_draws_the_same_requests_and_another_seed_others(surface: Surface):
    def drawn(seed: int) -> list[bytes]:
        mutator = Mutator(random.Random(seed), surface)
        return [mutator.draw().request.encode() for _ in range(60)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_all_that_a_request_can_have_wrong_is_drawn(surface: Surface):
    mutator = Mutator(random.Random(3), surface)
    drawn = [mutator.draw() for _ in range(2500)]
    notes = " ".join(aimed.request.note for aimed in drawn)
    for part in (
        "route",
        "event",
        "upload",
        "file",
        "page",
        "stream",
        "path",
        "method",
        "Range",
        "Origin",
        "X-Forwarded-For",
        "Host",
        "body deep list",
        "body utf8",
        "body nan",
        "body gzip",
        "body chunked",
        "body short",
        "body huge",
    ):
        assert part in notes, part
    everything = b"".join(aimed.request.encode()[:100_000] for aimed in drawn)
    for part in (
        b"gradio.FileData",
        b"victims-own",
        b"NaN",
        b"Infinity",
        b"%2e%2e",
        b"\x00",
        b"Transfer-Encoding: chunked",
    ):
        assert part in everything, part
    assert {aimed.role for aimed in drawn} == set(mutate.ROLES)


def test_a_chunked_body_can_be_put_together_again():
    encoded = raw.Request("POST", b"/x", [(b"Host", b"h")], b"a" * 2500, chunked=True).encode()
    head, body = encoded.split(b"\r\n\r\n", 1)
    assert head == b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close"
    assert (
        body == b"3e8\r\n" + b"a" * 1000 + b"\r\n3e8\r\n" + b"a" * 1000 + b"\r\n1f4\r\n" + b"a" * 500 + b"\r\n0\r\n\r\n"
    )


# -- what is seen


def response(status: int, body: bytes = b"", outcome: str = "answered") -> raw.Response:
    return raw.Response(status, b"", body, outcome, 0.1)


@pytest.mark.parametrize(
    ("role", "answer", "unfinished", "expected"),
    [
        ("person", response(200, b"fine"), False, {}),
        ("person", response(500), False, {"status 500": 1}),
        ("person", response(503), False, {"status 503 of a healthy server": 1}),
        ("person", response(200, f"x {SECRET} x".encode()), False, {"foreign data": 1}),
        ("stranger", response(404, SECRET.encode()), False, {"foreign data": 1}),
        ("owner", response(200, SECRET.encode()), False, {}),
        ("person", response(0, outcome="timeout"), False, {"no answer": 1}),
        ("person", response(0, outcome="timeout"), True, {}),
    ],
)
def test_an_answer_is_judged(role: str, answer: raw.Response, unfinished: bool, expected: dict):
    tally = fuzz.Tally()
    aimed = AimedRequest(role, raw.Request(unfinished=unfinished))
    tally.take(1, aimed, answer, aims.PlantedSecrets({"a chat": SECRET.encode()}), healthy=lambda: True)
    assert tally.counts == expected


def test_tracebacks_in_a_log_are_counted_and_named():
    log = (
        "INFO fine\nTraceback (most recent call last):\n  File \"x\", line 1\n    boom()\nKeyError: 'a'\nINFO fine\n"
        'Traceback (most recent call last):\n  File "y", line 2\nplayground.chat.session.Refused: no\n'
    )
    assert running.tracebacks(log) == ["KeyError: 'a'", "playground.chat.session.Refused: no"]
    assert running.tracebacks("INFO fine\n") == []


WARNING = (
    r'{"data":["<div class=\"notice warning\" role=\"alert\"><b>Not sent</b> The disk is full. Try again.</div>"]}'
)


@pytest.mark.parametrize(
    ("answer", "kept", "in_words"),
    [
        (people.Answer(200, '{"data":["fine"]}', 0.1), True, False),
        (people.Answer(200, r'{"data":["<div class=\"notice kept\">We keep it.</div>"]}', 0.1), True, False),
        (people.Answer(200, WARNING, 0.1), False, True),
        (people.Answer(429, '{"detail":"Too many messages at once. Wait a moment."}', 0.1, success=False), False, True),
        (people.Answer(500, '{"error":"Your browser keeps no cookie."}', 0.1, success=False), False, False),
        (people.Answer(500, "Internal Server Error", 0.1, success=False), False, False),
        (people.Answer(200, '{"error":null}', 0.1, success=False), False, False),
        (people.Answer(0, "ReadTimeout", 30.0, success=False), False, False),
    ],
)
def test_an_answer_is_kept_or_refused_in_words_or_neither(answer: people.Answer, kept: bool, in_words: bool):
    assert (answer.kept, answer.in_words) == (kept, in_words)


# -- the books


def test_only_acknowledged_votes_can_be_lost(tmp_path):
    """A change that was on its way when the server died may be there or not; one of the two must."""
    db = sqlite3.connect(tmp_path / "nudge.db")
    db.executescript(
        "create table message (id integer, text text); create table duel (id integer, user_message integer);"
        "create table vote (id integer, duel integer, choice text, superseded_by integer)"
    )
    for i, (text, choice) in enumerate((("kept", "a"), ("changed", "b"), ("other", "b"))):
        db.execute("insert into message values (?, ?)", (i, text))
        db.execute("insert into duel values (?, ?)", (i, i))
        db.execute("insert into vote values (?, ?, ?, null)", (i, i, choice))
    db.commit()
    ledger = kills.Ledger()
    for text in ("kept", "changed", "other", "gone"):
        ledger.tried(text, "a")
        ledger.accepted(text, "a")
    ledger.tried("changed", "b")
    ledger.tried("never answered", "a")
    assert sorted(ledger.lost(tmp_path / "nudge.db")) == ["gone", "other"]
    db.close()


def test_sections_are_chosen_by_name_and_an_unknown_one_is_named():
    assert faults.chosen("") == list(faults.SECTIONS)
    assert faults.chosen("limits, fuzz") == ["fuzz", "limits"]
    assert faults.chosen("adapters") == ["tampered"]
    with pytest.raises(faults.SettingsError, match="fuss is no section"):
        faults.chosen("fuss")


def test_a_section_that_breaks_is_a_row_that_falls_short(tmp_path):
    said = []
    rows = faults.section("no_such_section", running.Scene(tmp_path, True, 0, said.append))
    assert [row["ok"] for row in rows] == [False]
    assert "no_such_section" in rows[0]["what"] and "Traceback" in said[0]


@pytest.mark.parametrize(
    ("refusal", "url", "code", "err", "answered", "fine"),
    [
        (None, "http://x", None, "", 2, True),
        (None, "http://x", None, "", 1, False),
        (None, "", 1, "no", 0, False),
        ("git lfs pull", "", 1, "Run `git lfs pull`.", 0, True),
        ("git lfs pull", "", 1, "OSError", 0, False),
        ("git lfs pull", "http://x", None, "git lfs pull", 0, False),
        ("git lfs pull", "", 1, "Traceback (most recent call last):\nOSError: git lfs pull", 0, False),
    ],
)
def test_a_model_answers_or_is_refused_as_expected(
    refusal: str | None, url: str, code: int | None, err: str, answered: int, fine: bool
):
    case = architectures.Case("x", "FOLDERS", refusal)
    assert (architectures.verdict(case, url, code, err, answered, harmed=False) == "") is fine


def test_there_are_ten_kinds_of_tampering_and_each_changes_the_folder(tmp_path):
    assert len(tampered.KINDS) >= 10
    (tmp_path / "v0001").mkdir()
    (tmp_path / "v0001" / tampered.WEIGHTS).write_bytes(b"the version before")
    for kind, tamper in tampered.AFTER.items():
        folder = tmp_path / kind
        folder.mkdir()
        (folder / tampered.WEIGHTS).write_bytes(b"0123456789")
        (folder / tampered.MANIFEST).write_text('{"rank": 16, "alpha": 32, "targets": ["q_proj"]}')
        before = [(folder / name).read_bytes() for name in (tampered.WEIGHTS, tampered.MANIFEST)]
        tamper(folder)
        assert [(folder / name).read_bytes() for name in (tampered.WEIGHTS, tampered.MANIFEST)] != before, kind


def test_flags_are_written_as_the_command_line_takes_them():
    assert running.flags_of({"threads": 1, "worker": False, "round.auto": True}) == [
        "--threads",
        "1",
        "--no-worker",
        "--round.auto",
    ]


def test_a_gesture_on_a_full_disk_is_kept_in_words_or_falls_short():
    outcome = disk.Outcome()
    for name, answer in (
        ("kept", people.Answer(200, "{}", 0.1)),
        ("told", people.Answer(200, WARNING, 0.1)),
        ("blank", people.Answer(200, '{"error":null}', 0.1, success=False)),
        ("broken", people.Answer(500, "{}", 0.1, success=False)),
    ):
        outcome.judge(name, answer)
    assert (outcome.said, outcome.blank, outcome.bad_status) == (2, ["blank"], ["broken"])


# -- against servers


class Served:
    """An ASGI app on a free port, as `fuzz.attack` sees an App."""

    def __init__(self, app):
        sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        self.web = uvicorn.Server(
            uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=1)
        )
        self.thread = threading.Thread(target=self.web.run, args=([sock],))
        self.thread.start()

    @property
    def alive(self) -> bool:
        return self.thread.is_alive()

    def ready(self) -> int:
        return 200

    def stop(self) -> None:
        self.web.should_exit = True
        self.thread.join(20)


@pytest.fixture
def leaky() -> Iterator[Served]:
    """A server that breaks on one route and tells a secret on another."""
    app = FastAPI(openapi_url=None)
    app.add_api_route("/b", lambda: 1 / 0, methods=["POST"])
    app.add_api_route("/a/{x:path}", lambda: PlainTextResponse(f"the secret is {SECRET}"))
    app.add_api_route("/gradio_api/run/predict", lambda: PlainTextResponse(f"copied to {COPY}"), methods=["POST"])
    app.add_api_route(f"/gradio_api/file={COPY}", lambda: PlainTextResponse(COPIED))
    served = Served(app)
    yield served
    served.stop()


def test_a_server_that_breaks_and_leaks_is_seen_to(leaky: Served, surface: Surface):
    tally, plain = fuzz.Tally(), list(Mutator(random.Random(0), surface).plain())
    fuzz.in_threads(
        leaky, surface, aims.PlantedSecrets({"a chat": SECRET.encode()}), tally, seed=0, n=60, plain=plain, threads=3
    )
    assert sum(tally.statuses.values()) >= 60
    assert tally.counts["status 500"] >= len(mutate.ROLES)
    assert tally.counts["foreign data"] >= 2
    assert "a chat" in tally.examples["foreign data"][0]


def test_a_file_that_the_last_answer_names_is_asked_for_all_the_same(leaky: Served, surface: Surface):
    """The copy of a file was named by the last planned requests, and nobody looked whether it could be read."""
    tally, last = fuzz.Tally(), list(Mutator(random.Random(0), surface).known())[:1]
    planted = aims.PlantedSecrets({".env": COPIED.encode()})
    fuzz.attack(leaky, surface, planted, last, tally, Mutator(random.Random(0), surface), 0, 1)
    assert sum(tally.statuses.values()) == 2
    assert tally.counts["foreign data"] == 1


def test_a_real_page_takes_sixty_odd_requests_and_still_chats(tmp_path):
    """Seeded, so the same ones each time; whatever they are answered with, somebody can chat and vote after."""
    from playground import server
    from playground.chat.session import Chat
    from playground.models import loading
    from playground.serving.engine import Engine
    from playground.settings import Settings
    from playground.store import Store
    from tests.tiny import tiny_folder

    settings = Settings(
        model=str(tiny_folder(tmp_path / "model")),
        threads=1,
        chat={"reply_tokens": 8},
        dtype="float32",
        decode_format="float32",
        port=0,
        round={"auto": False},
        _env_file=None,
    )
    store = Store()
    engine = Engine(store, settings, loading.load_trunk(settings), loading.load_tokenizer(settings)).start()
    app = server.create(settings, store, engine, Chat(store, engine, settings))
    known = aims.routes(app)
    served = Served(app)
    try:
        page = people.Person(served.url)
        assert ("/readyz", "GET") in known
        surface = Surface(
            served.url.split("//")[1],
            known,
            aims.handlers(page.config),
            [str(tmp_path / "secret.txt")],
            "victims-own",
            {"person": [page.cookie], "owner": [page.cookie]},
        )
        tally = fuzz.Tally()
        fuzz.in_threads(served, surface, aims.PlantedSecrets({}), tally, seed=1, n=60, plain=[], threads=6)
        assert sum(tally.statuses.values()) >= 60
        asks = SimpleNamespace(
            alive=True,
            url=served.url,
            counted=lambda text: store.row(
                "select v.choice from vote v join duel d on d.id = v.duel join message m on m.id = d.user_message"
                " where m.text = ?",
                text,
            )["choice"],
        )
        assert fuzz.still_chats(asks)
    finally:
        served.stop()
        engine.close()
