"""The mathematics of PPO for language models, as pure tensor functions: no models, no settings, no state.

B replies of at most T tokens; `mask` (B, T) is 1 on reply tokens and 0 on padding after them. All tensors are fp32.
Names follow Schulman et al. 2017 (PPO), Schulman et al. 2016 (GAE), Ziegler et al. 2019 (adaptive KL) and Huang et al.
2024 (the N implementation details).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

HEAD_ROWS = 768  # hidden states that a CPU multiplies with the vocabulary at once
WORDS = 2048  # of the vocabulary that a CPU multiplies at once: logits and words stay in its cache
HEAD_ROWS_GPU = 512  # a GPU does the work of many rows in about the time of few


def head_rows(device: torch.device) -> int:
    """How many hidden states are multiplied with the vocabulary at once."""
    return HEAD_ROWS if device.type == "cpu" else HEAD_ROWS_GPU


def added(parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """{name: sum over the parts} of parts that have the same names."""
    return {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}


def read_back(scalars: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The numbers in scalar tensors of one device; a GPU is waited for once."""
    values = torch.stack([value.detach() for value in scalars.values()]).tolist()
    return dict(zip(scalars, values, strict=True))


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `x` over the entries where `mask` is 1; scalar."""
    return (x * mask).sum() / mask.sum()


def masked_whiten(x: torch.Tensor, mask: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """`x` (B, T) shifted and scaled to mean 0 and variance 1 over the masked entries; 0 elsewhere."""
    mean = masked_mean(x, mask)
    var = masked_mean((x - mean) ** 2, mask)
    return (x - mean) * torch.rsqrt(var + eps) * mask


class Head:
    """A frozen linear layer over the vocabulary."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """weight (V, d), bias (V,)."""
        self.weight = weight
        self.bias = bias

    def products(self, hidden: torch.Tensor, words: slice, out: torch.Tensor) -> None:
        """Write hidden (N, d) times the weight of these words into `out` (N, w)."""
        torch.mm(hidden, self.weight[words].T, out=out)
        if self.bias is not None:
            out.add_(self.bias[words])

    def weighted(self, weights: torch.Tensor, words: slice) -> torch.Tensor:
        """The sum of these words' rows of the weight, by weights (N, w): (N, d)."""
        return weights @ self.weight[words]

    def of_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens' rows (N, d) of the weight."""
        return self.weight[tokens]


class _Vocabulary:
    """Logits head(hidden) / temperature of N hidden states, for a block of words after the other: on a CPU a product
    with all words at once would run at half the speed, and its logits would leave the cache. The buffers are reused,
    since new memory for tensors of this size costs more than the arithmetic on them.
    """

    def __init__(self, head: Head, rows: int, hidden: torch.Tensor, temperature: float) -> None:
        """`rows` is the largest N; `hidden` gives device and format."""
        self.head = head
        self.temperature = temperature
        self.words = WORDS if hidden.device.type == "cpu" else len(head.weight)
        self.product = hidden.new_empty(rows * min(self.words, len(head.weight)))
        # in fp32 the product is the logits
        self.logits = self.product if hidden.dtype == torch.float32 else self.product.float()

    def blocks(self) -> list[slice]:
        """The words of each block."""
        return [slice(start, start + self.words) for start in range(0, len(self.head.weight), self.words)]

    def __call__(self, hidden: torch.Tensor, words: slice) -> torch.Tensor:
        """hidden (N, d) -> logits (N, w) of these words in fp32, valid until the next call."""
        shape = (len(hidden), len(self.head.weight[words]))
        numbers = shape[0] * shape[1]
        product = self.product[:numbers].view(shape)
        logits = self.logits[:numbers].view(shape)
        self.head.products(hidden, words, product)
        if logits.dtype != product.dtype:
            logits.copy_(product)
        return logits.div_(self.temperature)


