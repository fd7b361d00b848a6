"""PPO: measuring, the update, the loop and its checkpoint."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from playground.settings import Settings
from tests.test_policy import END, EPISODES, SCORES, moved, settings
from tests.tiny import tiny_model
from training import kl_target, ppo, rollout
from training.policy import Batch, PolicyModel
from training.rollout import Episode, generator


def trainer(**changes):
    s = settings(**changes)
    return ppo.Trainer(PolicyModel(tiny_model(), s), s)


def measured(t, scores=SCORES):
    """EPISODES as one trajectory, its advantages filled in."""
    trajectory, _ = ppo.measure(t.policy, EPISODES, scores, t.beta, t.settings)
    ppo.estimate_advantages([trajectory], t.settings)
    return trajectory


def optimise(t, trajectory):
    return ppo.optimise(t, [trajectory], generator(0, "test"))


def run(t, on_iteration=lambda trainer, metrics: None):
    """PPO that rewards small token ids."""
    prompts = [[5, 6, 7], [30, 31], [8, 9, 10, 11], [40]]
    ppo.train_ppo(
        t,
        lambda n, rng: rng.sample(prompts, n),
        lambda episodes: torch.tensor([1 - sum(e.completion) / len(e.completion) / 240 for e in episodes]),
        END,
        on_iteration,
    )
    return t


# -- measuring


def test_the_kl_of_a_reply_is_summed_over_its_tokens_and_the_whole_vocabulary():
    policy, base, e = moved(PolicyModel(tiny_model(), settings())), tiny_model(), EPISODES[3]
    with torch.no_grad():
        p, q = (
            torch.log_softmax(model(torch.tensor([e.prompt + e.completion])).logits[0, 1:4] / 0.8, -1)
            for model in (policy.causal, base)
        )
    assert policy.totals(EPISODES, 3).kl[3] == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-3)


def test_the_kl_over_the_vocabulary_is_the_mean_of_k1_with_far_less_noise():
    policy = moved(PolicyModel(tiny_model(), settings()), 0.05)
    episodes = rollout.Rollouts(policy.causal).sample(
        [[5, 6, 7]],
        generator("kl"),
        replies=600,
        max_tokens=3,
        temperature=0.8,
        end_tokens=END,
        rows=600,
    )
    totals = policy.totals(episodes, 100)
    k1, kl = torch.tensor(totals.logprob) - torch.tensor(totals.ref_logprob), torch.tensor(totals.kl)
    assert k1.mean().item() == pytest.approx(kl.mean().item(), abs=3 * k1.std().item() / 600**0.5)
    assert kl.std() < 0.3 * k1.std()


def test_measured_rewards_hold_the_score_on_the_last_token_and_kl_before():
    t = trainer()
    moved(t.policy)
    trajectory, sums = ppo.measure(t.policy, EPISODES, SCORES, 0.5, t.settings)
    expected = -0.5 * trajectory.kl
    for row, e in enumerate(EPISODES):
        expected[row, len(e.completion) - 1] += SCORES[row]
    torch.testing.assert_close(trajectory.rewards, expected)
    assert sums["kl"] > 0 and sums["kl_k3"] > 0


def test_advantages_are_whitened_over_reply_tokens_of_all_minibatches():
    t = trainer()
    both = [ppo.measure(t.policy, EPISODES[i : i + 2], SCORES[i : i + 2], 0.1, t.settings)[0] for i in (0, 2)]
    ppo.estimate_advantages(both, t.settings)
    whole = torch.cat([x.advantages[x.batch.mask.bool()] for x in both])
    assert (
        len(whole) == 18
        and whole.mean().abs() < 1e-5
        and whole.std(unbiased=False).item() == pytest.approx(1, abs=1e-3)
    )
    assert not any(x.advantages[x.batch.mask == 0].any() for x in both)


def test_the_value_heads_warm_up_lowers_its_error_and_leaves_the_policy():
    t = trainer(ppo={"value_warmup": 30, "value_lr": 1e-2})
    before = t.policy.state()
    trajectory, _ = ppo.measure(t.policy, EPISODES, SCORES, 0.0, t.settings)
    mask = trajectory.batch.mask
    returns = SCORES[:, None] * mask  # β = 0, γ = 1: every token's return is the score
    ppo.warm_up_values(t.policy, [trajectory], t.settings)
    assert ((trajectory.old_values - returns) ** 2).sum() < 0.5 * (returns**2).sum()
    assert all(torch.equal(before[k], v) for k, v in t.policy.state().items())


def test_without_a_value_head_a_tokens_return_is_its_advantage():
    t = trainer(ppo={"value_head": False})
    torch.nn.init.constant_(t.policy.value_head.bias, 3.0)
    trajectory, _ = ppo.measure(t.policy, EPISODES, SCORES, 0.1, t.settings)
    assert not trajectory.old_values.any()
    ppo.estimate_advantages([trajectory], t.settings)
    mask = trajectory.batch.mask.bool()
    whitened = (trajectory.returns[mask] - trajectory.returns[mask].mean()) / trajectory.returns[mask].std(
        unbiased=False
    )
    torch.testing.assert_close(trajectory.advantages[mask], whitened, atol=1e-4, rtol=1e-4)


# -- the update


def test_the_first_ratio_is_exactly_one():
    t = trainer()
    moved(t.policy)
    trajectory = measured(t)
    with torch.enable_grad():
        again = t.policy.logprobs(trajectory.batch)
    assert (torch.exp(again - trajectory.old_logprobs) == 1).all()


def test_tampered_old_logprobs_stop_the_round():
    """Old log-probabilities from generation, or from another temperature, look almost right and train almost
    nothing.
    """
    t = trainer()
    trajectory = measured(t)
    trajectory.old_logprobs[0, 0] += 0.01
    before = t.policy.state()
    with pytest.raises(
        ppo.RatioNotOne, match=r"the first ratio is off by 9\.95e-03; at most 1e-03 is accepted"
    ):  # 1 − e^−0.01
        optimise(t, trajectory)
    assert all(torch.equal(before[k], v) for k, v in t.policy.state().items())


def test_a_ratio_that_is_no_number_stops_the_round():
    t = trainer()
    trajectory = measured(t)
    trajectory.old_logprobs[0, 0] = math.nan
    with pytest.raises(ppo.RatioNotOne):
        optimise(t, trajectory)


def test_the_first_step_moves_every_b_and_no_a():
    """B starts at zero, so A's gradient is zero until B has moved."""
    t = trainer(ppo={"epochs": 1})
    before = t.policy.state()
    optimise(t, measured(t))
    after = t.policy.state()
    assert all(torch.equal(before[k], after[k]) == ("lora_A" in k) for k in before)


