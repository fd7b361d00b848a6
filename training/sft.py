"""Demonstrations to a warm start: supervised fine-tuning of the policy's LoRA on replies that people wrote. An edited
reply is a demonstration.
"""

from collections.abc import Callable, Sequence

import torch

from playground.models import loading
from playground.settings import Settings
from training import ppo_math
from training.policy import PolicyModel
from training.preferences import Row
from training.rollout import Episode, generator


def examples(
    rows: Sequence[Row],
    encode_reply: Callable[[str], list[int]],
    cut_prompt: Callable[[list[int]], list[int]],
    max_tokens: int | None = None,
) -> list[Episode]:
    """Episodes of the store's demonstration rows, their prompts as `cut_prompt` leaves them. Prompt and reply are cut
    to the `max_tokens` that the model takes.
    """
    episodes = []
    for row in rows:
        whole = encode_reply(row["after"])
        prompt, completion = loading.cut(cut_prompt(row["prompt"]), whole, max_tokens)
        episodes.append(Episode(prompt, completion, ended=completion == whole))
    return episodes


def train(
    policy: PolicyModel,
    demonstrations: Sequence[Episode],
    settings: Settings,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> float | None:
    """Minimise the NLL of the demonstrated replies (mean over tokens) by AdamW; returns the last epoch's mean loss, or
    None where there is nothing to train on.

    The loss is over completion tokens only and at temperature 1, since the text is imitated and not its sampling.
    """
    optimizer = torch.optim.AdamW(policy.parameters.values(), lr=settings.sft.lr, eps=1e-5)
    batch_size = settings.ppo.microbatch
    steps_per_epoch = -(-len(demonstrations) // batch_size)  # rounded up
    losses: list[float] = []
    for epoch in range(settings.sft.epochs):
        order = generator(settings.seed, "sft", epoch).sample(range(len(demonstrations)), len(demonstrations))
        for start in range(0, len(order), batch_size):
            batch = policy.batch([demonstrations[i] for i in order[start : start + batch_size]])
            logprobs = policy.token_logprobs(policy.hidden(batch), batch, temperature=1.0)  # (B, T)
            loss = -ppo_math.masked_mean(logprobs, batch.mask)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters.values(), settings.ppo.max_grad_norm)
            optimizer.step()
            losses.append(loss.item())
            on_step(len(losses), steps_per_epoch * settings.sft.epochs, loss.item())
    last_epoch = losses[-steps_per_epoch:]
    return sum(last_epoch) / len(last_epoch) if last_epoch else None
