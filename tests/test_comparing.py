"""Two versions compared on one's own prompt: who replies, what may be loaded, and that nothing is kept."""

import random

import pytest

from playground.chat.refusals import Refused
from playground.chat.session import Chat
from playground.models import loading
from playground.models.prompts import BadMessage
from playground.serving.engine import Engine
from playground.settings import Settings
from playground.store import Store
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


def test_each_version_writes_its_reply_and_nothing_is_kept(scene):
    matched = []
    match_duel = scene.engine.match_duel

    def watched(match, *arguments):
        matched.append(match_duel(match, *arguments))
        return matched[-1]

    scene.engine.match_duel = watched
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
    assert not scene.versions.is_invited(1)
    seen = scene.compare(left=1, may_load=True)
    assert str(seen[0].progress) == "Version v1 is being loaded." and seen[-1].left
    assert 1 in scene.versions.in_memory()
    assert scene.compare(left=1)[-1].left, "who may not load it may compare it while it is there"
    scene.compare(left=2, may_load=True)
    assert 1 not in scene.versions.in_memory(), "there is one guest at a time"
    assert scene.engine.live.version == 4


def test_what_cannot_be_loaded_is_refused_and_keeps_its_status(scene):
    file = scene.settings.adapters_dir / "v0001" / "adapter_model.safetensors"
    file.write_bytes(b"broken")
    for version in (1, 99):
        with pytest.raises(Refused, match=f"v{version} could not be loaded"):
            scene.compare(left=version, may_load=True)
    assert scene.store.policy(1)["status"] == "retired"


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
