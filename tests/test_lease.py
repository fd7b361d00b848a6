"""Several servers with one backup: one records, the others only read, and one of those takes over."""

import json

import pytest

import app
from app import App, open_store, read_backup
from playground.backup import Backup, starting, status
from playground.backup.archive import Archive
from playground.backup.lease import FOLDER, STALE, Lease
from playground.backup.restore import ASIDE
from playground.backup.target import Target, TargetUnavailable
from playground.settings import Settings
from playground.store import Store, StoreUnavailable
from playground.ui.status_bar import backup_html, backup_trouble_html
from playground.ui.words import Words
from tests.backups import Folder, deaf, rows, snapshots
from tests.backups import folder as folder
from tests.backups import target as target
from tests.backups import url as url
from tests.stores import candidate, cast, take

SECONDS = 90.0  # of a lease


class World:
    """Servers with one target, on clocks that a test sets."""

    def __init__(self, tmp_path, url):
        self.path, self.url = tmp_path, url
        self.now = 1000.0
        self.said = []

    def server(self, name, target=None):
        lease = Lease(target or Target(self.url), self.path / name / "nudge.db", SECONDS)
        lease.clock, lease.wall = (lambda: self.now), (lambda: 1e9 + self.now)
        lease.sleep = self.wait
        return lease

    def wait(self, seconds):
        self.now += seconds

    def step(self, lease):
        lease.step(lambda: self.said.append("lost"), lambda: self.said.append("won"))
        return lease.holder


@pytest.fixture
def world(tmp_path, url):
    return World(tmp_path, url)


def claims(target):
    return sorted(file.name for file in (target / FOLDER).iterdir())


# -- who holds the lease


def test_the_first_server_holds_the_lease_and_a_second_one_does_not_while_it_lives(world, target):
    first, second = world.server("first"), world.server("second")
    assert (first.begin(), second.begin()) == ("we", "another")
    for _ in range(10):
        world.wait(SECONDS / 3)
        assert (world.step(first), world.step(second)) == ("we", "another")
    assert world.said == [] and len(claims(target)) == 1 and not first.took_over


def test_a_server_that_has_ended_leaves_the_lease_to_the_next_look(world):
    first, second = world.server("first"), world.server("second")
    first.begin(), second.begin()
    first.close()
    assert world.step(second) == "we" and world.said == ["won"]


def test_a_silent_server_is_dead_after_a_lease_and_loses_it_if_it_comes_back(world, target):
    first, second = world.server("first"), world.server("second")
    first.begin(), second.begin()
    world.wait(SECONDS - 1)
    assert world.step(second) == "another"
    world.wait(1)
    assert world.step(second) == "we" and second.took_over
    assert world.step(first) == "another" and world.said == ["won", "lost"]
    assert len(claims(target)) == 1
    first.close()
    assert len(claims(target)) == 1, "it takes only its own claim back"


def test_of_two_that_claim_at_the_same_moment_one_holds_the_lease(world, target):
    world.server("dead").begin()
    first, second = world.server("first"), world.server("second")
    found = []
    first.sleep = lambda _: found.append(second._claim(2))  # both have seen the same dead one
    found.append(first._claim(2))
    assert sorted(found) == ["another", "we"] and len(claims(target)) == 1


def test_a_restarted_server_has_its_own_lease_at_once_and_took_nothing_over(world, target):
    world.server("first").begin()
    again = world.server("first")
    assert again.begin() == "we" and not again.took_over and len(claims(target)) == 1


def test_a_lease_of_long_ago_is_dead_at_the_first_look(world):
    world.server("first").begin()
    world.wait(STALE * SECONDS + 1)
    late = world.server("second")
    assert late.begin() == "we" and late.took_over


def test_a_clock_that_is_off_by_minutes_takes_no_lease_away(world):
    world.server("first").begin()
    other = world.server("second")
    other.wall = lambda: 1e9 + world.now + STALE * SECONDS - 10
    assert other.begin() == "another"


def test_a_target_that_does_not_answer_changes_nothing(world, monkeypatch):
    first, second = world.server("first"), world.server("second")
    first.begin(), second.begin()
    monkeypatch.setattr(Target, "list", lambda *_: (_ for _ in ()).throw(TargetUnavailable("no route to host")))
    world.wait(2 * SECONDS)
    assert (world.step(first), world.step(second)) == ("we", "another") and world.said == []
    assert world.server("third").begin(1.0) == "unknown"


