"""A self-test of the files that a round writes: what is read back is what was in memory. A difference ends the round
with a SelfTestFailed that names the cause.
"""

import copy
from pathlib import Path

import torch
from transformers import PreTrainedModel

from playground.models import adapter_reading, adapters, lora
from playground.models.scorer import RewardModel
from playground.settings import Settings
from training.policy import PolicyModel
from training.selftest import SelfTestFailed, fixed_episodes

HEAD = 1e-4  # largest change of a standardised score by saving and loading: other memory layouts round differently


def check_head(model: RewardModel, path: Path, features: torch.Tensor) -> None:
    """Check that the RewardModel at `path` scores features (N, D) as the one in memory does, and has the same LoRA.
    SelfTestFailed otherwise.
    """
    saved = RewardModel.load(path)
    error = (saved.reward(features) - model.reward(features)).abs().max().item()
    different = model.lora.keys() ^ saved.lora.keys()
    for name in model.lora.keys() & saved.lora.keys():
        if not torch.equal(model.lora[name].cpu(), saved.lora[name]):
            different.add(name)
    if different or not error <= HEAD:
        raise SelfTestFailed(
            f"read back from {path.name}, the reward head scores a reply by {error:.2e} deviations otherwise, and at "
            f"most {HEAD:.0e} is accepted, and {len(different)} tensors of its LoRA differ: RewardModel.save leaves "
            "out or changes what the score needs, or the disk is faulty."
        )


def check_adapter(
    policy: PolicyModel,
    settings: Settings,
    folder: Path,
    bare: PreTrainedModel,
    *,
    base_hash: str,
    expected_sha256: str | None = None,
) -> None:
    """Check that the version in `folder`, loaded over the trunk `bare` as the chat loads it, has exactly the policy's
    tensors, and its log-probabilities. SelfTestFailed otherwise.
    """
    try:
        served = adapters.load(folder, bare, base_hash=base_hash, expected_sha256=expected_sha256)
    except adapter_reading.BadAdapter as error:
        raise SelfTestFailed(
            f"the version just written cannot be read back: {error}. Check the disk, and start the round again."
        ) from error
    on_disk = lora.lora_parameters(served)
    different = [
        name
        for name, parameter in policy.parameters.items()
        if name not in on_disk or not torch.equal(parameter, on_disk[name])
    ]
    if different:
        raise SelfTestFailed(
            f"{len(different)} of {len(policy.parameters)} tensors in {folder.name} are not those that the gate "
            f"measured, the first is {different[0]}: another policy was written, or the folder is left from another "
            f"round. Delete {folder.name}, and start the round again."
        )
    batch = policy.batch(fixed_episodes(bare))
    trained_policy, served_policy = copy.copy(policy), copy.copy(policy)
    trained_policy.rounded = served_policy.rounded = None  # rounded alike, small differences would become larger
    served_policy.causal = served
    with torch.no_grad():
        difference = (served_policy.logprobs(batch) - trained_policy.logprobs(batch)).abs().max().item()
    if not difference <= settings.ppo.ratio_tolerance:
        raise SelfTestFailed(
            f"loaded from {folder.name}, the version gives log-probabilities that are {difference:.2e} nats off from "
            f"those of the policy that the gate measured, and at most {settings.ppo.ratio_tolerance:.0e} is accepted: "
            "its tensors are right, so rank, alpha or targets in its manifest are not."
        )
