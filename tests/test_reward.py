"""The reward model: its head, its validation, its features, its LoRA. Evidence is test_evidence.py's."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.optimize import minimize

from playground.models import intervals
from playground.models.feature_trunk import FeatureTrunk
from playground.models.scorer import ExtractedFeatures, RewardModel
from playground.settings import Settings
from tests.test_scorer import folder, settings, trunks  # noqa: F401  (fixtures)
from training import likelihood, preferences, reward, reward_head, reward_validation
from training.objective import pair_columns
from training.preferences import TIE, A, B, Pair, PointwiseLabel, Preferences
from training.reward_validation import Choice


def planted(n=400, d=8, seed=0, indifference=0.0):
    """Features, a direction, and pairs that it decides; closer than `indifference`, a pair is a tie."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * n, d, generator=generator)
    direction = torch.randn(d, generator=generator)
    gap = (x[0::2] - x[1::2]) @ direction
    outcome = [TIE if abs(g) < indifference else A if g > 0 else B for g in gap.tolist()]
    return x, direction, [Pair(2 * i, 2 * i + 1, o, 1.0, f"duel {i}", i) for i, o in enumerate(outcome)]


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


# -- the head


def test_fit_head_recovers_a_planted_direction():
    x, direction, pairs = planted(200)
    head = reward_head.fit_head(x, Preferences(pairs=pairs), 0.1)
    assert cosine(head.weight, direction) > 0.97


def test_fit_head_learns_from_thumbs_alone():
    x, direction, _ = planted()
    labels = [PointwiseLabel(i, score > 1) for i, score in enumerate((x @ direction).tolist())]
    head = reward_head.fit_head(x, Preferences(labels=labels), 0.1)
    assert cosine(head.weight, direction) > 0.97 and head.threshold > 0


def test_a_case_of_no_weight_says_nothing():
    x, _, pairs = planted(50)
    head = reward_head.fit_head(x, Preferences(pairs=[replace(pair, weight=0.0) for pair in pairs]), 0.1)
    assert head.weight.abs().max() < 1e-4


def test_more_ties_make_a_larger_nu():
    log_nu = {}
    for gap in (0.1, 3.0):
        x, _, pairs = planted(indifference=gap)
        log_nu[gap] = reward_head.fit_head(x, Preferences(pairs=pairs), 1.0).log_nu
    assert log_nu[0.1] < 0 < log_nu[3.0]


def test_nu_is_the_share_of_ties_where_scores_say_nothing():
    # no feature: P(tie) = ν/(2 + ν); 2 ties of 3 votes make ν = 4, ln 4 = 1.386; the weak prior at −1 hardly moves
    # 3,000 votes
    pairs = [Pair(0, 1, (TIE, TIE, A, TIE, TIE, B)[i % 6]) for i in range(3000)]
    assert reward_head.fit_head(torch.zeros(2, 4), Preferences(pairs=pairs), 1.0).log_nu == pytest.approx(
        1.386, abs=0.01
    )


def test_a_larger_penalty_makes_smaller_weights():
    x, _, pairs = planted(50)
    weak, strong = (reward_head.fit_head(x, Preferences(pairs=pairs), penalty).weight for penalty in (0.1, 10.0))
    assert strong.norm() < weak.norm()


def test_fit_head_is_where_the_likelihood_has_no_slope():
    """Newton's answer against a general optimiser on the likelihood itself, with ties, thumbs and unequal weights."""
    x, direction, pairs = planted(30, indifference=0.7)
    pairs = [replace(pair, weight=0.3 + 0.1 * (n % 5)) for n, pair in enumerate(pairs)]
    labels = [PointwiseLabel(i, score > 0.5, 0.4) for i, score in enumerate((x @ direction)[:20].tolist())]
    left, right, outcome = pair_columns(pairs)
    pair_weight, good = torch.tensor([pair.weight for pair in pairs]), torch.tensor([label.good for label in labels])

    def objective(flat):
        flat = torch.tensor(flat, requires_grad=True)
        scores = x.double() @ flat[:-2]
        loss = 0.15 * flat[:-2].square().sum() + 0.1 * (flat[-2] + 1).square() + 0.1 * flat[-1].square()
        loss = loss + (pair_weight * likelihood.pair_nll(scores[left], scores[right], outcome, flat[-2])).sum()
        loss = loss + 0.4 * likelihood.pointwise_nll(scores[:20], good, flat[-1]).sum()
        loss.backward()
        return loss.item(), flat.grad.numpy()

    expected = minimize(objective, [0.0] * 10, jac=True, method="BFGS", options={"gtol": 1e-8}).x
    head = reward_head.fit_head(x, Preferences(pairs=pairs, labels=labels), 0.3)
    assert [*head.weight.tolist(), head.log_nu, head.threshold] == pytest.approx(expected, abs=1e-5)


