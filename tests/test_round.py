"""One round's own decisions: the prompts it rolls out on and where it starts. The whole path is test_loop.py's."""

import itertools
import json
from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from playground.models import adapter_reading, adapters, prompts
from playground.models.trial import Tally, tally_against_base
from playground.settings import Settings
from playground.store import ImportedRow, Store
from playground.system.messages import Message
from tests.stores import candidate, cast, outcome
from tests.test_policy import moved, settings
from tests.tiny import tiny_folder, tiny_model
from training import gate, reward, rollout, round_gate, round_start
from training.policy import PolicyModel
from training.preferences import A, Pair, Preferences
from training.reward_validation import Choice
from training.round import Round
from training.round_control import RoundEnded
from training.round_gate import GateReplies


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model")))


def publish(this, tensors, trial=False, report=None):
    """The tensors become the live version, made by `this` round, with this report of the gate."""
    store, settings = this.store, this.settings
    live = store.live_policy()["version"]
    version = store.add_policy(this.id, "w", parent=live)
    path, sha256 = adapters.write(
        settings.adapters_dir,
        version,
        tensors,
        rank=settings.ppo.lora_rank,
        alpha=settings.ppo.lora_alpha,
        targets=this.models.policy.targets,
        base=this.models.base,
        parent=live,
        round_id=this.id,
        scores={},
    )
    store.publish(this.id, "w", version, path, sha256, report or {}, trial)


def taken(store, settings, asked=True):
    """A round that has just been taken, one that a person asked for or one that began by itself."""
    if asked:
        store.request_round()
    this = Round(store, settings, store.take_round("w", lease_seconds=60, auto_votes=None if asked else 1), "w")
    (this.folder / "preferences.json").write_text(json.dumps(Preferences().as_json()))
    return this


def running(folder, tmp_path, live=None, **changes):
    """A round of its own that has just been taken; `live` are the LoRA tensors of the version that answers."""
    chosen = settings(model=folder, data_dir=tmp_path, **changes)
    store = Store(chosen.database)
    this = taken(store, chosen)
    if live is not None:
        publish(this, live)
        this = taken(store, chosen)
    return this


def strong():
    """An update beyond the KL target here."""
    return moved(PolicyModel(tiny_model(), settings()), 0.05).state()


def ratio(state, of):
    """How large the update's B is, relative to another's; the two must point the same way."""
    a, b = (torch.cat([v.flatten() for k, v in tensors.items() if "lora_B" in k]) for tensors in (state, of))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.999
    return (a.norm() / b.norm()).item()


def is_base(this):
    """Whether the round's policy is the base, and the round says so."""
    assert this.store.round(this.id)["metrics"]["started_from"] == 0
    start = load_file(this.folder / "start.safetensors")
    assert not any(tensor.any() for name, tensor in start.items() if "lora_B" in name)
    return not any(v.any() for k, v in this.models.policy.state().items() if "lora_B" in k)


def test_a_round_can_start_from_the_base(folder, tmp_path):
    this = running(folder, tmp_path, live=strong(), round={"start_from": "base"})
    this._sft()
    assert is_base(this) and round_start.kl_step(this.models) is None


def test_a_round_goes_on_from_the_live_version_as_it_is_by_a_step(folder, tmp_path):
    live = strong()
    this = running(folder, tmp_path, live=live, ppo={"kl_step": 2.0})
    this._sft()
    assert ratio(this.models.policy.state(), live) == pytest.approx(1, abs=1e-6)
    assert this.store.round(this.id)["metrics"]["started_from"] == 1
    this.record(cv_accuracy=0.625)  # of votes that agree half as much as is asked for a whole step
    resumed = Round(this.store, this.settings, this.store.round(this.id), "w")
    resumed.settings = this.settings.with_values(ppo={"iterations": 1, "lr": 1e-9})
    resumed.score = lambda episodes: torch.zeros(len(episodes))
    resumed._ppo()  # killed after its start was written, the round goes on from there
    assert ratio(resumed.models.policy.state(), live) == pytest.approx(1, abs=1e-3)
    figures = this.store.round(this.id)["metrics"]
    assert figures["kl_start"] > 0.05 and figures["kl_step"] == 1
    assert figures["kl_target"] == pytest.approx(figures["kl_start"] + 1)


