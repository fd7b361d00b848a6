"""Preferences to a reward model: a mean of penalised linear heads on a quantised trunk's features and, as a setting, an
fp32 LoRA below them.

Cross-validation decides in every round how much the head on each feature set counts and how strongly its weights are
penalised. Owns the whole fit and its report; a head is `reward_head.py`'s, the figures are `reward_validation.py`'s,
and how a reply is scored is `playground/models/scorer.py`'s. Knows nothing about policies or PPO.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np
import torch

from playground.models import adapters, scorer
from playground.models.feature_trunk import FeatureTrunk
from playground.models.intervals import wilson
from playground.models.scorer import ExtractedFeatures, Head, PersonalHead, RewardModel
from playground.settings import Settings
from playground.system.messages import Message
from training import evidence, likelihood
from training.preferences import Preferences
from training.reward_head import designs, fit_head, fitted_scores, one_thread, span, standardised
from training.reward_validation import Choice, Predictions, ReliabilityBin, choose, cross_validate

LENGTH_MATCHED = 0.1  # two replies are of one length if their log lengths differ by less


@dataclass(frozen=True)
class Report:
    """What a fit is worth. Cross-validated figures (`cv_`) are over all votes, held-out ones over the split; intervals
    are Wilson's; NLL is in nats a pair.
    """

    pairs: int
    heads: list[Choice]  # the largest share first
    cv_accuracy: float
    cv_interval: tuple[float, float]
    cv_nll: float | None
    cv_calibration_error: float | None
    cv_reliability: list[ReliabilityBin]
    cv_length_matched: float | None  # accuracy on pairs of replies of one length
    cv_length_matched_pairs: int
    heldout_pairs: int
    heldout_accuracy: float | None
    heldout_interval: tuple[float, float] | None
    heldout_nll: float | None
    forecasts: int  # of votes, each by a head fitted on those before it
    forecast_hits: float
    e_value: float  # see `evidence.py`
    enough: bool
    reason: Message | None
    lora_epochs: int = 0

    @property
    def feature_set(self) -> str:
        """That of the head with the largest share."""
        return self.heads[0].feature_set

    def as_metrics(self) -> dict[str, Any]:
        """What a round's row keeps of it, under the names that the page reads."""
        people = self.heads[0].people
        metrics = asdict(self)
        metrics["heads"] = [{**asdict(head), "people": len(people.ids)} for head in self.heads]  # not who
        metrics["own_taste"] = people.own
        metrics["features"] = self.feature_set
        metrics["reason"] = str(self.reason) if self.reason else None
        metrics["cv_reliability"] = [astuple(reliability_bin) for reliability_bin in self.cv_reliability]
        return metrics


