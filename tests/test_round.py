"""One round's own decisions: the prompts it rolls out on and where it starts. The whole path is test_loop.py's."""

import json

import pytest
import torch

from playground.models import adapters, prompts
from playground.store import Store
from tests.stores import cast
from tests.test_policy import moved, settings
from tests.tiny import tiny_folder, tiny_model
from training import rollout
from training.policy import PolicyModel
from training.preferences import A, Pair, Preferences
from training.round import GateReplies, Round


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model")))


def running(folder, tmp_path, live=None, **changes):
    """A round of its own that has just been taken; `live` are the LoRA tensors of the version that answers."""
    s = settings(model=folder, data_dir=tmp_path, **changes)
    store = Store(s.database)
    first = store.request_round()
    this = Round(store, s, store.take_round("w", lease_seconds=60), "w")
    if live is not None:
        version = store.add_policy(first, "w", parent=0)
        path, sha256 = adapters.write(
            s.adapters_dir,
            version,
            live,
            rank=s.ppo.lora_rank,
            alpha=s.ppo.lora_alpha,
            targets=this.models.policy.targets,
            base=this.models.base,
            parent=0,
            round_id=first,
            scores={},
        )
        store.publish(first, "w", version, path, sha256, {})
        store.request_round()
        this = Round(store, s, store.take_round("w", lease_seconds=60), "w")
    (this.folder / "preferences.json").write_text(json.dumps(Preferences().as_json()))
    return this


def strong():
    """An update beyond the KL target here."""
    return moved(PolicyModel(tiny_model(), settings()), 0.05).state()


def ratio(state, of):
    """How large the update's B is, relative to another's; the two must point the same way."""
    a, b = (torch.cat([v.flatten() for k, v in tensors.items() if "lora_B" in k]) for tensors in (state, of))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.999
    return (a.norm() / b.norm()).item()


def test_a_round_starts_from_the_base(folder, tmp_path):
    this = running(folder, tmp_path, live=strong())
    this._sft()
    assert not any(v.any() for k, v in this.models.policy.state().items() if "lora_B" in k)
    assert not (this.folder / "start.safetensors").exists()


def test_a_round_can_go_on_from_the_live_version_at_half_the_kl_target(folder, tmp_path):
    live = strong()
    this = running(folder, tmp_path, live=live, round={"start_from": "live"}, ppo={"kl_target": 0.2})
    this._sft()
    assert 0.01 < ratio(this.models.policy.state(), live) < 0.9
    models = this.models
    chosen = models.training_prompts(32, models.rng("test"))
    episodes = models.sample(models.policy.causal, chosen, "test", replies=4)
    assert models.policy.totals(episodes, 8).mean_kl == pytest.approx(0.1, rel=0.3)
    resumed = Round(this.store, this.settings, this.store.round(this.id), "w")
    resumed.settings = this.settings.with_values(ppo={"iterations": 1, "lr": 1e-9, "kl_target": 1e9})
    resumed.score = lambda episodes: torch.zeros(len(episodes))
    resumed._ppo()  # killed after its start was written, the round goes on from there
    assert ratio(resumed.models.policy.state(), models.policy.state()) == pytest.approx(1, abs=1e-3)


def test_with_no_version_live_going_on_is_starting_from_the_base(folder, tmp_path):
    this = running(folder, tmp_path, round={"start_from": "live"})
    this._sft()
    assert not (this.folder / "start.safetensors").exists()


def test_a_live_version_of_another_rank_is_refused_with_what_to_do(folder, tmp_path):
    this = running(folder, tmp_path, live=strong(), round={"start_from": "live"})
    this.settings = this.settings.with_values(ppo={"lora_rank": 2})
    with pytest.raises(
        adapters.BadAdapter, match="start with --ppo.lora-rank 4 --ppo.lora-alpha 8, or with --round.start-from base"
    ):
        this._sft()


def test_a_round_goes_on_with_the_settings_of_its_row_but_for_those_of_this_machine(folder, tmp_path):
    """Also where the row has a setting that is no longer there."""
    s = settings(model=folder, data_dir=tmp_path)
    store = Store(s.database)
    store.request_round()
    config = {**s.flat("json"), "ppo.lr": 0.25, "gate.prompts": 7, "threads": 3, "data_dir": "elsewhere", "ppo.gone": 1}
    this = Round(store, s, store.take_round("w", lease_seconds=60, config=config), "w")
    assert this.settings == s.with_values(ppo={"lr": 0.25}, gate={"prompts": 7})


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


def test_each_sample_of_the_gate_says_whether_its_prompt_is_a_shipped_one(folder, tmp_path):
    """The samples were shown to everybody, and up to half of their prompts are people's own."""
    this = running(folder, tmp_path)
    shipped = this.models.seed_prompts("heldout")[0]
    own = prompts.encode([{"role": "user", "content": "My own secret"}], this.models.tokenizer, 256)
    episodes = [rollout.Episode(prompt, [5, 6], True) for prompt in [own] * 10 + [shipped] * 10]
    samples = this._samples(GateReplies(new=episodes, live=episodes, new_texts=["new"] * 20))
    assert [(s["shipped"], "secret" in s["prompt"]) for s in samples] == [(False, True)] * 8 + [(True, False)] * 8
