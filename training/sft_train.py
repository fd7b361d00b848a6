"""Demonstrations to a warm start: supervised fine-tuning of the policy's LoRA on replies that people wrote. An edited
reply is a demonstration.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean as mean

import torch

from playground.models import loading
from playground.settings import Settings
from training import ppo_math
from training.policy import Batch, PolicyModel
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


def steps(policy: PolicyModel, demonstrations: Sequence[Episode], settings: Settings) -> Iterator[float]:
    """Minimise the NLL of the demonstrated replies by AdamW: one step each time, whose loss (mean over the tokens of
    its batch, in nats) comes next. There are `steps_per_epoch` in each of `sft.epochs`.

    The loss is over completion tokens only and at temperature 1, since the text is imitated and not its sampling.
    """
    optimizer = torch.optim.AdamW(policy.parameters.values(), lr=settings.sft.lr, eps=1e-5)
    batch_size = settings.ppo.microbatch
    for epoch in range(settings.sft.epochs):
        order = generator(settings.seed, "sft", epoch).sample(range(len(demonstrations)), len(demonstrations))
        for start in range(0, len(order), batch_size):
            batch = policy.batch([demonstrations[i] for i in order[start : start + batch_size]])
            loss = -ppo_math.masked_mean(_logprobs(policy, batch), batch.mask)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters.values(), settings.ppo.max_grad_norm)
            optimizer.step()
            yield loss.item()


def steps_per_epoch(demonstrations: Sequence[Episode], settings: Settings) -> int:
    return -(-len(demonstrations) // settings.ppo.microbatch)  # rounded up


def _logprobs(policy: PolicyModel, batch: Batch) -> torch.Tensor:
    """log π of the demonstrated tokens at temperature 1, (B, T), 0 on padding."""
    return policy.token_logprobs(policy.hidden(batch), batch, temperature=1.0)


def train(
    policy: PolicyModel,
    demonstrations: Sequence[Episode],
    settings: Settings,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> float | None:
    """All steps; returns the last epoch's mean loss, or None where there is nothing to train on."""
    in_epoch = steps_per_epoch(demonstrations, settings)
    losses: list[float] = []
    for loss in steps(policy, demonstrations, settings):
        losses.append(loss)
        on_step(len(losses), in_epoch * settings.sft.epochs, loss)
    last_epoch = losses[-in_epoch:]
    return sum(last_epoch) / len(last_epoch) if last_epoch else None


# -- with held-out demonstrations

LOOKS = 2  # at the held-out loss in an epoch
MOST_STEPS = 100  # between two looks
PATIENCE = 2  # looks in a row without a lower held-out loss, after which training ends


@dataclass(frozen=True)
class Look:
    """Where training is after `step` steps: losses in nats a token, that of training since the look before."""

    step: int
    loss: float
    heldout: float


@torch.no_grad()
def losses(policy: PolicyModel, demonstrations: Sequence[Episode], settings: Settings) -> list[float]:
    """The NLL of each demonstrated reply, in nats a token, at temperature 1."""
    found: list[float] = []
    at_once = settings.ppo.microbatch
    for start in range(0, len(demonstrations), at_once):
        batch = policy.batch(demonstrations[start : start + at_once])
        found.extend((-_logprobs(policy, batch).sum(-1) / batch.mask.sum(-1)).tolist())
    return found


def train_until_heldout_rises(
    policy: PolicyModel,
    demonstrations: Sequence[Episode],
    heldout: Sequence[Episode],
    settings: Settings,
    seconds: float,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    on_look: Callable[[Look], None] = lambda look: None,
) -> list[Look]:
    """Train until the held-out loss (mean over replies) has not fallen at `PATIENCE` looks in a row, or for about
    `seconds`; the policy is left where that loss was lowest. Returns the looks; the first is before training.
    """
    in_epoch = steps_per_epoch(demonstrations, settings)
    most = in_epoch * settings.sft.epochs
    every = min(MOST_STEPS, -(-in_epoch // LOOKS))
    ends = time.monotonic() + seconds
    best, best_state = Look(0, math.nan, mean(losses(policy, heldout, settings))), policy.state()
    looks = [best]
    on_look(best)
    since_look: list[float] = []
    for step, loss in enumerate(steps(policy, demonstrations, settings), 1):
        since_look.append(loss)
        on_step(step, most, loss)
        time_is_over = time.monotonic() >= ends
        if step % every and step < most and not time_is_over:
            continue
        look = Look(step, mean(since_look), mean(losses(policy, heldout, settings)))
        since_look = []
        looks.append(look)
        on_look(look)
        if look.heldout < best.heldout:
            best, best_state = look, policy.state()
        if time_is_over or best not in looks[-PATIENCE:]:
            break
    policy.load(best_state)
    return looks
