"""The people behind the votes: each one's taste, tie rate, lean to a side and lapses, and who loses by a version."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from playground.models.scorer import ExtractedFeatures
from training import gate, likelihood, objective, people, reward, reward_head, reward_validation, round_gate
from training.likelihood import TIE, A, B
from training.people import People
from training.preferences import Pair, PointwiseLabel, Preferences

WIDTH = 12


def votes_of(crowd, votes, seed=0):
    """(x, prefs, the shared direction): people's votes in turn on Gaussian features. Each of `crowd` has some of
    `own` (a direction in place of the shared one), `log_nu`, `lean` and `lapse`.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2 * votes * len(crowd), WIDTH)) / WIDTH**0.5
    shared = rng.standard_normal(WIDTH) * 3
    pairs = []
    for i in range(votes * len(crowd)):
        traits = crowd[i % len(crowd)]
        margin = (x[2 * i] - x[2 * i + 1]) @ traits.get("own", shared) + traits.get("lean", 0.0)
        odds = np.exp([margin / 2, traits.get("log_nu", -1.0), -margin / 2])
        outcome = rng.choice([A, TIE, B], p=odds / odds.sum())
        if rng.random() < traits.get("lapse", 0.0):
            outcome = rng.choice([A, B])
        pairs.append(Pair(2 * i, 2 * i + 1, int(outcome), 1.0, f"chat {i}", i, annotator=i % len(crowd)))
    prefs = Preferences(replies=[([1], [2 + i]) for i in range(len(x))], pairs=pairs)
    return torch.from_numpy(x).float(), prefs, torch.from_numpy(shared).float()


def anonymous(prefs):
    """The same votes, nobody told apart: the fit of before."""
    return replace(prefs, pairs=[replace(pair, annotator=None) for pair in prefs.pairs])


def chosen_head(x, prefs):
    with reward_head.one_thread():
        [choice] = reward_validation.choose({"words": x}, prefs, 0)
        return choice, reward_head.fit_head(x, prefs, choice.penalty, choice.people)


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


# -- the likelihood


def test_a_vote_with_lapses_has_the_slope_and_the_information_of_its_likelihood():
    delta, log_nu = torch.tensor([1.3, -0.4], dtype=torch.double), torch.tensor([-0.5, 0.2], dtype=torch.double)
    lapse = torch.tensor([0.3, 0.0], dtype=torch.double)
    expected = torch.zeros(2, 2, 2, dtype=torch.double)
    for outcome in (A, TIE, B):
        outcomes = torch.tensor([outcome] * 2)
        at = torch.stack([delta, log_nu]).requires_grad_()
        nll = likelihood.pair_nll(at[0] / 2, -at[0] / 2, outcomes, at[1], lapse)
        [slope] = torch.autograd.grad(nll.sum(), at)
        gradient, information = likelihood.pair_derivatives(delta / 2, -delta / 2, outcomes, log_nu, lapse)
        torch.testing.assert_close(gradient, slope.T)
        expected += (-nll.detach()).exp()[:, None, None] * slope.T[:, :, None] * slope.T[:, None, :]
    torch.testing.assert_close(information, expected)


def test_a_lapse_is_a_coin_between_the_two_replies():
    """At equal scores and ν = 1 each outcome has a third; half of the votes by a coin: 1/6 + 1/4, and 1/6 for a tie."""
    zero = torch.zeros(3)
    nll = likelihood.pair_nll(zero, zero, torch.tensor([A, TIE, B]), torch.tensor(0.0), torch.full((3,), 0.5))
    assert nll.exp().reciprocal().tolist() == pytest.approx([5 / 12, 1 / 6, 5 / 12])


# -- the joint fit


