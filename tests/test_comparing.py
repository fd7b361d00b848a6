"""Two versions compared on one's own prompt: who replies, what may be loaded, and that nothing is kept."""

import random
import threading
import time

import pytest

from playground.chat.refusals import Refused
from playground.chat.session import Chat
from playground.models import loading
from playground.models.prompts import BadMessage
from playground.serving.engine import Engine
from playground.settings import Settings
from playground.store import Store, StoreError
from playground.system import memory
from tests.test_engine import publish as publish_into
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"))


class Scene:
    """A chat. The engine's threads decode and load."""

    def __init__(self, folder, data_dir):
        self.settings = Settings(
            model=str(folder),
            data_dir=data_dir,
            threads=1,
            dtype="float32",
            decode_format="float32",
            chat={"reply_tokens": 12, "stream_hz": 50},
            round={"poll_seconds": 0.1},
            trial={"duels": 0},
            _env_file=None,
        )
        self.store = Store()
        self.base, tokenizer = loading.load_trunk(self.settings), loading.load_tokenizer(self.settings)
        self.engine = Engine(self.store, self.settings, self.base, tokenizer)
        self.identity = self.engine.identity
        self.versions = self.engine.versions
        for _ in range(4):
            publish_into(self, 0.3)
            self.versions.follow_store()
        self.engine.start()
        self.chat = Chat(self.store, self.engine, self.settings, random.Random(0))

    def compare(self, text="Tell me something", left=0, right=4, **more):
        return list(self.chat.compare(self.store.annotator("ann"), text, left, right, **more))


@pytest.fixture
def scene(folder, tmp_path):
    scene = Scene(folder, tmp_path)
    yield scene
    scene.engine.close()


def watch_matches(scene):
    """The streams of two versions that begin from now on."""
    matched = []
    match_duel = scene.engine.match_duel

    def watched(match, *arguments):
        matched.append(match_duel(match, *arguments))
        return matched[-1]

    scene.engine.match_duel = watched
    return matched


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_votes_are_taken_while_a_comparison_runs(scene):
    """It says nothing of the chat, and may load for a minute."""
    ann = scene.store.annotator("ann")
    duel = list(scene.chat.send(ann, "Hello"))[-1].duel
    comparing = scene.chat.compare(ann, "Tell me something", 0, 4, may_load=True)
    next(comparing)
    assert scene.chat.busy(ann)
    scene.chat.vote(ann, duel, "a")
    vote = scene.chat.correct(ann, scene.store.current_vote(duel, ann)["id"], "b")
    assert scene.store.current_vote(duel, ann)["choice"] == "b"
    scene.chat.withdraw(ann, vote)
    assert scene.store.current_vote(duel, ann) is None and scene.chat.busy(ann)
    comparing.close()


def test_each_version_writes_its_reply_and_nothing_is_kept(scene):
    matched = watch_matches(scene)
    last = scene.compare()[-1]
    assert [policy.version for policy in matched[0].policies] == [0, 4]
    assert [last.left, last.right] == matched[0].texts() and last.left != last.right
    for table in ("message", "duel", "generation", "prompt", "conversation"):
        assert scene.store.rows(f"select * from {table}") == []
    assert not scene.chat.busy(scene.store.annotator("ann"))
    assert not any(scene.versions.resident(version).streams for version in scene.versions.in_memory())


def test_only_some_may_have_a_version_loaded(scene):
    assert 1 not in scene.versions.in_memory()
    with pytest.raises(Refused, match="v1 is not in memory"):
        scene.compare(left=1)
    assert not scene.engine.guests.waiting
    seen = scene.compare(left=1, may_load=True)
    assert str(seen[0].progress) == "Version v1 is being loaded." and seen[-1].left
    assert 1 in scene.versions.in_memory()
    assert scene.compare(left=1)[-1].left, "who may not load it may compare it while it is there"
    scene.compare(left=2, may_load=True)
    assert 1 not in scene.versions.in_memory(), "a guest that nobody compares makes room"
    assert scene.engine.live.version == 4


def test_what_cannot_be_loaded_is_refused_and_keeps_its_status(scene):
    file = scene.settings.adapters_dir / "v0001" / "adapter_model.safetensors"
    file.write_bytes(b"broken")
    with pytest.raises(Refused, match="v1 could not be loaded"):
        scene.compare(left=1, may_load=True)
    assert scene.store.policy(1)["status"] == "retired"


def test_two_versions_that_are_both_not_in_memory_reply_side_by_side(scene):
    """There was one guest: each of the two was unloaded for the other, and the page said "Try again" for ever."""
    assert not {1, 2} & set(scene.versions.in_memory())
    matched = watch_matches(scene)
    last = scene.compare(left=1, right=2, may_load=True)[-1]
    assert last.left and last.right
    assert [policy.version for policy in matched[0].policies] == [1, 2]
    assert {1, 2} <= set(scene.versions.in_memory())
    assert not any(scene.versions.resident(version).streams for version in scene.versions.in_memory())


