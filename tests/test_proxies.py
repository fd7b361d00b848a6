"""Whom to believe about where a request came from; and how often something may happen."""

import asyncio

import pytest

from playground.people.addresses import limit_key, parse_ip
from playground.people.rates import RateLimit
from playground.settings import Settings
from playground.web.proxies import ANY, Proxies, allowed_hosts, host_name

FORGED = [
    ("x-forwarded-for", "6.6.6.6"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "evil.example"),
    ("x-forwarded-prefix", "/evil"),
    ("forwarded", "for=6.6.6.6;proto=https"),
    ("x-real-ip", "6.6.6.6"),
    ("X-Forwarded-Port", "1"),
    ("true-client-ip", "6.6.6.6"),
    ("x-gradio-server", "http://evil.example"),
    ("x-original-url", "/admin"),
    ("x-rewrite-url", "/admin"),
    ("cf-connecting-ip", "6.6.6.6"),
]


def through(
    headers=(),
    peer="10.0.0.2",
    trusted="10.0.0.0/8, ::1",
    root_path="",
    path="/config",
    kind="http",
    host="inner:7860",
    hosts=ANY,
):
    """(scope that the app gets or None, status that was answered or None) of a request from `peer`."""
    seen, sent = [], []

    async def app(scope, receive, send):
        seen.append(scope)

    async def send(message):
        sent.append(message)

    scope = {
        "type": kind,
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"a=1",
        "scheme": "http" if kind == "http" else "ws",
        "client": (peer, 5) if peer else None,
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in [("host", host), *headers]],
    }
    asyncio.run(Proxies(app, trusted, root_path, hosts)(scope, None, send))
    return (seen or [None])[0], (sent or [None])[0]


def asked(name, hosts):
    """(scope that the app gets or None, what was answered or None) of a request with this Host header."""
    return through(host=name, hosts=hosts)


def host(scope):
    return [value for name, value in scope["headers"] if name == b"host"]


@pytest.mark.parametrize("peer", ["203.0.113.5", "2001:db8::1", "", "unix:", "11.0.0.1"])
def test_a_stranger_is_not_believed_and_what_they_claim_goes_no_further(peer):
    scope, _ = through(FORGED, peer)
    assert (
        scope["client"] == ((peer, 5) if peer else None)
        and scope["scheme"] == "http"
        and scope.get("root_path", "") == ""
    )
    assert scope["headers"] == [(b"host", b"inner:7860")]


def test_nobody_is_believed_where_no_proxy_is_named():
    scope, _ = through(FORGED, "127.0.0.1", trusted="")
    assert scope["client"][0] == "127.0.0.1" and scope["headers"] == [(b"host", b"inner:7860")]


def test_a_trusted_proxy_says_who_asks_how_and_where():
    scope, _ = through(
        [
            ("x-forwarded-for", "203.0.113.5"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "nudge.example:8443"),
            ("x-forwarded-prefix", "/nudge/"),
        ]
    )
    assert (
        scope["client"] == ("203.0.113.5", 0) and scope["scheme"] == "https" and host(scope) == [b"nudge.example:8443"]
    )
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/nudge", "/nudge/config", b"/nudge/config")
    assert [name for name, _ in scope["headers"]] == [b"host"]
    assert through([("x-forwarded-proto", "https")], kind="websocket")[0]["scheme"] == "wss"


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"host": "127.0.0.1"}, frozenset()),
        ({"host": "localhost"}, frozenset()),
        ({"host": "::1"}, frozenset()),
        ({"host": "0.0.0.0"}, ANY),
        ({"host": "192.168.1.7"}, ANY),
        ({"host": "127.0.0.1", "trusted_proxies": "127.0.0.1"}, ANY),
        ({"host": "0.0.0.0", "allowed_hosts": "Nudge.example, b.example,"}, {"nudge.example", "b.example"}),
    ],
)
def test_which_host_names_are_the_apps(settings, names):
    assert allowed_hosts(Settings(**settings, _env_file=None)) == names


@pytest.mark.parametrize(
    "header",
    [
        "evil.example",
        "evil.example:7860",
        "localhost.evil.example",
        "127.0.0.1.evil.example:80",
        "10.0.0.1",
        "[2001:db8::1]:80",
    ],
)
def test_a_page_elsewhere_whose_name_points_at_this_machine_is_refused(header):
    """DNS rebinding: the browser took that page and the app on 127.0.0.1 for one origin, and sent messages
    and votes.
    """
    scope, answer = asked(header, frozenset())
    assert scope is None and answer["status"] == 421
    assert asked(header, ANY)[0] and asked(header, frozenset({host_name(header)}))[0]


@pytest.mark.parametrize(
    "header",
    ["localhost", "LOCALHOST:7860", "nudge.localhost", "127.0.0.1:1", "127.9.9.9", "[::1]:7860", "[::1]", "localhost."],
)
def test_the_machines_own_names_always_pass(header):
    assert asked(header, frozenset())[0] and asked(header, frozenset({"nudge.example"}))[0]