class _Softmax:
    """The softmax of N rows whose logits come block by block: their largest so far, and the sum of the exponentials of
    what they are below it (Milakov & Gimelshein 2018). It also keeps the logit of each row's own token.
    """

    def __init__(self, tokens: torch.Tensor) -> None:
        """tokens (N,)."""
        self.tokens = tokens
        self.largest = torch.full(tokens.shape, -torch.inf, device=tokens.device)
        self.total = torch.zeros(tokens.shape, device=tokens.device)
        self.of_token = torch.zeros(tokens.shape, device=tokens.device)

    def add(self, logits: torch.Tensor, words: slice, exps: torch.Tensor) -> torch.Tensor:
        """Take in logits (N, w) of these words. Their exponentials come into `exps` (N, w), which may be `logits`;
        returns the factor (N,) of what was summed with earlier exponentials.
        """
        place = self.tokens - words.start
        inside = (place >= 0) & (place < logits.shape[1])
        own = logits.gather(-1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        self.of_token = torch.where(inside, own, self.of_token)
        largest = torch.maximum(self.largest, logits.amax(-1))
        shrink = (self.largest - largest).exp()
        torch.sub(logits, largest[:, None], out=exps).exp_()
        self.total.mul_(shrink).add_(exps.sum(-1))
        self.largest = largest
        return shrink

    @property
    def log_total(self) -> torch.Tensor:
        """log Σ exp(logits), (N,)."""
        return self.largest + self.total.log()

    @property
    def logprobs(self) -> torch.Tensor:
        """Of the rows' own tokens (N,)."""
        return self.of_token - self.largest - self.total.log()


class _HeadLogprobs(torch.autograd.Function):
    """See `head_logprobs`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: Head,
        tokens: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        rows = head_rows(hidden.device)
        vocabulary = _Vocabulary(head, min(rows, len(hidden)), hidden, temperature)
        logprobs = []
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None  # d log π(token)/d hidden, (N, d)
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            softmax = _Softmax(tokens[chunk])
            expected = torch.zeros_like(hidden[chunk], dtype=torch.float32)  # weights of the words, (k, d)
            for words in vocabulary.blocks():
                logits = vocabulary(hidden[chunk], words)
                shrink = softmax.add(logits, words, exps=logits)
                if slope is not None:
                    block = head.weighted(logits.to(hidden.dtype), words)
                    expected.mul_(shrink[:, None]).add_(block)
            logprobs.append(softmax.logprobs)
            if slope is not None:
                expected.div_(softmax.total[:, None])
                slope[chunk] = (head.of_tokens(tokens[chunk]) - expected) / temperature
        ctx.save_for_backward(slope)
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        (slope,) = ctx.saved_tensors
        return (gradient[:, None] * slope).to(slope.dtype), None, None, None


def head_logprobs(hidden: torch.Tensor, head: Head, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    """log π(token) under softmax(head(hidden) / temperature); hidden (..., d), tokens (...) -> (...) fp32.

    A token's log-probability depends on its own hidden state alone, so its gradient is computed in the forward pass:
    only a few rows of the vocabulary's size exist at a time, where autograd would keep several tensors (..., V).
    """
    flat = _HeadLogprobs.apply(hidden.reshape(-1, hidden.shape[-1]), head, tokens.reshape(-1), temperature)
    return flat.view(tokens.shape)


@torch.no_grad()
def head_comparison(
    hidden: torch.Tensor,
    ref_hidden: torch.Tensor,
    head: Head,
    tokens: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """log π(token), log π_ref(token), π's entropy and KL(π ‖ π_ref), the last two in nats and over the whole
    vocabulary; four (...) fp32 without gradients.

    Summed over the tokens of the policy's own replies, that KL estimates the one between whole replies as k1 does, with
    the chance of each token averaged out (Amini et al. 2025). hidden, ref_hidden (..., d) of the same positions, tokens
    (...); the rest as in `head_logprobs`.
    """
    width = hidden.shape[-1]
    policy_rows = hidden.reshape(-1, width)
    ref_rows = ref_hidden.reshape(-1, width)
    token_rows = tokens.reshape(-1)
    rows = head_rows(hidden.device)
    at_once = min(rows, len(token_rows))
    policy_head = _Vocabulary(head, at_once, hidden, temperature)
    ref_head = _Vocabulary(head, at_once, hidden, temperature)
    chunks = []
    for start in range(0, len(token_rows), rows):
        chunk = slice(start, start + rows)
        policy, ref = _Softmax(token_rows[chunk]), _Softmax(token_rows[chunk])
        mean_logit = torch.zeros_like(policy.total)  # Σ exp·logit of the policy, (k,)
        mean_difference = torch.zeros_like(policy.total)  # Σ exp·(logit − the reference's)
        for words in policy_head.blocks():
            logits = policy_head(policy_rows[chunk], words)
            ref_logits = ref_head(ref_rows[chunk], words)
            exps = torch.empty_like(logits)
            shrink = policy.add(logits, words, exps)
            mean_logit.mul_(shrink).add_(torch.linalg.vecdot(exps, logits))
            mean_difference.mul_(shrink).add_(torch.linalg.vecdot(exps, logits.sub_(ref_logits)))
            ref.add(ref_logits, words, exps)
        entropy = policy.log_total - mean_logit / policy.total
        kl = mean_difference / policy.total - policy.log_total + ref.log_total
        chunks.append(torch.stack([policy.logprobs, ref.logprobs, entropy, kl]))  # (4, k)
    logprobs, ref_logprobs, entropy, kl = torch.cat(chunks, -1)
    shape = tokens.shape
    return logprobs.view(shape), ref_logprobs.view(shape), entropy.view(shape), kl.view(shape)


def kl_k1(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """k1 estimate of KL(π ‖ π_ref) per token, log π − log π_ref: unbiased, may be negative. (B, T)."""
    return logprobs - ref_logprobs


def kl_k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """k3 estimate of KL(π ‖ π_ref) per token, r − 1 − log r with r = π_ref/π: never negative, for plots (Schulman
    2020). (B, T).
    """
    log_ratio = ref_logprobs - logprobs
    return log_ratio.exp() - 1 - log_ratio


def token_rewards(scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, beta: float) -> torch.Tensor:
    """−β·kl on each token, and the reply's score (B,) on its last real token. kl, mask (B, T) -> (B, T)."""
    rewards = -beta * kl * mask
    last = mask.sum(-1).long() - 1  # (B,)
    rewards[torch.arange(len(scores), device=rewards.device), last] += scores
    return rewards


def leave_one_out(scores: torch.Tensor, n: int) -> torch.Tensor:
    """Each score minus the mean of the other scores of its prompt, where n replies in a row answer one prompt (Kool et
    al. 2019; RLOO, Ahmadian et al. 2024). It takes away what all replies to a prompt have in common, which a value head
    learns late. (B,) -> (B,); n = 1 changes nothing.
    """
    if n == 1:
        return scores
    of_prompt = scores.view(-1, n)
    return ((of_prompt - of_prompt.mean(-1, keepdim=True)) * (n / (n - 1))).reshape(-1)


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over replies that end: no value is
    bootstrapped past the last token.

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


def policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), token mean, to be minimised. Returns (loss, clip
    fraction).
    """
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    fraction = masked_mean((clipped > unclipped).float(), mask)
    return masked_mean(torch.maximum(unclipped, clipped), mask), fraction


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip: float
) -> torch.Tensor:
    """½·max of the squared errors of the value and of the value clipped around its old one, token mean."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (clipped - returns) ** 2), mask)


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """1 − Var(returns − values)/Var(returns) over reply tokens; 1 is perfect, 0 is no better than a constant."""
    kept = mask.bool()
    residual_variance = (returns[kept] - values[kept]).var(unbiased=False)
    return_variance = returns[kept].var(unbiased=False).clamp(min=1e-8)
    return (1 - residual_variance / return_variance).item()


def adapted_beta(beta: float, kl: float, target: float, episodes: int, horizon: float) -> float:
    """Ziegler et al. 2019, eq. 2: β moves by at most 20 % · episodes/horizon towards KL = target (nats a reply)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * episodes / horizon)