def test_from_the_base_the_kl_target_is_the_settings(folder, tmp_path):
    this = running(folder, tmp_path, ppo={"kl_target": 0.7, "iterations": 1, "lr": 1e-9})
    this._sft()
    this.score = lambda episodes: torch.zeros(len(episodes))
    this._ppo()
    figures = this.store.round(this.id)["metrics"]
    assert (figures["kl_target"], figures["kl_step"]) == (0.7, None) and figures["kl_start"] == pytest.approx(0)


def test_with_no_version_live_going_on_is_starting_from_the_base(folder, tmp_path):
    this = running(folder, tmp_path)
    this._sft()
    assert is_base(this)


def test_a_round_after_a_version_that_was_rolled_back_takes_half_a_step(folder, tmp_path):
    this = running(folder, tmp_path, live=strong(), ppo={"kl_step": 2.0})
    publish(this, strong(), trial=True)
    this.store.end_trial(2, "rolled_back", Message("why"))
    this = taken(this.store, this.settings)
    this._sft()
    this.record(cv_accuracy=0.9)
    assert this.store.round(this.id)["metrics"]["started_from"] == 1 and round_start.kl_step(this.models) == 1


def test_a_round_retreats_to_the_base_where_people_prefer_it(folder, tmp_path):
    this = running(folder, tmp_path, live=strong())
    base_hash = this.models.base["hash"]
    for versions in ((0, 1), (1, 0)):
        cast(this.store, "a" if versions[0] == 0 else "b", base_hash=base_hash, versions=versions)
    this._sft()
    assert is_base(this) and round_start.kl_step(this.models) is None


def test_one_persons_votes_against_the_base_count_up_to_twice_as_many_as_the_others(folder, tmp_path):
    this = running(folder, tmp_path, live=strong())
    store, base_hash = this.store, this.models.base["hash"]
    many, few = store.annotator("many"), store.annotator("few")
    for _ in range(30):
        cast(store, "a", many, base_hash=base_hash, versions=(0, 1))
    assert tally_against_base(store, 1) == Tally(0, 30), "somebody alone decides"
    for _ in range(4):
        cast(store, "a", few, base_hash=base_hash, versions=(1, 0))
    assert tally_against_base(store, 1) == Tally(4, 8, left_out=22)


def test_the_votes_of_a_versions_parent_count_against_the_base_too(folder, tmp_path):
    """A new version has none of its own yet."""
    this = running(folder, tmp_path, live=strong())
    publish(this, strong())
    store, base_hash = this.store, this.models.base["hash"]
    cast(store, "a", base_hash=base_hash, versions=(0, 1))
    cast(store, "a", base_hash=base_hash, versions=(0, 2))
    cast(store, "tie", base_hash=base_hash, versions=(2, 0))
    cast(store, "a", base_hash=base_hash, versions=(1, 2))  # not against the base
    assert tally_against_base(store, 2) == Tally(0, 2)
    assert tally_against_base(store, 1) == Tally(0, 1)
    this = taken(store, this.settings)
    this._sft()
    assert is_base(this)


def test_a_live_version_of_another_rank_is_not_gone_on_from(folder, tmp_path):
    this = running(folder, tmp_path, live=strong())
    this.settings = this.settings.with_values(ppo={"lora_rank": 2})
    this.drop_models()  # so that they are loaded with these settings
    this._sft()
    assert is_base(this)


@pytest.mark.parametrize(("kl", "ends"), [(7.4, False), (7.6, True), (9.0, True)])
def test_a_round_ends_where_the_live_version_is_at_the_kl_budget(folder, tmp_path, kl, ends):
    """A quarter of a step must be left."""
    this = running(folder, tmp_path, ppo={"kl_step": 2.0}, gate={"kl_budget": 8.0})
    publish(this, strong(), report={"kl": kl})
    this = taken(this.store, this.settings)
    if not ends:
        this._sft()
        return
    with pytest.raises(RoundEnded):
        this._sft()
    ended = this.store.round(this.id)
    assert ended["state"] == "not_enough"
    assert f"{kl} nats a reply, and the budget is 8." in str(ended["reason"])


def test_a_step_larger_than_the_whole_budget_leaves_room_for_rounds(folder, tmp_path):
    this = running(folder, tmp_path, ppo={"kl_step": 40.0}, gate={"kl_budget": 8.0})
    publish(this, strong(), report={"kl": 5.0})
    taken(this.store, this.settings)._sft()


# -- nothing left to learn


