"""The files in `deploy/`: what they set are settings, what they copy and name is there, and nginx and systemd take
them. Nothing here builds an image.
"""

import re
import shutil
import socket
import subprocess
import sys
import time
from ipaddress import ip_network
from pathlib import Path

import httpx
import pytest
import yaml

from playground.people import keys
from playground.settings import Settings, fields, read, variable
from tests.nginx import MAIN, MISSING, PROGRAM, free_port
from tests.sites import Site
from tests.tiny import tiny_folder
from tests.waits import stand_still

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
VARIABLES = {variable(name) for name in fields(Settings)}
UNIT = DEPLOY / "nudge.service"


def compose(*names):
    """The services of compose files, the later over the earlier."""
    found = {}
    for name in names:
        for service, value in yaml.safe_load((DEPLOY / name).read_text())["services"].items():
            old = found.setdefault(service, {})
            environment = {**old.get("environment", {}), **value.get("environment", {})}
            found[service] = {**old, **value, "environment": environment}
    return found


def of_compose():
    """The variables of both compose files, with a name of the page."""
    environment = compose("compose.yaml", "compose.gpu.yaml")["nudge"]["environment"]
    return {name: re.sub(r"\$\{PAGE_NAME:.*\}", "nudge.example", value) for name, value in environment.items()}


def of_dockerfile():
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = re.findall(r"^ENV (.*)", text, re.M)
    return dict(pair.split("=", 1) for line in lines for pair in line.split())


def unit():
    """{section: [(name, value)]}, since systemd takes a name several times."""
    sections, current = {}, ""
    for line in UNIT.read_text().splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            current = sections.setdefault(match[1], [])
        elif line and not line.startswith("#"):
            current.append(tuple(line.split("=", 1)))
    return sections


def of_unit():
    pairs = [value.split() for name, value in unit()["Service"] if name == "Environment"]
    return dict(pair.split("=", 1) for line in pairs for pair in line)


# -- settings


@pytest.mark.parametrize("given", [of_compose, of_dockerfile, of_unit])
def test_what_is_set_are_settings_with_values_that_are_accepted(given, monkeypatch, tmp_path):
    """A variable that is no setting is ignored by the app, so a misspelt one would go unnoticed."""
    ours = {name: value for name, value in given().items() if name.startswith("NUDGE_")}
    assert ours and ours.keys() <= VARIABLES
    monkeypatch.chdir(tmp_path)  # where no .env is
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    assert ours.items() <= read([]).environ().items()


def test_the_app_in_compose_is_reached_through_nginx_alone():
    whole = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    app, proxy = whole["services"]["nudge"], whole["services"]["nginx"]
    [subnet] = whole["networks"]["inside"]["ipam"]["config"]
    trusted = ip_network(app["environment"]["NUDGE_TRUSTED_PROXIES"])
    assert ip_network(subnet["subnet"]) == trusted and trusted.is_private
    assert "ports" not in app and app["networks"] == proxy["networks"] == ["inside"]
    assert proxy["ports"] == ["80:80", "443:443"]


def test_the_volume_holds_all_that_the_app_writes():
    app, written = compose("compose.yaml")["nudge"], of_dockerfile()
    assert app["read_only"] and app["volumes"] == ["data:/data"] and app["tmpfs"] == ["/tmp"]
    for name in ("NUDGE_DATA_DIR", "HOME", "NUMBA_CACHE_DIR"):
        assert written[name].startswith("/data"), name
    assert written["GRADIO_TEMP_DIR"].startswith("/tmp/")


# -- files