def test_every_lora_tensor_gets_a_gradient_once_b_has_moved():
    t = trainer(ppo={"epochs": 2})
    optimise(t, measured(t))
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in t.policy.parameters.values())
    assert all(p.grad is not None for p in t.policy.value_head.parameters())


def test_training_leaves_the_reference_alone():
    t = trainer()
    batch = Batch.of(EPISODES, "cpu")
    with torch.no_grad(), t.policy.reference():
        before = t.policy.logprobs(batch)
    optimise(t, measured(t))
    optimise(t, measured(t))
    with torch.no_grad(), t.policy.reference():
        assert torch.equal(t.policy.logprobs(batch), before)
    assert max(t.policy.totals(EPISODES, 4).kl) > 1e-3


def test_an_update_makes_good_replies_likelier_and_bad_ones_less():
    t = trainer(ppo={"epochs": 4, "kl_coefficient": 0, "lr": 1e-3, "value_coefficient": 0, "gae_lambda": 1})
    trajectory = measured(t)
    optimise(t, trajectory)
    with torch.no_grad():
        change = t.policy.logprobs(trajectory.batch) - trajectory.old_logprobs
    assert (change * trajectory.advantages).sum() > 0 and change[0].sum() > 0 > change[1].sum()


def test_a_spike_of_approximate_kl_ends_the_epochs():
    t = trainer(ppo={"lr": 0.5, "kl_stop": 1e-3, "epochs": 8})
    optimise(t, measured(t))
    steps = t.optimizer.state[next(iter(t.policy.parameters.values()))]["step"]
    assert steps == 1  # the second look finds the KL far above


def test_gradients_are_clipped():
    """One public trainer never applied its max_grad_norm."""
    t = trainer(ppo={"max_grad_norm": 1e-3, "epochs": 1})
    norm = optimise(t, measured(t))["grad_norm"]
    grads = [p.grad for group in t.optimizer.param_groups for p in group["params"]]
    assert norm > 1e-3 and torch.stack([g.norm() for g in grads]).norm().item() == pytest.approx(1e-3, rel=1e-2)