def test_a_half_written_claim_is_a_living_one(world, target):
    world.server("first").begin()
    [name] = claims(target)
    (target / FOLDER / name).write_bytes(b'{"time": 1')
    assert world.server("second").begin() == "another"


def test_a_server_with_another_database_is_no_copy(world, folder):
    """It would only show what it has, for somebody else's sake; that its backup is another's, the page says already."""
    cast(folder.store)
    folder.save()
    world.server("first").begin()
    stranger = Folder(world.path / "stranger", (world.path / "elsewhere").as_uri())
    stranger.save()
    assert world.server("stranger").begin() == "unknown"


# -- what it means


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(Lease, "sleep", staticmethod(lambda seconds: None))


def server(path, url):
    """An app after its start, as far as its backup and its store go; its backup saves when a test says so."""
    made = App(Settings(_env_file=None, data_dir=path, backup={"url": url, "interval": 1.0, "lease_seconds": 3}))
    made.backup = Backup(made.settings)
    made.lease = read_backup(made.settings, made.backup)
    made.store = open_store(made.settings, made.reads_only)
    made.backup._store = made.store
    return made


def test_a_second_server_shows_what_was_saved_and_records_nothing(tmp_path, url, target):
    first = server(tmp_path / "first", url)
    cast(first.store)
    first.backup._step()
    second = server(tmp_path / "second", url)
    assert not first.reads_only and second.reads_only
    ann = second.store.annotator("somebody")
    before = rows(second.settings.database)
    assert before == rows(first.settings.database)
    assert second.store.conversations(second.store.annotator("a new visitor")) == []
    duel = second.store.duel(1)
    assert second.store.conversations(ann) and second.store.current_vote(1, ann)["choice"] == "a"
    with pytest.raises(StoreUnavailable, match="Another copy of this app answers"):
        second.store.vote(1, ann, "b", duel["right"]["message"])
    with pytest.raises(StoreUnavailable, match="Another copy"):
        cast(second.store, who=ann)
    with pytest.raises(StoreUnavailable, match="Another copy"):
        second.store.request_round()
    second.backup._step()
    assert rows(second.settings.database) == before and len(snapshots(target)) == 1
    assert second.store.trouble() == str(status.FOLLOWS)
    shown = second.backup.status()
    assert str(status.FOLLOWS) in backup_trouble_html(shown, Words())
    assert "Backup: another copy of this app saves." in backup_html(shown, Words())


def test_it_takes_over_with_the_newest_snapshot_and_keeps_no_copy_of_the_older_one(tmp_path, url):
    first = server(tmp_path / "first", url)
    cast(first.store)
    first.backup._step()
    second = server(tmp_path / "second", url)
    ended = []
    second.end = lambda: ended.append(True)
    cast(first.store)
    first.backup._progress.began = float("-inf")
    first.backup._step()
    newest = rows(first.settings.database)
    first.close()
    second.lease.step(second.stop_recording, second.take_over)
    assert ended and second.again
    second.store.close()
    second.close()
    again = server(tmp_path / "second", url)
    assert not again.reads_only and rows(again.settings.database) == newest
    assert list((tmp_path / "second").glob(f"{ASIDE}*")) == [] and again.backup.status().notices == ()
    cast(again.store)
    assert again.backup.status().trouble is None


def test_a_server_that_was_taken_for_dead_stops_to_record_and_keeps_what_it_has(tmp_path, url):
    first = server(tmp_path / "first", url)
    cast(first.store)
    first.backup._step()
    cast(first.store, "b")  # is in no snapshot yet
    own = rows(first.settings.database)
    second = server(tmp_path / "second", url)
    second.lease.clock = lambda: 1e9
    second.lease.step(second.stop_recording, second.take_over)
    first.lease.step(first.stop_recording, first.take_over)
    with pytest.raises(StoreUnavailable, match="has taken over"):
        cast(first.store)
    first.backup._step()
    assert first.backup.status().trouble == status.TAKEN_OVER and rows(first.settings.database) == own
    second.store.close()
    second.close()  # which starts again as the one that records
    second = server(tmp_path / "second", url)
    second.lease.close()
    first.lease.step(first.stop_recording, first.take_over)
    first.store.close()
    again = server(tmp_path / "first", url)
    [aside] = (tmp_path / "first").glob(f"{ASIDE}*")
    assert rows(aside / "nudge.db") == own != rows(again.settings.database)
    [notice] = again.backup.status().notices
    assert notice.values["folder"] == aside.name