def test_folds_that_are_fitted_together_are_each_as_one_fitted_alone():
    x, direction, pairs = planted(40, indifference=0.5)
    pairs = [replace(pair, group=f"chat {n // 2}", weight=0.3 + 0.1 * (n % 5)) for n, pair in enumerate(pairs)]
    liked = (x @ direction > 0.5).tolist()
    labels = [PointwiseLabel(i, liked[i], 0.4, f"chat {i}") for i in range(30)]  # of chats with votes and without
    prefs = Preferences(pairs=pairs, labels=labels)
    folds = reward_validation.split(prefs, 0)
    together = reward_validation.heldout_nll(x, prefs, folds)
    for penalty, found in zip(reward_validation.PENALTIES, together, strict=True):
        alone = 0.0
        for fold in folds:
            scores, log_nu = reward_head.fitted_scores(x, fold.training, penalty)
            heldout = [pairs[i] for i in fold.heldout]
            alone += reward_validation.Predictions.of(scores, log_nu, heldout).pair_nll().sum().item()
        assert found == pytest.approx(alone, rel=1e-4), penalty


def test_a_fit_lies_in_the_span_of_what_the_votes_compare():
    x, _, pairs = planted(10, d=64)
    prefs = Preferences(pairs=pairs, labels=[PointwiseLabel(3, True, 0.5)])
    basis = reward_head.span(x, prefs)
    assert basis.shape == (64, 11)
    torch.testing.assert_close(
        reward_head.fitted_scores(x @ basis, prefs, 0.3)[0],
        reward_head.fitted_scores(x, prefs, 0.3)[0],
        rtol=1e-4,
        atol=1e-4,
    )
    torch.testing.assert_close(
        basis @ reward_head.fit_head(x @ basis, prefs, 0.3).weight,
        reward_head.fit_head(x, prefs, 0.3).weight,
        rtol=1e-3,
        atol=1e-4,
    )


def cross_validated(x, pairs, penalty=0.1):
    predictions, _ = reward_validation.cross_validate(
        Preferences(pairs=pairs), 0, lambda part: reward_head.fitted_scores(x, part, penalty)
    )
    return predictions.count_correct()


def test_cross_validation_finds_a_planted_direction_and_no_more_than_chance_in_noise():
    x, _, pairs = planted(60)
    right, decided = cross_validated(x, pairs)
    by_chance, _ = cross_validated(x, by_coin(pairs))
    assert decided == 60 and right > 48 and 20 < by_chance < 40


def by_coin(pairs, seed=1):
    coin = torch.Generator().manual_seed(seed)
    return [replace(pair, outcome=A if torch.rand(1, generator=coin) < 0.5 else B) for pair in pairs]


def test_of_one_conversation_all_heads_have_the_same_share_and_the_strongest_penalty():
    """No fold can be held out, so nothing speaks for one of them or for a weaker penalty."""
    x, _, pairs = planted(10)
    one = Preferences(pairs=[replace(pair, group="conversation 1") for pair in pairs])
    strongest = max(reward_validation.PENALTIES)
    assert reward_validation.choose({"layers": x, "words": x}, one, 0) == [
        Choice("layers", strongest, 0.5),
        Choice("words", strongest, 0.5),
    ]


def test_the_feature_set_that_the_votes_are_about_has_the_score():
    x, _, pairs = planted(80)
    noise = torch.randn(len(x), 8, generator=torch.Generator().manual_seed(5))
    [choice] = reward_validation.choose({"layers": noise, "words": x}, Preferences(pairs=pairs), 0)
    assert (choice.feature_set, choice.share) == ("words", 1)


