"""A version for other programs: plain PEFT loads what the page gives, and the page gives no more than that."""

import errno
import io
import os
import threading
import time
import zipfile

import httpx
import pytest
import torch
from fastapi import FastAPI
from peft import PeftModel
from transformers import AutoModelForCausalLM

from playground import server
from playground.models import adapter_reading, adapters, export
from playground.models.export import Packing
from tests.sites import Site
from tests.test_engine import publish as publish_into
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = Site(tiny_folder(tmp_path_factory.mktemp("model")), data_dir=tmp_path_factory.mktemp("data"))
    site.base, site.identity = site.engine.base, site.engine.identity
    yield site
    site.stop()


def get(site, path, **headers):
    return httpx.get(site.url + path, headers=headers)


def test_plain_peft_loads_what_the_page_gives(site, tmp_path):
    version = publish_into(site, 0.1)
    answer = get(site, f"/adapters/v{version}.zip")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip"
    assert "attachment" in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path)
    [folder] = tmp_path.iterdir()
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    base = AutoModelForCausalLM.from_pretrained(site.settings.model, dtype=torch.float32)
    ids = torch.tensor([[1, 30, 31, 32, 40]])
    with torch.no_grad():
        plain = base(ids).logits
        theirs = PeftModel.from_pretrained(base, folder)(ids).logits
        path = site.settings.adapters_dir / f"v{version:04d}"
        ours = adapters.load(path, site.base, base_hash=site.identity["hash"])(ids).logits
    assert torch.allclose(theirs, ours, atol=1e-4)
    assert not torch.allclose(theirs, plain, atol=1e-2)
    assert get(site, f"/adapters/v{version}.zip").content == answer.content, "the zip is kept"


@pytest.mark.parametrize(
    "path",
    [
        "/adapters/v0.zip",
        "/adapters/v999.zip",
        "/adapters/v1.zip/",
        "/adapters/v-1.zip",
        "/adapters/v1e3.zip",
        "/adapters/v..%2f..%2fnudge.db.zip",
        "/adapters/../nudge.db",
        "/adapters/v0001/manifest.json",
    ],
)
def test_nothing_else_is_there(site, path):
    assert get(site, path).status_code == 404


def test_what_was_refused_withdrawn_or_tampered_with_is_not_given(site):
    tampered, withdrawn, rejected = (publish_into(site) for _ in range(3))
    next_one = publish_into(site)
    site.store.withdraw(withdrawn, site.store.annotator("admin"), "it leaks")
    with site.store.writing() as db:
        db.execute("update policy set status = 'rejected' where version = ?", [rejected])
    weights = site.settings.adapters_dir / f"v{tampered:04d}" / adapter_reading.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    for version in (tampered, withdrawn, rejected):
        answer = get(site, f"/adapters/v{version}.zip", **{"accept-language": "zh-CN"})
        assert answer.status_code == 404 and "版本" in answer.text
    assert get(site, f"/adapters/v{next_one}.zip").status_code == 200


class Slow:
    """Packing waits for `go_on`."""

    def __init__(self, monkeypatch):
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.packs = 0
        pack = export._pack

        def slow(*arguments):
            self.packs += 1
            self.begun.set()
            assert self.go_on.wait(20)
            pack(*arguments)

        monkeypatch.setattr(export, "_pack", slow)


def test_one_is_packed_at_a_time(site, monkeypatch):
    first, other = publish_into(site), publish_into(site)
    slow = Slow(monkeypatch)
    monkeypatch.setattr(export, "PATIENCE", 0.1)
    answers = {}
    download = threading.Thread(target=lambda: answers.update(first=get(site, f"/adapters/v{first}.zip")))
    download.start()
    assert slow.begun.wait(20)
    try:
        assert get(site, f"/adapters/v{other}.zip").status_code == 429
    finally:
        slow.go_on.set()
        download.join(20)
    assert answers["first"].status_code == 200
    assert get(site, f"/adapters/v{other}.zip").status_code == 200


