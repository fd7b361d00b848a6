"""People without a browser: a cookie, a session of the page, and its events over the same requests that Gradio's page
sends; and what they are told.
"""

import json
import random
import re
import string
import time
from dataclasses import dataclass, field
from html import unescape

import httpx

from benchmarks.faults.running import App, until

NOTICE = re.compile(r'class=\\?"notice ([^"\\]*)\\?"[^>]*>(.*?)</div>', re.S)
LINK_SECONDS = 1  # within which the admin link is printed after the address
ANSWERED = ('class=\\"fate\\"', "picked", "chosen")


@dataclass
class Answer:
    """What came of one gesture. `status` is HTTP's (0: nothing answered), `text` everything that the server sent,
    `seconds` until its end.
    """

    status: int
    text: str
    seconds: float
    success: bool = True
    messages: list = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """What the page would show as a warning: notices, and Gradio's own errors with a text."""
        sentences = [
            unescape(re.sub(r"<[^>]+>", " ", text)).strip()
            for kind, text in NOTICE.findall(self.text)
            if "kept" not in kind
        ]
        if not self.success or self.status >= 400:
            sentences += [
                said
                for said in re.findall(r'"(?:error|detail|message)":\s*"((?:[^"\\]|\\.)+)"', self.text)
                if len(said.split()) > 2
            ]
            if (
                not self.text.lstrip().startswith(("{", "[", "<", "data:"))
                and len(self.text.split()) > 3
                and self.text.strip() != "Internal Server Error"
            ):
                sentences.append(self.text.strip()[:200])
        return sentences

    @property
    def kept(self) -> bool:
        """Whether it was answered as done."""
        return self.status == 200 and self.success and not self.warnings

    @property
    def in_words(self) -> bool:
        """Whether it was refused by a sentence and not by a blank or a 500."""
        return bool(self.warnings) and self.status not in (0, 500)


class PageUnavailable(Exception):
    """The page could not be opened: nothing answered, or not with a page."""


