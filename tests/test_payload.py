"""What a page may send: the shape of a gesture's body, and the type of each value in it."""

import json

import pytest

from playground.web import payload
from playground.web.payload import BadPayload, Handler

SLIDERS = Handler.of(False, [7], ["Textbox", "Slider", "Checkbox", "CheckboxGroup", "State"])
SENDER = Handler.of(True, [3, 4], ["Textbox"])
HANDLERS = {0: SLIDERS, 1: SENDER}
GOOD = {"data": ["", 0.7, True, ["clearer"], None], "fn_index": 0, "trigger_id": 7, "session_hash": "abc"}


def read(body, queued=False):
    return payload.read(body if isinstance(body, bytes) else json.dumps(body).encode(), HANDLERS, queued)


def test_what_the_page_sends_is_read():
    call = read(GOOD)
    assert (call.data, call.fn_index, call.trigger_id, call.session_hash, call.event_data) == (
        GOOD["data"],
        0,
        7,
        "abc",
        None,
    )


@pytest.mark.parametrize(
    "place, value",
    [
        (0, 5),
        (0, ["a"]),
        (0, {}),
        (0, True),
        (1, "0.7"),
        (1, True),
        (1, [1]),
        (2, 1),
        (2, "true"),
        (3, "clearer"),
        (3, [1]),
        (3, [["a"]]),
        (3, ["a"] * 51),
        (3, ["a" * 201]),
        (4, {"conversation": 1}),
        (4, 0),
        (4, False),
    ],
)
def test_a_value_of_another_type_is_refused(place, value):
    """`true` for a number and 2.5 for a whole one went through to the decoder and broke everybody's replies."""
    data = list(GOOD["data"])
    data[place] = value
    with pytest.raises(BadPayload, match="data"):
        read({**GOOD, "data": data})


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000])
def test_a_number_that_is_none_is_refused(number):
    body = json.dumps(GOOD).encode().replace(b"0.7", number)
    with pytest.raises(BadPayload):
        read(body)


@pytest.mark.parametrize(
    "file",
    [
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        {"path": ".env"},
        {"url": "http://127.0.0.1:1/x"},
        {"meta": {"_type": "gradio.FileData"}},
        [{"path": "/etc/passwd"}],
        {"a": [{"b": {"path": "x"}}]},
    ],
)
def test_a_file_object_is_refused_wherever_it_is(file):
    """Gradio copied the named file of the server into its cache, where anybody could fetch it."""
    for place in range(5):
        data = list(GOOD["data"])
        data[place] = file
        with pytest.raises(BadPayload):
            read({**GOOD, "data": data})
    with pytest.raises(BadPayload, match="file"):
        read({**GOOD, "event_data": {"index": 0, "value": file}})


@pytest.mark.parametrize(
    "change",
    [
        {"fn_index": 99},
        {"fn_index": -1},
        {"fn_index": "0"},
        {"fn_index": True},
        {"fn_index": 0.0},
        {"fn_index": None},
        {"fn_index": 10**30},
        {"trigger_id": 8},
        {"trigger_id": "7"},
        {"trigger_id": -7},
        {"session_hash": ""},
        {"session_hash": None},
        {"session_hash": "a" * 65},
        {"session_hash": "a/../b"},
        {"session_hash": "a\nb"},
        {"data": {}},
        {"data": []},
        {"data": [None]},
        {"data": [None] * 300},
        {"event_id": "x"},
        {"oauth_token": "x"},
        {"simple_format": True},
        {"batched": True},
        {"request": {}},
        {"event_data": 7},
        {"event_data": []},
    ],
)
def test_another_shape_is_refused(change):
    with pytest.raises(BadPayload):
        read({**GOOD, **change})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"data": ["\xff"]}',
        b'{"data": ["\\ud800"]}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"data": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_what_is_no_json_object_is_refused(body):
    with pytest.raises(BadPayload):
        read(body)


def test_a_handler_that_streams_is_called_by_the_queue_alone():
    stream = {"data": ["Hello"], "fn_index": 1, "trigger_id": 3, "session_hash": "abc"}
    assert read(stream, queued=True).data == ["Hello"]
    with pytest.raises(BadPayload, match="no such gesture"):
        read(stream)
    with pytest.raises(BadPayload, match="no such gesture"):
        read(GOOD, queued=True)


def test_of_an_event_only_what_handlers_read_is_left():
    event = {
        "index": [1, 0],
        "value": "text",
        "previous_value": "before",
        "liked": True,
        "_dispatch_value": [{"type": "text", "text": "x"}],
        "other": 1,
    }
    assert read({**GOOD, "event_data": event}).event_data == {
        "index": [1, 0],
        "value": "text",
        "previous_value": "before",
        "liked": True,
    }
    assert read({**GOOD, "event_data": {"index": [1, 2, 3], "value": {"a": 1}}}).event_data == {
        "index": None,
        "value": None,
    }


def test_what_is_wrong_is_said_without_what_was_sent():
    with pytest.raises(BadPayload) as error:
        read({**GOOD, "data": ["x", "my secret", True, [], None]})
    assert "secret" not in str(error.value)


def test_a_component_that_no_gesture_sends_cannot_be_an_input():
    with pytest.raises(KeyError):
        Handler.of(False, [1], ["File"])


def test_a_key_that_somebody_invents_is_not_said_back():
    """It went into a sentence that was looked up by patterns, which took half a minute for 4 KB of it."""
    with pytest.raises(BadPayload) as error:
        read({**GOOD, "--a (NUDGE_a): got " + "…" * 4000: 1})
    assert len(str(error.value)) < 100


def test_a_handler_of_an_event_gets_all_that_it_reads():
    """Likes and edits without an event, or with half of one, ended in a traceback."""
    liked = {1: Handler.of(False, [7], ["State"], frozenset({"index", "value", "liked"}))}
    body = {"data": [None], "fn_index": 1, "trigger_id": 7, "session_hash": "abc"}
    for event in (None, {}, {"index": 1}, {"index": 1, "value": "x"}):
        with pytest.raises(BadPayload, match="missing"):
            payload.read(json.dumps({**body, "event_data": event}).encode(), liked, False)
    assert (
        payload.read(
            json.dumps({**body, "event_data": {"index": 1, "value": "x", "liked": ""}}).encode(), liked, False
        ).event_data["liked"]
        == ""
    )


@pytest.mark.parametrize("place", [1, 3])
def test_a_slider_and_reasons_are_never_nothing(place):
    data = list(GOOD["data"])
    data[place] = None
    with pytest.raises(BadPayload):
        read({**GOOD, "data": data})