def test_the_fit_is_that_of_shared_weights_and_each_ones_deviation():
    """Against a general optimiser on w and every u_p themselves, with their own priors."""
    x, prefs, _ = votes_of([{}, {"lean": 1.0}], 12)
    prefs = replace(prefs, labels=[PointwiseLabel(i, i % 3 == 0, 0.5, f"chat {i // 2}", i % 2) for i in range(8)])
    crowd = People((0, 1), (0.2, 0.0), 0.4)
    penalty = 0.3
    left, right, outcome = objective.pair_columns(prefs.pairs)
    of_pair = torch.tensor([pair.annotator for pair in prefs.pairs])
    of_label = torch.tensor([label.annotator for label in prefs.labels])
    good = torch.tensor([label.good for label in prefs.labels])

    def loss(flat):
        flat = torch.tensor(flat, requires_grad=True)
        w, u = flat[:WIDTH], flat[WIDTH : 3 * WIDTH].view(2, WIDTH)
        log_nu, threshold, ties, leans = flat[-6], flat[-5], flat[-4:-2], flat[-2:]
        scores = x.double() @ (w + u).T  # (N, 2)
        delta = scores[left, of_pair] - scores[right, of_pair] + leans[of_pair]
        lapse = torch.tensor(crowd.lapses, dtype=torch.double)[of_pair]
        nll = likelihood.pair_nll(delta / 2, -delta / 2, outcome, log_nu + ties[of_pair], lapse).sum()
        replies = torch.arange(len(good))
        nll = nll + 0.5 * likelihood.pointwise_nll(scores[replies, of_label], good, threshold).sum()
        prior = penalty / 2 * (w.square().sum() / 0.6 + u.square().sum() / 0.4)
        prior = prior + 0.1 * ((log_nu + 1) ** 2 + threshold**2) + (ties.square() + leans.square()).sum() / 2
        (nll + prior).backward()
        return (nll + prior).item(), flat.grad.numpy()

    found = minimize(loss, np.zeros(3 * WIDTH + 6), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000}).x
    head = reward_head.fit_head(x, prefs, penalty, crowd)
    assert head.weight.tolist() == pytest.approx(found[:WIDTH], abs=1e-3)
    assert (head.log_nu, head.threshold) == pytest.approx(found[-6:-4], abs=1e-3)
    for place, own in enumerate(head.people):
        deviation = found[(place + 1) * WIDTH : (place + 2) * WIDTH]
        assert own.weight.tolist() == pytest.approx(found[:WIDTH] + deviation, abs=1e-3)


def test_the_posterior_of_the_shared_weights_is_that_of_the_joint_model():
    """Its covariance in the Gaussian case: of n votes with unit curvature, by the blocks of w and u."""
    votes = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    places = torch.tensor([0, 0, 1, 1, -1, -1])
    tastes = objective.Tastes(votes, places, 0.25)
    precision = torch.eye(tastes.rows.shape[1], dtype=torch.double) * 0.7
    covariance = torch.linalg.inv(tastes.rows.T @ tastes.rows + precision)
    design = torch.cat([votes, votes * (places == 0)[:, None], votes * (places == 1)[:, None]], 1)
    prior = torch.tensor([0.7 / 0.75] * 3 + [0.7 / 0.25] * 6, dtype=torch.double).diag()
    # one who is not told apart has no deviation, in both
    joint = torch.linalg.inv(design.T @ design + prior)[:3, :3]
    torch.testing.assert_close(tastes.shared_covariance(covariance, 0.7), joint)


# -- what is found of simulated people


def test_a_careless_and_a_left_only_person_spoil_less_than_before():
    """One of three says what they think; the others vote by a coin, and always left."""
    before, now, lapses = [], [], []
    for seed in range(2):
        x, prefs, shared = votes_of([{}, {"lapse": 1.0}, {"lean": 20.0}], 36, seed)
        _, old = chosen_head(x, anonymous(prefs))
        choice, head = chosen_head(x, prefs)
        before.append(cosine(old.weight, shared))
        now.append(cosine(head.weight, shared))
        lapses.append(dict(zip(choice.people.ids, choice.people.lapses, strict=True)))
    assert np.mean(now) > np.mean(before) + 0.05
    assert np.mean([lapse[1] for lapse in lapses]) > np.mean([lapse[0] for lapse in lapses]) + 0.3


def test_each_ones_tie_rate_and_lean_are_found():
    x, prefs, _ = votes_of([{"log_nu": 1.0}, {"log_nu": -2.5, "lean": 1.5}], 300)
    fitted = objective.Objective(x, prefs, People((0, 1), (0.0, 0.0))).penalised(0.1)
    phi, _ = objective.minimise(fitted)
    log_nu, _, first, second, lean_of_first, lean_of_second = phi[0, fitted.r :].tolist()
    assert log_nu + first == pytest.approx(1.0, abs=0.4) and log_nu + second == pytest.approx(-2.5, abs=0.7)
    assert abs(lean_of_first) < 0.5 and lean_of_second == pytest.approx(1.5, abs=0.4)