def own_pairs(this, choices, forecasts=()):
    """Votes on pairs of the live version with itself; and whether the first ones' forecasts were right."""
    base_hash = this.models.base["hash"]
    for n, choice in enumerate(choices):
        cast(this.store, choice, who=this.store.annotator(f"person {n}"), base_hash=base_hash, versions=(1, 1))
    votes = [row["id"] for row in this.store.rows("select id from vote order by id")]
    this.store.add_forecasts([(vote, 0.6, hit) for vote, hit in zip(votes, forecasts, strict=False)])


def test_votes_on_own_pairs_are_counted(folder, tmp_path):
    this = running(folder, tmp_path, live=strong())
    own_pairs(this, ["a", "b", "a", "tie", "both_bad", "skip"], [True, False])
    cast(this.store, "a", base_hash=this.models.base["hash"], versions=(1, 0))
    assert this.store.votes_on_own_pairs(1) == {"votes": 5, "ties": 2, "forecasts": 2, "hits": 1}
    assert this.store.votes_on_own_pairs(2) == {"votes": 0, "ties": 0, "forecasts": 0, "hits": 0}


def enough_evidence(this, monkeypatch):
    """The reward phase up to where the evidence has been judged; what comes after ends the test."""
    heads = [Choice("layers", 1.0)]
    report = reward.Report(
        *(10, heads, 0.8, (0.6, 0.9), 0.5, 0.1, [], None, 0, 2, 1.0, (0.3, 1.0), 0.4, 8, 8.0, 40.0, True, None)
    )
    monkeypatch.setattr(reward, "fit", lambda *args: (None, report))
    monkeypatch.setattr(this.models, "trunk", None)
    monkeypatch.setattr(this.models.policy, "reference", lambda: (_ for _ in ()).throw(GoesOn))


class GoesOn(Exception):
    """The round has come past the judgement of the evidence."""


def test_a_round_that_began_by_itself_ends_where_nothing_is_left_to_learn(folder, tmp_path, monkeypatch):
    this = running(folder, tmp_path, live=strong())
    this.store.end_round(this.id, "w", "failed")
    own_pairs(this, ["tie"] * 14 + ["a", "b"])
    this = taken(this.store, this.settings, asked=False)
    enough_evidence(this, monkeypatch)
    with pytest.raises(RoundEnded):
        this._reward()
    ended = this.store.round(this.id)
    assert ended["state"] == "not_enough" and ended["metrics"]["nothing_left"]
    assert "14 of 16 on the current version's replies are ties" in str(ended["reason"])


def test_a_round_that_a_person_asked_for_runs_although_nothing_seems_left(folder, tmp_path, monkeypatch):
    this = running(folder, tmp_path, live=strong())
    own_pairs(this, ["tie"] * 16)
    enough_evidence(this, monkeypatch)
    with pytest.raises(GoesOn):
        this._reward()


def test_the_base_has_always_something_left_to_learn(folder, tmp_path, monkeypatch):
    this = running(folder, tmp_path)
    this.store.end_round(this.id, "w", "failed")
    for _ in range(16):
        cast(this.store, "tie", base_hash=this.models.base["hash"])
    this = taken(this.store, this.settings, asked=False)
    enough_evidence(this, monkeypatch)
    with pytest.raises(GoesOn):
        this._reward()


# -- demonstrations


@pytest.mark.parametrize(
    "read", [lambda this: this._read_preferences(), lambda this: this.models._training_seeds], ids=["pairs", "prompts"]
)
def test_a_round_that_is_to_stop_does_so_between_imported_rows(folder, tmp_path, read):
    this = running(folder, tmp_path)
    chat = {"messages": [{"role": "user", "content": "Hello"}]}
    this.store.add_imported("file", [ImportedRow("1", "pair", 1.0, {**chat, "left": "x", "right": "y", "choice": "a"})])
    this.store.add_imported("file", [ImportedRow("2", "prompt", 1.0, chat)])
    this.store.set_round_command(this.id, "stop")
    with pytest.raises(RoundEnded):
        read(this)


def edited(this, name, text):
    """A person edits a reply in a conversation of their own; returns the conversation."""
    who = this.store.annotator(name)
    row = cast(this.store, who=who, base_hash=this.models.base["hash"])
    this.store.demonstrate(row["left"]["message"], who, text)
    return row["conversation"]