# -- the loop


@pytest.mark.parametrize("value_head", [True, False])
def test_ppo_raises_the_reward(value_head):
    """The reward is one direction of the embeddings, which these random weights can follow: at most by about one
    deviation, that is 1.
    """
    t = trainer(
        ppo={
            "value_head": value_head,
            "iterations": 6,
            "episodes": 32,
            "replies": 8,
            "minibatch": 16,
            "lr": 1e-2,
            "kl_coefficient": 0,
            "rollout_tokens": 4,
        }
    )
    liking = 10 * t.policy.causal.get_input_embeddings().weight[:, 0].detach()
    ppo.train_ppo(
        t,
        lambda n, rng: [[5, 6, 7]] * n,
        lambda episodes: torch.stack([liking[e.completion].mean() for e in episodes]),
        END,
    )
    assert (
        any(parameter.any() for parameter in t.policy.value_head.parameters()) is value_head
    )  # only then is it trained
    rewards = [m["reward"] for m in t.history]
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.3


def test_ppo_ends_when_the_kl_target_is_reached():
    t = run(trainer(ppo={"kl_target": 1e-6}))
    assert t.target_reached and t.iteration < 3


def test_a_run_resumed_at_its_kl_target_is_taken_back_as_an_unbroken_one(tmp_path):
    """The rollouts that reached the target are looked at first: the resumed run writes them again."""
    changes = {"ppo": {"kl_target": 0.05, "lr": 0.02}}
    unbroken = run(trainer(**changes), lambda t, metrics: t.save(tmp_path / "ppo.pt"))
    resumed = trainer(**changes)
    resumed.load(tmp_path / "ppo.pt")
    reached = resumed.policy.state()
    run(resumed)
    assert any(not torch.equal(reached[name], tensor) for name, tensor in unbroken.policy.state().items())
    assert_equal(resumed.policy.state(), unbroken.policy.state(), "policy")


def exact_kl(policy, prompt, tokens=3, n=400):
    """KL to the reference, nats a reply, from many replies of the policy itself."""
    episodes = rollout.Rollouts(policy.causal).sample(
        [prompt], generator("kl"), replies=n, max_tokens=tokens, temperature=0.8, end_tokens=END, rows=n
    )
    return policy.totals(episodes, 100).mean_kl


def test_an_overshoot_of_the_kl_target_is_scaled_down():
    t = run(trainer(ppo={"kl_target": 0.05, "lr": 0.02}))
    assert t.target_reached and t.history[-1]["kl"] > 0.1
    assert exact_kl(t.policy, [5, 6, 7]) < 1.5 * 0.05


def test_an_overshoot_of_the_last_iteration_is_scaled_down_too():
    t = run(trainer(ppo={"kl_target": 0.05, "lr": 0.02, "iterations": 1}))
    assert not t.target_reached and any(v.any() for k, v in t.policy.state().items() if "lora_B" in k)
    assert exact_kl(t.policy, [5, 6, 7]) < 1.5 * 0.05


def test_half_the_update_is_a_quarter_of_the_kl():
    policy = PolicyModel(tiny_model(), settings())
    start = policy.state()
    end = moved(policy, 0.05).state()
    whole = exact_kl(policy, [5, 6, 7])
    policy.interpolate(start, end, 0.5)
    assert exact_kl(policy, [5, 6, 7]) == pytest.approx(whole / 4, rel=0.5)
    policy.interpolate(start, end, 0)
    assert exact_kl(policy, [5, 6, 7]) == pytest.approx(0, abs=1e-5)


# -- rounds that go on from a version


def started(kl_step, size=0.05, **changes):
    """A trainer that starts away from the base; for a size of .05 the KL of 8 tokens is between 1 and 2 nats."""
    s = settings(**changes)
    return ppo.Trainer(moved(PolicyModel(tiny_model(), s), size), s, kl_step)


def kl_to_start(t, tokens=8, n=400):
    """KL of the policy to where it started, nats a reply, from many replies of its own."""
    episodes = rollout.Rollouts(t.policy.causal).sample(
        [[5, 6, 7]],
        generator("kl"),
        replies=n,
        max_tokens=tokens,
        temperature=0.8,
        end_tokens=END,
        rows=n,
    )
    return t.policy.kl_from(t.start, episodes, t.policy.totals(episodes, 100).logprob, 100)


