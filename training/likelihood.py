"""The likelihood of a vote given the scores of the replies.

Pairs follow Davidson (1970): P(a) = e^sa / Z, P(b) = e^sb / Z, P(tie) = ν·e^((sa+sb)/2) / Z. ν is learned, so a tie
is information too. A vote may also be a lapse, given by a coin between A and B (Wichmann and Hill 2001). Thumbs and
both-bad votes are pointwise: P(good) = σ(s − θ) with a learned threshold θ.
"""

import torch

A, TIE, B = 0, 1, 2  # outcome of a pair: the left reply, neither, the right reply


def pair_nll(
    score_a: torch.Tensor,
    score_b: torch.Tensor,
    outcome: torch.Tensor,
    log_nu: torch.Tensor,
    lapse: torch.Tensor | None = None,
) -> torch.Tensor:
    """Negative log-likelihood of each pair. score_a, score_b (..., N), outcome (N,) in {A, TIE, B}, log_nu scalar, (N,)
    or (..., 1), lapse (N,), the probability that a vote is one; without it none is -> (..., N).
    """
    logprobs = _pair_logits(score_a, score_b, log_nu).log_softmax(-1)  # (..., N, 3)
    if lapse is not None:
        logprobs = _with_lapses(logprobs, lapse)
    return -logprobs.gather(-1, outcome.expand(logprobs.shape[:-1])[..., None])[..., 0]


def _pair_logits(score_a: torch.Tensor, score_b: torch.Tensor, log_nu: torch.Tensor) -> torch.Tensor:
    return torch.stack([score_a, log_nu + (score_a + score_b) / 2, score_b], -1)  # (..., N, 3)


def _with_lapses(logprobs: torch.Tensor, lapse: torch.Tensor) -> torch.Tensor:
    """log((1 − ε)·p + ε·coin) of log p (..., N, 3) and ε (N,)."""
    by_coin = torch.tensor([0.5, 0.0, 0.5], dtype=logprobs.dtype)
    mixed = (lapse[:, None] * by_coin).log()  # −∞ of a tie, which no coin gives
    return torch.logaddexp(torch.log1p(-lapse)[:, None] + logprobs, mixed)


def pair_derivatives(
    score_a: torch.Tensor,
    score_b: torch.Tensor,
    outcome: torch.Tensor,
    log_nu: torch.Tensor,
    lapse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient (..., N, 2) and Fisher information (..., N, 2, 2) of `pair_nll` by (score_a − score_b, log ν).

    Davidson's model is an exponential family in these two, so without lapses the information is the Hessian: the
    covariance of its statistics, (½, 0), (0, 1), (−½, 0) for a, tie, b. With lapses a vote counts by how probably it is
    none.
    """
    statistics = torch.tensor([[0.5, 0.0], [0.0, 1.0], [-0.5, 0.0]], dtype=score_a.dtype)  # (3, 2)
    logprobs = _pair_logits(score_a, score_b, log_nu).log_softmax(-1)  # (..., N, 3)
    p = logprobs.exp()
    mean = p @ statistics  # (..., N, 2)
    if lapse is None:
        products = (statistics[:, :, None] * statistics[:, None, :]).flatten(1)  # (3, 4)
        second_moment = (p @ products).unflatten(-1, (2, 2))
        return mean - statistics[outcome], second_moment - mean[..., :, None] * mean[..., None, :]
    meant = (torch.log1p(-lapse)[:, None] + logprobs - _with_lapses(logprobs, lapse)).exp()  # P(no lapse | vote)
    slopes = mean[..., None, :] - statistics  # (..., N, 3, 2)
    gradient = (meant[..., None] * slopes).gather(-2, _rows(outcome, slopes))[..., 0, :]
    weight = (1 - lapse)[:, None] * p * meant  # P(vote)·P(no lapse | vote)²
    information = (weight[..., None, None] * slopes[..., :, None] * slopes[..., None, :]).sum(-3)
    return gradient, information


def _rows(outcome: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """An index (..., N, 1, 2) that gathers the row of each outcome (N,) from (..., N, 3, 2)."""
    shape = (*slopes.shape[:-2], 1, slopes.shape[-1])
    return outcome[:, None, None].expand(shape)


def pointwise_nll(score: torch.Tensor, good: torch.Tensor, threshold: torch.Tensor | float) -> torch.Tensor:
    """Negative log-likelihood of thumbs and both-bad votes, P(good) = σ(s − θ). score (..., N), good (N,) in
    {0, 1} -> (..., N).
    """
    target = good.to(score).expand_as(score)
    return torch.nn.functional.binary_cross_entropy_with_logits(score - threshold, target, reduction="none")


def probable_lapse(margin: torch.Tensor, outcome: torch.Tensor, log_nu: torch.Tensor, weight: torch.Tensor) -> float:
    """The likeliest share of lapses among votes, given what others predict of them: margin, outcome, log ν and weight
    (n,) each. A lapse rate of ε has the prior density 2·(1 − ε).
    """
    lapses = torch.linspace(0, 0.99, 34, dtype=margin.dtype)
    log_posterior = torch.log1p(-lapses)
    logprobs = _pair_logits(margin / 2, -margin / 2, log_nu).log_softmax(-1)  # (n, 3)
    for k, lapse in enumerate(lapses):
        logprobs_here = _with_lapses(logprobs, lapse.expand(len(margin))) if lapse else logprobs
        log_posterior[k] += (weight * logprobs_here.gather(-1, outcome[:, None])[:, 0]).sum()
    return lapses[int(log_posterior.argmax())].item()