def learned_texts(this, live=None):
    """The texts of the demonstrations that the round learns from."""
    return [prompts.decode(episode.completion, this.models.tokenizer) for episode in this.models.demonstrations(live)]


def test_a_round_from_the_live_version_learns_from_new_demonstrations_alone(folder, tmp_path):
    """The live version has learned from the earlier ones; learned again in each round, they would be memorised."""
    this = running(folder, tmp_path)
    store = this.store
    store.end_round(this.id, "w", "failed")
    edited(this, "ann", "old")
    this = taken(store, this.settings)
    publish(this, strong())
    live = store.live_policy()
    edited(this, "bob", "new")
    this = taken(store, this.settings)
    assert learned_texts(this, live) == ["new"] and learned_texts(this) == ["old", "new"]
    this._sft()
    assert store.round(this.id)["metrics"]["demonstrations"] == 1


def test_a_round_from_a_version_that_was_fine_tuned_on_a_file_learns_all_edits(folder, tmp_path):
    """Those from before the fine-tuning would have been learnt by nobody."""
    this = running(folder, tmp_path)
    store = this.store
    store.end_round(this.id, "w", "failed")
    edited(this, "ann", "old")
    row = store.take_fine_tuning("w", "file.jsonl", lease_seconds=60)
    fine_tuning = Round(store, this.settings, row, "w")
    fine_tuning.record(started_from=0)
    publish(fine_tuning, strong())
    assert learned_texts(taken(store, this.settings), store.live_policy()) == ["old"]


def test_no_round_learns_from_demonstrations_in_held_out_conversations(folder, tmp_path):
    this = running(folder, tmp_path)
    conversations = [edited(this, name, name) for name in ("ann", "bob")]
    for split_by, kept in (("conversation", ["bob"]), ("context", [])):  # all have one context
        prefs = Preferences(split_by=split_by)
        heldout = prefs.group_of({"conversation": conversations[0], "prompt": [1, 2, 3]})
        this.models.preferences = Preferences(split_by=split_by, heldout=frozenset({heldout}))
        assert learned_texts(this) == kept


# -- prompts


def test_a_round_goes_on_with_the_settings_of_its_row_but_for_those_of_this_machine(folder, tmp_path):
    """Also where the row has a setting that is no longer there."""
    chosen = settings(model=folder, data_dir=tmp_path)
    store = Store(chosen.database)
    store.request_round()
    config = {
        **chosen.flat("json"),
        "ppo.lr": 0.25,
        "gate.prompts": 7,
        "threads": 3,
        "data_dir": "elsewhere",
        "ppo.gone": 1,
    }
    this = Round(store, chosen, store.take_round("w", lease_seconds=60, config=config), "w")
    assert this.settings == chosen.with_values(ppo={"lr": 0.25}, gate={"prompts": 7})


def test_contexts_come_from_the_one_voted_on_longest_ago(folder, tmp_path):
    this = running(folder, tmp_path)
    replies = [([context], [n]) for n, context in enumerate((9, 9, 3, 3, 7, 7, 5, 5))]
    groups = ((0, "x"), (2, "x"), (4, "held out"), (6, "y"), (0, "y"))
    pairs = [Pair(left, left + 1, A, group=group) for left, group in groups]
    models = this.models
    models.preferences = Preferences(replies, pairs, heldout=frozenset({"held out"}))
    assert models.contexts(heldout=False) == [[3], [5], [9]] and models.contexts(heldout=True) == [[7]]


def test_what_is_taken_back_while_a_round_reads_the_votes_is_not_in_it(folder, tmp_path):
    this = running(folder, tmp_path)
    store, read, asked = this.store, this.store.demonstrations, []
    base_hash = this.models.base["hash"]
    rows = [cast(store, who=store.annotator(name), base_hash=base_hash) for name in ("ann", "bob", "cem")]
    (this.folder / "ppo.pt").write_text("of the votes before")

    def demonstrations(base_hash):  # the last that is read
        found = read(base_hash)
        if not asked:
            asked.append(store.delete_conversation(rows[0]["conversation"], rows[0]["annotator"]))
        return found

    store.demonstrations = demonstrations
    this._collect()
    assert [pair.vote for pair in this.models.preferences.pairs] == [2, 3] and not store.must_begin_again(this.id)
    assert [use["vote"] for use in store.rows("select vote from vote_use")] == [2, 3]
    assert sorted(file.name for file in this.folder.iterdir()) == ["preferences.json"]


