"""The policy on a trunk in nf4, and gradient checkpointing: what PPO relies on holds there too."""

import pytest
import torch
from safetensors.torch import load_file
from torch.autograd.graph import saved_tensors_hooks

from benchmarks import gpu as gpu_benchmark
from benchmarks import gpu_round
from playground.models import loading, lora
from playground.models.feature_trunk import FeatureTrunk
from tests.test_loop import planted_folder
from tests.test_policy import END, EPISODES, moved, settings
from tests.test_round import running
from tests.tiny import tiny_folder, tiny_model
from training import ppo, rollout, selftest, worker
from training.policy import PolicyModel
from training.round import Round

PROMPTS = [[5, 6, 7], [30, 31], [8, 9, 10, 11], [40]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model")))


def quantised(folder, **changes):
    chosen = settings(model=folder, ppo={"quantisation": "nf4"}).with_values(**changes)
    return PolicyModel(loading.load_trunk(chosen, chosen.ppo.quantisation, training=True), chosen), chosen


def test_with_gradients_and_without_log_probabilities_are_the_same_to_the_bit(folder):
    """Versions of bitsandbytes had another kernel for each, and PPO's first ratio was not 1."""
    policy, _ = quantised(folder)
    moved(policy)
    batch = policy.batch(EPISODES)
    with torch.no_grad():
        old = policy.logprobs(batch)
    assert torch.equal(old, policy.logprobs(batch).detach())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_policy_in_nf4_passes_its_self_test_and_ppo_moves_it(folder, checkpointing):
    policy, settings = quantised(folder, ppo={"gradient_checkpointing": checkpointing, "iterations": 2})
    selftest.check_policy(policy, settings)
    trainer = ppo.Trainer(policy, settings)

    def score(episodes):
        return torch.tensor([float(len(set(episode.completion))) for episode in episodes])

    ppo.train_ppo(trainer, lambda n, rng: rng.sample(PROMPTS, n), score, END)
    assert trainer.iteration == 2 and trainer.history[1]["kl"] > 1e-4


def gradients(policy):
    batch = policy.batch(EPISODES)
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = policy.logprobs(batch).sum()
    found = torch.autograd.grad(loss, list(policy.parameters.values()))
    return found, sum(kept.values())


def test_checkpointing_changes_no_gradient_and_keeps_less():
    plain, saving = (
        moved(PolicyModel(tiny_model(), settings(ppo={"gradient_checkpointing": on}))) for on in (False, True)
    )
    (expected, whole), (found, less) = gradients(plain), gradients(saving)
    assert less < 0.6 * whole
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


def test_checkpointing_leaves_rollouts_their_cache():
    def replies(on):
        policy = moved(PolicyModel(tiny_model(), settings(ppo={"gradient_checkpointing": on})))
        policy.logprobs(policy.batch(EPISODES)).sum().backward()
        rng = rollout.generator("replies")
        written = rollout.Rollouts(policy.causal).sample(
            PROMPTS, rng, replies=2, max_tokens=8, temperature=0.8, end_tokens=END
        )
        return [episode.completion for episode in written]

    assert replies(True) == replies(False)


def test_a_reward_trunk_over_the_policys_weights_gives_the_features_of_its_own(folder):
    policy, settings = quantised(folder)
    shell = lora.tied_copy(loading.load_trunk(settings, "nf4", training=True))
    first = next(module for module in shell.modules() if hasattr(module, "quant_state"))
    again = next(module for module in lora.tied_copy(shell).modules() if hasattr(module, "quant_state"))
    assert again.weight is first.weight and again.quant_state is first.quant_state
    replies = [episode.reply for episode in EPISODES]
    whole = FeatureTrunk(settings, loading.load_trunk(settings, "nf4", training=True)).features(replies)
    torch.testing.assert_close(whole, FeatureTrunk(settings, shell).features(replies))
    deviation = whole.std(0).clamp(min=1e-6)
    assert (
        0 < ((FeatureTrunk(settings).features(replies) - whole) / deviation).square().mean().sqrt() < 0.1
    )  # other scales
    assert len(policy.causal.model.layers) == 4


def test_a_round_in_nf4_shares_its_trunk_and_says_how_far_the_chat_is_from_it(tmp_path):
    own = gpu_benchmark.GpuSettings(
        model=str(planted_folder(tmp_path / "model")),
        data_dir=tmp_path / "data",
        device="cpu",
        dtype="float32",
        threads=1,
        quick=True,
        decode_format="float32",
    ).with_values(ppo={"quantisation": "nf4", "gradient_checkpointing": True})
    first, store, _, _ = gpu_round.begun(own, torch.device("cpu"), lambda text: None)
    seen = []

    class Watched(Round):
        def _gate(self):
            super()._gate()
            seen.append(self.models)

    store.request_round()
    row = worker.run_once(store, first, "test", auto=False, kind=Watched)
    assert row["state"] in ("published", "refused"), row["reason"]
    (models,) = seen
    trained, below = models.policy.causal.model.layers[0].mlp.up_proj, models.trunk.model.model.layers[0].mlp.up_proj
    assert trained.base_layer.weight is below.weight and below.weight.dtype == torch.uint8
    assert models.base["hash"] == loading.base_identity(loading.load_trunk(first), first)["hash"]
    # nf4 is far from fp32 on random weights; the same forward would be 0
    assert row["metrics"]["served_kl"] > 1e-3


def test_a_killed_round_in_nf4_goes_on_as_if_it_had_not_been(folder, tmp_path):
    def score(episodes):
        return torch.tensor([float(len(set(episode.completion))) for episode in episodes])

    def final(name, killed):
        this = running(folder, tmp_path / name, ppo={"quantisation": "nf4", "iterations": 2})
        this._sft()
        this.score = score
        if killed:
            calls = []

            def dies(episodes):
                calls.append(1)
                if len(calls) == 2:
                    raise KeyboardInterrupt
                return score(episodes)

            this.score = dies
            with pytest.raises(KeyboardInterrupt):
                this._ppo()
            this = Round(this.store, this.settings, this.store.round(this.id), "w")
            this.score = score
        this._ppo()
        return load_file(this.folder / "policy.safetensors")

    whole, resumed = final("whole", False), final("killed", True)
    assert any(tensor.any() for name, tensor in whole.items() if "lora_B" in name)
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