def test_a_server_whose_backup_is_anothers_gives_the_lease_back(tmp_path, url, target):
    """It would keep the lease from the server whose snapshots these are, and save nothing."""
    first = server(tmp_path / "first", url)
    cast(first.store)
    first.backup._step()
    first.close()
    Store(tmp_path / "other" / "nudge.db").close()
    other = server(tmp_path / "other", url)
    assert other.lease.holder == "we"
    other.backup._step()
    assert other.backup.status().trouble == status.HELD and claims(target) == []


def test_a_claim_says_nothing_of_anybody(tmp_path, url, target):
    server(tmp_path / "first", url)
    [name] = claims(target)
    assert json.loads((target / FOLDER / name).read_bytes()).keys() == {"time", "beat", "folder"}


def test_the_command_is_started_again_as_it_was(monkeypatch):
    called = []
    monkeypatch.setattr(app.os, "execv", lambda *args: called.append(args))
    monkeypatch.setattr(app.sys, "orig_argv", ["python", "-u", "app.py", "--port", "1"])
    monkeypatch.setattr(app.logging, "shutdown", lambda: None)
    app.start_again()
    assert called == [(app.sys.executable, [app.sys.executable, "-u", "app.py", "--port", "1"])]


# -- a wake after the disk is gone


def test_after_a_sleep_in_the_middle_of_everything_the_next_start_goes_on(tmp_path, url, target, monkeypatch):
    """A reply that streams, a round that trains, a snapshot that is half there, and the disk is lost."""
    first = server(tmp_path / "first", url)
    cast(first.store)
    ann = first.store.annotator("somebody")
    conversation = first.store.new_conversation(ann)
    streaming = first.store.start_duel(conversation, "Hello", [1, 2, 3], [candidate(1), candidate(2)])
    first.store.request_round()
    take(first.store, "w1")
    first.store.update_round(1, "w1", phase="ppo", step=3, steps=8)
    first.backup._step()
    cast(first.store, "b")
    with monkeypatch.context() as patch:
        patch.setattr(Archive, "add", deaf)  # its blobs are there, its manifest is not
        first.backup._progress.began = float("-inf")
        first.backup._step()
    assert len(snapshots(target)) == 1

    again = server(tmp_path / "second", url)
    again.lease.clock = lambda: 1e9  # the first one was killed and is silent
    again.lease.step(again.stop_recording, again.take_over)
    again.store.close()
    again = server(tmp_path / "second", url)
    store = again.store
    assert not again.reads_only and len(store.rows("select 1 from vote")) == 1
    assert {store.duel(streaming)[side]["status"] for side in ("left", "right")} == {"error"}
    assert take(store, "w2") is None  # it has not seen that the worker before is silent
    store.clock = lambda: 1e9
    row = take(store, "w2")
    assert (row["id"], row["phase"], row["state"]) == (1, "collect", "running")
    store.vote(1, ann, "b", store.duel(1)["right"]["message"])
    again.backup._step()
    assert again.backup.status().trouble is None and len(snapshots(target)) == 2


# -- a server that was away


def take_over(path, url, lease):
    """Of the server in the folder `path`, whose lease this is and which sees the other one for dead: the next start."""
    lease.clock = lambda: 1e9
    lease.step(lambda: None, lambda: starting.mark(path, is_copy=True))
    return server(path, url)


def save(made):
    made.backup._progress.began = made.backup._progress.not_before = float("-inf")
    made.backup._step()
    return made.backup.status()


def test_a_server_that_comes_back_after_its_successor_ended_goes_on_from_what_that_one_saved(tmp_path, url, target):
    """There was no claim and a database, so it saved its old one on top; the successor's votes were in no snapshot."""
    first = server(tmp_path / "first", url)
    cast(first.store)
    save(first)
    cast(first.store, "b")  # is in no snapshot
    own = rows(first.settings.database)
    first.store.close()  # it crashes, with its claim in the target
    second = server(tmp_path / "second", url)
    second.store.close()
    second = take_over(tmp_path / "second", url, second.lease)
    cast(second.store)
    save(second)
    newest = rows(second.settings.database)
    second.store.close()
    second.close()
    assert claims(target) == []
    again = server(tmp_path / "first", url)
    assert again.lease.holder == "we" and not again.lease.took_over
    [aside] = (tmp_path / "first").glob(f"{ASIDE}*")
    assert rows(again.settings.database) == newest and rows(aside / "nudge.db") == own != newest
    cast(again.store)
    assert save(again).trouble is None and len(snapshots(target)) == 3
    again.store.close()
    again.lease.close()
    assert len(server(tmp_path / "third", url).store.rows("select 1 from vote")) == 3


