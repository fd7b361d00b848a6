"""Versions under running streams: what goes live, what is refused, what a turn is pinned to."""

import time

import pytest
import torch

from playground.decoding import decoder
from playground.decoding.sampling import Sampling
from playground.decoding.transformers_forward import TransformersForward
from playground.models import adapter_reading, adapters, loading, lora
from playground.serving import canaries, engine
from playground.serving.engine import Engine, EngineStopped
from playground.settings import Settings
from playground.store import Store
from tests.tiny import tiny_folder
from tests.waits import until

GREEDY = Sampling(temperature=0, max_tokens=12)
SAMPLED = Sampling(temperature=1.0, max_tokens=12)
PROMPT = [1, 30, 31, 32]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture
def site(folder, tmp_path):
    """An engine whose threads do not run: the test is both of them."""
    settings = Settings(
        model=folder,
        data_dir=tmp_path,
        device="cpu",
        dtype="float32",
        threads=1,
        round={"poll_seconds": 0.05},
        decode_format="float32",
    )
    return Engine(Store(), settings, loading.load_trunk(settings), loading.load_tokenizer(settings))


def publish(site, size=0.05, version_of=None, trial=False, **tensors):
    """Publish a LoRA of random tensors through a round, as the worker does; returns its version."""
    store, settings = site.store, site.settings
    store.request_round()
    round_id = store.take_round("worker", lease_seconds=30)["id"]
    version = store.add_policy(round_id, "worker", parent=store.live_policy()["version"])
    peft_model = lora.with_lora(lora.tied_copy(site.base), rank=4, alpha=8, targets=lora.linear_targets(site.base))
    noise = torch.Generator().manual_seed(version)
    weights = {k: size * torch.randn(v.shape, generator=noise) for k, v in lora.lora_parameters(peft_model).items()}
    path, sha256 = adapters.write(
        settings.adapters_dir,
        version,
        weights | tensors,
        rank=4,
        alpha=8,
        targets=lora.linear_targets(site.base),
        base=version_of or site.identity,
        parent=0,
        round_id=round_id,
        scores={},
    )
    store.publish(round_id, "worker", version, path, sha256, {}, trial)
    return version


def run(site, stream):
    while not stream.finished.is_set():
        site.step()
    assert stream.error is None
    return [r.token_ids for r in stream.decoding.replies]


def alone(site, version):
    """What a version says greedily, built afresh from disk, by transformers' own forward."""
    model = (
        adapters.load(site.settings.adapters_dir / f"v{version:04d}", site.base, base_hash=site.identity["hash"])
        if version
        else site.base
    )
    return [
        r.token_ids for r in decoder.run(TransformersForward(model), [PROMPT], [0, 0], GREEDY, site.end_tokens, n=2)
    ]


# -- the swap


def test_a_published_version_answers_the_next_turn_and_no_earlier_one(site):
    before = site.duel(PROMPT, [0, 0], GREEDY)
    site.step()
    publish(site, 0.3)
    assert site.versions.follow_store() and site.live.version == 1
    after = site.duel(PROMPT, [0, 0], GREEDY)
    assert (before.policy.version, after.policy.version) == (0, 1)
    assert run(site, before) == alone(site, 0) != alone(site, 1) == run(site, after)


def test_a_version_goes_live_though_the_data_folder_was_moved(site):
    """A backup that was restored elsewhere, or a start from another directory, lost the live version for good."""
    publish(site, 0.3)
    with site.store.writing() as db:
        db["policy"].update(1, {"path": "data/of/before/v0001"})
    assert site.versions.follow_store() and site.live.version == 1


def test_a_third_version_waits_until_the_first_has_no_streams(site):
    publish(site)
    site.versions.follow_store()
    streaming = site.duel(PROMPT, [0, 0], GREEDY)
    publish(site)
    assert site.versions.follow_store() and site.live.version == 2
    publish(site)
    assert not site.versions.follow_store() and site.live.version == 2
    assert run(site, streaming) == alone(site, 1)
    assert site.versions.follow_store() and site.live.version == 3


