"""Backups in a bucket of the hub and in S3: a snapshot, a restore, a damaged one, the lease of two servers, and what is
not to be taken for an empty backup.

The hub is a local server that answers as its client expects. S3 is moto's server, asked by s3fs, which the app does
not require.
"""

import contextlib
import importlib
import socket

import httpx
import pytest

from playground.backup import Lease, identity
from playground.backup.bucket import Bucket
from playground.backup.target import Target, TargetUnavailable
from tests import fake_hub
from tests.backups import Folder, adapter, rows
from tests.stores import cast

NAME = "hf://buckets/ann/backups/nudge"


class HubBucket:
    """A bucket of the fake hub, as a test looks into it."""

    url = NAME

    def __init__(self, hub):
        self.hub = hub
        hub.buckets["ann/backups"] = self.files = {"nudge-old/snapshots/x": b"of somebody else"}

    def paths(self, folder):
        return sorted(path for path in self.files if path.startswith(f"nudge/{folder}/"))

    def write(self, path, content):
        self.files[path] = content

    def read(self, path):
        return self.files[path]


class S3Bucket:
    """A bucket of moto's server."""

    def __init__(self, client, url):
        self.client, self.url = client, url
        client.create_bucket(Bucket="backups")
        client.put_object(Bucket="backups", Key="nudge-old/snapshots/x", Body=b"of somebody else")

    def paths(self, folder):
        found = self.client.list_objects_v2(Bucket="backups", Prefix=f"nudge/{folder}/").get("Contents", [])
        return sorted(entry["Key"] for entry in found)

    def write(self, path, content):
        self.client.put_object(Bucket="backups", Key=path, Body=content)

    def read(self, path):
        return self.client.get_object(Bucket="backups", Key=path)["Body"].read()


