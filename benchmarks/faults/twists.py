"""What can be wrong with any request besides what it asks for: its path, a header, its body, its method."""

import gzip
import random

from benchmarks.faults.oddities import (
    ADDED,
    BODIES,
    BODY_TWISTS,
    HEADERS,
    METHODS,
    TYPES,
)
from benchmarks.faults.raw import Request


def twist_path(rng: random.Random, request: Request) -> None:
    base = request.target
    request.target = rng.choice(
        (
            b"/" + base,
            base.replace(b"/", b"//"),
            base + b"/",
            base + b"%00",
            base + b"\x00",
            b"/.." + base,
            base.replace(b"/", b"/./"),
            base + b"?" + b"a" * 9000,
            base + b"/" + b"a" * 9000,
            base.replace(b"gradio_api", b"gradio%5fapi"),
            base.replace(b"/", b"%2f"),
            base.upper(),
            b"http://elsewhere.example" + base,
            b"*",
            base + b"#x",
            base + b"\xff\xfe",
            base + b";x=1",
            base.replace(b"gradio_api/", b""),
            b"/%2e%2e" + base,
            base + b" x",
        )
    )
    request.note += ", path"


def twist_headers(rng: random.Random, request: Request) -> None:
    name, value = rng.choice(HEADERS)
    request.header(name, value)
    request.note += f", {name}"
    request.unfinished = request.unfinished or (name, value) in (
        ("Content-Length", "99999999999"),
        ("Expect", "100-continue"),
        ("Transfer-Encoding", "gzip"),
    )


def twist_body(rng: random.Random, request: Request) -> None:
    body = request.body or b"{}"
    kind = rng.choice(BODY_TWISTS)
    request.note += f", body {kind}"
    if request.method in ("GET", "HEAD"):
        request.method = "POST"
    if kind == "chunked":
        request.chunked = True
        request.headers = [(k, v) for k, v in request.headers if k.lower() != b"content-length"]
    elif kind == "type":
        request.header("Content-Type", rng.choice(TYPES))
    elif kind == "gzip":
        body = gzip.compress(body + b" " * 1_000_000)
        request.header("Content-Encoding", "gzip")
    elif kind == "short":
        request.header("Content-Length", str(len(body) + 50))
        request.unfinished = True
    else:
        body = twisted(kind, body)
    request.body = body


def twisted(kind: str, body: bytes) -> bytes:
    """The body as `kind` says."""
    if kind in BODIES:
        return BODIES[kind]
    if kind in ADDED:
        return body[:-1] + ADDED[kind] + b"}"
    if kind == "cut":
        return body[: len(body) // 2]
    if kind == "utf8":
        return body.replace(b'"', b'"\xff\xfe', 3)
    if kind == "nan":
        return body.replace(b"null", b"NaN")
    if kind == "big number":
        return body.replace(b"null", b"9" * 5000)
    if kind == "twice":
        return body + body
    if kind == "bom":
        return b"\xef\xbb\xbf" + body
    return body.decode("utf-8", "replace").encode("utf-16")


def twist_method(rng: random.Random, request: Request) -> None:
    request.method = rng.choice(METHODS)
    request.note += ", method"
