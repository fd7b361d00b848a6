"""People for `load.py`: each chats and votes with a key and from an address of its own, over the server's OpenAI API;
and one who floods, as a process of its own: `python -m benchmarks.load_people URL KEY TOKENS` goes on until its stdin
ends, and prints how often it got which status.

Each request is made as any program makes it, on loopback. A figure is what the person waits, the connection included.
"""

import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx

VOTES = ("a", "b", "tie")  # on each pair: the choice is changed twice
PAUSE = 0.3  # seconds at most between two gestures
FLOODING = 12  # requests that the one who floods keeps open at once
TIMEOUT = 900.0  # seconds; who waits longer than that counts as an error


@dataclass
class Seen:
    """What one person met; times in seconds."""

    first_token: list[float] = field(default_factory=list)
    votes: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    tokens: int = 0
    turns: int = 0
    waited: int = 0  # turns in which the server said that they wait
    seconds: float = 0.0  # spent on turns, without votes and pauses


class Asked(Exception):
    """A request that was not answered as it should be; the message says how."""


class Person:
    """One person with a key at an address of this machine: any of 127.0.0.0/8."""

    def __init__(self, url: str, key: str, address: str, tokens: int) -> None:
        self.tokens = tokens
        self.seen = Seen()
        self.client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=TIMEOUT,
            trust_env=False,
            transport=httpx.HTTPTransport(local_address=address),
        )

    def chat(self, lines: list[str], rng: random.Random) -> None:
        """A turn for each line: a message, two replies as a stream, votes."""
        for line in lines:
            try:
                ids = self.turn(line)
                for choice in VOTES:
                    time.sleep(rng.uniform(0, PAUSE))
                    self.vote(ids, choice)
            except (Asked, httpx.HTTPError) as error:
                self.seen.errors.append(f"{type(error).__name__}: {error}")

    def turn(self, text: str) -> list[str]:
        """A message and its two replies to their end; the ids of both."""
        began = time.perf_counter()
        first, waited, ids, done = 0.0, False, {}, False
        with self.client.stream("POST", "/v1/chat/completions", json=self.body(text)) as answer:
            if answer.status_code != 200:
                raise Asked(f"{answer.status_code} to a message: {answer.read().decode()[:200]}")
            for event in events(answer):
                if event is None:
                    waited = True
                    continue
                if event == "[DONE]":
                    done = True
                    continue
                if "error" in event:
                    raise Asked(f"a message ended with {event['error']['message']}")
                for choice in event["choices"]:
                    ids[choice["index"]] = choice["completion_id"]
                    if choice["delta"].get("content") and not first:
                        first = time.perf_counter() - began
                self.seen.tokens += (event.get("usage") or {}).get("completion_tokens", 0)
        if not done:
            raise Asked("a stream broke off")
        self.seen.seconds += time.perf_counter() - began
        self.seen.turns += 1
        self.seen.waited += waited
        if first:  # two empty replies have no token
            self.seen.first_token.append(first)
        return [ids[0], ids[1]]

    def body(self, text: str, stream: bool = True) -> dict:
        asked = {"model": "live", "n": 2, "max_tokens": self.tokens, "messages": [{"role": "user", "content": text}]}
        return {**asked, "stream": True, "stream_options": {"include_usage": True}} if stream else asked

    def vote(self, ids: list[str], choice: str) -> None:
        began = time.perf_counter()
        answer = self.client.post("/v1/feedback", json={"completion_ids": ids, "choice": choice})
        if answer.status_code != 200:
            raise Asked(f"{answer.status_code} to a vote: {answer.text[:200]}")
        self.seen.votes.append(time.perf_counter() - began)


def events(answer: httpx.Response) -> Iterator[dict | str | None]:
    """The events of a stream; None where the server says that the turn waits."""
    for line in answer.iter_lines():
        if line.startswith(": waiting"):
            yield None
        elif line == "data: [DONE]":
            yield "[DONE]"
        elif line.startswith("data: "):
            yield json.loads(line[6:])


def crowd(url: str, keys: list[str], lines: list[str], turns: int, tokens: int) -> list[Seen]:
    """Everybody chats at once, `turns` turns each; what each of them met."""
    people = [Person(url, key, address_of(i), tokens) for i, key in enumerate(keys)]
    threads = [
        threading.Thread(target=person.chat, args=(lines_of(i, lines, turns), random.Random(i)))
        for i, person in enumerate(people)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for person in people:
        person.client.close()
    return [person.seen for person in people]


def address_of(number: int) -> str:
    """An address of this machine for the person with this number."""
    return f"127.0.1.{number + 1}"


def lines_of(number: int, lines: list[str], turns: int) -> list[str]:
    return [lines[(number * turns + turn) % len(lines)] for turn in range(turns)]


def flood(url: str, key: str, tokens: int, ended: threading.Event) -> Counter:
    """Send messages without a pause over many connections from one address until `ended`: {status: how often}."""
    counts: Counter = Counter()

    def send() -> None:
        person = Person(url, key, "127.0.3.1", tokens)
        body = person.body("More!", stream=False)
        while not ended.is_set():
            try:
                status = str(person.client.post("/v1/chat/completions", json=body).status_code)
            except httpx.HTTPError as error:
                status = type(error).__name__
            counts[status] += 1
        person.client.close()

    threads = [threading.Thread(target=send) for _ in range(FLOODING)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def main() -> None:
    url, key, tokens = sys.argv[1:]
    ended = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    print("flooding", flush=True)
    print(json.dumps(flood(url, key, int(tokens), ended)))


if __name__ == "__main__":
    main()
