"""The hub as its client (huggingface_hub 2.4.0) speaks with it about jobs: an HTTP server with the client's own routes
and the shapes that its dataclasses read. The client is the real one.

A job's program is started here as a process of its own, or a function in its place. What a test sets: `runs`, what the
next jobs do in turn; `answers`, status codes with which the next requests are answered instead.
"""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from huggingface_hub import HfApi

OWNER = {"id": "5e9ecfc04957053f60648a3e", "name": "owner", "type": "user"}
T4 = {
    "name": "t4-small",
    "prettyName": "Nvidia T4 - small",
    "cpu": "4 vCPU",
    "ram": "15 GB",
    "ephemeralStorage": "50 GB",
    "accelerator": {"type": "gpu", "model": "T4", "quantity": "1", "vram": "16 GB", "manufacturer": "Nvidia"},
    "unitCostMicroUSD": 6667,
    "unitCostUSD": 0.006667,
    "unitLabel": "minute",
}


def date():
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Job:
    """A job: what was asked for, its stage, and what its program has written."""

    def __init__(self, number, spec):
        self.id = f"687fb7010294{number:012x}"
        self.spec = spec
        self.stage = "SCHEDULING"
        self.message = None
        self.lines = []
        arguments = spec["command"][spec["command"].index("training.job") + 1 :]
        self.arguments = dict(zip(arguments[::2], arguments[1::2], strict=True))
        self.began = time.monotonic()
        self.cancelled = threading.Event()

    def as_json(self):
        seconds = int(time.monotonic() - self.began)
        return {
            "id": self.id,
            "createdAt": date(),
            "startedAt": date(),
            "dockerImage": self.spec.get("dockerImage"),
            "spaceId": self.spec.get("spaceId"),
            "command": self.spec["command"],
            "arguments": [],
            "environment": self.spec["environment"],
            "secrets": dict.fromkeys(self.spec.get("secrets", {}), ""),
            "flavor": self.spec["flavor"],
            "labels": self.spec.get("labels"),
            "volumes": self.spec.get("volumes"),
            "status": {"stage": self.stage, "message": self.message},
            "durations": {"schedulingSecs": 1, "runningSecs": seconds, "totalSecs": seconds + 1},
            "owner": OWNER,
            "initiator": {"type": "user", "id": OWNER["id"], "name": "owner"},
        }

    def end(self, stage, message=None):
        if not self.cancelled.is_set():
            self.stage, self.message = stage, message


def program(job):
    """What the command says, with this Python in place of uv's."""
    words = job.spec["command"]
    command = [sys.executable, *words[words.index("python") + 1 :]]
    environ = {**os.environ, "NUDGE_THREADS": "1", "NUDGE_DTYPE": "float32", "NUDGE_DEVICE": "cpu"}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        job.lines.append(line.rstrip())
    code = process.wait()
    job.end("COMPLETED" if code == 0 else "ERROR", None if code == 0 else f"Job failed with exit code: {code}")


class FakeHub:
    """Jobs that were started, in order, and the requests."""

    def __init__(self):
        self.jobs = []
        self.requests = []
        self.runs = itertools.repeat(program)
        self.answers = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):  # noqa: N802 (the name that it has)
                hub.answer(self, "GET", None)

            def do_POST(self):  # noqa: N802
                hub.answer(
                    self, "POST", json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
                )

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.api = HfApi(endpoint=f"http://127.0.0.1:{self.server.server_port}", token="hf_test")

    def close(self):
        for job in self.jobs:
            job.cancelled.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler, method, body):
        url = urlsplit(handler.path)
        self.requests.append(f"{method} {url.path}")
        if self.answers:
            code = self.answers.pop(0)
            return reply(handler, {"error": "Payment Required: add credit"}, code)
        parts = url.path.strip("/").split("/")[1:]
        if parts == ["whoami-v2"]:
            return reply(handler, OWNER)
        if parts[0] == "spaces":
            return reply(handler, {"stage": "RUNNING", "hardware": {"current": "cpu-basic"}, "sha": "c0ffee"})
        if parts == ["jobs", "hardware"]:
            return reply(handler, [T4])
        if len(parts) == 2 and method == "POST":
            return reply(handler, self.start(body).as_json())
        if len(parts) == 2:
            wanted = dict(label.split("=", 1) for label in parse_qs(url.query).get("label", []))
            found = [job for job in self.jobs if wanted.items() <= job.spec["labels"].items()]
            return reply(handler, [job.as_json() for job in found])
        job = next((job for job in self.jobs if job.id == parts[2]), None)
        if job is None:
            return reply(handler, {"error": "Job not found"}, 404)
        if parts[3:] == ["cancel"]:
            if job.stage in ("SCHEDULING", "RUNNING"):
                job.stage = "CANCELED"
            job.cancelled.set()
        if parts[3:] == ["logs"]:
            tail = int(parse_qs(url.query).get("tail", ["0"])[0])
            events = [{"data": line, "timestamp": "2026-01-01T00:00:00.000Z"} for line in job.lines[-tail:]]
            text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
            return reply(handler, text, kind="text/event-stream")
        return reply(handler, job.as_json())

    def start(self, spec):
        job = Job(len(self.jobs), spec)
        self.jobs.append(job)
        job.stage = "RUNNING"
        run = next(self.runs)
        threading.Thread(target=run, args=[job], daemon=True).start()
        return job


def reply(handler, content, code=200, kind="application/json"):
    data = (content if isinstance(content, str) else json.dumps(content)).encode()
    handler.send_response(code)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