def test_feature_sets_that_predict_alike_share_the_score():
    x, _, pairs = planted(80)
    choices = reward_validation.choose({"layers": x, "words": -x}, Preferences(pairs=pairs), 0)
    assert [choice.share for choice in choices] == pytest.approx([0.5, 0.5], abs=0.01)


def test_the_shares_are_in_proportion_to_the_likelihood_of_held_out_votes():
    x, _, pairs = planted(12, d=4, indifference=0.5)
    prefs = Preferences(pairs=pairs)
    designs = {"layers": x, "words": 0.5 * x}  # the same, but more strongly penalised
    folds = reward_validation.split(prefs, 0)
    least = {name: min(reward_validation.heldout_nll(design, prefs, folds)) for name, design in designs.items()}
    share = {choice.feature_set: choice.share for choice in reward_validation.choose(designs, prefs, 0)}
    assert abs(least["words"] - least["layers"]) > 0.1
    assert math.log(share["layers"] / share["words"]) == pytest.approx(least["words"] - least["layers"], rel=1e-3)


def test_the_score_is_the_mean_of_the_heads_by_their_shares():
    x, _, pairs = planted(20, d=4)
    prefs = Preferences(replies=[([1], [2])] * len(x), pairs=pairs)
    log_length = torch.randn(len(x), 1, generator=torch.Generator().manual_seed(3))
    extracted = ExtractedFeatures(torch.cat([x, log_length], -1), [4, 1, 0], [])
    layers, length = Choice("layers", 1.0, 0.75), Choice("length", 0.3, 0.25)
    mixed = reward.fit_model(extracted, prefs, [layers, length])
    separate = [reward.fit_model(extracted, prefs, [replace(choice, share=1.0)]) for choice in (layers, length)]
    expected = [
        0.75 * a + 0.25 * b for a, b in zip(*(model.raw(extracted.features) for model in separate), strict=True)
    ]
    torch.testing.assert_close(mixed.raw(extracted.features), torch.stack(expected))
    assert mixed.log_nu == pytest.approx(0.75 * separate[0].log_nu + 0.25 * separate[1].log_nu)

    designs = reward_head.designs(extracted, prefs, Settings())
    scores, log_nu = reward.mixed_scores(designs, prefs, [layers, length])
    difference = scores - mixed.raw(extracted.features)  # scores are of votes alone: a shift says nothing
    torch.testing.assert_close(difference[0::2], difference[1::2], rtol=0, atol=1e-4)
    assert log_nu == pytest.approx(mixed.log_nu)


def test_every_block_of_a_feature_set_has_an_equal_share():
    features = torch.randn(500, 49, generator=torch.Generator().manual_seed(0)) * 5 + 3
    z, centre, scale = reward_head.standardised(ExtractedFeatures(features, [16, 16, 16, 1, 0], []), "layers")
    assert z.mean(0).abs().max() < 1e-5
    torch.testing.assert_close(z.var(0), torch.tensor([1 / 48] * 32 + [1 / 3]))
    torch.testing.assert_close((features[:, 16:] - centre) / scale, z)


def test_counts_are_compared_as_they_are():
    """A token that nearly every reply has twice says as little as its count varies; scaled up to the others it would be
    noise.
    """
    counts = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 2.1, 1.0], [3.0, 2.1, 1.0]])
    x, _, scale = reward_head.standardised(
        ExtractedFeatures(torch.cat([torch.zeros(4, 2), counts], -1), [1, 1, 3], [7, 8, 9]), "style"
    )
    assert scale[0] == scale[1] and scale[2].isinf()  # the last does not vary
    torch.testing.assert_close(x[:, 1].std() / x[:, 0].std(), torch.tensor(0.1 / 3))


