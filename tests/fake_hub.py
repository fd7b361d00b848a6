"""A local server that answers as Hugging Face's hub does, for the calls that this app makes: repositories with one
branch and the converted one, commits, and buckets. Written after the routes and shapes that `huggingface_hub` 2.4
asks for and reads; what it cannot show is that the real hub answers so. All uploads are regular ones, none goes by LFS.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import yaml

CONVERTED = "refs/convert/parquet"
TOKEN = "hf_of_a_test"


def blob_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """`files` of the branch main; `commits`: what each commit did, as the client sent it."""

    files: dict[str, bytes] = field(default_factory=dict)
    converted: dict[str, bytes] | None = None
    private: bool = False
    gated: bool = False
    commits: list[list[str]] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)  # that are said, where they are not the real ones

    def revisions(self):
        """{name or commit: (commit, files)}"""
        found = {}
        for name, files in (("main", self.files), (CONVERTED, self.converted)):
            if files is not None:
                commit = hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()
                found[name] = found[commit] = (commit, files)
        return found


@dataclass
class FakeHub:
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)  # by ("dataset", "OWNER/NAME")
    buckets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    uploaded: dict[str, bytes] = field(default_factory=dict)  # by the hash that a bucket's file names
    asked: list[tuple[str, str]] = field(default_factory=list)  # (method, path)
    tokens: set[str | None] = field(default_factory=set)  # that came with the calls
    fails: int | None = None  # a status that every call is answered with
    url: str = ""

    def add(self, name, kind="dataset", **more):
        self.repositories[kind, name] = Repository(**more)
        return self.repositories[kind, name]


class Problem(Exception):
    def __init__(self, status, code=None):
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_GET

    def _answer(self):
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.token = token
        self.hub.asked.append((self.command, unquote(parts.path)))
        self.hub.tokens.add(token)
        try:
            if self.hub.fails:
                raise Problem(self.hub.fails)
            for pattern, answer in ROUTES:
                if match := re.fullmatch(pattern, parts.path):
                    self._send(*answer(self, *(unquote(group or "") for group in match.groups())))
                    return
            raise Problem(404)
        except Problem as problem:
            headers = {"X-Error-Code": problem.code} if problem.code else {}
            self._send({"error": problem.code or "failed"}, headers, problem.status)

    def _send(self, content, headers=None, status=200):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # -- repositories

    def repository(self, kind, name, writes=False):
        found = self.hub.repositories.get((kind, name))
        if found is None or (found.private and self.token != TOKEN):
            raise Problem(404 if self.token else 401, "RepoNotFound")
        if writes and self.token != TOKEN:
            raise Problem(403)
        return found

    def files(self, kind, name, revision):
        revisions = self.repository(kind, name).revisions()
        if revision not in revisions:
            raise Problem(404, "RevisionNotFound")
        return revisions[revision]

    def info(self, kind, name, revision):
        commit, files = self.files(kind, name, revision or "main")
        card = files.get("README.md", b"").decode()
        data = yaml.safe_load(card.split("---")[1]) if card.startswith("---") else None
        seen = {"private": self.hub.repositories[kind, name].private}
        siblings = [{"rfilename": path} for path in files]
        return ({"id": name, "sha": commit, "cardData": data, "siblings": siblings, "tags": [], **seen},)

    def entry(self, kind, name, path, content):
        size = self.hub.repositories[kind, name].sizes.get(path, len(content))
        return {"type": "file", "path": path, "size": size, "oid": blob_id(content)}

    def tree(self, kind, name, revision, folder):
        _, files = self.files(kind, name, revision)
        prefix = f"{folder}/" if folder else ""
        entries = [self.entry(kind, name, path, files[path]) for path in files if path.startswith(prefix)]
        if folder and not entries:
            raise Problem(404, "EntryNotFound")
        return (entries,)

    def paths_info(self, kind, name, revision):
        _, files = self.files(kind, name, revision)
        paths = parse_qs(self.body.decode())["paths"]
        return ([self.entry(kind, name, path, files[path]) for path in paths if path in files],)

    def resolve(self, kind, name, revision, path):
        if self.repository(kind, name).gated and self.token != TOKEN:
            raise Problem(403 if self.token else 401, "GatedRepo")
        commit, files = self.files(kind, name, revision)
        if path not in files:
            raise Problem(404, "EntryNotFound")
        return files[path], {"X-Repo-Commit": commit, "ETag": f'"{blob_id(files[path])}"'}

    def create(self):
        asked = json.loads(self.body)
        kind, name = asked.get("type", "model"), f"{asked['organization']}/{asked['name']}"
        if self.token != TOKEN:
            raise Problem(403)
        if (kind, name) in self.hub.repositories:
            raise Problem(409)
        private = asked.get("private", asked.get("visibility") == "private")
        self.hub.add(name, kind, private=private, files={".gitattributes": b"*.bin filter=lfs\n"})
        return ({"url": f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"},)

    def validate(self):
        text = json.loads(self.body)["content"]
        data = yaml.safe_load(text.split("---")[1])
        if data.get("license", "mit") not in ("mit", "cc-by-4.0"):
            return {"errors": [{"message": "license is none that is known"}], "warnings": []}, {}, 400
        return ({"errors": [], "warnings": []},)

    def preupload(self, kind, name, revision):
        files = self.repository(kind, name, writes=True).files
        answers = []
        for file in json.loads(self.body)["files"]:
            oid = blob_id(files[file["path"]]) if file["path"] in files else None
            answers.append({"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": oid})
        return ({"files": answers},)

    def commit(self, kind, name, revision):
        repository = self.repository(kind, name, writes=True)
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        parent = header["value"].get("parentCommit")
        if parent and parent != repository.revisions()["main"][0]:
            raise Problem(412)
        done = []
        for operation in operations:
            path = operation["value"]["path"]
            if operation["key"] == "deletedFile":
                del repository.files[path]
                done.append(f"-{path}")
            else:
                repository.files[path] = base64.b64decode(operation["value"]["content"])
                done.append(path)
        repository.commits.append(done)
        commit = repository.revisions()["main"][0]
        return ({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit},)

    # -- buckets

    def bucket(self, name, writes=False):
        if self.token != TOKEN or name not in self.hub.buckets:
            raise Problem(404 if self.token else 401, "RepoNotFound")
        return self.hub.buckets[name]

    def bucket_info(self, name):
        self.bucket(name)
        size = {"size": 0, "totalFiles": 0}
        return ({"id": name, "private": True, "createdAt": "2026-11-01T00:00:00.000Z", **size},)

    def bucket_tree(self, name, prefix):
        """Without `recursive` what is right below the prefix, which is matched as a text."""
        found = {}
        for path, content in sorted(self.bucket(name).items()):
            if not path.startswith(prefix):
                continue
            below, slash, _ = path[len(prefix) :].lstrip("/").partition("/")
            start = path[: len(prefix)] + "/" * path[len(prefix) :].startswith("/")
            if slash and "recursive" not in self.query:
                found[start + below] = {"type": "directory", "path": start + below}
            else:
                xet = hashlib.sha256(content).hexdigest()
                found[path] = {"type": "file", "path": path, "size": len(content), "xetHash": xet}
        return (list(found.values()),)

    def bucket_paths(self, name):
        files = self.bucket(name)
        paths = [path for path in json.loads(self.body)["paths"] if path in files]
        return ([{"type": "file", "path": path, "size": len(files[path]), "xetHash": "x"} for path in paths],)

    def bucket_resolve(self, name, path):
        files = self.bucket(name)
        if path not in files:
            raise Problem(404, "EntryNotFound")
        return (files[path],)

    def batch(self, name):
        """Adds and removes; what fails is listed, the others are done."""
        files = self.bucket(name)
        failed = []
        for operation in map(json.loads, self.body.splitlines()):
            if operation["type"] == "addFile" and operation["xetHash"] in self.hub.uploaded:
                files[operation["path"]] = self.hub.uploaded[operation["xetHash"]]
            elif operation["type"] == "deleteFile" and operation["path"] in files:
                del files[operation["path"]]
            else:
                failed.append({"path": operation["path"], "error": "no such file"})
        return {"success": not failed, "failed": failed}, {}, 422 if failed else 200


NAME = r"([\w.-]+/[\w.-]+)"


def of_kind(kind, method):
    return lambda handler, *values: method(handler, kind, *values)


ROUTES = [
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.validate),
    (rf"/api/buckets/{NAME}", Handler.bucket_info),
    (rf"/api/buckets/{NAME}/tree(?:/(.*))?", Handler.bucket_tree),
    (rf"/api/buckets/{NAME}/batch", Handler.batch),
    (rf"/api/buckets/{NAME}/paths-info", Handler.bucket_paths),
    (rf"/buckets/{NAME}/resolve/(.+)", Handler.bucket_resolve),
]
for kind, folder in (("dataset", "datasets/"), ("model", "")):
    ROUTES += [
        (rf"/api/{kind}s/{NAME}(?:/revision/([^/]+))?", of_kind(kind, Handler.info)),
        (rf"/api/{kind}s/{NAME}/tree/([^/]+)(?:/(.*))?", of_kind(kind, Handler.tree)),
        (rf"/api/{kind}s/{NAME}/paths-info/([^/]+)", of_kind(kind, Handler.paths_info)),
        (rf"/api/{kind}s/{NAME}/preupload/([^/]+)", of_kind(kind, Handler.preupload)),
        (rf"/api/{kind}s/{NAME}/commit/([^/]+)", of_kind(kind, Handler.commit)),
        (rf"/{folder}{NAME}/resolve/([^/]+)/(.+)", of_kind(kind, Handler.resolve)),
    ]


class Uploads:
    """Stands for the client's upload of contents (Xet), which goes to another server by a library in Rust."""

    def __init__(self, hub):
        self.hub = hub

    @contextmanager
    def new_upload_commit(self, **_):
        if self.hub.fails:
            raise RuntimeError("the upload failed")
        yield self

    def start_upload_bytes(self, content, **_):
        xet = hashlib.sha256(content).hexdigest()
        self.hub.uploaded[xet] = content
        uploaded = SimpleNamespace(xet_info=SimpleNamespace(hash=xet, file_size=len(content)))
        return SimpleNamespace(result=lambda: uploaded)


@contextmanager
def serving(monkeypatch, token=TOKEN):
    """A fake hub that the client asks, with this token, while it runs."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.utils._xet.get_xet_session", lambda: Uploads(hub))
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