def chat(this, turns, system=None, words=20):
    """A chat of so many turns, each with its number and many words; returns the messages of the last prompt."""
    store, models = this.store, this.models
    who = store.annotator("ann")
    conversation = store.new_conversation(who, system)
    messages = []
    for n in range(turns):
        messages.append({"role": "user", "content": f"Question {n} " + "about tea " * words})
        ids = prompts.encode(messages, models.tokenizer, 4096, system)
        sides = [candidate(seed, base_hash=models.base["hash"]) for seed in (1, 2)]
        duel = store.start_duel(conversation, messages[-1]["content"], ids, sides)
        store.finish_duel(duel, [outcome(f"Answer {n}", [4, 2]), outcome("other", [5, 2])])
        row = store.duel(duel)
        store.vote(duel, who, "a", row["left"]["message"])
        messages.append({"role": "assistant", "content": f"Answer {n}"})
    return messages[:-1]


def test_a_long_prompt_loses_its_oldest_turns_and_keeps_the_system_prompt(folder, tmp_path):
    """Long chats were left out of the rollouts, so that nothing was trained on what people talk about longest."""
    this = running(folder, tmp_path, ppo={"rollout_context": 256})
    models = this.models
    messages = chat(this, turns=8, system="Speak of tea.")
    whole = prompts.encode(messages, models.tokenizer, 4096, "Speak of tea.")
    assert len(whole) > 256
    cut = models.cut_prompt(whole)
    assert cut == prompts.encode(messages, models.tokenizer, 256, "Speak of tea.") and len(cut) <= 256
    text = prompts.decode(cut, models.tokenizer)
    assert "Speak of tea." in text and "Question 7" in text and "Answer 6" in text and "Question 0" not in text
    assert models.cut_prompt(cut) == cut
    this._collect()
    contexts = models.contexts(heldout=False) + models.contexts(heldout=True)
    assert cut in contexts and len(contexts) == 8 and max(map(len, contexts)) <= 256


def test_of_a_message_that_is_too_long_alone_the_end_is_kept(folder, tmp_path):
    this = running(folder, tmp_path, ppo={"rollout_context": 64})
    whole = prompts.encode(chat(this, turns=1, words=200), this.models.tokenizer, 4096)
    assert this.models.cut_prompt(whole) == whole[-64:]
    assert this.models.cut_prompt(list(range(100, 200))) == list(range(136, 200))  # of no chat


def test_a_chat_that_was_deleted_is_not_read_again(folder, tmp_path):
    this = running(folder, tmp_path, ppo={"rollout_context": 256})
    messages = chat(this, turns=8)
    whole = prompts.encode(messages, this.models.tokenizer, 4096)
    assert this.store.messages_of_prompt(whole) == (None, messages)
    owner = this.store.annotator("ann")
    this.store.delete_conversation(this.store.conversation(owner)["id"], owner)
    assert this.store.messages_of_prompt(whole) is None
    assert this.models.cut_prompt(whole) == whole[-256:]


def test_prompts_that_become_the_same_are_one_context(folder, tmp_path):
    this = running(folder, tmp_path, ppo={"rollout_context": 32})
    tail = list(range(100, 132))
    replies = [([n, *tail], [20 + k]) for n in (1, 2) for k in (0, 1)] + [([7], [20]), ([7], [21])]
    this.models.preferences = Preferences(replies, [Pair(0, 1, A, group="x"), Pair(4, 5, A), Pair(2, 3, A, group="y")])
    assert this.models.contexts(heldout=False) == [[7], tail]


# -- the gate


def test_the_gate_compares_several_replies_of_three_versions_to_each_prompt(folder, tmp_path):
    this = running(folder, tmp_path, gate={"prompts": 4, "replies": 3})
    this._sft()
    save_file(strong(), this.folder / "policy.safetensors")
    steps = []
    replies, _ = round_gate.judge(
        this.models, steps.append, this.models.gate_prompts(), lambda models, replies: a_report(0)
    )
    assert steps == [1, 2, 3] and replies.prompts == 4
    for episodes in (replies.new, replies.live, replies.base):
        asked = [episode.prompt for episode in episodes]
        assert len(asked) == 12 and all(asked[i] == asked[i - i % 3] for i in range(12))
    assert len({tuple(episode.prompt) for episode in replies.new}) == 4
    assert replies.live == replies.base, "the base answers"
    assert [e.completion for e in replies.new] != [e.completion for e in replies.base]
    assert len(replies.new_texts) == 12


