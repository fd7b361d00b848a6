"""The mathematics of PPO for language models as pure tensor functions: no models, no settings, no state.

B replies of at most T tokens; `mask` (B, T) is 1 on reply tokens and 0 on padding after them. All tensors are fp32. Names follow Schulman et al.
2017 (PPO), Schulman et al. 2016 (GAE), Ziegler et al. 2019 (adaptive KL) and Huang et al. 2024 (the N implementation details).
"""

import torch


def masked_mean(x, mask):
    """Mean of `x` over the entries where `mask` is 1; scalar."""
    return (x * mask).sum() / mask.sum()


def masked_whiten(x, mask, eps=1e-8):
    """`x` (B, T) shifted and scaled to mean 0 and variance 1 over the masked entries; 0 elsewhere."""
    mean = masked_mean(x, mask)
    var = masked_mean((x - mean) ** 2, mask)
    return (x - mean) * torch.rsqrt(var + eps) * mask


def token_logprobs(logits, tokens, temperature):
    """log π(token) under softmax(logits / temperature). logits (..., V) in any format, tokens (...) -> (...) fp32."""
    logprobs = torch.log_softmax(logits.float() / temperature, -1)
    return logprobs.gather(-1, tokens[..., None])[..., 0]


def entropy(logits, temperature):
    """Entropy in nats of softmax(logits / temperature). (..., V) -> (...)."""
    logprobs = torch.log_softmax(logits.float() / temperature, -1)
    return -(logprobs.exp() * logprobs).sum(-1)


def kl_k1(logprobs, ref_logprobs):
    """k1 estimate of KL(π ‖ π_ref) per token, log π − log π_ref: unbiased, may be negative. (B, T)."""
    return logprobs - ref_logprobs


def kl_k3(logprobs, ref_logprobs):
    """k3 estimate of KL(π ‖ π_ref) per token, r − 1 − log r with r = π_ref/π: never negative, for plots (Schulman 2020). (B, T)."""
    log_ratio = ref_logprobs - logprobs
    return log_ratio.exp() - 1 - log_ratio


def token_rewards(scores, kl, mask, beta):
    """−β·kl on each token, and the reply's score (B,) on its last real token. kl, mask (B, T) -> (B, T)."""
    rewards = -beta * kl * mask
    last = mask.sum(-1).long() - 1  # (B,)
    rewards[torch.arange(len(scores), device=rewards.device), last] += scores
    return rewards


def gae(rewards, values, mask, gamma=1.0, lam=0.95):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over replies that end: nothing is bootstrapped past the last token.

    rewards, values, mask (B, T) -> advantages, returns (B, T), zero on padding.
    """
    values = values * mask
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(running)
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = (delta + gamma * lam * running) * mask[:, t]
        advantages[:, t] = running
    return advantages, (advantages + values) * mask


def policy_loss(logprobs, old_logprobs, advantages, mask, clip):
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), token mean, to be minimised. Returns (loss, clip fraction)."""
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    fraction = masked_mean((clipped > unclipped).float(), mask)
    return masked_mean(torch.maximum(unclipped, clipped), mask), fraction


def value_loss(values, old_values, returns, mask, clip):
    """½·max of the squared errors of the value and of the value clipped around its old one, token mean."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (clipped - returns) ** 2), mask)


def explained_variance(values, returns, mask):
    """1 − Var(returns − values)/Var(returns) over reply tokens; 1 is perfect, 0 is no better than a constant."""
    x, r = values[mask.bool()], returns[mask.bool()]
    return (1 - (r - x).var(unbiased=False) / r.var(unbiased=False).clamp(min=1e-8)).item()


def adapted_beta(beta, kl, target, episodes, horizon):
    """Ziegler et al. 2019, eq. 2: β moves by at most 20 % · episodes/horizon towards KL = target (nats a reply)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * episodes / horizon)