class Person:
    """One browser: `cookies` are kept between requests, `session` is the page's. Every gesture returns an Answer and
    never raises for what the server did. `address` is where the browser is: any of 127.0.0.0/8 will do.
    """

    def __init__(
        self,
        url: str,
        name: str = "",
        headers: dict | None = None,
        cookies: dict | None = None,
        timeout: float = 60,
        entrance: str = "/",
        address: str = "127.0.0.1",
    ):
        self.url, self.name = url, name
        origin = (headers or {}).get("Host")
        ours = {
            "Origin": f"http://{origin}" if origin else url,
            "Sec-Fetch-Site": "same-origin",
            "Accept-Language": "en",
        }
        self.client = httpx.Client(
            base_url=url,
            timeout=timeout,
            headers={**ours, **(headers or {})},
            cookies=cookies,
            follow_redirects=True,
            trust_env=False,
            transport=httpx.HTTPTransport(local_address=address),
        )
        self.session = "".join(random.choices(string.ascii_lowercase + string.digits, k=11))
        try:
            page = self.client.get(entrance)
            if entrance != "/":
                page = self.client.get("/")
            self.config = json.loads(re.search(r"window\.gradio_config = (.*?);</script>", page.text, re.S)[1])
        except (httpx.HTTPError, ValueError, TypeError) as error:
            self.client.close()
            raise PageUnavailable(f"{type(error).__name__}: {error}") from None
        if page.status_code != 200 or "components" not in self.config:
            self.client.close()
            raise PageUnavailable(f"the page answered {page.status_code}")
        self.ids = {c["props"].get("elem_id"): c["id"] for c in self.config["components"] if c["props"].get("elem_id")}

    def close(self) -> None:
        self.client.close()

    @property
    def cookie(self) -> str:
        """The visitor's cookie as a header has it."""
        return "; ".join(f"{c.name}={c.value}" for c in self.client.cookies.jar)

    def dependency(self, elem_id: str, event: str = "click") -> dict:
        """The handler of a component's event, as /config lists it."""
        target = [self.ids[elem_id], event]
        return next(
            d
            for d in self.config["dependencies"]
            if target in [list(t) for t in d["targets"]] and d.get("backend_fn", True)
        )

    def body(self, elem_id: str, data=None, event: str = "click", event_data=None) -> dict:
        """The JSON that the page would send; `data` None for as many empty values as the handler has inputs."""
        called = self.dependency(elem_id, event)
        values = [None] * len(called["inputs"]) if data is None else list(data)
        return {
            "data": values,
            "event_data": event_data,
            "fn_index": called["id"],
            "trigger_id": self.ids[elem_id],
            "session_hash": self.session,
        }

    def event(self, elem_id: str, data=None, event: str = "click", event_data=None) -> Answer:
        """Fire one event by the way that the page takes, and wait for its end."""
        body, queued = self.body(elem_id, data, event, event_data), self.dependency(elem_id, event)["queue"]
        return self._queued(body) if queued else self.post("/gradio_api/run/predict", body)

    def loaded(self) -> Answer:
        """What the page asks for when it opens: every handler of its load that takes no queue; one Answer of all."""
        answers = [
            self.post(
                "/gradio_api/run/predict",
                {
                    "data": [None] * len(d["inputs"]),
                    "event_data": None,
                    "fn_index": d["id"],
                    "trigger_id": None,
                    "session_hash": self.session,
                },
            )
            for d in self.config["dependencies"]
            if any(event == "load" for _, event in d["targets"]) and not d["queue"] and d.get("backend_fn", True)
        ]
        worst = max(answers, key=lambda a: a.status if a.status else 999)
        return Answer(
            worst.status,
            "\n".join(a.text for a in answers),
            sum(a.seconds for a in answers),
            all(a.success for a in answers),
        )

    def post(self, path: str, body: dict) -> Answer:
        began = time.monotonic()
        try:
            answer = self.client.post(path, json=body)
            return Answer(answer.status_code, answer.text, time.monotonic() - began, answer.status_code == 200)
        except httpx.HTTPError as error:
            return Answer(0, f"{type(error).__name__}: {error}", time.monotonic() - began, False)

    def _queued(self, body: dict) -> Answer:
        joined = self.post("/gradio_api/queue/join", body)
        if joined.status != 200:
            return joined
        began, lines, messages = time.monotonic(), [], []
        status, success = 200, False
        try:
            with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
                status = stream.status_code
                for line in stream.iter_lines():
                    lines.append(line)
                    if not line.startswith("data: "):
                        continue
                    messages.append(json.loads(line[6:]))
                    if messages[-1]["msg"] == "process_completed":
                        success = bool(messages[-1].get("success"))
                        break
        except (httpx.HTTPError, ValueError) as error:
            status, success = status if messages else 0, False
            lines.append(f"{type(error).__name__}: {error}")
        return Answer(status, "\n".join(lines), joined.seconds + time.monotonic() - began, success, messages)

    # -- gestures

    def send(self, text: str) -> Answer:
        return self.event("send", [text, None])

    def vote(self, choice: str) -> Answer:
        return self.event(f"vote-{choice.replace('_', '-')}")

    def turn(self, text: str, choice: str = "a") -> tuple[Answer, Answer]:
        """A message, both replies, a vote; the Answers to both."""
        return self.send(text), self.vote(choice)


def owner(app: App) -> Person:
    """Who came by the admin link that the app printed, which works once; later the same browser again. Where none is
    printed, whoever sits at this machine.
    """
    if app.owner_cookies:
        return Person(app.url, "owner", cookies=app.owner_cookies)
    link = until(lambda: app.admin_link, LINK_SECONDS)
    page = Person(app.url, "owner", entrance="/" + link.split("/", 3)[3] if link else "/")
    app.owner_cookies = {c.name: c.value for c in page.client.cookies.jar} if link else None
    return page


def acknowledged(answer: Answer) -> bool:
    """Whether a vote's answer showed it as accepted."""
    return answer.kept and any(mark in answer.text for mark in ANSWERED)
