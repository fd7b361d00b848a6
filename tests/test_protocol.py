"""One connection at a time: how many there may be, and that short answers are sent at once."""

import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn

from playground.web.protocol import LimitedProtocol


async def answers(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def serving(protocol):
    """The port of a server that speaks this protocol."""
    sock = socket.create_server(("127.0.0.1", 0))
    web = uvicorn.Server(uvicorn.Config(answers, http=protocol, ws="none", log_config=None, lifespan="off"))
    thread = threading.Thread(target=web.run, args=([sock],))
    thread.start()
    yield sock.getsockname()[1]
    web.should_exit = True
    thread.join(20)


def answer(connection):
    connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    found = b""
    while not found.endswith(b"ok"):
        part = connection.recv(1000)
        if not part:
            return b""
        found += part
    return found


def is_closed(connection):
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


def bounded(**bounds):
    return type("Bounded", (LimitedProtocol.with_timeout(20),), bounds)


def test_connections_in_all_are_bounded_and_given_back():
    """1,100 silent connections kept everybody else out."""
    protocol = bounded(most=3)
    with serving(protocol) as port:
        held = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(3)]
        assert all(answer(connection) for connection in held)
        with socket.create_connection(("127.0.0.1", port), 10) as late:
            assert is_closed(late)
        assert answer(held[0])
        held.pop().close()
        until = time.monotonic() + 10
        while sum(map(len, protocol.open.values())) > 2 and time.monotonic() < until:
            time.sleep(0.01)
        with socket.create_connection(("127.0.0.1", port), 10) as late:
            assert answer(late)
        for connection in held:
            connection.close()


@pytest.mark.parametrize(("peer", "lets_in"), [("127.0.0.1", True), ("10.0.0.5", False)])
def test_one_address_has_so_many_connections_but_a_proxy_on_this_machine_all(peer, lets_in, monkeypatch):
    monkeypatch.setattr("uvicorn.protocols.http.h11_impl.get_remote_addr", lambda transport: (peer, 5))
    with serving(bounded(most_of_one=2)) as port:
        held = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(2)]
        assert all(answer(connection) for connection in held)
        with socket.create_connection(("127.0.0.1", port), 10) as third:
            assert bool(answer(third)) is lets_in if lets_in else is_closed(third)
        for connection in held:
            connection.close()


def test_a_trusted_proxy_elsewhere_has_the_connections_of_everybody(monkeypatch):
    """In a container of its own it had 200, so that a hundred open pages kept everybody else out."""
    peers = iter(["172.18.0.5"] * 3 + ["172.19.0.5"] * 3)
    monkeypatch.setattr("uvicorn.protocols.http.h11_impl.get_remote_addr", lambda transport: (next(peers), 5))
    protocol = type("Bounded", (LimitedProtocol.with_timeout(20, "10.0.0.1, 172.18.0.0/16"),), {"most_of_one": 2})
    with serving(protocol) as port:
        held = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(6)]
        assert all(answer(connection) for connection in held[:5]) and is_closed(held[5])
        for connection in held:
            connection.close()


def test_one_address_with_many_connections_does_not_keep_another_out(monkeypatch):
    """Eight addresses with 200 connections each, or one with 1,500 behind a proxy, were the whole server."""
    peers = iter(["10.0.0.5", "10.0.0.5", "10.0.0.5", "10.0.0.6"])
    monkeypatch.setattr("uvicorn.protocols.http.h11_impl.get_remote_addr", lambda transport: (next(peers), 5))
    with serving(bounded(most=3)) as port:
        held = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(3)]
        assert all(answer(connection) for connection in held)
        with socket.create_connection(("127.0.0.1", port), 10) as other:
            assert answer(other)
        assert is_closed(held[0]) and answer(held[1]) and answer(held[2])
        for connection in held:
            connection.close()


def test_each_part_of_an_answer_is_sent_at_once():
    """The kernel kept the end of every short answer back for 40 ms."""
    seen = []

    class Watched(LimitedProtocol.with_timeout(20)):
        def connection_made(self, transport):
            super().connection_made(transport)
            seen.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with serving(Watched) as port, socket.create_connection(("127.0.0.1", port), 10) as connection:
        assert answer(connection)
    assert seen == [1]