@pytest.mark.parametrize(
    ("values", "client"),
    [
        (["6.6.6.6, 203.0.113.5"], "203.0.113.5"),
        (["6.6.6.6, 203.0.113.5, 10.1.1.1"], "203.0.113.5"),
        (["6.6.6.6", "203.0.113.5"], "203.0.113.5"),
        (["10.1.1.1"], "10.1.1.1"),
        (["203.0.113.5:4711"], "203.0.113.5"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["[2001:db8::1]"], "2001:db8::1"),
        (["fe80::1%eth0"], "fe80::1"),
        (["::ffff:203.0.113.5"], "203.0.113.5"),
        (['"203.0.113.5"'], "203.0.113.5"),
        (["203.0.113.5, garbage"], "10.0.0.2"),
        (["203.0.113.5, garbage, 10.1.1.1"], "10.1.1.1"),
        ([""], "10.0.0.2"),
        ([","], "10.0.0.2"),
        (["unknown"], "10.0.0.2"),
        (["_hidden"], "10.0.0.2"),
        (["6.6.6.6," * 5000 + "203.0.113.5"], "203.0.113.5"),
        (["10.1.1.1," * 5000], "10.0.0.2"),
        (["999.1.1.1"], "10.0.0.2"),
        (["1.2.3.4:x"], "10.0.0.2"),
        (["²"], "10.0.0.2"),
        (["[" * 1000], "10.0.0.2"),
    ],
)
def test_the_client_is_the_last_address_that_is_no_proxys(values, client):
    scope, _ = through([("x-forwarded-for", value) for value in values])
    assert scope["client"] == (client, 0)


def test_a_proxy_over_ipv6_or_a_mapped_address_is_the_same_proxy():
    assert through([("x-forwarded-for", "203.0.113.5")], "::1")[0]["client"] == ("203.0.113.5", 0)
    assert through([("x-forwarded-for", "203.0.113.5")], "::ffff:10.0.0.2")[0]["client"] == ("203.0.113.5", 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-forwarded-proto", "gopher"),
        ("x-forwarded-proto", ""),
        ("x-forwarded-host", "a b"),
        ("x-forwarded-host", "evil/path"),
        ("x-forwarded-host", "é.example"),
        ("x-forwarded-host", "a@b"),
        ("x-forwarded-prefix", "//evil.example"),
        ("x-forwarded-prefix", "/.."),
        ("x-forwarded-prefix", "/a/../b"),
        ("x-forwarded-prefix", "nudge"),
        ("x-forwarded-prefix", "/a b"),
        ("x-forwarded-prefix", "/" + "a" * 500),
        ("x-forwarded-prefix", "/"),
        ("x-forwarded-prefix", "/a\\b"),
    ],
)
def test_what_makes_no_sense_is_left_out_even_from_a_trusted_proxy(name, value):
    scope, _ = through([(name, value)])
    assert (
        scope["scheme"] == "http"
        and host(scope) == [b"inner:7860"]
        and scope.get("root_path", "") == ""
        and scope["path"] == "/config"
    )


def test_of_several_values_the_proxys_own_counts():
    scope, _ = through(
        [
            ("x-forwarded-host", "evil.example, nudge.example"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-proto", "http"),
        ]
    )
    assert host(scope) == [b"nudge.example"] and scope["scheme"] == "http"


@pytest.mark.parametrize("path", ["/config", "/nudge/config"])
def test_the_prefix_may_be_cut_off_or_passed_on(path):
    scope, _ = through(peer="203.0.113.5", root_path="/nudge", path=path)
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/nudge", "/nudge/config", b"/nudge/config")


def test_a_path_that_only_begins_like_the_prefix_is_below_it():
    assert through(root_path="/nudge", path="/nudges")[0]["path"] == "/nudge/nudges"


def test_the_prefix_alone_leads_to_the_folder():
    scope, answer = through(root_path="/nudge", path="/nudge")
    assert scope is None and answer["status"] == 307 and (b"location", b"/nudge/?a=1") in answer["headers"]


def test_the_setting_of_the_prefix_beats_the_header():
    assert through([("x-forwarded-prefix", "/evil")], root_path="/nudge")[0]["root_path"] == "/nudge"


def test_what_is_neither_a_request_nor_a_socket_passes_untouched():
    assert through(kind="lifespan", root_path="/nudge")[0]["path"] == "/config"


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("203.0.113.5", "203.0.113.5"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_a_household_is_one_place(address, place):
    assert limit_key(address) == place


def test_what_is_no_address_is_none():
    assert parse_ip(None) is None and parse_ip("[::1") is None and str(parse_ip("[::1]:80")) == "::1"


# -- rates


def test_a_rate_counts_each_key_and_says_how_long_to_wait():
    rate = RateLimit(2, 60)
    assert [rate.count("a"), rate.count("a"), rate.count("a"), rate.count("b")] == [True, True, False, True]
    assert (
        55 < rate.seconds_to_wait("a") <= 60
        and rate.seconds_to_wait("b") == 0
        and rate.seconds_to_wait("never seen") == 0
    )


def test_a_rate_keeps_a_bounded_number_of_keys_and_forgets_the_oldest():
    """The library kept every key that was ever counted."""
    rate = RateLimit(1, 60, most_keys=100)
    for number in range(1000):
        rate.count(f"{number}")
    assert len(rate.storage.events) <= 100
    assert rate.seconds_to_wait("999") > 0 and rate.seconds_to_wait("1") == 0