def a_report(share_of_end, **figures):
    """The report of the gate on a policy at this share of the way, whose replies are too long beyond .3 of it."""
    report = dict.fromkeys((field.name for field in fields(gate.GateReport)), 0.0)
    length = {"length_base": 100, "length_new": 100 + 250 * share_of_end, "length_votes": (0.0, 0.0)}
    good = {"prompts": 4, "gain_interval": (0.5, 1.5), "better": 0.99, "not_worse": 0.99, "share": 1.0}
    report = gate.GateReport(**(report | good | length | figures | {"refused_because": []}))
    return replace(report, refused_because=gate.refusals(report, Settings()))


@pytest.mark.parametrize(
    ("figures", "share", "passes"),
    [
        ({}, 0.25, True),
        ({"length_base": 50}, 0.25, False),
        ({"better": 0.5}, 1, False),
        ({"length_base": 300}, 1, True),
    ],
)
def test_a_better_policy_that_went_too_far_is_taken_back(folder, tmp_path, figures, share, passes):
    """A chain of brevity's second round wrote empty replies and was thrown away whole."""
    this = running(folder, tmp_path, gate={"prompts": 4, "replies": 2})
    this._sft()
    policy, end = this.models.policy, strong()
    save_file(end, this.folder / "policy.safetensors")

    def compare(models, replies):
        assert len(replies.new) == len(replies.base) == len(replies.new_texts) == 8
        compared.append(replies.new)
        return a_report(ratio(policy.state(), end), **figures)

    compared = []
    replies, report = round_gate.judge(this.models, lambda step: None, this.models.gate_prompts(), compare)
    assert (report.share, report.passed) == (share, passes)
    assert ratio(policy.state(), end) == pytest.approx(share, abs=1e-5)
    assert len(compared) == {1: 1, 0.5: 2, 0.25: 3}[share] and compared[-1] is replies.new
    assert all(before != after for before, after in itertools.pairwise(compared))  # each way back replies again


def judged(this, end, monkeypatch):
    """The round at its gate: PPO has left the policy `end`, whose replies are too long beyond .3 of the way."""
    save_file(end, this.folder / "policy.safetensors")
    report = lambda models, replies: a_report(ratio(models.trained_policy.state(), end))  # noqa: E731
    monkeypatch.setattr(round_gate, "by_reward", report)
    monkeypatch.setattr(round_gate, "served_kl", lambda *_: 0.0)


def restarted(this):
    """The round in another worker."""
    return Round(this.store, this.settings, this.store.round(this.id), "w")


def share_published(this, end):
    """How much of the way to `end` the version is that the round publishes."""
    this._publish()
    live = this.store.live_policy()
    _, tensors = adapter_reading.read(
        adapters.place(this.settings.adapters_dir, live["path"]),
        base_hash=this.models.base["hash"],
        expected_sha256=live["sha256"],
    )
    return ratio({name: tensors[name] for name in end}, end)


