"""Log lines for programs: what they are about, and no word of anybody."""

import asyncio
import io
import json
import logging
from pathlib import Path

import httpx
import pytest

from playground.system import log_ids
from playground.system.messages import Message
from playground.system.safe_logging import JsonFormatter, Loggable, configure_logging, describe_error
from playground.web.proxies import Proxies
from tests.chats import chat, folder, turn  # noqa: F401 (fixtures)

TEXT = "Ottokar's secret"


@pytest.fixture
def lines():
    """The lines that are logged from now on, as the objects that they hold."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.addHandler(handler)
    log_ids.begin()
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.removeHandler(handler)


def test_a_line_has_the_template_and_its_numbers(lines):
    log_ids.begin("abc")
    logging.getLogger("playground.x").warning("round %s of %s is %s", 3, TEXT, Message("{n} votes", n=2))
    [line] = lines()
    assert line.pop("time").endswith("Z") and len(line) == 5
    assert line == {
        "level": "WARNING",
        "logger": "playground.x",
        "message": "round %s of %s is %s",
        "values": [3, None, {"message": "{n} votes", "values": {"n": 2}}],
        "request": "abc",
    }


def test_a_sentence_for_people_is_logged_by_its_template(lines):
    logging.getLogger("playground.x").warning("%s", Message("{n} votes", n=2))
    [line] = lines()
    assert line["message"] == "{n} votes" and line["values"] == {"n": 2}
    logging.getLogger("playground.x").warning("%s", Message("The name is {name}.", name=TEXT))
    assert lines()[1]["message"] == "The name is {name}." and "values" not in lines()[1]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Loggable("reward"), "reward"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ("Ottokar", None),
        ("v3", None),
        ("1,234.5", "1,234.5"),
        ("2026-11-27 08:00:00 UTC", "2026-11-27 08:00:00 UTC"),
        (Path("/data/nudge.db"), "/data/nudge.db"),
        (Loggable("http://127.0.0.1:7860"), "http://127.0.0.1:7860"),
        (describe_error(OSError("the disk is full")), "OSError: the disk is full"),
        (describe_error(KeyError(TEXT)), "KeyError"),
        (TEXT, None),
        ("秘密", None),
        ("'secret'", None),
        ("x" * 201, None),
        (["secret"], None),
    ],
)
def test_names_numbers_and_paths_stay_readable_and_nobodys_words_do(lines, value, shown):
    """Every value that was no int or float was blank: paths, phases, numbers as they are read. Then any single word
    was written, whoever's it was.
    """
    logging.getLogger("playground.x").warning("it is %s", value)
    assert lines()[0]["values"] == [shown]


def test_lines_of_other_libraries_have_numbers_alone(lines):
    logging.getLogger("httpx").warning("%s %s %d", "secret", "12:30", 3)
    assert lines()[0]["values"] == [None, "12:30", 3]


@pytest.mark.parametrize("client", ["httpx", "httpx2"])
def test_addresses_of_requests_are_not_logged(client, monkeypatch, caplog):
    """The hub's client logged each one, and those of a bucket lead to others that are signed."""
    monkeypatch.setattr(logging.getLogger(client), "level", logging.NOTSET)
    configure_logging(io.StringIO(), "%(message)s")
    with caplog.at_level(logging.INFO):
        logging.getLogger(client).info("HTTP Request: GET https://files.example/x?X-Amz-Signature=abc")
    assert caplog.text == ""


def test_an_error_is_logged_without_its_words(lines):
    try:
        raise ValueError(TEXT)
    except ValueError as error:
        logging.getLogger("playground.x").exception("it failed: %s", error)
    [line] = lines()
    assert line["error"].startswith("ValueError in test_json_logs.py") and line["values"] == [line["error"]]
    assert "Traceback" in line["traceback"] and TEXT not in json.dumps(line)


def test_a_turn_that_fails_in_the_engines_thread_is_logged_with_its_ids(chat, lines):  # noqa: F811
    """The engine's thread serves everybody; the line says whose turn it was."""

    def broken(*_):
        raise RuntimeError("no memory")

    log_ids.begin("request 7")
    chat.engine.kv_pool.reuse_prefix = broken
    with pytest.raises(Exception, match="could not answer"):
        turn(chat, chat.store.annotator("ann"), TEXT)
    [line] = [line for line in lines() if line["message"] == "a turn failed"]
    [duel] = chat.store.rows("select id from duel")
    assert line["request"] == "request 7" and line["version"] == 0 and line.get("duel", duel["id"]) == duel["id"]
    assert TEXT not in json.dumps(lines())


# -- request ids


def answered(given, peer="10.0.0.2"):
    """(request id that the app gets, the one in the answer) of a request with this header."""
    seen = []

    async def app(scope, receive, send):
        seen.extend([scope["request_id"], log_ids.current()["request"]])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask():
        transport = httpx.ASGITransport(Proxies(app, trusted="10.0.0.0/8"), client=(peer, 5))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/", headers={"x-request-id": given} if given else {})).headers["x-request-id"]

    answer = asyncio.run(ask())
    assert seen[0] == seen[1]
    return seen[0], answer


def test_a_trusted_proxy_names_a_request():
    assert answered("from-nginx.1") == ("from-nginx.1", "from-nginx.1")


@pytest.mark.parametrize(
    ("given", "peer"),
    [("mine", "203.0.113.5"), ("", "10.0.0.2"), ("a b", "10.0.0.2"), ("x" * 65, "10.0.0.2"), ('"}\n', "10.0.0.2")],
)
def test_any_other_request_gets_a_new_name(given, peer):
    first, answer = answered(given.replace("\n", ""), peer)
    assert first == answer and first != given and len(first) == 16
    assert answered(given.replace("\n", ""), peer)[0] != first
