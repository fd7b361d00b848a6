"""Security headers of every answer: what a page may load, who may frame it, and that no other origin may read it.

The page's own scripts are inline and differ from start to start, so a page's policy names the hash of each. Text that
gets into a page past every sanitiser still does not run. `unsafe-eval` is needed, since Gradio makes functions out of
its handlers' JavaScript.
"""

import base64
import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

FRAMED_BY = "'self'"
FRAMED_BY_ON_SPACE = "'self' https://huggingface.co https://*.hf.space"  # the hub shows a Space in a frame
INLINE_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.S)
FIXED = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # other sites must not learn share links
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True)
class Page:
    """An HTML answer, ready to be sent."""

    plain: bytes
    packed: bytes  # by gzip
    scripts: tuple[str, ...]  # CSP sources of the inline scripts


@lru_cache(maxsize=8)
def page(body: bytes) -> Page:
    """An HTML answer with its packed form and its scripts. Cached, since pages change only at a restart."""
    return Page(body, gzip.compress(body, 6, mtime=0), sources(body))


def sources(html: bytes) -> tuple[str, ...]:
    """The CSP sources of the inline scripts in some HTML."""
    return tuple(source(script) for script in INLINE_SCRIPT.findall(html))


def source(script: bytes) -> str:
    """The CSP source of an inline script.

    Browsers hash the text between its tags, with line ends as the HTML parser normalises them.
    """
    script = script.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"


def policy(scripts: tuple[str, ...], framed: bool) -> str:
    """The Content-Security-Policy of a page with these inline scripts; `framed` where the app is a Space."""
    return "; ".join(
        [
            "default-src 'self'",
            f"script-src 'self' 'unsafe-eval' {' '.join(scripts)}".strip(),
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self'",
            "worker-src 'self' blob:",
            "media-src 'none'",
            "object-src 'none'",
            "frame-src 'none'",
            "base-uri 'self'",
            "form-action 'self'",
            f"frame-ancestors {FRAMED_BY_ON_SPACE if framed else FRAMED_BY}",
        ]
    )


def harden(headers: MutableHeaders, scripts: tuple[str, ...], framed: bool) -> None:
    """Put our headers on an answer, and remove those that would let another origin read it."""
    for name in [name for name in headers if name.startswith("access-control-")]:
        del headers[name]
    for name, value in FIXED.items():
        headers.setdefault(name, value)  # a route may be stricter
    headers["content-security-policy"] = policy(scripts, framed)


def is_foreign(headers: Headers) -> bool:
    """Whether a page of another origin, such as another port of this machine, made the browser send this request.

    Browsers set `Sec-Fetch-Site` on https and on localhost, and `Origin` with every POST; no script can change them.
    A client that sends neither is no browser, and has no cookie of anybody else.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site != "same-origin"
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
