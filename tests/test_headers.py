"""Headers that every answer has, and whether a page of another origin sent a request."""

import base64
import hashlib

import pytest
from starlette.datastructures import Headers, MutableHeaders

from playground.web import headers


def test_the_policy_names_the_hash_of_each_inline_script_and_of_nothing_else():
    html = b'<script>one()</script><script type="module" src="./a.js"></script><script data-x>\r\ntwo()</script>'
    hashes = [base64.b64encode(hashlib.sha256(text).digest()).decode() for text in (b"one()", b"\ntwo()")]
    assert headers.page(html).scripts == tuple(f"'sha256-{digest}'" for digest in hashes)


def test_nothing_remote_may_be_loaded_and_only_a_space_is_framed():
    alone, space = headers.policy((), framed=False), headers.policy((), framed=True)
    assert "http" not in alone and "unsafe-inline" not in alone.split("style-src")[0]
    assert "img-src 'self' data: blob:" in alone and "object-src 'none'" in alone and "frame-src 'none'" in alone
    assert alone.endswith("frame-ancestors 'self'") and "https://huggingface.co" in space


def test_no_other_origin_may_read_an_answer():
    """Gradio reflected any Origin with credentials."""
    answer = MutableHeaders(
        {"access-control-allow-origin": "http://evil.example", "access-control-allow-credentials": "true", "etag": "x"}
    )
    headers.harden(answer, (), framed=False)
    assert not any(name.startswith("access-control") for name in answer) and answer["etag"] == "x"
    assert answer["x-content-type-options"] == "nosniff" and answer["referrer-policy"] == "same-origin"


@pytest.mark.parametrize(
    "sent, foreign",
    [
        ({}, False),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}, False),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7861"}, True),
        ({"host": "127.0.0.1:7860", "origin": "http://evil.example"}, True),
        ({"host": "nudge.example", "origin": "null"}, True),
        ({"host": "nudge.example", "origin": "https://NUDGE.example"}, False),
        ({"host": "127.0.0.1:7860", "origin": "http://localhost:7860"}, True),
        ({"host": "x", "sec-fetch-site": "same-site"}, True),
        ({"host": "x", "sec-fetch-site": "cross-site"}, True),
        ({"host": "x", "sec-fetch-site": "none"}, True),
        ({"host": "127.0.0.1:7860", "origin": "https://nudge.example", "sec-fetch-site": "same-origin"}, False),
    ],
)
def test_a_page_of_another_origin_or_port_is_known(sent, foreign):
    assert headers.is_foreign(Headers(sent)) is foreign