def test_the_kl_target_is_that_of_the_start_and_a_step():
    t = started(3.0, ppo={"iterations": 1, "lr": 1e-9})
    assert t.kl_target == t.settings.ppo.kl_target
    run(t)
    assert t.kl_start == t.history[0]["kl"] > 0.1 and t.kl_target == t.kl_start + 3


def test_without_a_step_the_kl_target_is_the_settings_wherever_training_starts():
    t = run(started(None, ppo={"iterations": 1, "lr": 1e-9, "kl_target": 5.0}))
    assert t.kl_start > 0.1 and t.kl_target == 5


def test_the_kl_target_lies_within_the_gates_budget():
    t = run(started(3.0, ppo={"iterations": 1, "lr": 1e-9}, gate={"kl_budget": 3.0}))
    assert t.kl_start < 3 and t.kl_target == 3


def test_near_the_budget_a_quarter_of_the_step_is_left():
    """Otherwise a round would publish a copy of its start, which the gate refuses, round after round."""
    t = run(started(3.0, ppo={"iterations": 1, "lr": 1e-9}, gate={"kl_budget": 1e-3}))
    assert t.kl_target == t.kl_start + 0.75 and not t.target_reached


def test_only_the_first_iteration_says_where_the_target_lies():
    t = started(3.0)
    for kl in (2.0, 4.0):
        t.add({"kl": kl})
    assert (t.kl_target, t.kl_start, t.target_reached) == (5.0, 2.0, False)
    t.add({"kl": 5.0})
    assert t.target_reached


def test_an_overshoot_is_taken_back_towards_the_start_to_both_limits():
    """Without limits the same steps lead far from the start; with them no further than a step from it, and from the
    base than the target.
    """
    step = 0.3
    changes = {"lr": 0.02, "iterations": 1, "episodes": 64, "replies": 16, "minibatch": 16}
    assert kl_to_start(run(started(1e6, ppo=changes))) > 3 * step
    t = run(started(step, ppo=changes))
    assert any(not torch.equal(t.start[name], tensor) for name, tensor in t.policy.state().items())
    assert kl_to_start(t) < 1.5 * step
    episodes = rollout.Rollouts(t.policy.causal).sample(
        [[5, 6, 7]], generator("kl"), replies=400, max_tokens=8, temperature=0.8, end_tokens=END
    )
    assert t.policy.totals(episodes, 100).mean_kl < 1.3 * t.kl_target


class LinePolicy:
    """Stands in for a policy whose root of the KL grows evenly on the way from the start (0) to the end (1): from
    `base_start` to the base and from 0 to the start.
    """

    def __init__(self, base_start, base_end, start_end):
        self.base_start, self.base_end, self.start_end = base_start, base_end, start_end
        self.share = 1.0

    def state(self):
        return {"share": self.share}

    def interpolate(self, start, end, share):
        self.share = start["share"] + share * (end["share"] - start["share"])

    def totals(self, episodes, microbatch):
        root = self.base_start**0.5 + self.share * (self.base_end**0.5 - self.base_start**0.5)
        return type("Totals", (), {"mean_kl": root**2, "logprob": []})

    def kl_from(self, start, episodes, logprob, microbatch):
        return self.share**2 * self.start_end


@pytest.mark.parametrize(
    ("base_end", "start_end", "share"),
    [
        (9.0, 2.0, 1.0),  # at both limits
        (9.8, 2.2, 1.0),  # near them: 1.1 times
        (25.0, 1.0, 1 / 3),  # from 2 by 3 to 5; 3 is the root of the target
        (9.0, 8.0, 0.5),  # sideways: √8 to √2
        (25.0, 32.0, 1 / 4),  # the nearer of both
    ],
)
def test_the_share_of_the_way_that_is_left_by_hand(base_end, start_end, share):
    """From a KL of 4 to the base, with a target of 9 and a step of 2 from the start."""
    t = started(2.0)
    t.history, t.iteration, t.kl_target = [{"kl": 4.0}], 1, 9.0
    t.start = {"share": 0.0}
    t.policy = LinePolicy(4.0, base_end, start_end)
    kl_target.return_to(t, itertools.repeat([]))
    assert t.policy.share == pytest.approx(share, rel=1e-6)
    near = kl_target.NEAR_TARGET
    assert t.policy.totals([], 1).mean_kl <= near * 9 and t.policy.kl_from({}, [], [], 1) <= near * 2