def test_two_admins_who_load_four_versions_do_not_wait_for_each_other_for_ever(scene):
    for _ in range(2):
        publish_into(scene, 0.2)
    assert wait_until(lambda: scene.engine.live.version == 6)
    replies = []

    def compare(who, left, right):
        replies.append(list(scene.chat.compare(scene.store.annotator(who), "Hello", left, right, may_load=True))[-1])

    people = [
        threading.Thread(target=compare, args=("ann", 1, 2)),
        threading.Thread(target=compare, args=("bob", 3, 4)),
    ]
    for person in people:
        person.start()
    for person in people:
        person.join(40)
    assert len(replies) == 2 and all(reply.left and reply.right for reply in replies)


def test_the_left_version_stays_while_the_right_one_is_loaded(scene):
    """v3 is the version before the live one: a new version that came meanwhile took its place."""
    with scene.engine.guests.invite((3, 4), may_load=False) as invitation:
        assert [policy.version for policy in invitation.policies] == [3, 4]
        publish_into(scene, 0.1)
        time.sleep(0.5)
        assert {3, 4} <= set(scene.versions.in_memory())
    assert wait_until(lambda: scene.engine.live.version == 5)


def test_where_there_is_no_memory_for_a_version_a_sentence_says_so(scene, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(Refused, match="There is no memory for version v1"):
        scene.compare(left=1, right=2, may_load=True)

    def no_memory(*_):
        raise MemoryError

    monkeypatch.undo()
    monkeypatch.setattr(scene.versions, "_admit", no_memory)
    with pytest.raises(Refused, match="There is no memory for version v2"):
        scene.compare(left=0, right=2, may_load=True)


def test_a_withdrawn_version_is_not_compared_though_it_is_in_memory(scene):
    """It stayed in the list and replied until it was unloaded."""
    scene.compare(left=1, right=2, may_load=True)
    scene.store.withdraw(1, scene.store.annotator("admin"), "it leaks")
    assert 1 in scene.versions.in_memory()
    for may_load in (False, True):
        with pytest.raises(Refused, match="v1 cannot be compared"):
            scene.compare(left=1, right=2, may_load=may_load)


def test_a_version_that_is_withdrawn_while_it_is_loaded_is_not_compared(scene):
    going = scene.chat.compare(scene.store.annotator("ann"), "Hello", 1, 2, may_load=True)
    next(going)
    scene.store.withdraw(2, scene.store.annotator("admin"), "it leaks")
    with pytest.raises(Refused, match="v2 cannot be compared"):
        list(going)


@pytest.mark.parametrize("version", [-1, 99, 2**63, 10**40])
def test_a_version_that_does_not_exist_is_refused_before_anything_is_loaded(scene, version):
    """A number that SQLite cannot hold made the versions' thread fail at every look from then on."""
    for may_load in (False, True):
        with pytest.raises(Refused, match="cannot be compared"):
            scene.compare(left=version, may_load=may_load)
    assert not scene.engine.guests.waiting


def test_an_invitation_that_fails_is_not_tried_again(scene, monkeypatch):
    calls = []

    def fail(_):
        calls.append(1)
        raise StoreError("The database is busy.")

    monkeypatch.setattr(scene.versions, "add_guest", fail)
    with pytest.raises(Refused, match="v1 could not be loaded"):
        scene.compare(left=1, may_load=True)
    time.sleep(0.5)
    assert len(calls) == 1 and not scene.engine.guests.waiting


def test_who_leaves_waits_no_more(scene, monkeypatch):
    monkeypatch.setattr(scene.engine.guests, "follow", lambda: None)
    going = scene.chat.compare(scene.store.annotator("ann"), "Hello", 1, 2, may_load=True)
    next(going)
    assert scene.engine.guests.waiting == 1
    going.close()
    assert scene.engine.guests.waiting == 0


def test_the_guest_keeps_no_new_version_waiting(scene):
    scene.compare(left=1, may_load=True)
    guest = scene.versions.pin(scene.versions.resident(1))
    version = publish_into(scene, 0.1)
    assert scene.versions.follow_store() and scene.engine.live.version == version
    assert scene.versions.resident(1) is guest, "somebody still reads its replies"
    scene.versions.unpin(guest)


def test_a_guest_that_goes_live_is_no_guest_any_more(scene):
    scene.compare(left=1, may_load=True)
    policy = scene.versions.resident(1)
    scene.store.promote(1, scene.store.annotator("admin"), "kinder")
    scene.versions.follow_store()
    assert scene.engine.live is policy
    scene.compare(left=2, right=1, may_load=True)
    assert scene.engine.live is policy and 1 in scene.versions.in_memory()


def test_the_limits_of_messages_hold(scene):
    ann = scene.store.annotator("ann")
    with pytest.raises(BadMessage):
        scene.compare(text=" ")
    with pytest.raises(Refused, match="two different"):
        scene.compare(left=4, right=4)
    going = scene.chat.compare(ann, "Hello", 0, 4)
    next(going)
    with pytest.raises(Refused, match="still streaming"):
        scene.compare()
    going.close()
    assert not scene.chat.busy(ann)
    assert scene.compare()[-1].left