def test_a_roll_back_is_the_same_swap(site):
    publish(site)
    publish(site)
    site.versions.follow_store()
    site.store.roll_back(1)
    assert site.versions.follow_store() and site.live.version == 1
    assert run(site, site.duel(PROMPT, [0, 0], GREEDY)) == alone(site, 1)
    assert [r["status"] for r in site.store.rows("select status from policy order by version")] == [
        "retired",
        "live",
        "rolled_back",
    ]


def test_going_back_to_the_version_before_builds_nothing(site, monkeypatch):
    publish(site)
    site.versions.follow_store()
    publish(site)
    site.versions.follow_store()
    monkeypatch.setattr(site.versions, "_build", lambda _row: pytest.fail("built again"))
    site.store.roll_back(1)
    assert site.versions.follow_store() and run(site, site.duel(PROMPT, [0, 0], GREEDY)) == alone(site, 1)


def test_the_threads_take_a_version_live_by_themselves(site):
    site.start()
    try:
        publish(site)
        until(lambda: site.duel(PROMPT, [0, 0], Sampling(temperature=0, max_tokens=1)).policy.version == 1)
        assert site.live.version == 1 and site.healthy
    finally:
        site.close()
    assert not site.healthy


# -- what is refused


def refused(site, bad, reason):
    """The bad version is rejected with the reason, the one before goes on."""
    live = site.live.version
    assert site.versions.follow_store() and site.live.version == live == site.store.live_policy()["version"]
    row = site.store.policy(bad)
    assert row["status"] == "rejected" and reason in row["reason"]
    assert run(site, site.duel(PROMPT, [0, 0], GREEDY)) == alone(site, live)


def test_a_damaged_file_is_refused(site):
    publish(site)
    site.versions.follow_store()
    bad = publish(site)
    weights = site.settings.adapters_dir / f"v{bad:04d}" / adapter_reading.WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refused(site, bad, "does not match the hash")


def test_a_version_of_another_base_is_refused(site):
    refused(site, publish(site, version_of={"model": "another", "hash": "0" * 64}), "was trained on another")


def test_a_version_that_does_not_fit_is_refused(site):
    refused(site, publish(site, **{"layers.9.lora_A.weight": torch.ones(2, 2)}), "does not fit the model")


def test_a_version_that_is_not_finite_is_refused(site):
    name = "model.layers.0.mlp.down_proj.lora_A.weight"
    refused(site, publish(site, **{name: torch.full((4, 128), float("nan"))}), "norm nan")


def test_a_version_that_ends_every_reply_at_once_is_refused(site):
    bad = publish(site)
    ends, site.versions.end_tokens = site.versions.end_tokens, frozenset(range(400))  # nearly every token
    assert site.versions.follow_store() and site.live.version == 0
    assert "ends its reply at once on every plain request" in site.store.policy(bad)["reason"]
    site.versions.end_tokens = ends


def test_a_version_far_from_the_base_is_refused(site, monkeypatch):
    monkeypatch.setattr(canaries, "MAX_CANARY_KL", 0.01)
    refused(site, publish(site, 0.5), "nats from the base on plain requests; at most 0.01 is accepted")


def test_a_refused_version_can_be_followed_by_a_good_one(site):
    bad = publish(site, version_of={"model": "another", "hash": "0" * 64})
    refused(site, bad, "another")
    good = publish(site)
    assert site.versions.follow_store() and site.live.version == good > bad


def test_after_a_restart_a_bad_version_gives_way_to_its_parent(site):
    good = publish(site)
    bad = publish(site, version_of={"model": "another", "hash": "0" * 64})
    site.start()  # as a new process: nothing answers but the base
    try:
        assert site.live.version == good == site.store.live_policy()["version"]
        assert site.store.policy(bad)["status"] == "rejected"
    finally:
        site.close()


# -- the end