def fit(
    prefs: Preferences,
    trunk: FeatureTrunk,
    settings: Settings,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[RewardModel, Report]:
    """Fit the reward model. `on_batch(done, total)` counts the replies whose features have been read.

    The heads' shares and penalties come from cross-validated NLL. The reported figures choose again without the votes
    that they are measured on, so that what the choice overfits does not count as learning. The returned model is fitted
    on all votes, so that none is wasted.
    """
    trunk_features = trunk.features(prefs.replies, on_batch)
    extracted = ExtractedFeatures.of(trunk_features, trunk.parts, prefs.replies)
    x_by_feature_set = designs(extracted, prefs, settings)

    def scores_by_own_choice(part: Preferences) -> tuple[torch.Tensor, float]:
        return mixed_scores(x_by_feature_set, part, choose(x_by_feature_set, part, settings.seed))

    def designs_of(part: Preferences, rows: list[int], known: int) -> dict[str, torch.Tensor]:
        seen = ExtractedFeatures.of(trunk_features[rows], trunk.parts, part.replies, known)
        return designs(seen, part, settings, known)

    with one_thread():
        known = evidence.assess(designs_of, prefs, settings)
        cv, indices = cross_validate(prefs, settings.seed, scores_by_own_choice)
        scores, log_nu = scores_by_own_choice(prefs.training_part())
        heldout = Predictions.of(scores, log_nu, prefs.heldout_part().pairs)
        choices = choose(x_by_feature_set, prefs, settings.seed)
    matched = cv.where(_length_matched(prefs, indices))

    lora = LoraFit(epochs=0, tensors={}, heldout=heldout)
    if settings.reward.lora_rank:
        start = fit_model(extracted, prefs.training_part(), choices)
        lora = fit_lora(start, prefs, trunk, settings, heldout)
        if lora.epochs:
            extracted = extracted._replace(features=start.features(trunk, prefs.replies))
    model = fit_model(extracted, prefs, choices, settings.reward.pessimism)
    if lora.epochs:
        model.lora = lora.tensors

    correct, decided = cv.count_correct()
    report = Report(
        pairs=len(prefs.judged),
        heads=choices,
        cv_accuracy=correct / max(decided, 1),
        cv_interval=wilson(correct, decided),
        cv_nll=cv.nll(),
        cv_calibration_error=cv.calibration_error(),
        cv_reliability=cv.reliability(),
        cv_length_matched=matched.accuracy(),
        cv_length_matched_pairs=matched.count_correct()[1],
        heldout_pairs=len(lora.heldout.outcome),
        heldout_accuracy=lora.heldout.accuracy(),
        heldout_interval=lora.heldout.interval(),
        heldout_nll=lora.heldout.nll(),
        forecasts=known.forecasts,
        forecast_hits=known.hits,
        e_value=known.e_value,
        enough=known.enough,
        reason=known.reason,
        lora_epochs=lora.epochs,
    )
    return model, report


def _length_matched(prefs: Preferences, indices: list[int]) -> list[bool]:
    """Of each of these pairs, whether its two replies are of one length."""
    log_length = np.log([max(len(completion), 1) for _, completion in prefs.replies])
    pairs = [prefs.pairs[i] for i in indices]
    return [bool(abs(log_length[pair.left] - log_length[pair.right]) < LENGTH_MATCHED) for pair in pairs]


def mixed_scores(
    designs: Mapping[str, torch.Tensor], prefs: Preferences, choices: Sequence[Choice]
) -> tuple[torch.Tensor, float]:
    """Raw scores (N,) of every reply under the shared heads of these choices, fitted on `prefs`, and log ν."""
    scores = torch.zeros(len(next(iter(designs.values()))))
    mixed_log_nu = 0.0
    for choice in choices:
        own, log_nu = fitted_scores(designs[choice.feature_set], prefs, choice.penalty, choice.people)
        scores += choice.share * own
        mixed_log_nu += choice.share * log_nu
    return scores, mixed_log_nu


def fit_model(
    extracted: ExtractedFeatures, prefs: Preferences, choices: Sequence[Choice], pessimism: float = 0.0
) -> RewardModel:
    """A RewardModel with the heads that all of `prefs` give; `extracted` are the features of `prefs.replies`. log ν and
    θ are means over the heads by their shares. Its rewards are not yet standardised.
    """
    model = RewardModel([], extracted.parts, extracted.tokens, log_nu=0.0, threshold=0.0, pessimism=pessimism)
    for choice in choices:
        x, centre, scale = standardised(extracted, choice.feature_set)
        basis = span(x, prefs)
        fitted = fit_head(x @ basis, prefs, choice.penalty, choice.people)
        head = Head(
            feature_set=choice.feature_set,
            share=choice.share,
            centre=centre,
            scale=scale,
            weight=basis @ fitted.weight,
            basis=basis,
            factor=fitted.factor,
            influence=fitted.influence,
            penalty=choice.penalty / (1 - choice.people.own),  # of the shared weights alone
        )
        model.heads.append(head)
        for annotator, own in zip(choice.people.ids, fitted.people, strict=True):
            theirs = PersonalHead(basis @ own.weight, own.influence)
            model.people.setdefault(annotator, []).append(theirs)
        model.log_nu += choice.share * fitted.log_nu
        model.threshold += choice.share * fitted.threshold
    return model


def fit_votes(extracted: ExtractedFeatures, prefs: Preferences, settings: Settings) -> RewardModel:
    """The RewardModel of all of `prefs`, its heads chosen by cross-validation, without a report."""
    choices = choose(designs(extracted, prefs, settings), prefs, settings.seed)
    return fit_model(extracted, prefs, choices, settings.reward.pessimism)


# -- the LoRA below the head


@dataclass(frozen=True)
class LoraFit:
    """The best epoch of a LoRA's training; 0 epochs: the frozen features were better."""

    epochs: int
    tensors: dict[str, torch.Tensor]
    heldout: Predictions  # of the held-out pairs


def fit_lora(
    model: RewardModel, prefs: Preferences, trunk: FeatureTrunk, settings: Settings, heldout: Predictions
) -> LoraFit:
    """Train an fp32 LoRA below the head's features on the training part, and keep the epoch of best held-out NLL.

    `heldout` are the frozen features' Predictions of the held-out pairs, which an epoch must beat to be kept. The trunk
    is left with the LoRA of the best epoch, which is zero where no epoch was kept.
    """
    pairs = prefs.training_part().pairs
    heldout_pairs = prefs.heldout_part().pairs
    parameters = trunk.attach_lora(settings.reward.lora_rank)
    weights = [head.weight.clone().requires_grad_(True) for head in model.heads]  # (d,) each
    log_nu = torch.tensor(model.log_nu)
    optimizer = torch.optim.AdamW(
        [{"params": list(parameters.values()), "lr": 1e-4}, {"params": weights, "lr": 1e-3}], eps=1e-5
    )

    def scored(features: torch.Tensor) -> torch.Tensor:
        heads = zip(model.heads, weights, strict=True)
        scores = [head.share * (head.design(features, model.parts) @ weight) for head, weight in heads]
        return torch.stack(scores).sum(0)

    def copied() -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}

    best = LoraFit(epochs=0, tensors=copied(), heldout=heldout)
    best_nll = heldout.nll()
    order = torch.Generator().manual_seed(settings.seed)
    pairs_per_step = max(1, settings.reward.batch // 2)
    for epoch in range(settings.reward.lora_epochs):
        for rows in torch.randperm(len(pairs), generator=order).split(pairs_per_step):
            batch = [pairs[i] for i in rows]
            replies = [prefs.replies[index] for pair in batch for index in (pair.left, pair.right)]
            features = scorer.with_counts(trunk.batch_features(replies).cpu(), replies, model.tokens)
            scores = scored(features)  # left and right in turn
            outcome = torch.tensor([pair.outcome for pair in batch])
            pair_weight = torch.tensor([pair.weight for pair in batch])
            loss = (pair_weight * likelihood.pair_nll(scores[0::2], scores[1::2], outcome, log_nu)).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
        scores = scored(model.features(trunk, prefs.replies)).detach()
        predictions = Predictions.of(scores, model.log_nu, heldout_pairs)
        nll = predictions.nll()
        if nll is not None and best_nll is not None and nll < best_nll:
            best = LoraFit(epochs=epoch + 1, tensors=copied(), heldout=predictions)
            best_nll = nll
    adapters.copy_strictly(best.tensors, parameters)
    return best