def test_a_feature_that_does_not_vary_among_the_votes_says_nothing_of_other_replies():
    """Replies all of one length: another length was millions of deviations away, and the doubt about it drowned
    everything.
    """
    x, _, pairs = planted(20, d=4)
    features = torch.cat([x, torch.full((len(x), 1), 2.0)], -1)
    model = reward.fit_model(
        ExtractedFeatures(features, [4, 1, 0], []), Preferences(pairs=pairs), [Choice("layers", 1.0)]
    )
    other = features[:3] + torch.tensor([0, 0, 0, 0, 1.0])
    torch.testing.assert_close(model.raw(other), model.raw(features[:3]))
    torch.testing.assert_close(model.deviation(other), model.deviation(features[:3]))


# -- the posterior


def test_the_posterior_is_the_inverse_curvature():
    """Against autograd's Hessian of the objective, with log ν and θ marginalised."""
    x, _, pairs = planted(12, d=3, indifference=0.5)
    head = reward_head.fit_head(x, Preferences(pairs=pairs), 0.5)
    left, right, outcome = pair_columns(pairs)

    def objective(phi):
        scores = x.double() @ phi[:3]
        prior = 0.25 * phi[:3].square().sum() + 0.1 * (phi[3] + 1) ** 2 + 0.1 * phi[4] ** 2
        return prior + likelihood.pair_nll(scores[left], scores[right], outcome, phi[3]).sum()

    at = torch.tensor([*head.weight.tolist(), head.log_nu, head.threshold], dtype=torch.double)
    covariance = torch.linalg.inv(torch.autograd.functional.hessian(objective, at))[:3, :3]
    torch.testing.assert_close((head.factor @ head.factor.T).double(), covariance, rtol=1e-3, atol=1e-5)


def test_the_influence_is_what_a_bootstrap_over_votes_finds():
    x, _, pairs = planted(150, d=3, indifference=0.5)
    pairs = by_coin(pairs[:50]) + pairs[50:]
    influence = reward_head.fit_head(x, Preferences(pairs=pairs), 1.0).influence
    source = torch.Generator().manual_seed(0)
    refits = torch.stack(
        [
            reward_head.fit_head(
                x, Preferences(pairs=[pairs[i] for i in torch.randint(150, (150,), generator=source)]), 1.0
            ).weight
            for _ in range(300)
        ]
    )
    torch.testing.assert_close((influence @ influence.T).diag().sqrt(), refits.std(0), rtol=0.2, atol=0)


def test_more_votes_leave_less_doubt():
    doubt = {}
    for n in (20, 200):
        x, _, pairs = planted(n)
        features = torch.cat([x, torch.zeros(len(x), 1)], -1)
        model = reward.fit_model(
            ExtractedFeatures(features, [8, 1, 0], []), Preferences(pairs=pairs), [Choice("layers", 1.0)]
        )
        doubt[n] = model.deviation(features[:40]).mean()
    assert doubt[200] < 0.7 * doubt[20]


# -- intervals


def test_wilson_of_eight_in_ten():
    assert intervals.wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)  # Wilson 1927, z = 1.959964