def test_closing_ends_what_streams_and_takes_nothing_more(site):
    site.start()
    stream = site.duel(PROMPT, [0, 0], Sampling(temperature=0, max_tokens=100_000))
    site.close()
    assert stream.wait(0) and all(r["finish_reason"] in ("stopped", "end") for r in stream.results())
    with pytest.raises(EngineStopped, match="Send your message again"):
        site.duel(PROMPT, [0, 0], GREEDY)


# -- many at once


def test_people_who_talk_at_once_get_what_each_would_get_alone(site):
    prompts = [PROMPT, [1, *range(40, 60)], [1, 33]]
    expected = [
        [r.token_ids for r in decoder.run(TransformersForward(site.base), [p], [3, 4], SAMPLED, site.end_tokens, n=2)]
        for p in prompts
    ]
    streams = [site.duel(prompts[0], [3, 4], SAMPLED)]
    for later in prompts[1:]:
        site.step()
        streams.append(site.duel(later, [3, 4], SAMPLED))
    assert [run(site, stream) for stream in streams] == expected


def test_versions_run_side_by_side(site):
    old = site.duel(PROMPT, [0, 0], GREEDY)
    publish(site, 0.3)
    site.versions.follow_store()
    new = site.duel(PROMPT, [0, 0], GREEDY)
    while not new.finished.is_set():
        site.step()
        assert abs(max(old.tokens()) - max(new.tokens())) <= 1 or old.finished.is_set()
    assert run(site, old) == alone(site, 0) and run(site, new) == alone(site, 1)


def test_a_long_prompt_does_not_hold_up_those_who_stream(site):
    short = site.duel(PROMPT, [3, 4], Sampling(1.0, max_tokens=30))
    site.step()
    before = short.tokens()
    long = site.duel([1] * 600, [3, 4], SAMPLED)
    site.step()
    assert long.decoding.prefilling and not short.finished.is_set() and max(short.tokens()) == max(before) + 1


def test_who_finds_no_room_waits_in_order_and_sees_the_place(site):
    first = site.duel(PROMPT, [3, 4], SAMPLED)
    site.step()
    site.kv_pool.budget = first.nbytes
    second, third = (site.duel(PROMPT, [3, 4], SAMPLED) for _ in range(2))
    site.step()
    assert (first.place, second.place, third.place) == (0, 1, 2) and second.decoding is None
    run(site, first)
    site.step()
    assert (second.place, third.place) == (0, 1)
    assert run(site, second) == run(site, third) == [r.token_ids for r in first.decoding.replies]


def test_who_waits_can_leave(site):
    first = site.duel(PROMPT, [3, 4], SAMPLED)
    site.step()
    site.kv_pool.budget = first.nbytes
    second, third = (site.duel(PROMPT, [3, 4], SAMPLED) for _ in range(2))
    second.stop()
    site.step()
    assert second.finished.is_set() and second.results()[0]["finish_reason"] == "stopped"
    assert third.place == 1 and run(site, third)


def test_a_message_larger_than_the_memory_runs_alone(site):
    site.kv_pool.budget = 1
    assert run(site, site.duel(PROMPT, [0, 0], GREEDY)) == alone(site, 0)


def test_stop_frees_the_room_at_the_next_step(site):
    stream = site.duel(PROMPT, [3, 4], Sampling(1.0, max_tokens=100))
    site.step()
    stream.stop()
    site.step()
    assert stream.finished.is_set() and site.kv_pool.used == 0 and site.live.streams == 0


# -- the next turn of a conversation


def test_the_next_turn_reads_only_what_is_new(site):
    stream = site.duel([1, *range(30, 60)], [3, 4], SAMPLED)
    replies = run(site, stream)
    longest = max(replies, key=len)
    nxt = [1, *range(30, 60), *longest, 7, 8, 9]
    again = site.duel(nxt, [5, 6], SAMPLED)
    site.step()
    assert again.reused >= 31 + len(longest) - 1  # all but the last token, which was drawn and never read
    assert run(site, again) == [
        r.token_ids for r in decoder.run(TransformersForward(site.base), [nxt], [5, 6], SAMPLED, site.end_tokens, n=2)
    ]


