"""How a token is drawn from logits: temperature, top-k, top-p, repetition penalty. Pure tensor functions; which reply
a row belongs to is `decoder.py`'s.
"""

from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from playground.settings.groups import ChatSettings


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn. `temperature` divides the logits; 0 is greedy. `top_p` 1, `top_k` 0 and
    `repetition_penalty` 1 are off.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 192
    repetition_penalty: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def of_chat(chat: "ChatSettings") -> Sampling:
    """How the chat's replies are drawn with these settings."""
    return Sampling(
        temperature=chat.temperature,
        top_p=chat.top_p,
        top_k=chat.top_k,
        max_tokens=chat.reply_tokens,
        repetition_penalty=chat.repetition_penalty,
    )


@torch.inference_mode()
def draw(
    logits: torch.Tensor, sampling: Sampling, seen: list[list[int]] | None, uniform: torch.Tensor | None
) -> tuple[list[int], list[float]]:
    """Draw a token for each row of `logits` (R, V): token ids, and their log-probabilities under the distribution that
    they are drawn from. A log-probability is NaN where the row's logits are not finite.

    `seen` has the tokens of each row's prompt and reply; it is needed only where there is a repetition penalty.
    `uniform` (R,) has a random number in [0, 1) for each row, or is None where the draw is greedy.
    """
    if sampling.repetition_penalty != 1 and seen is not None:
        logits = penalised(logits, seen, sampling.repetition_penalty)
    if uniform is None:
        highest, tokens = logits.max(-1)
        logprobs = highest - highest  # 0, and NaN where the highest is NaN or infinite
        return tokens.tolist(), logprobs.tolist()
    distribution = torch.log_softmax(truncated(logits / sampling.temperature, sampling.top_p, sampling.top_k), -1)
    cumulative = distribution.exp().cumsum(-1)  # (R, V)
    target = uniform.to(logits.device)[:, None] * cumulative[:, -1:]  # (R, 1)
    tokens = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)  # (R, 1)
    return tokens[:, 0].tolist(), distribution.gather(-1, tokens)[:, 0].tolist()


def penalised(logits: torch.Tensor, seen: list[list[int]], penalty: float) -> torch.Tensor:
    """The repetition penalty (Keskar et al. 2019, section 4.1): `logits` (R, V) of the tokens that row r has in
    `seen[r]` are divided by `penalty` where they are positive and multiplied by it elsewhere.
    """
    lengths = torch.tensor([len(tokens) for tokens in seen])
    rows = torch.repeat_interleave(torch.arange(len(seen)), lengths)
    columns = torch.tensor(list(chain.from_iterable(seen)), dtype=torch.long)
    repeated = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)  # (R, V)
    repeated[rows.to(logits.device), columns.to(logits.device)] = True
    return torch.where(repeated, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def truncated(logits: torch.Tensor, top_p: float, top_k: int) -> torch.Tensor:
    """`logits` (R, V) with everything outside the top k and the top-p nucleus (Holtzman et al. 2020) at -inf."""
    if top_k:
        kth = logits.topk(min(top_k, logits.shape[-1]), -1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p < 1:
        values, order = logits.sort(-1, descending=True)
        probs = values.softmax(-1)
        outside = probs.cumsum(-1) - probs >= top_p  # the token that crosses top_p stays
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
    return logits
