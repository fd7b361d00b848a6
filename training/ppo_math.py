"""The mathematics of PPO for language models as pure tensor functions: no models, no settings, no state.

B replies of at most T tokens; `mask` (B, T) is 1 on reply tokens and 0 on padding after them. All tensors are fp32. Names follow Schulman et al.
2017 (PPO), Schulman et al. 2016 (GAE), Ziegler et al. 2019 (adaptive KL) and Huang et al. 2024 (the N implementation details).
"""

import torch

HEAD_ROWS = 96  # hidden states that meet the vocabulary at once


def masked_mean(x, mask):
    """Mean of `x` over the entries where `mask` is 1; scalar."""
    return (x * mask).sum() / mask.sum()


def masked_whiten(x, mask, eps=1e-8):
    """`x` (B, T) shifted and scaled to mean 0 and variance 1 over the masked entries; 0 elsewhere."""
    mean = masked_mean(x, mask)
    var = masked_mean((x - mean) ** 2, mask)
    return (x - mean) * torch.rsqrt(var + eps) * mask


class _HeadLogprobs(torch.autograd.Function):
    """See `head_logprobs`."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, tokens, temperature):
        n, rows = len(hidden), min(HEAD_ROWS, len(hidden))
        logprobs, entropy = hidden.new_empty(n, dtype=torch.float32), hidden.new_empty(n, dtype=torch.float32)
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None  # d log π(token)/d hidden
        # filled again for every few rows: fresh pages for tensors of this size cost more than the arithmetic on them
        product = hidden.new_empty(rows, len(weight))  # (rows, V)
        logits, p = torch.empty_like(product, dtype=torch.float32), torch.empty_like(product, dtype=torch.float32)
        for start in range(0, n, rows):
            at = slice(start, start + rows)
            k = len(hidden[at])
            product, logits, p = product[:k], logits[:k], p[:k]
            torch.mm(hidden[at], weight.T, out=product)
            logits.copy_(product if bias is None else product.add_(bias)).div_(temperature)
            logits.sub_(logits.amax(-1, keepdim=True))
            torch.exp(logits, out=p)
            total = p.sum(-1)
            logprobs[at] = logits.gather(-1, tokens[at, None])[:, 0] - total.log()
            entropy[at] = total.log() - torch.linalg.vecdot(p, logits) / total
            if slope is not None:
                expected = product.copy_(p.div_(total[:, None])) @ weight  # (rows, d)
                slope[at] = (weight[tokens[at]] - expected) / temperature
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx, gradient, _entropy):
        slope, = ctx.saved_tensors
        return (gradient[:, None] * slope).to(slope.dtype), None, None, None, None


def head_logprobs(hidden, head, tokens, temperature):
    """log π(token) under softmax(head(hidden) / temperature), and that softmax's entropy in nats, which has no gradient.

    hidden (..., d), tokens (...) -> two (...) fp32. `head` is linear and frozen. A token's log-probability hangs on its own hidden state alone, so
    its gradient is worked out at once: nothing of the vocabulary's size outlives a few rows, where autograd would keep several of (..., V).
    """
    shape = tokens.shape
    flat = _HeadLogprobs.apply(hidden.reshape(-1, hidden.shape[-1]), head.weight, head.bias, tokens.reshape(-1), temperature)
    return tuple(x.view(shape) for x in flat)


def head_kl(hidden, ref_hidden, head, temperature):
    """KL in nats from softmax(head(ref_hidden) / temperature) to softmax(head(hidden) / temperature), over the whole vocabulary; no gradient.

    Summed over the tokens of the policy's own replies it estimates KL(π ‖ π_ref) as k1 does, with the chance of each token averaged out
    (Amini et al. 2025). hidden, ref_hidden (..., d) -> (...) fp32.
    """
    rows = []
    for new, ref in zip(*(h.reshape(-1, h.shape[-1]).split(HEAD_ROWS) for h in (hidden, ref_hidden)), strict=True):
        log_p, log_q = (torch.log_softmax(head(h).float().div_(temperature), -1) for h in (new, ref))
        rows.append(torch.linalg.vecdot(log_p.exp(), log_p.sub_(log_q)))
    return torch.cat(rows).view(hidden.shape[:-1])


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


def leave_one_out(scores, n):
    """Each score minus the mean of the other scores of its prompt, where n replies in a row answer one (Kool et al. 2019; RLOO, Ahmadian et al.
    2024): what a prompt is worth to every reply is no reply's merit, and a value head learns it late. (B,) -> (B,), as it was for n = 1."""
    if n == 1:
        return scores
    of_prompt = scores.view(-1, n)
    return ((of_prompt - of_prompt.mean(-1, keepdim=True)) * (n / (n - 1))).reshape(-1)


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