def test_another_version_reads_the_whole_again(site):
    run(site, site.duel([1, *range(30, 60)], [3, 4], SAMPLED))
    publish(site)
    site.versions.follow_store()
    again = site.duel([1, *range(30, 61)], [3, 4], SAMPLED)
    site.step()
    assert again.reused == 0


def test_what_was_kept_goes_when_others_need_the_room(site):
    first = site.duel([1, *range(30, 60)], [3, 4], SAMPLED)
    run(site, first)
    site.kv_pool.budget = first.nbytes
    run(site, site.duel([2, *range(60, 90)], [3, 4], SAMPLED))
    assert sum(entry.cache.nbytes for entry in site.kv_pool.retained) <= site.kv_pool.budget
    again = site.duel([1, *range(30, 60)], [3, 4], SAMPLED)
    site.step()
    assert again.reused == 0


# -- where a reply ends


def test_a_reply_ends_where_the_stop_text_begins(site):
    whole = site.duel(PROMPT, [3, 4], Sampling(1.0, max_tokens=40))
    run(site, whole)
    text = max(whole.texts(), key=len)
    at = len(text) // 2
    stop = text[at : at + 3]
    cut = site.duel(PROMPT, [3, 4], Sampling(1.0, max_tokens=40), stop)
    shown = []
    while not cut.finished.is_set():
        site.step()
        shown += cut.texts()
    side = whole.texts().index(text)
    assert cut.texts()[side] == text[: text.index(stop)] and cut.results()[side]["finish_reason"] == "end"
    assert not any(stop in t for t in shown)


def test_weights_that_were_rejected_are_not_tried_again(site, monkeypatch):
    bad = publish(site, 0.3)
    with monkeypatch.context() as strict:
        strict.setattr(canaries, "MAX_CANARY_KL", 1e-9)
        site.versions.follow_store()
    row = site.store.policy(bad)
    assert row["status"] == "rejected"
    site.store.request_round()
    round_id = site.store.take_round("worker", lease_seconds=30)["id"]
    again = site.store.add_policy(round_id, "worker", parent=0)
    site.store.publish(round_id, "worker", again, row["path"], row["sha256"], {})
    assert site.versions.follow_store() and site.live.version == 0
    assert "very weights of v1, which was rejected" in site.store.policy(again)["reason"]


def test_the_worker_stands_still_until_the_first_tokens_are_there(site):
    class Worker:
        said = []

        def pause(self):
            self.said.append("pause")

        def resume(self):
            self.said.append("resume")

    site.worker_process = Worker()
    stream = site.duel([1] * 450, [3, 4], SAMPLED)  # read in three parts
    run(site, stream)
    site.step()
    assert Worker.said[:3] == ["pause"] * 3 and set(Worker.said[3:]) == {"resume"}


def test_the_layers_of_a_version_that_is_gone_serve_the_next_and_carry_nothing_over(site):
    models_seen = []
    for _ in range(4):
        version = publish(site, 0.3)
        site.versions.follow_store()
        models_seen.append(id(site.live.model))
        assert run(site, site.duel(PROMPT, [0, 0], GREEDY)) == alone(site, version)
    assert len(set(models_seen)) < 4, "layers should be used again"


def test_what_is_free_goes_back_once_nobody_has_chatted_for_a_moment(site, monkeypatch):
    releases = []
    site.start()
    monkeypatch.setattr(engine, "IDLE_SECONDS", (0.05, 0.1))
    monkeypatch.setattr(engine.memory, "release", lambda: releases.append(site.running))
    try:
        for _ in range(2):
            releases.clear()
            assert site.duel(PROMPT, [1, 2], SAMPLED).finished.wait(30)
            until(lambda: len(releases) == 2)
            time.sleep(0.3)
            assert releases == [0, 0], "twice after the turn, and not again while nobody comes"
    finally:
        site.close()