@pytest.mark.parametrize("is_there", [True, False])
def test_a_server_that_was_killed_while_it_saved_keeps_its_database(tmp_path, url, target, monkeypatch, is_there):
    first = server(tmp_path / "first", url)
    cast(first.store)
    save(first)
    cast(first.store, "b")
    add = Archive.add
    with monkeypatch.context() as patch:  # right after the manifest, or right before it
        patch.setattr(Archive, "add", lambda *args: (add(*args) if is_there else None, deaf()))
        save(first)
    assert len(snapshots(target)) == 1 + is_there
    cast(first.store)
    own = rows(first.settings.database)
    first.store.close()
    again = server(tmp_path / "first", url)
    assert rows(again.settings.database) == own and list((tmp_path / "first").glob(f"{ASIDE}*")) == []
    assert save(again).trouble is None and len(snapshots(target)) == 2 + is_there


def test_a_start_that_could_not_ask_saves_nothing_on_top_of_anothers_snapshot(tmp_path, url, target, monkeypatch):
    first = server(tmp_path / "first", url)
    cast(first.store)
    save(first)
    first.store.close()
    second = server(tmp_path / "second", url)
    second.store.close()
    second = take_over(tmp_path / "second", url, second.lease)
    cast(second.store)
    save(second)
    second.close()
    with monkeypatch.context() as patch:
        patch.setattr(Target, "list", lambda *_: (_ for _ in ()).throw(TargetUnavailable("no route to host")))
        again = server(tmp_path / "first", url)
    cast(again.store, "b")
    assert save(again).trouble == status.SHARED and len(snapshots(target)) == 2


def test_a_server_that_saves_nothing_leaves_the_lease_and_sees_who_takes_it(tmp_path, url, target):
    """It looked no more, and recorded on beside the one that had the lease."""
    first = server(tmp_path / "first", url)
    cast(first.store)
    save(first)
    other = Folder(tmp_path / "other", url)  # of an earlier version, without a lease
    cast(other.store, "b")
    other.save()
    cast(first.store)
    assert save(first).trouble == status.SHARED and claims(target) == []
    for _ in range(2):
        first.lease.step(first.stop_recording, first.take_over)
        assert claims(target) == [] and first.store.read_only is None
    second = server(tmp_path / "second", url)
    assert second.lease.holder == "we"
    first.lease.step(first.stop_recording, first.take_over)
    with pytest.raises(StoreUnavailable, match="has taken over"):
        cast(first.store)
    assert not first.again
    second.lease.close()
    first.lease.step(first.stop_recording, first.take_over)
    assert first.again and len(claims(target)) == 1


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_snapshot_that_was_under_way_when_the_lease_was_lost_is_not_added(tmp_path, url, target, has_ended):
    """The new holder took it for another app's and saved nothing any more."""
    first = server(tmp_path / "first", url)
    cast(first.store)
    save(first)
    waits = server(tmp_path / "second", url)
    waits.store.close()
    taken = []

    def stand_still():
        second = take_over(tmp_path / "second", url, waits.lease)
        taken.append(second)
        if has_ended:  # after a snapshot, and its claim is gone
            cast(second.store, "b")
            save(second)
            second.lease.close()

    cast(first.store)
    first.backup._check_room = stand_still
    shown = save(first)
    assert len(snapshots(target)) == 1 + has_ended
    assert shown.trouble == (status.SHARED if has_ended else None)
    [second] = taken
    cast(second.store)
    assert save(second).trouble is None and len(snapshots(target)) == 2 + has_ended


def test_a_start_that_could_not_restore_claims_nothing_and_sees_who_records(tmp_path, url, target):
    first = server(tmp_path / "first", url)
    cast(first.store)
    save(first)
    first.store.close()
    for file in (tmp_path / "first").glob("nudge.db*"):
        file.unlink()
    (target / "snapshots").rename(tmp_path / "away")
    first = server(tmp_path / "first", url)
    assert first.backup.status().trouble == status.GONE
    first.lease.step(first.stop_recording, first.take_over)
    assert claims(target) == [] and not first.reads_only
    (tmp_path / "away").rename(target / "snapshots")
    second = server(tmp_path / "second", url)
    first.lease.step(first.stop_recording, first.take_over)
    assert not second.reads_only and first.reads_only and first.store.read_only == status.TAKEN_OVER
