"""How much one browser, one address and all of them together may ask of the server at once."""

from contextlib import ExitStack

import pytest

from playground.settings import Settings
from playground.web.limits import ASSETS, IDLE, ForeignSession, Limits, TooMuch, Visitor


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def limits(forgotten=None, clock=None, **settings):
    forget = (lambda name: None) if forgotten is None else forgotten.append
    return Limits(Settings(limits=settings, _env_file=None), forget, clock or Clock())


ANN, BOB = Visitor("ann", "10.0.0.1"), Visitor("bob", "10.0.0.2")


def test_a_session_belongs_to_who_first_named_it():
    """A page's name comes from its browser: with another's name one read that page's replies and ended its streams."""
    held = limits()
    held.session(ANN, "s")
    held.session(ANN, "s")
    with pytest.raises(ForeignSession, match="another browser"):
        held.session(BOB, "s")
    with pytest.raises(ForeignSession, match="another browser"), held.stream(BOB, "s", reads=True):
        pass


def test_a_person_who_opens_many_pages_keeps_the_latest():
    forgotten = []
    held = limits(forgotten, sessions_per_person=3)
    for name in "abcd":
        held.clock.now += 1
        held.session(ANN, name)
    assert list(held.sessions) == ["b", "c", "d"] and forgotten == ["a"]


def test_invented_sessions_and_cookies_of_one_address_are_bounded_and_cost_nobody_else_a_page():
    """1,300 invented names kept 0.4 MB each for ever."""
    forgotten = []
    held = limits(forgotten, sessions_per_address=50)
    held.session(BOB, "bobs")
    for n in range(1300):
        held.clock.now += 0.01
        held.session(Visitor(f"cookie {n}", ANN.address), f"s{n}")
    assert len(held.sessions) == 51 and "bobs" in held.sessions and len(forgotten) == 1250


def test_an_open_page_is_not_forgotten_for_another():
    held = limits(sessions_per_person=2)
    with ExitStack() as pages:
        for name in "ab":
            pages.enter_context(held.stream(ANN, name, reads=False))
        with pytest.raises(TooMuch, match="Too many pages"):
            held.session(ANN, "c")
        assert list(held.sessions) == ["a", "b"]
    held.session(ANN, "c")
    assert "c" in held.sessions and len(held.sessions) == 2


def test_many_open_pages_of_one_address_do_not_keep_another_out():
    """A thousand open streams of eleven addresses, which read nothing, kept every new visitor out."""
    held = limits(sessions=10)
    with ExitStack() as pages:
        for n in range(8):
            held.clock.now += 1
            pages.enter_context(held.stream(Visitor(f"invented {n // 4}", "10.0.0.3"), f"s{n}", reads=False))
        pages.enter_context(held.stream(ANN, "anns", reads=False))
        pages.enter_context(held.stream(ANN, "anns too", reads=False))
        held.session(BOB, "bobs")
        assert "s0" not in held.sessions and {"anns", "anns too", "bobs", "s1"} <= held.sessions.keys()
        with pytest.raises(TooMuch, match="Too many people"):
            held.session(Visitor("invented 9", "10.0.0.3"), "s9")
    assert len(held.sessions) == 10


def test_a_session_that_nobody_uses_is_forgotten():
    forgotten = []
    held = limits(forgotten)
    held.session(ANN, "old")
    held.clock.now = IDLE + 1
    held.session(BOB, "new")
    assert forgotten == ["old"] and list(held.sessions) == ["new"]


def test_requests_at_once_are_bounded_by_person_and_by_address():
    held = limits(requests_at_once=4)
    with ExitStack() as open_requests:
        for _ in range(4):
            open_requests.enter_context(held.request(ANN))
        with pytest.raises(TooMuch), held.request(ANN):
            pass
        for person in ("x", "y", "z"):
            for _ in range(4):
                open_requests.enter_context(held.request(Visitor(person, ANN.address)))
        with pytest.raises(TooMuch), held.request(Visitor("new", ANN.address)):
            pass
        with held.request(BOB):
            pass
    with held.request(ANN):
        pass


def test_a_visitor_without_a_cookie_is_counted_by_the_address():
    held = limits(requests_at_once=4)
    nobody = Visitor.of("", "10.0.0.9")
    with ExitStack() as open_requests:
        for _ in range(4):
            open_requests.enter_context(held.request(nobody))
        with pytest.raises(TooMuch), held.request(nobody):
            pass


def test_requests_in_a_minute_are_bounded_by_address():
    held = limits(requests_per_minute=60)
    for n in range(60):
        with held.request(Visitor(f"cookie {n}", ANN.address)):
            pass
    with pytest.raises(TooMuch, match="Wait a minute"), held.request(ANN):
        pass
    with held.request(BOB):
        pass


def test_the_files_of_a_page_may_be_asked_for_all_at_once_but_not_for_ever():
    """Over HTTP/2 a browser asks for eighty at once, and got "429" for most of them."""
    held = limits(requests_at_once=4, requests_per_minute=60)
    for _ in range(ASSETS * 60):
        held.asset(ANN)
    with pytest.raises(TooMuch, match="Wait a minute"):
        held.asset(ANN)
    held.asset(BOB)
    with held.request(ANN):
        pass


def test_streams_are_bounded_and_given_back():
    held = limits(sessions_per_person=2)
    with ExitStack() as streams:
        for _ in range(4):
            streams.enter_context(held.stream(ANN, "s", reads=False))
        with pytest.raises(TooMuch), held.stream(ANN, "s", reads=True):
            pass
        assert held.sessions["s"].heartbeats == 4
    assert not held.sessions["s"].open
    with held.stream(ANN, "s", reads=True):
        assert held.sessions["s"].readers == held.sessions["s"].opened == 1