def test_wilson_of_none_and_of_all_in_ten():
    assert intervals.wilson(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert intervals.wilson(10, 10) == pytest.approx((0.7224672, 1.0), abs=1e-6)


def test_wilson_without_data_is_everything():
    assert intervals.wilson(0, 0) == (0.0, 1.0)


# -- the whole fit, and the LoRA below the head


def liked_token_preferences(n):
    """Votes for whichever reply holds token 100."""
    generator = torch.Generator().manual_seed(0)
    prefs = Preferences()
    for i in range(n):
        plain = torch.randint(150, 400, (6,), generator=generator).tolist()
        liked = [*plain[:3], 100, 100, *plain[3:]]
        swap = i % 2
        prefs.replies += [([3, 4, 5], plain if swap else liked), ([3, 4, 5], liked if swap else plain)]
        prefs.pairs.append(Pair(2 * i, 2 * i + 1, B if swap else A, 1.0, f"conversation {i}", i))
    prefs.heldout = preferences.held_out([pair.group for pair in prefs.pairs], 0.25, 0)
    return prefs


def test_fit_learns_what_people_like(folder, trunks):
    prefs = liked_token_preferences(24)
    model, report = reward.fit(prefs, trunks["nf4"], settings(folder))
    assert report.enough and report.forecast_hits / report.forecasts > 0.7 and report.e_value >= 5
    assert report.cv_accuracy > 0.8 and (report.pairs, report.heldout_pairs) == (24, 6)
    assert 0.5 < report.cv_interval[0] < report.cv_accuracy <= report.cv_interval[1]
    liked, plain = model.reward(
        model.features(trunks["nf4"], [([3, 4, 5], [200, 100, 100, 300]), ([3, 4, 5], [200, 201, 202, 300])])
    )
    assert liked > plain


def test_the_choice_of_a_penalty_does_not_make_evidence_of_coin_flips(folder, trunks):
    """Choosing the best of many fits by the figure that is reported would find something in anything."""
    prefs, rights, decided = liked_token_preferences(40), 0.0, 0
    sure = settings(folder, reward={"evidence_confidence": 0.95})
    for seed in range(3):
        prefs.pairs = by_coin(prefs.pairs, seed)
        _, report = reward.fit(prefs, trunks["none"], sure)
        rights, decided = rights + report.cv_accuracy * 40, decided + 40
        assert not report.enough and str(report.reason).startswith("Not enough evidence yet: 40 votes for A or B")
    low, high = intervals.wilson(rights, decided, 0.99)
    assert low < 0.5 < high


def fit_lora(folder, sure, quantisation="nf4", epochs=2):
    """Fit the LoRA against held-out predictions that are `sure` (score difference) and right: (trunk, features before,
    prefs, what it returns).
    """
    s = settings(folder, reward={"quantisation": quantisation, "lora_rank": 4, "lora_epochs": epochs})
    trunk, prefs = FeatureTrunk(s), liked_token_preferences(16)
    x, held = trunk.features(prefs.replies), prefs.heldout_part().pairs
    model = reward.fit_model(
        ExtractedFeatures.of(x, trunk.parts, prefs.replies), prefs.training_part(), [Choice("layers", 1.0)]
    )
    outcome = torch.tensor([pair.outcome for pair in held])
    sign = torch.where(outcome == A, 1.0, -1.0)
    to_beat = reward_validation.Predictions(sure * sign, torch.full((len(held),), -10.0), outcome)
    return trunk, model, x, prefs, reward.fit_lora(model, prefs, trunk, s, to_beat), to_beat


def test_a_lora_that_helps_nothing_is_left_at_zero(folder):
    trunk, _, before, prefs, fitted, to_beat = fit_lora(folder, sure=50.0)
    assert fitted.epochs == 0 and fitted.heldout is to_beat
    torch.testing.assert_close(trunk.features(prefs.replies), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantisation", ["none", "nf4"])
def test_a_lora_that_helps_is_kept_at_its_best_epoch(folder, quantisation):
    """bitsandbytes' 4-bit layers must stay differentiable after a forward without gradients."""
    trunk, _, before, prefs, fitted, to_beat = fit_lora(folder, sure=-50.0, quantisation=quantisation)
    assert fitted.epochs in (1, 2) and fitted.heldout.nll() < to_beat.nll()
    parameters = trunk.attach_lora(4)
    assert fitted.tensors and all(torch.equal(fitted.tensors[k], parameters[k]) for k in parameters)
    assert (trunk.features(prefs.replies) - before).abs().max() > 0


def test_a_saved_lora_gives_the_same_rewards_on_a_fresh_trunk(folder, tmp_path):
    trunk, model, _, prefs, fitted, _ = fit_lora(folder, sure=-50.0, quantisation="none", epochs=1)
    model.lora = fitted.tensors
    model.save(tmp_path / "reward.safetensors")
    loaded, fresh = RewardModel.load(tmp_path / "reward.safetensors"), FeatureTrunk(settings(folder))
    fresh.attach_lora(4, loaded.lora)
    torch.testing.assert_close(
        loaded.reward(loaded.features(fresh, prefs.replies)),
        model.reward(model.features(trunk, prefs.replies)),
        rtol=1e-4,
        atol=1e-4,
    )


def test_fit_reports_the_lora_epochs_it_kept(folder):
    s = settings(folder, reward={"lora_rank": 4, "lora_epochs": 1})
    _, report = reward.fit(liked_token_preferences(8), FeatureTrunk(s), s)
    assert report.lora_epochs in (0, 1)
