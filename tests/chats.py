"""A Chat over a running engine with a tiny model, for the tests of the conversation."""

import random
import time
from functools import cache

import pytest

from playground.chat.session import Chat
from playground.models import loading
from playground.serving.engine import Engine
from playground.settings import Settings
from playground.store import Store
from tests.tiny import tiny_folder
from tests.waits import stand_still


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"))


@cache
def loaded(folder):
    """Settings of a folder's model, the model and its tokenizer, which no engine changes."""
    settings = Settings(
        model=str(folder), threads=1, chat={"reply_tokens": 24, "stream_hz": 50}, dtype="float32", _env_file=None
    )
    return settings, loading.load_trunk(settings), loading.load_tokenizer(settings)


@pytest.fixture
def chat(folder):
    settings, trunk, tokenizer = loaded(folder)
    engine = Engine(Store(), settings, trunk, tokenizer).start()
    yield Chat(engine.store, engine, settings, random.Random(0))
    engine.close()


def slow(chat, seconds=0.02):
    """Make each decoding step take at least this long, and no reply end by itself before its last token."""
    chat.engine.end_tokens = frozenset()
    step = chat.engine.step
    chat.engine.step = lambda: (chat.engine._running and time.sleep(seconds), step())[1]


def hold(chat, annotator, when=None):
    """Have the engine write nothing more, once both replies to this person have words that differ (or `when` holds of
    their two texts), until the Event that is returned is set or they are told to stop: a test may take its time.
    """
    when = when or (lambda left, right: left and right and left != right)

    def holds():
        turn = chat._turns.get(annotator)
        stream = turn and turn.stream
        return stream and not stream.stopping.is_set() and when(*map(str.strip, stream.texts()))

    return stand_still(chat.engine, holds)


def person(chat, name="ann"):
    return chat.store.annotator(name)


def turn(chat, annotator, text="Hello", choice=None):
    """Send, let both replies end, and vote where a choice is given; the last View."""
    view = list(chat.send(annotator, text))[-1]
    return chat.vote(annotator, view.duel, choice) if choice else view