@contextlib.contextmanager
def s3(monkeypatch):
    """An S3 server, which s3fs finds by the variables that it reads."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = importlib.import_module("moto.server").ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{port}"
    for name, value in (("ENDPOINT_URL", endpoint), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    httpx.post(f"{endpoint}/moto-api/reset")  # what it has is the process's
    importlib.import_module("s3fs").S3FileSystem.clear_instance_cache()
    try:
        yield S3Bucket(importlib.import_module("boto3").client("s3", endpoint_url=endpoint), "s3://backups/nudge")
    finally:
        server.stop()


@pytest.fixture
def hub(monkeypatch):
    with fake_hub.serving(monkeypatch) as served:
        yield served


@pytest.fixture(params=["hub", "s3"])
def bucket(request, monkeypatch):
    if request.param == "hub":
        yield HubBucket(request.getfixturevalue("hub"))
        return
    with s3(monkeypatch) as place:
        yield place


def test_a_snapshot_comes_back_and_a_torn_one_gives_way_to_the_one_before_it(bucket, tmp_path):
    first = Folder(tmp_path / "first", bucket.url, keep=2)
    adapter(first, 1)
    hashes = []
    for _ in range(3):
        cast(first.store)
        assert first.save().trouble is None
        hashes.append(rows(first.settings.database))
    assert len(bucket.paths("snapshots")) == 2, "what is not kept is removed"
    assert bucket.paths("probe") == [] and bucket.read("nudge-old/snapshots/x") == b"of somebody else"
    second = Folder(tmp_path / "second", bucket.url)
    assert rows(second.settings.database) == hashes[2]
    assert (second.settings.adapters_dir / "v0001" / "adapter_model.safetensors").exists()
    newest = bucket.paths("snapshots")[-1]
    bucket.write(newest, bucket.read(newest)[:-9])
    assert rows(Folder(tmp_path / "third", bucket.url).settings.database) == hashes[1]


def test_files_are_written_over_listed_at_once_and_removed(bucket):
    target = Target(bucket.url)
    assert target.list("lease") == {}
    for content in (b"one", b"two, longer", b""):
        target.write("lease/a", content)
        assert target.read("lease/a") == content and target.list("lease") == {"a": len(content)}
    target.write("lease/deeper/b", b"b")
    other = Target(bucket.url)  # of another server
    other.write("lease/c", b"c")
    assert target.list("lease") == {"a": 0, "c": 1}
    assert target.read("lease/c") == b"c", "though this one has not seen it written"
    other.remove(["lease/c"])
    with pytest.raises(TargetUnavailable) as missing:
        target.read("lease/c")
    assert isinstance(missing.value.__cause__, FileNotFoundError), "by which a lease tells that it has ended"
    target.remove(["lease/c", "lease/a", "lease/none"])
    assert target.list("lease") == {}
    target.remove_folder("lease")
    target.remove_folder("lease")
    with pytest.raises(TargetUnavailable):
        target.read("lease/deeper/b")
    assert bucket.read("nudge-old/snapshots/x") == b"of somebody else"
    target.inside("jobs/k").write("a", b"1")
    assert target.read("jobs/k/a") == b"1"


def test_two_servers_share_a_lease_there(bucket, tmp_path):
    def lease(name):
        database = tmp_path / name / "nudge.db"
        database.parent.mkdir()
        lease = Lease(Target(bucket.url), database, 90)
        lease.sleep = lambda _: None
        return lease

    ours, theirs = lease("one"), lease("two")
    assert (ours.begin(), theirs.begin()) == ("we", "another")
    ours.close()
    theirs.step(lambda: None, lambda: None)
    assert theirs.holder == "we" and identity.server_of(tmp_path / "two") in bucket.paths("lease")[0]
    theirs.close()
    assert bucket.paths("lease") == []


def test_a_bucket_that_is_missing_is_not_an_empty_backup(bucket, tmp_path):
    """A start took it for one, with an empty database and nothing said; so it did where the token had been lost."""
    wrong = bucket.url.replace("backups", "backup-s")
    with pytest.raises(TargetUnavailable):
        Target(wrong).list("snapshots")
    folder = Folder(tmp_path / "first", wrong, patience=1.0)
    assert folder.save().trouble is not None and (folder.settings.data_dir / "restore-pending").exists()


def test_without_its_token_a_hub_bucket_is_not_an_empty_backup(hub, tmp_path, monkeypatch):
    place = HubBucket(hub)
    cast((first := Folder(tmp_path / "first", place.url)).store)
    first.save()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(TargetUnavailable, match="The hub has no ann/backups. If it is private, set HF_TOKEN"):
        Target(place.url).list("snapshots")
    second = Folder(tmp_path / "second", place.url, patience=1.0)
    assert second.save().trouble is not None and (second.settings.data_dir / "restore-pending").exists()
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    second.store.close()
    assert rows(Folder(tmp_path / "second", place.url).settings.database) == rows(first.settings.database)


def test_a_write_to_the_hub_that_fails_leaves_nothing_on_this_machine(hub, tmp_path, monkeypatch):
    """`HfFileSystem` leaves a temporary file for each, so that a hub that was away filled the disk."""
    place = HubBucket(hub)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    hub.fails = 403
    with pytest.raises(TargetUnavailable) as failed:
        Target(place.url).write("blobs/x", b"content")
    assert fake_hub.TOKEN not in str(failed.value)
    assert list(tmp_path.iterdir()) == [] and place.paths("blobs") == []


def test_removing_much_is_one_call_and_what_stays_is_said(hub, monkeypatch):
    place = HubBucket(hub)
    target = Target(place.url)
    for name in ("a", "b", "c"):
        target.write(f"blobs/{name}", b"x")
    before = len(hub.asked)
    target.remove(f"blobs/{name}" for name in ("a", "b"))
    target.remove([])
    assert [path for _, path in hub.asked[before:]] == ["/api/buckets/ann/backups/batch"]
    refuse = {"success": False, "failed": [{"path": "nudge/blobs/c", "error": "no"}]}
    routes = [(pattern, answer) for pattern, answer in fake_hub.ROUTES if not pattern.endswith("/batch")]
    refusing = (rf"/api/buckets/{fake_hub.NAME}/batch", lambda *_: (refuse, {}, 422))
    monkeypatch.setattr(fake_hub, "ROUTES", [*routes, refusing])
    with pytest.raises(TargetUnavailable):
        target.remove(["blobs/c"])


def test_what_is_no_bucket_of_the_hub_is_refused():
    assert Bucket("hf://buckets/ann/backups").root == ""
    for url in ("hf://datasets/ann/data", "hf://ann/model", "hf://buckets/ann", "hf://"):
        with pytest.raises(ValueError, match="hf://buckets/OWNER/NAME"):
            Bucket(url)
