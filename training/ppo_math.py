"""The mathematics of PPO for language models as pure tensor functions: no models, no settings, no state.

B replies of at most T tokens; `mask` (B, T) is 1 on reply tokens and 0 on padding after them. All tensors are fp32.
Names follow Schulman et al. 2017 (PPO), Schulman et al. 2016 (GAE), Ziegler et al. 2019 (adaptive KL) and Huang et al.
2024 (the N implementation details).
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


class _Vocabulary:
    """softmax(head(hidden) / temperature) of at most HEAD_ROWS hidden states at once, in buffers that are filled again:
    fresh pages for tensors of this size cost more than the arithmetic on them."""

    def __init__(self, hidden, weight, bias, temperature):
        self.weight, self.bias, self.temperature = weight, bias, temperature
        self.product = hidden.new_empty(min(HEAD_ROWS, len(hidden)), len(weight))
        self.logits, self.p = (torch.empty_like(self.product, dtype=torch.float32) for _ in range(2))

    def __call__(self, hidden):
        """hidden (k, d) -> logits (k, V), of largest 0; their exponentials (k, V); and the sums of these (k,). Good
        until the next call.
        """
        product, logits, p = (x[: len(hidden)] for x in (self.product, self.logits, self.p))
        torch.mm(hidden, self.weight.T, out=product)
        logits.copy_(product if self.bias is None else product.add_(self.bias)).div_(self.temperature)
        logits.sub_(logits.amax(-1, keepdim=True))
        torch.exp(logits, out=p)
        return logits, p, p.sum(-1)


class _HeadLogprobs(torch.autograd.Function):
    """See `head_logprobs`."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, tokens, temperature):
        vocabulary, found = _Vocabulary(hidden, weight, bias, temperature), []
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None  # d log π(token)/d hidden
        for start in range(0, len(hidden), HEAD_ROWS):
            at = slice(start, start + HEAD_ROWS)
            logits, p, total = vocabulary(hidden[at])
            found.append(logits.gather(-1, tokens[at, None])[:, 0] - total.log())
            if slope is not None:
                expected = p.div_(total[:, None]).to(hidden.dtype) @ weight  # (k, d)
                slope[at] = (weight[tokens[at]] - expected) / temperature
        ctx.save_for_backward(slope)
        return torch.cat(found)

    @staticmethod
    def backward(ctx, gradient):
        (slope,) = ctx.saved_tensors
        return (gradient[:, None] * slope).to(slope.dtype), None, None, None, None


def head_logprobs(hidden, head, tokens, temperature):
    """log π(token) under softmax(head(hidden) / temperature); hidden (..., d), tokens (...) -> (...) fp32. `head` is
    linear and frozen.

    A token's log-probability hangs on its own hidden state alone, so its gradient is worked out at once: nothing of the
    vocabulary's size outlives a few rows, where autograd would keep several of (..., V).
    """
    flat = _HeadLogprobs.apply(
        hidden.reshape(-1, hidden.shape[-1]), head.weight, head.bias, tokens.reshape(-1), temperature
    )
    return flat.view(tokens.shape)


@torch.no_grad()
def head_comparison(hidden, ref_hidden, head, tokens, temperature):
    """log π(token), log π_ref(token), π's entropy and KL(π ‖ π_ref), both in nats and over the whole vocabulary; four
    (...) fp32, no gradients.

    Summed over the tokens of the policy's own replies, that KL estimates the one between whole replies as k1 does, with
    the chance of each token averaged out (Amini et al. 2025). hidden, ref_hidden (..., d) of the same positions, tokens
    (...); the rest as in `head_logprobs`.
    """
    new, ref, flat = (x.reshape(-1, x.shape[-1]) for x in (hidden, ref_hidden, tokens[..., None]))
    of_new, of_ref = (_Vocabulary(x, head.weight, head.bias, temperature) for x in (new, ref))
    columns = []
    for h, h_ref, token in zip(new.split(HEAD_ROWS), ref.split(HEAD_ROWS), flat.split(HEAD_ROWS), strict=True):
        (logits, p, total), (ref_logits, _, ref_total) = of_new(h), of_ref(h_ref)
        log_total, log_ref_total = total.log(), ref_total.log()
        logprobs, ref_logprobs = (
            logits.gather(-1, token)[:, 0] - log_total,
            ref_logits.gather(-1, token)[:, 0] - log_ref_total,
        )
        entropy = log_total - torch.linalg.vecdot(p, logits) / total
        kl = torch.linalg.vecdot(p, logits.sub_(ref_logits)) / total - log_total + log_ref_total
        columns.append((logprobs, ref_logprobs, entropy, kl))
    return tuple(torch.cat(column).view(tokens.shape) for column in zip(*columns, strict=True))


def kl_k1(logprobs, ref_logprobs):
    """k1 estimate of KL(π ‖ π_ref) per token, log π − log π_ref: unbiased, may be negative. (B, T)."""
    return logprobs - ref_logprobs


def kl_k3(logprobs, ref_logprobs):
    """k3 estimate of KL(π ‖ π_ref) per token, r − 1 − log r with r = π_ref/π: never negative, for plots (Schulman
    2020). (B, T).
    """
    log_ratio = ref_logprobs - logprobs
    return log_ratio.exp() - 1 - log_ratio


def token_rewards(scores, kl, mask, beta):
    """−β·kl on each token, and the reply's score (B,) on its last real token. kl, mask (B, T) -> (B, T)."""
    rewards = -beta * kl * mask
    last = mask.sum(-1).long() - 1  # (B,)
    rewards[torch.arange(len(scores), device=rewards.device), last] += scores
    return rewards


def leave_one_out(scores, n):
    """Each score minus the mean of the other scores of its prompt, where n replies in a row answer one (Kool et al.
    2019; RLOO, Ahmadian et al. 2024): what a prompt is worth to every reply is no reply's merit, and a value head
    learns it late. (B,) -> (B,), as it was for n = 1.
    """
    if n == 1:
        return scores
    of_prompt = scores.view(-1, n)
    return ((of_prompt - of_prompt.mean(-1, keepdim=True)) * (n / (n - 1))).reshape(-1)


def gae(rewards, values, mask, gamma=1.0, lam=0.95):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over replies that end: nothing is bootstrapped
    past the last token.

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
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), token mean, to be minimised. Returns (loss, clip
    fraction).
    """
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