def test_a_gate_that_was_killed_begins_anew_with_the_policy_that_ppo_left(folder, tmp_path, monkeypatch):
    this, end = running(folder, tmp_path, gate={"prompts": 4, "replies": 2}), strong()
    this._sft()
    judged(this, end, monkeypatch)
    with monkeypatch.context() as killed:
        killed.setattr("training.round.write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            this._gate()
    this = restarted(this)
    this._gate()
    assert json.loads((this.folder / "gate.json").read_text())["share"] == 0.25
    assert share_published(restarted(this), end) == pytest.approx(0.25, abs=1e-5)


@pytest.mark.parametrize("multiply_in", [torch.float32, torch.int8])
def test_what_the_gate_has_taken_back_is_published_as_it_is(folder, tmp_path, monkeypatch, multiply_in):
    wanted = "int8" if multiply_in == torch.int8 else "trunk"
    this = running(folder, tmp_path, gate={"prompts": 4, "replies": 2}, ppo={"multiply_in": wanted})
    end = strong()
    this._sft()
    judged(this, end, monkeypatch)
    this._gate()
    assert this.models.policy.multiplies_in == multiply_in
    served_kl = json.loads((this.folder / "gate.json").read_text())["served_kl"]
    assert served_kl < 1e-6, "the chat serves the model as it is, whatever training multiplies in"
    assert share_published(this, end) == pytest.approx(0.25, abs=1e-5)


def test_a_round_from_the_base_without_a_kept_start_goes_on(folder, tmp_path, monkeypatch):
    """Earlier versions kept no start.safetensors where a round starts from the base."""
    this, end = running(folder, tmp_path, gate={"prompts": 4, "replies": 2}, ppo={"iterations": 1}), strong()
    this._sft()
    start = load_file(this.folder / "start.safetensors")
    for phase in ("_ppo", "_gate"):
        (this.folder / "start.safetensors").unlink()
        this = restarted(this)
        this.score = lambda episodes: torch.zeros(len(episodes))
        if phase == "_gate":
            judged(this, end, monkeypatch)
        getattr(this, phase)()
        kept = load_file(this.folder / "start.safetensors")
        assert kept.keys() == start.keys() and all(torch.equal(kept[name], start[name]) for name in start)
    assert share_published(this, end) == pytest.approx(0.25, abs=1e-5)


@pytest.mark.parametrize(
    ("figures", "looks"),
    [
        ({"better": 0.995, "not_worse": 0.995}, [8]),
        ({"better": 0.95, "not_worse": 0.95}, [8, 32]),
        ({"better": 0.2, "not_worse": 0.3}, [8, 32]),
        ({"better": 0.995, "not_worse": 0.995, "empty": 0.5}, [8, 8, 8, 32]),  # taken back twice in vain
    ],
)
def test_a_quarter_of_the_prompts_is_enough_where_the_version_is_clearly_better(folder, tmp_path, figures, looks):
    this = running(folder, tmp_path, gate={"prompts": 32, "replies": 2})
    this._sft()
    save_file(strong(), this.folder / "policy.safetensors")
    seen = []

    def compare(models, replies):
        asked = [tuple(episode.prompt) for episode in replies.new]
        assert asked == [tuple(episode.prompt) for episode in replies.base] and asked[::2] == asked[1::2]
        seen.append(asked[::2])
        return a_report(0, **figures)

    replies, report = round_gate.judge(this.models, lambda step: None, this.models.gate_prompts(), compare)
    assert [len(asked) for asked in seen] == looks == [*looks[:-1], replies.prompts]
    assert all(later[: len(seen[0])] == seen[0] for later in seen) and len(set(seen[-1])) == looks[-1]
    assert len(replies.new) == len(replies.live) == len(replies.base) == len(replies.new_texts) == 2 * looks[-1]


def test_replies_in_the_gate_are_as_long_as_in_the_chat(folder, tmp_path):
    """Of shorter ones nobody sees how they end."""
    this = running(folder, tmp_path, chat={"reply_tokens": 12}, ppo={"rollout_tokens": 0})
    assert this.settings.rollout_tokens == 12
    episodes = this.models.sample(this.models.policy.rollouts, [[5, 6]] * 16, "test")
    assert max(len(episode.completion) for episode in episodes) == 12


def test_each_sample_of_the_gate_says_whether_its_prompt_is_a_shipped_one(folder, tmp_path):
    """The samples were shown to everybody, and up to half of their prompts are people's own."""
    this = running(folder, tmp_path)
    shipped = this.models.seed_prompts("heldout")[0]
    own = prompts.encode([{"role": "user", "content": "My own secret"}], this.models.tokenizer, 256)
    episodes = [rollout.Episode(prompt, [5, 6], True) for prompt in [own] * 10 + [shipped] * 10]
    replies = GateReplies(prompts=20, new=episodes, live=episodes, base=episodes, new_texts=["new"] * 20)
    samples = round_gate.samples(this.models, replies)
    assert [(settings["shipped"], "secret" in settings["prompt"]) for settings in samples] == [(False, True)] * 8 + [
        (True, False)
    ] * 8


def test_of_several_replies_to_a_prompt_the_gate_shows_the_first(folder, tmp_path):
    this = running(folder, tmp_path)
    asked = this.models.seed_prompts("heldout")[:2]
    episodes = [rollout.Episode(prompt, [5, 6], True) for prompt in asked for _ in range(3)]
    texts = [f"{n}.{k}" for n in range(2) for k in range(3)]
    replies = GateReplies(prompts=2, new=episodes, live=episodes, base=episodes, new_texts=texts)
    assert [sample["new"] for sample in round_gate.samples(this.models, replies)] == ["0.0", "1.0"]
