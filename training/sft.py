"""Demonstrations to a warm start: supervised fine-tuning of the policy's LoRA on replies that people wrote (an edited
reply is one).
"""

import torch

from playground.models import loading
from training import ppo_math
from training.rollout import Episode, generator


def examples(rows, encode_reply, context, most=None):
    """Episodes of the store's demonstration rows whose prompt fits into `context` tokens, cut to the `most` tokens that
    the model takes.
    """
    found = []
    for row in rows:
        if len(row["prompt"]) <= context:
            whole = encode_reply(row["after"])
            prompt, completion = loading.cut(row["prompt"], whole, most)
            found.append(Episode(prompt, completion, completion == whole))
    return found


def train(policy, demonstrations, settings, on_step=lambda step, steps, loss: None):
    """Minimise the NLL of the demonstrated replies, token mean, by AdamW; returns the last epoch's mean loss.

    The loss is over completion tokens only, at temperature 1: it is the text that is imitated, not its sampling.
    """
    optimizer = torch.optim.AdamW(policy.parameters.values(), lr=settings.sft_lr, eps=1e-5)
    per_epoch = -(-len(demonstrations) // settings.ppo_microbatch)
    losses = []
    for epoch in range(settings.sft_epochs):
        order = generator(settings.seed, "sft", epoch).sample(range(len(demonstrations)), len(demonstrations))
        for start in range(0, len(order), settings.ppo_microbatch):
            batch = policy.batch([demonstrations[i] for i in order[start : start + settings.ppo_microbatch]])
            logprobs = policy.token_logprobs(policy.hidden(batch), batch, temperature=1.0)
            loss = -ppo_math.masked_mean(logprobs, batch.mask)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters.values(), settings.max_grad_norm)
            optimizer.step()
            losses.append(loss.item())
            on_step(len(losses), per_epoch * settings.sft_epochs, loss.item())
    last = losses[-per_epoch:]
    return sum(last) / len(last) if last else None