def test_a_resumed_round_keeps_its_kl_target(tmp_path):
    t = run(started(3.0, ppo={"iterations": 1, "lr": 1e-9}))
    t.save(tmp_path / "ppo.pt")
    resumed = started(7.0)  # votes may have ended a trial meanwhile
    resumed.load(tmp_path / "ppo.pt")
    resumed.add({"kl": 1.0})
    assert resumed.kl_target == t.kl_target == t.kl_start + 3


def run_with_equal_scores(**ppo_changes):
    """One iteration in which every reply scores 0 and KL costs nothing: only a penalty can move the policy. Some
    replies end, some do not.
    """
    t = trainer(ppo={"iterations": 1, "kl_coefficient": 0, "episodes": 32, "replies": 8, **ppo_changes})
    ppo.train_ppo(t, lambda n, rng: [[5, 6, 7]] * n, lambda episodes: torch.zeros(len(episodes)), frozenset(range(60)))
    assert 0 < t.history[0]["ended"] < 1
    return t.policy


def test_equal_scores_teach_nothing():
    assert not any(v.any() for k, v in run_with_equal_scores().state().items() if "lora_B" in k)


def test_a_reply_that_never_ends_pays_the_penalty():
    assert any(v.any() for k, v in run_with_equal_scores(missing_end_penalty=2.5).state().items() if "lora_B" in k)


def test_a_reply_that_repeats_itself_pays_the_penalty(monkeypatch):
    seen = []
    monkeypatch.setattr(ppo.repetition, "repeated", lambda ids: seen.append(ids) or float(len(ids) % 2))
    assert any(v.any() for k, v in run_with_equal_scores(repeats_penalty=2.5).state().items() if "lora_B" in k)
    assert len(seen) == 32 and all(token >= 60 for ids in seen for token in ids), "replies, without their end tokens"


def test_a_reply_pays_for_a_missing_end_and_for_what_it_repeats():
    settings = trainer(ppo={"missing_end_penalty": 2.5, "repeats_penalty": 4.0}).settings
    ended, repeated = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, 0.0, 0.25])
    assert ppo.penalties(ended, repeated, settings).tolist() == [0, 2.5, 1]


@pytest.mark.parametrize(
    "name",
    [
        "policy_loss",
        "value_loss",
        "clip_fraction",
        "approx_kl",
        "grad_norm",
        "explained_variance",
        "reward",
        "kl",
        "kl_k1",
        "kl_k3",
        "beta",
        "entropy",
        "length",
        "repeated",
        "ended",
    ],
)
def test_an_iteration_reports(name, unbroken):
    assert math.isfinite(unbroken.history[0][name])


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """Where the unbroken run keeps a checkpoint of each of its iterations, k.pt."""
    return tmp_path_factory.mktemp("unbroken")


@pytest.fixture(scope="module")
def unbroken(states):
    return run(trainer(), lambda t, metrics: t.save(states / f"{t.iteration}.pt"))


