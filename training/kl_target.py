"""Takes a policy that has overshot its KL target back to it.

What the target is, is up to the trainer.
"""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from training.rollout import Episode

if TYPE_CHECKING:
    from training.trainer import Trainer

RETURNS = 4  # at most; each samples replies of the policy again
NEAR_TARGET = 1.1  # of the KL target: a measured KL up to here counts as at the target


def return_to(trainer: "Trainer", samples: Iterator[list[Episode]]) -> None:
    """Move the policy back, along the line to where training started (Wortsman et al. 2022), until its replies have a
    mean KL to the base of the target, and one to the start of the step. An iteration's steps overshoot the target.

    Each of the `samples` is replies of the policy as it is when they are asked for.
    """
    policy = trainer.policy
    end = policy.state()
    share = 1.0  # of the way from the start to the end
    for episodes in islice(samples, RETURNS):
        moved = policy.totals(episodes, trainer.settings.ppo.microbatch)
        factor = _share_left(trainer.kl_start, moved.mean_kl, trainer.kl_target)
        if trainer.kl_step is not None:
            kl_start = policy.kl_from(trainer.start, episodes, moved.logprob, trainer.settings.ppo.microbatch)
            factor = min(factor, _share_left(0.0, kl_start, trainer.kl_step))
        if factor == 1:
            break
        share *= factor
        policy.interpolate(trainer.start, end, share)


def _share_left(kl_start: float, kl: float, target: float) -> float:
    """The share of the way from the start to here at which the KL, whose root grows about evenly on it, is `target`."""
    if kl <= NEAR_TARGET * target:
        return 1.0
    root_start = max(0.0, min(kl_start, kl)) ** 0.5  # rounding may leave a measured KL just below 0
    return max(0.0, (target**0.5 - root_start) / max(kl**0.5 - root_start, 1e-9))