def test_the_image_copies_what_is_there_and_nothing_private():
    copied = [line.split()[1] for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")]
    assert all((ROOT / name).exists() for name in copied)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert [line for line in ignored if not line.startswith("#")] == ["*", *(f"!{c}" for c in copied), "**/__pycache__"]
    needed = {"app.py", "playground", "training", "assets", "requirements.txt"}
    assert set(copied) == needed
    assert compose("compose.yaml")["nudge"]["build"] == {"context": "..", "dockerfile": "deploy/Dockerfile"}


def test_the_gpu_asks_for_build_arguments_that_there_are():
    arguments = set(re.findall(r"^ARG (\w+)", (DEPLOY / "Dockerfile").read_text(), re.M))
    assert compose("compose.gpu.yaml")["nudge"]["build"]["args"].keys() == arguments


def test_systemd_takes_the_unit(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is missing")
    start = dict(unit()["Service"])["ExecStart"]
    assert start.split()[1:] == ["app.py"] and (ROOT / "app.py").exists()
    copy = tmp_path / UNIT.name  # with a program that is here
    copy.write_text(UNIT.read_text().replace(start.split()[0], sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True)
    assert done.returncode == 0 and UNIT.name not in done.stderr, done.stderr
    copy.write_text(copy.read_text().replace("ProtectHome=yes", "ProtectHomes=yes"))
    said = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True).stderr
    assert "ProtectHomes" in said, "systemd-analyze tells of what it does not know"


def test_the_unit_keeps_what_it_writes_where_it_may_write():
    service = dict(unit()["Service"])
    assert service["ProtectSystem"] == "strict" and service["PrivateTmp"] == "yes"
    assert of_unit()["NUDGE_DATA_DIR"] == of_unit()["HOME"] == f"/var/lib/{service['StateDirectory']}"
    assert of_unit()["NUMBA_CACHE_DIR"] == f"/var/cache/{service['CacheDirectory']}"
    assert "MemoryDenyWriteExecute" not in service, "numba writes the code that it runs"


def test_a_gpu_needs_no_more_than_private_devices_off():
    """ProtectClock implies a DeviceAllow (systemd.exec), so a GPU stayed closed with `PrivateDevices=no` too."""
    service = dict(unit()["Service"])
    assert not service.keys() & {"ProtectClock", "DeviceAllow", "DevicePolicy"}
    assert service["CapabilityBoundingSet"] == "", "without CAP_SYS_TIME nothing sets the clock"


# -- nginx


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tiny_folder(tmp_path_factory.mktemp("model"))
    site = Site(folder, trusted_proxies="127.0.0.1", allowed_hosts="nudge.example", chat={"reply_tokens": 40})
    yield site
    site.stop()


@pytest.fixture(scope="module")
def proxy(site, tmp_path_factory):
    """(port of http, port of https, access log) of nginx with the file as it is, but for addresses, paths and the
    certificate.
    """
    folder = tmp_path_factory.mktemp("nginx")
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=nudge.example"
    subprocess.run([*make.split(), "-keyout", folder / "privkey.pem", "-out", folder / "fullchain.pem"], check=True,
                   capture_output=True)  # fmt: skip
    plain, secure = free_port(), free_port()
    changes = {
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "listen 443 ssl": f"listen 127.0.0.1:{secure} ssl",
        "/etc/nginx/tls": str(folder),
        "/var/log/nginx": str(folder),
        "http://nudge:7860": f"http://127.0.0.1:{site.port}",
    }
    text = (DEPLOY / "nginx.conf").read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user="user root;", servers=text))
    command = [PROGRAM, "-p", folder, "-c", folder / "nginx.conf"]
    subprocess.run([*command, "-t"], check=True, capture_output=True)
    process = subprocess.Popen(command)
    wait_for(secure)
    yield plain, secure, folder / "access.log"
    process.terminate()
    process.wait(20)


def wait_for(port):
    until = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < until, "nginx does not listen"
            time.sleep(0.05)


def browser(port, **headers):
    """A client that takes the certificate and calls the page by its name."""
    return httpx.Client(
        base_url=f"https://127.0.0.1:{port}", verify=False, headers={"host": "nudge.example", **headers}, timeout=30
    )


@MISSING
def test_http_leads_to_https(proxy):
    answer = httpx.get(f"http://127.0.0.1:{proxy[0]}/share/x?a=1", headers={"host": "nudge.example"})
    assert (answer.status_code, answer.headers["location"]) == (308, "https://nudge.example/share/x?a=1")


@MISSING
def test_the_page_knows_that_it_is_on_https_and_believes_no_claims(site, proxy):
    claims = {"x-forwarded-host": "evil.example", "x-forwarded-prefix": "/evil", "x-forwarded-for": "127.0.0.1"}
    with browser(proxy[1], **claims) as client:
        answer = client.get("/")
        assert answer.status_code == 200 and "evil" not in answer.text
        assert "Secure" in answer.headers["set-cookie"] and "Path=/;" in answer.headers["set-cookie"]
        assert client.get("/metrics").status_code == 404, "a visitor is not this machine"
        assert client.get("/", headers={"host": "other.example"}).status_code == 421


@MISSING
def test_the_access_log_has_no_secret_of_a_link(proxy):
    """nginx's own format wrote admin links, invitations and links of shared chats into the log."""
    paths = ("/admin/secret1", "/invitation/secret2?x=secret3", "/?shared=secret4", "/nudge/admin/secret5")
    with browser(proxy[1]) as client:
        for path in paths:
            client.get(path)
        httpx.get(f"http://127.0.0.1:{proxy[0]}/admin/secret6", headers={"host": "nudge.example"})
        client.get("/last")  # nginx's one process has written the lines of the requests before it
    lines = [line for line in proxy[2].read_text().splitlines() if '"GET /last"' not in line]
    said = "\n".join(lines[-len(paths) - 1 :])
    assert "secret" not in said and said.count("[token]") == 4 and '"GET /"' in said


@MISSING
def test_words_pass_one_by_one(site, proxy, monkeypatch):
    """The last words are written once the first ones have come."""
    monkeypatch.setattr(site.engine, "step", site.engine.step)
    monkeypatch.setattr(site.engine, "end_tokens", frozenset())
    go_on = stand_still(site.engine, lambda: any(max(stream.tokens()) >= 10 for stream in site.engine._running))
    key = keys.new_key()
    site.store.add_key("ann", key)
    body = {"model": "live", "n": 2, "stream": True, "messages": [{"role": "user", "content": "A river?"}]}
    lines = []
    try:
        with (
            browser(proxy[1], authorization=f"Bearer {key}") as client,
            client.stream("POST", "/v1/chat/completions", json=body) as stream,
        ):
            for line in stream.iter_lines():
                lines += [line] if line else []
                if '"content":"' in line.replace(" ", "").replace('"content":""', ""):
                    go_on.set()
    finally:
        go_on.set()
    assert lines[-1] == "data: [DONE]" and len(lines) > 4