def test_two_who_ask_for_the_same_version_at_once_both_get_it(site, monkeypatch):
    """The second one was told to try again."""
    version = publish_into(site)
    slow = Slow(monkeypatch)
    answers = []
    people = [threading.Thread(target=lambda: answers.append(get(site, f"/adapters/v{version}.zip"))) for _ in range(2)]
    for person in people:
        person.start()
    assert slow.begun.wait(20)
    slow.go_on.set()
    for person in people:
        person.join(20)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].content == answers[1].content and slow.packs == 1


def test_many_who_wait_do_not_hold_all_threads(site, monkeypatch):
    row = site.store.policy(publish_into(site))
    monkeypatch.setattr(export, "_callers", threading.BoundedSemaphore(1))
    assert export._callers.acquire(blocking=False)
    with pytest.raises(Packing):
        export.opened(site.settings.adapters_dir, exports(site), row, site.identity["hash"], no_card)


@pytest.mark.parametrize(
    "number, status, sentence",
    [(errno.ENOSPC, 507, "磁盘已满"), (errno.EDQUOT, 507, "磁盘已满"), (errno.EROFS, 503, "磁盘上")],
)
def test_a_disk_that_does_not_take_the_zip_is_told_and_nothing_is_left(site, monkeypatch, number, status, sentence):
    """It answered with status 500, and the part that had been written stayed."""
    version = publish_into(site)
    write = zipfile.ZipFile.writestr

    def full(archive, *arguments):
        write(archive, *arguments)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    answer = get(site, f"/adapters/v{version}.zip", **{"accept-language": "zh-CN"})
    assert answer.status_code == status and sentence in answer.text
    assert not [file.name for file in exports(site).iterdir() if not file.name.endswith(".zip")]
    assert not list(exports(site).glob(f"v{version:04d}-*"))
    monkeypatch.undo()
    assert get(site, f"/adapters/v{version}.zip").status_code == 200, "once there is room again"


def test_the_zips_that_were_used_last_are_kept(site, monkeypatch):
    """None was ever removed."""
    monkeypatch.setattr(export, "MOST_FILES", 2)
    first, second, third = (publish_into(site) for _ in range(3))
    for version in (first, second, first, third):
        assert get(site, f"/adapters/v{version}.zip").status_code == 200
        time.sleep(0.02)
    assert zips(site) == {first, third}
    monkeypatch.setattr(export, "MOST_BYTES", 1)
    get(site, f"/adapters/v{second}.zip")
    assert zips(site) == {second}, "one that is larger than all may be is kept for who asks for it"


def test_a_start_removes_what_is_too_much_and_what_was_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MOST_FILES", 1)
    for n, name in enumerate(("v0001-a.zip", "v0002-b.zip", "v0003-c.partial")):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (n, n))
    export.prune(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["v0002-b.zip"]
    export.prune(tmp_path / "nothing")


def test_a_server_that_starts_prunes(site):
    left = exports(site) / "v9999-x.partial"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"x")
    server.add_adapter_route(FastAPI(), site.settings, site.store, site.engine)
    assert not left.exists()


def test_a_zip_that_is_removed_while_it_is_read_is_read_to_its_end(site):
    row = site.store.policy(publish_into(site))
    with export.opened(site.settings.adapters_dir, exports(site), row, site.identity["hash"], no_card) as file:
        for zipped in exports(site).glob("*.zip"):
            zipped.unlink()
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None and len(archive.namelist()) == 3


def test_the_card_has_the_figures_of_now_at_most_an_hour_old(site):
    version = publish_into(site)
    arguments = (site.settings.adapters_dir, exports(site), site.store.policy(version), site.identity["hash"])

    def packed(card, hours):
        with export.opened(*arguments, lambda manifest: card, lambda: 3600 * hours) as file:
            return zipfile.ZipFile(file).read(f"v{version:04d}/README.md").decode()

    assert packed("one vote", 1.0) == "one vote"
    assert packed("two votes", 1.9) == "one vote"
    assert packed("two votes", 2.0) == "two votes"
    assert len(list(exports(site).glob(f"v{version:04d}-*"))) == 1


def no_card(manifest):
    return ""


def exports(site):
    return site.settings.data_dir / "exports"


def zips(site):
    """The versions whose zips are kept."""
    return {int(file.name[1:5]) for file in exports(site).glob("*.zip")}