def test_people_of_one_taste_have_none_of_their_own_and_people_who_disagree_have():
    x, prefs, shared = votes_of([{}, {}], 24)
    choice, _ = chosen_head(x, prefs)
    assert choice.people == people.NOBODY, "the fit of before, where nothing speaks for another"
    other = torch.randn(WIDTH, generator=torch.Generator().manual_seed(4)).numpy() * 3
    x, prefs, shared = votes_of([{}, {"own": other}], 60)
    choice, head = chosen_head(x, prefs)
    by_id = dict(zip(choice.people.ids, head.people, strict=True))
    assert choice.people.own > 0
    assert cosine(by_id[0].weight, shared) > cosine(head.weight, shared) + 0.03
    assert cosine(by_id[1].weight, torch.from_numpy(other).float()) > 0.8


def test_edited_replies_are_neither_a_lean_to_the_left_nor_a_lapse():
    """The better text of an edit is always the left one, and nobody saw sides."""
    x = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1))
    pairs = [Pair(0, 1, A, vote=1, annotator=1), Pair(2, 3, A, annotator=1), Pair(4, 5, A, annotator=1)]
    found = objective.Objective(x, Preferences(pairs=pairs), People((1,), (0.2,)))
    assert found.pair_design[:, -1].tolist() == [1, 0, 0]
    assert found.lapse.tolist() == [0.2, 0, 0]


def test_only_people_with_enough_votes_are_told_apart():
    pairs = [Pair(0, 1, A, vote=i, annotator=1 if i < 8 else 2) for i in range(15)]
    pairs += [Pair(0, 1, TIE, vote=20, annotator=2), Pair(0, 1, A, annotator=2)]  # a tie; an edited reply
    assert People.of(Preferences(pairs=pairs)) == People((1,), (0.0,))
    crowd = People((5, 3), (0.25, 0.0))
    places = crowd.places([Pair(0, 1, A, annotator=3), Pair(0, 1, A), Pair(0, 1, A, annotator=5)])
    assert places.tolist() == [1, -1, 0] and crowd.lapse_of(places).tolist() == [0.0, 0.0, 0.25]


# -- who loses by a version


def model_of_two(tmp_path):
    """A reward model of two people who disagree, read back from its files; and the shared direction."""
    _, _, shared = votes_of([{}, {}, {}], 60)
    x, prefs, _ = votes_of([{}, {}, {"own": -shared.numpy()}], 60)
    extracted = ExtractedFeatures(torch.cat([x, torch.zeros(len(x), 1)], -1), [WIDTH, 1, 0], [])
    choice = reward_validation.Choice("layers", 0.1, 1.0, People((0, 2), (0.0, 0.0), 0.6))
    model = reward.fit_model(extracted, prefs, [choice])
    model.save(tmp_path / "reward.safetensors")
    people.save(model, tmp_path / "people.safetensors")
    read = type(model).load(tmp_path / "reward.safetensors")
    assert not read.people, "the head's own file is for everybody"
    people.load(read, tmp_path / "people.safetensors")
    for annotator in (0, 2):
        torch.testing.assert_close(
            read.of_person(annotator).raw(extracted.features), model.of_person(annotator).raw(extracted.features)
        )
    return read, shared


def test_who_clearly_loses_by_a_version_is_counted(tmp_path):
    model, shared = model_of_two(tmp_path)
    source = torch.Generator().manual_seed(1)
    live = torch.cat([torch.randn(40, WIDTH, generator=source) / WIDTH**0.5, torch.zeros(40, 1)], 1)
    better = live.clone()
    better[:, :WIDTH] += 0.3 * shared / shared.norm()
    losing = {
        name: [gate.clearly_loses(gains, 10, 0) for gains in round_gate.gains_of_people(model, new, live, 0)]
        for name, new in (("better", better), ("same", live))
    }
    assert losing == {"better": [False, True], "same": [False, False]}


def test_a_round_of_an_earlier_version_has_no_heads_of_people(tmp_path):
    model, _ = model_of_two(tmp_path)
    model.people = {}
    people.load(model, tmp_path / "none.safetensors")
    assert model.people == {}


def test_votes_of_earlier_versions_files_have_no_person():
    old = {
        "replies": [[[1], [2]], [[1], [3]]],
        "pairs": [[0, 1, A, 1.0, "chat 1", 7, False]],
        "points": [[0, 1, 0.5, "chat 1"]],
        "votes": [[7, "chat 1"]],
        "heldout": [],
        "split_by": "conversation",
    }
    prefs = Preferences.from_json(old)
    assert prefs.pairs == [Pair(0, 1, A, 1.0, "chat 1", 7)] and prefs.labels == [PointwiseLabel(0, True, 0.5, "chat 1")]
    assert Preferences.from_json(prefs.as_json()) == prefs
    assert math.isclose(prefs.labels[0].weight, 0.5)
