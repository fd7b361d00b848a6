"""Refusals of somebody who goes on sending come later; nobody else waits for them."""

import time
from types import SimpleNamespace

import anyio
import httpx

from playground.settings import Settings
from playground.web import slowing as slowing_module
from playground.web.allowlist import Allowlist
from playground.web.limits import Limits
from playground.web.slowing import FREE, MOST_OF_ONE, Slowing


class Watched(Slowing):
    """Counts what it holds."""

    waits = 0

    async def _wait(self, address):
        self.waits += 1
        await super()._wait(address)


def held(slowing: Watched, address: str, *statuses: int) -> list[bool]:
    """Whether each of these answers is held; if so, for as long as it says."""

    async def answers() -> list[bool]:
        found = []
        for status in statuses:
            began, waits = time.perf_counter(), slowing.waits
            sent = []

            async def send(message):
                sent.append(message)  # noqa: B023  # of this answer

            on = slowing.of(address, send)
            await on({"type": "http.response.start", "status": status, "headers": []})
            await on({"type": "http.response.body", "body": b""})
            assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
            found.append(slowing.waits > waits)
            assert not found[-1] or time.perf_counter() - began >= slowing.held
        return found

    return anyio.run(answers)


def test_a_refusal_beyond_those_that_are_free_is_held():
    found = held(Watched(held=0.1), "1.2.3.4", *[429] * FREE, 429, 200, 404, 429)
    assert found == [*[False] * FREE, True, False, False, True], "only what is one too many is held"


def test_another_address_does_not_wait():
    slowing = Watched(free=1, held=0.1)
    assert held(slowing, "1.2.3.4", 429, 429) == [False, True]
    assert held(slowing, "5.6.7.8", 429) == [False]


def test_only_so_many_are_held_at_once(monkeypatch):
    """Each keeps a connection."""
    slowing, sent = Slowing(free=1), []

    async def send(message):
        sent.append(message)

    async def refuse():
        await slowing.of("1.2.3.4", send)({"type": "http.response.start", "status": 429, "headers": []})

    async def all_at_once():
        over = anyio.Event()
        monkeypatch.setattr(slowing_module, "asyncio", SimpleNamespace(sleep=lambda seconds: over.wait()))
        async with anyio.create_task_group() as group:
            for _ in range(3 * MOST_OF_ONE):
                group.start_soon(refuse)
            await anyio.wait_all_tasks_blocked()
            at_once = len(sent)
            over.set()
        return at_once

    assert anyio.run(all_at_once) == 2 * MOST_OF_ONE
    assert len(sent) == 3 * MOST_OF_ONE and not slowing._waiting


def test_who_has_stopped_for_a_while_is_answered_at_once_again():
    slowing = Watched(free=1, window=1, held=0.1)
    assert held(slowing, "1.2.3.4", 429, 429) == [False, True]
    time.sleep(1.1)
    assert held(slowing, "1.2.3.4", 429) == [False]


def test_a_stream_that_is_not_there_counts_too():
    """Whoever asked for streams of sessions that are none had as many 404 as they could send."""

    async def app(scope, receive, send): ...

    async def stop(name): ...

    settings = Settings(limits={"requests_per_minute": 60})
    door = Allowlist(app, settings, {}, Limits(settings), stop, lambda name: False)

    async def statuses():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://localhost") as client:
            return [(await client.get("/gradio_api/queue/data?session_hash=x")).status_code for _ in range(62)]

    assert anyio.run(statuses) == [404] * 60 + [429] * 2


def test_what_is_not_there_counts_among_the_requests_of_a_minute():
    """Whoever looks for files that are not there would otherwise have as many 404 as they can send."""

    async def app(scope, receive, send): ...

    async def stop(name): ...

    settings = Settings(limits={"requests_per_minute": 60})
    door = Allowlist(app, settings, {}, Limits(settings), stop, lambda name: False)
    door.slowing = Watched(free=2, held=0.1)

    async def statuses():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://localhost") as client:
            return [(await client.get("/wp-login.php")).status_code for _ in range(63)]

    assert anyio.run(statuses) == [404] * 60 + [429] * 3 and door.slowing.waits == 1


def test_a_held_refusal_is_sent_however_short_the_time_to_take_a_part_is():
    async def app(scope, receive, send): ...

    async def stop(name): ...

    settings = Settings(limits={"requests_per_minute": 60, "request_seconds": 0.1})
    door = Allowlist(app, settings, {}, Limits(settings), stop, lambda name: False)
    door.slowing = Slowing(free=1, held=0.3)

    async def statuses():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://localhost") as client:
            return [(await client.get("/wp-login.php")).status_code for _ in range(62)]

    assert anyio.run(statuses) == [404] * 60 + [429] * 2


def test_a_refusal_that_a_browser_does_not_take_is_given_up(caplog):
    async def app(scope, receive, send): ...

    async def stop(name): ...

    settings = Settings(limits={"request_seconds": 0.1})
    door = Allowlist(app, settings, {}, Limits(settings), stop, lambda name: False)
    scope = {"type": "http", "method": "GET", "path": "/no", "query_string": b"", "headers": [], "client": ("::1", 1)}
    asked = []

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        asked.append(message["type"])
        await anyio.sleep_forever()

    caplog.set_level("INFO", "playground.web.allowlist")
    anyio.run(door, scope, receive, send)
    assert asked == ["http.response.start"] and "took no part of its answer for 0.1 s" in caplog.text
