"""The real nginx in front of a site, configured as `docs/deploying.md` shows, or as people do who have not read it."""

import os
import re
import secrets
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from playground.web.http_server import REFUSED_BY_BROWSERS

PROGRAM = "/usr/sbin/nginx"
MISSING = pytest.mark.skipif(
    not Path(PROGRAM).exists(),
    reason=f"{PROGRAM} is missing; `make test` as root installs it, or run `apt-get install nginx-light`",
)
FIRST_PORT = 10_000  # of those for servers of tests
DOCS = Path(__file__).resolve().parent.parent / "docs" / "deploying.md"
# what surrounds the servers: everything that nginx writes stays in its folder
MAIN = """daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; {user}
events {{ worker_connections 256; }}
http {{
access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
{servers}
}}
"""


def documented():
    """The server block of `docs/deploying.md`."""
    return re.search(r"<!-- nginx:.*?-->\n```nginx\n(.*?)```", DOCS.read_text(), re.S)[1]


def bare(location="/", address="http://127.0.0.1:7860"):
    """What many write: a `proxy_pass` and nothing else."""
    return f"server {{ listen 80; server_name nudge.example; location {location} {{ proxy_pass {address}; }} }}"


def free_port():
    """A port that browsers open, below those that the system gives to connections, one of which might have it before
    nginx.
    """
    lowest_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = FIRST_PORT + secrets.randbelow(lowest_given - FIRST_PORT)
        if port in REFUSED_BY_BROWSERS:
            continue
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Nginx:
    """One nginx that serves each of `servers`, {name: (server block, port of the app)}, on a port of its own:
    `ports[name]`.
    """

    def __init__(self, folder, servers):
        self.folder, self.ports, blocks = folder, {}, []
        for name, (block, app_port) in servers.items():
            self.ports[name] = free_port()
            here = re.sub(r"listen 80;", f"listen 127.0.0.1:{self.ports[name]};", block, count=1)
            here = re.sub(r"127\.0\.0\.1:7860", f"127.0.0.1:{app_port}", here)
            assert here.count(str(app_port)) == 1 and f":{self.ports[name]};" in here
            blocks.append(here)
        user = "user root;" if os.getuid() == 0 else ""
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user, servers="\n".join(blocks)))
        self.process = subprocess.Popen(
            [PROGRAM, "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.PIPE, text=True
        )
        self._wait()

    def _wait(self):
        until = time.monotonic() + 20
        for port in self.ports.values():
            while True:
                assert self.process.poll() is None, self.process.stderr.read()
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert time.monotonic() < until, "nginx does not listen"
                    time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        self.process.wait(20)
