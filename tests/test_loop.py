"""The whole path, twice round: chat, vote, train, publish, swap under a running stream, chat again with the new
version.
"""

import json
import random
import time

import pytest
import torch

from playground.chat.session import Chat
from playground.decoding.sampling import Sampling
from playground.models import adapters, loading
from playground.serving.engine import Engine
from playground.settings import Settings
from playground.store import Store
from tests.tiny import tiny_model, tiny_tokenizer
from training.worker import run_once

VOTES = 40
GREEDY = Sampling(temperature=0, max_tokens=600)


def settings_for(folder, **changes):
    """Settings that take a round through every phase in seconds on the tiny model."""
    return Settings(
        model=str(planted_folder(folder / "model")),
        data_dir=folder / "data",
        device="cpu",
        dtype="float32",
        threads=1,
        chat={"temperature": 1.0, "reply_tokens": 16, "stream_hz": 60},
        round={"votes": VOTES},
        ppo={
            "iterations": 8,
            "episodes": 64,
            "minibatch": 16,
            "microbatch": 16,
            "rollout_tokens": 16,
            "lr": 4e-3,
            "kl_coefficient": 0.02,
            "kl_target": 3.0,
            "kl_step": 3.0,
        },
        gate={"better": 0.5, "not_worse": 0.5, "kl_budget": 40.0, "prompts": 16, "replies": 2, "canary_fall": 100.0},
        reward={"layer": 0.25, "evidence_confidence": 0.5},
        decode_format="float32",
    ).with_values(**changes)  # to a random model no reply is plain


def liking(text):
    """The hidden taste of the simulated person: plain characters, which the random model often misses."""
    return sum(c.isascii() and c.isprintable() for c in text)


def planted_folder(path):
    """The tiny model, its random embeddings moved so that multi-letter tokens share a direction: something a linear
    head can find in 40 votes.
    """
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    plain = [i for i, text in enumerate(texts) if len(text) > 1 and liking(text) == len(text)]
    with torch.no_grad():
        model.get_input_embeddings().weight[plain] += 0.1
    tokenizer.save_pretrained(path)
    model.save_pretrained(path)
    return path


def chat_and_vote(store, chat, n, name):
    """One person has `n` one-turn chats and votes by taste; returns the mean taste of all replies seen."""
    seen = []
    for i in range(n):
        who = store.annotator(f"{name} {i}")
        *_, view = chat.send(who, f"Tell me about the thing number {i}")
        assert view.phase == "voting"
        left, right = liking(view.left.text), liking(view.right.text)
        view = chat.vote(who, view.duel, "tie" if left == right else "a" if left > right else "b")
        assert view.phase == "voted"
        seen += [left, right]
    return sum(seen) / len(seen)


def greedy(settings, engine, version, prompt, reply):
    """What a version, built afresh from disk, finds likeliest after the prompt and after each token of the reply: of a
    greedy reply, the reply itself.
    """
    base = loading.load_trunk(settings)
    model = (
        adapters.load(settings.adapters_dir / f"v{version:04d}", base, base_hash=engine.identity["hash"])
        if version
        else base
    )
    with torch.no_grad():
        logits = model(torch.tensor([prompt + reply])).logits[0]  # (L, V)
    return logits[len(prompt) - 1 : -1].argmax(-1).tolist()


@pytest.fixture
def running(tmp_path):
    # several iterations to the target: one large one spent all of it, and its direction was sometimes a bad one
    settings = settings_for(tmp_path, ppo={"lr": 2e-3, "kl_target": 6.0, "kl_step": 6.0})
    store = Store(settings.database)
    engine = Engine(store, settings, loading.load_trunk(settings), loading.load_tokenizer(settings))
    engine.end_tokens = frozenset()  # the in-flight streams must outlive the swap
    engine.start()
    yield settings, store, engine, Chat(store, engine, settings, random.Random(5))
    engine.close()


def test_votes_become_a_version_that_answers_the_next_message_twice_over(running):
    settings, store, engine, chat = running
    prompt = engine.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_dict=False
    )

    def assert_greedy(stream):
        """Both replies are those of the stream's version alone, with nobody else around."""
        replies = [reply.token_ids for reply in stream.decoding.replies]
        assert len(replies[0]) == GREEDY.max_tokens and replies[0] == replies[1]
        assert replies[0] == greedy(settings, engine, stream.policy.version, prompt, replies[0])

    tastes = []
    for version in (1, 2):
        tastes.append(chat_and_vote(store, chat, VOTES, f"round {version}"))
        assert engine.live.version == version - 1

        row = run_once(store, settings, "test worker")
        assert row["state"] == "published", row["reason"]
        assert row["id"] == version
        assert store.live_policy()["version"] == version
        # the first starts from the base, the second goes on from the first by a step
        figures = row["metrics"]
        assert figures["started_from"] == version - 1
        if version == 1:
            assert (figures["kl_start"], figures["kl_target"]) == (pytest.approx(0, abs=1e-3), settings.ppo.kl_step)
        else:
            assert figures["kl_start"] > 0.5 and 0.5 < figures["kl_step"] <= settings.ppo.kl_step * 1.25
            assert figures["kl_target"] == pytest.approx(figures["kl_start"] + figures["kl_step"])
        assert "samples" not in json.loads(store.live_policy()["gate_report"]), "people's words are in the file alone"

        # a stream of the version before is in flight while the new one takes over
        stream = engine.duel(prompt, [0, 0], GREEDY)
        if stream.policy.version == version - 1:
            wait_until(lambda version=version: engine.live.version == version)
        assert stream.wait(60)
        assert stream.error is None
        assert_greedy(stream)

        follower = engine.duel(prompt, [0, 0], GREEDY)
        assert follower.policy.version == version
        assert follower.wait(60)
        assert_greedy(follower)

        curves = store.metrics(row["id"])
        assert {"reward", "kl", "beta", "entropy", "length", "explained_variance", "clip_fraction"} <= curves.keys()
    tastes.append(chat_and_vote(store, chat, VOTES, "after"))
    assert tastes[1] > tastes[0] and tastes[2] > tastes[0], tastes
    statuses = [row["status"] for row in store.rows("select status from policy order by version")]
    assert statuses == ["retired", "retired", "live"]


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