def assert_equal(found, expected, path):
    """Everything in two checkpoints is the same, tensors bit for bit."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), path
    elif isinstance(expected, dict | list | tuple):
        assert type(found) is type(expected) and len(found) == len(expected), path
        keys = expected.keys() if isinstance(expected, dict) else range(len(expected))
        for key in keys:
            assert_equal(found[key], expected[key], f"{path}/{key}")
    else:
        assert found == expected, path


@pytest.mark.parametrize("k", [1, 2])
def test_a_killed_run_that_is_resumed_goes_on_exactly_as_an_unbroken_one(tmp_path, unbroken, states, k):
    """Heads and optimizer state lost on reload: TRL #1379, OpenRLHF #1342. Compared is all that a checkpoint holds,
    each iteration.
    """

    class Killed(Exception):
        pass

    def until(t, metrics):
        t.save(tmp_path / "ppo.pt")
        if t.iteration == k:
            raise Killed

    with pytest.raises(Killed):
        run(trainer(), until)
    torch.manual_seed(99)  # the next process has another random state
    resumed, iterations = trainer(), []
    resumed.load(tmp_path / "ppo.pt")

    def compare(t, metrics):
        t.save(tmp_path / "resumed.pt")
        found, expected = (
            torch.load(path, weights_only=True) for path in (tmp_path / "resumed.pt", states / f"{t.iteration}.pt")
        )
        assert_equal(found, expected, f"iteration {t.iteration}")
        assert found["lora"] and found["optimizer"]["state"] and found["value_head"]["weight"].any()
        assert metrics == unbroken.history[t.iteration - 1]
        iterations.append(t.iteration)

    run(resumed, compare)
    assert iterations == list(range(k + 1, 4))


@pytest.mark.parametrize("part", ["lora", "value_head", "optimizer", "beta"])  # kl_target has a test of its own
def test_each_part_of_the_checkpoint_is_needed(tmp_path, unbroken, states, part):
    """The comparison above would see the loss of any of them."""
    t = trainer()
    t.save(tmp_path / "fresh.pt")
    fresh, state = (torch.load(path, weights_only=True) for path in (tmp_path / "fresh.pt", states / "1.pt"))
    torch.save({**state, part: fresh[part]}, tmp_path / "lacking.pt")
    t.load(tmp_path / "lacking.pt")
    run(t).save(tmp_path / "end.pt")
    with pytest.raises(AssertionError):
        assert_equal(*(torch.load(path, weights_only=True) for path in (tmp_path / "end.pt", states / "3.pt")), "end")


def test_a_checkpoint_that_was_cut_short_leaves_the_one_before(tmp_path):
    t = trainer()
    t.save(tmp_path / "ppo.pt")
    (tmp_path / "ppo.partial").write_bytes(b"half")
    trainer().load(tmp_path / "ppo.pt")


@pytest.mark.parametrize("microbatch", [1, 2])
def test_the_microbatch_changes_memory_and_not_the_update(microbatch):
    """Regression: microbatches were shuffled singly after the first epoch, and each took a value warm-up step of its
    own, so that a smaller microbatch trained another policy. A mean of means, which weighs short replies too much,
    fails here too.
    """

    def updated(size):
        settings = Settings(
            ppo={"minibatch": 4, "microbatch": size, "epochs": 3, "kl_stop": 10.0}, chat={"temperature": 1.0}
        )
        trainer = ppo.Trainer(PolicyModel(tiny_model(), settings), settings)
        episodes = [Episode([5, 6, 7], list(range(10, 12 + 3 * (i % 5))), True) for i in range(12)]
        scores = torch.linspace(-1, 1, 12).roll(5)
        trajectories = [
            ppo.measure(trainer.policy, episodes[i : i + size], scores[i : i + size], 0.1, settings)[0]
            for i in range(0, 12, size)
        ]
        ppo.warm_up_values(trainer.policy, trajectories, settings)
        warm = trainer.policy.value_head.weight.detach().clone()
        ppo.estimate_advantages(trajectories, settings)
        ppo.optimise(trainer, trajectories, generator("test"))
        return {
            "warm value head": warm,
            "value head": trainer.policy.value_head.weight.detach(),
            **trainer.policy.state(),
        }

    whole, parts = updated(4), updated(microbatch)
    for name in whole:
        torch.testing.assert_close(
            parts[name], whole[name], rtol=0, atol=5e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


class CountsReads(TorchDispatchMode):
    """Counts what makes a program wait for a GPU: numbers read out of tensors, and results whose size is read from
    one.
    """

    READS = ("_local_scalar_dense", "nonzero")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += any(name in str(func) for name in self.READS)
        return func(*args, **(kwargs or {}))


def test_an_update_reads_no_number_for_each_of_its_microbatches():
    """Each number that is read makes a GPU run dry, which then waits for the next kernels."""
    counts = []
    for size in (1, 4):
        t = trainer(ppo={"minibatch": 4, "microbatch": size, "epochs": 2})
        with CountsReads() as reads:
            trajectories = [
                ppo.measure(t.policy, EPISODES[i : i + size], SCORES[i : i + size], t.beta, t.settings)[0]
                for i in range(0, 4, size)
            ]
            ppo.estimate_advantages(trajectories, t.settings)
            ppo.optimise(t, trajectories, generator("test"))
        counts.append(reads.count)
    assert counts[0] - counts[1] <= 3 * 3, counts  # transformers' mask looks at the padding in each forward: 3 forwards


def test_a_kl_that_rounding_left_below_zero_counts_as_none():
    assert kl_target._share_left(-1e-7, 4.0, 1.0) == pytest.approx(0.5)
