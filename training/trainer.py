"""The state of PPO between two iterations, and its checkpoint. What an iteration does is `ppo.py`'s."""

import os
from pathlib import Path

import torch

from playground.settings import Settings
from training import ratchet
from training.policy import PolicyModel

Metrics = dict[str, float]


class Trainer:
    """PPO's state: policy, optimizer, β, iteration, KL target and curves; all of it is in the checkpoint."""

    def __init__(self, policy: PolicyModel, settings: Settings, kl_step: float | None = None) -> None:
        """`policy` is where training starts. `kl_step`: how far its KL to the base may rise, in nats a reply, within
        the gate's budget, but by a quarter of the step in any case; None: the KL target is `ppo.kl_target`, wherever
        training starts.
        """
        self.policy = policy
        self.settings = settings
        self.kl_step = kl_step
        self.kl_target = settings.ppo.kl_target
        self.start = policy.state()
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(policy.parameters.values()), "lr": settings.ppo.lr},
                {"params": list(policy.value_head.parameters()), "lr": settings.ppo.value_lr},
            ],
            eps=1e-5,
        )
        self.beta = settings.ppo.kl_coefficient
        self.iteration = 0  # how many are done
        self.history: list[Metrics] = []  # of each iteration

    @property
    def target_reached(self) -> bool:
        """Whether the last rollouts were at the KL target."""
        return bool(self.history) and self.history[-1]["kl"] >= self.kl_target

    @property
    def kl_start(self) -> float:
        """KL of where training started, in nats a reply, as the first rollouts have it."""
        return self.history[0]["kl"]

    def add(self, metrics: Metrics) -> None:
        """Add an iteration's metrics. The first iteration's KL, before any update, says where the target lies."""
        self.iteration += 1
        self.history.append(metrics)
        if self.iteration == 1 and self.kl_step is not None:
            room = max(self.settings.gate.kl_budget - self.kl_start, ratchet.LEAST * self.kl_step)
            self.kl_target = self.kl_start + min(self.kl_step, room)

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".partial")
        torch.save(
            {
                "lora": self.policy.state(),
                "value_head": self.policy.value_head.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "beta": self.beta,
                "kl_target": self.kl_target,
                "iteration": self.iteration,
                "history": self.history,
            },
            partial,
        )
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        # to the CPU first: the checkpoint may be from another device, and Adam's step counters stay on the CPU
        state = torch.load(path, weights_only=True, map_location="cpu")
        self.policy.load(state["lora"])
        self.policy.value_head.load_state_dict(state["value_head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.beta = state["beta"]
        self.kl_target = state["kl_target"]
        self.iteration = state["iteration"]
        self.history = state["history"]
