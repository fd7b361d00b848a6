"""A self-test of the loaded models. A fault that would otherwise spoil a round without an error ends the round, and the
message names the cause.

It runs a few short forwards and two backwards, seconds in all, whenever a worker loads a model for a round. Owns the
fixed replies, the tolerances and the messages; leaves weights, gradients and random states as they were. Tests of the
files that a round writes are `selftest_files.py`'s.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from transformers import PreTrainedModel

from playground.models import adapters, structure
from playground.models.feature_trunk import FeatureTrunk
from playground.settings import Settings
from playground.system.safe_logging import Loggable
from training.policy import Batch, PolicyModel
from training.rollout import Episode

log = logging.getLogger(__name__)

# tokens of each prompt and its reply: padding on both sides, 8 to 24 tokens in all
LENGTHS = ((3, 5), (12, 12), (1, 9), (7, 6), (5, 8))

# Largest mean change of a token's log-probability by padding, in nats. Another batch shape is another order of
# summation, so the change is a rounding error and depends on the number format: on the default model 1e-5 in fp32,
# 0.08 in bf16, whose logits beyond 16 are 0.125 apart, and 4e-3 with int8 products, for which activations are rounded
# to int16. A lost mask makes 0.9 to 2.
PADDING = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.int8: 0.03}

# Largest change of a reply's features by its batch, in deviations between replies (root mean square over features). On
# the default model 2e-6 in fp32, nf4 or not, and 0.05 in bf16; 0.2 in int8, which looks for outlying columns over the
# whole batch. One token too few makes 0.6, one too many 3.
FEATURES = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.int8: 0.5}

Parameters = Mapping[str, torch.nn.Parameter]  # of a LoRA, by name


class SelfTestFailed(Exception):
    """A loaded model, or a file written from it, lacks a property that training needs. The message names the cause and
    what to do.
    """


# -- the policy


def check_policy(policy: PolicyModel, settings: Settings) -> None:
    """Check that the first ratio is 1, every LoRA tensor gets a gradient, padding does not change log-probabilities,
    and training does not change the reference. SelfTestFailed otherwise.

    The policy's tensors are unchanged afterwards, bit for bit. Its `share_prompts` is switched off where the model
    cannot share a reading of a prompt.
    """
    episodes = fixed_episodes(policy.causal)
    batch = policy.batch(episodes)
    with torch.no_grad(), policy.reference():
        reference = policy.logprobs(batch)
    with restored(policy.parameters):
        set_b(policy.parameters, 0.01)
        with torch.no_grad():
            old = policy.logprobs(batch)
        check_ratio(policy.causal, old, policy.logprobs(batch).detach(), settings.ppo.ratio_tolerance)

        def mean_nll() -> torch.Tensor:
            return -policy.logprobs(batch).sum() / batch.mask.sum()

        gradients = check_gradients(policy.causal, policy.parameters, mean_nll)
        with torch.no_grad():
            for name, parameter in policy.parameters.items():
                parameter.sub_(0.01 * gradients[name].sign())  # Adam's first step
            with policy.reference():
                drift = (policy.logprobs(batch) - reference).abs().max().item()
        check_drift(drift, settings.ppo.ratio_tolerance)
        check_padding(policy, episodes)
        share_prompts_if_sound(policy, episodes)


def check_ratio(model: PreTrainedModel, old: torch.Tensor, new: torch.Tensor, tolerance: float) -> None:
    """Check that the forward without gradients (`old`) and the one with them (`new`) give the same log-probabilities
    (B, T).
    """
    error = (torch.exp(new - old) - 1).abs().max().item()
    if error <= tolerance:
        return
    in_training_mode = sum(module.training for module in model.modules())
    if in_training_mode:
        cause = f"{in_training_mode} modules are in training mode, where dropout is random; call eval() on the model"
    else:
        cause = (
            "the forward is random, changes the model, or takes another path with gradients than without; remove the "
            "hook or kernel that does"
        )
    raise SelfTestFailed(
        f"two forwards of the same replies give a ratio that is off from 1 by {error:.2e}, and at most {tolerance:.0e} "
        f"is accepted: {cause}."
    )


def check_drift(drift: float, tolerance: float) -> None:
    """Check that a step of the LoRA moved the reference's log-probabilities only by rounding; `drift` in nats."""
    if not drift <= tolerance:
        raise SelfTestFailed(
            f"the reference's log-probabilities moved by {drift:.2e} nats in a step of the LoRA, and at most "
            f"{tolerance:.0e} is accepted: the LoRA stays on in PolicyModel.reference(), or the trunk changes with "
            "training, and the KL would be measured against a moving target. Switch off every LoRA layer there, and "
            "let nothing write into the trunk."
        )


def check_padding(policy: PolicyModel, episodes: Sequence[Episode]) -> None:
    """Check that a reply has the same log-probabilities in a padded batch as alone, within PADDING."""
    accepted = PADDING[policy.multiplies_in]
    error = change_by_padding(policy, episodes)
    if not error <= accepted and policy.rounded:
        log.warning("in int8 padding changes log-probabilities by %.2e nats: training multiplies in fp32", error)
        policy.rounded = None
        accepted = PADDING[policy.multiplies_in]
        error = change_by_padding(policy, episodes)
    if not error <= accepted:
        raise SelfTestFailed(
            f"padding changes log-probabilities by {error:.2e} nats a token, and at most {accepted:.0e} is accepted in "
            f"{policy.multiplies_in}: the model ignores the attention mask or the positions of a left-padded "
            "batch. If --dtype float32 does not cure it, this --model cannot be trained."
        )


def share_prompts_if_sound(policy: PolicyModel, episodes: Sequence[Episode]) -> None:
    """Switch `policy.share_prompts` off unless replies that share one reading of their prompt have the
    log-probabilities that they have each with its own copy of it, within PADDING.

    A model that ignores a mask of its own for each token (ALiBi, states) lets replies see each other, or refuses the
    mask.
    """
    if not policy.share_prompts:
        return
    accepted = PADDING[policy.multiplies_in]
    fault = None
    try:
        difference = change_by_sharing(policy, episodes)
        if not difference <= accepted:
            fault = (
                f"their log-probabilities are then {difference:.2e} nats a token off, and at most {accepted:.0e} is "
                "accepted"
            )
    except Exception as error:  # any model may be here, and each raises something else on a mask that it does not know
        fault = f"it refuses such a mask: {type(error).__name__}"
    if fault:
        policy.share_prompts = False
        log.warning(
            "each reply reads its own copy of its prompt, which takes longer: in %s, replies that share one reading of "
            "their prompt influence each other (%s)",
            Loggable(type(policy.causal).__name__),
            Loggable(fault),
        )


def change_by_padding(policy: PolicyModel, episodes: Sequence[Episode]) -> float:
    """Mean change of a token's log-probability between a padded batch and each episode alone; nats."""
    return _change(policy, policy.batch(episodes), [policy.batch([episode]) for episode in episodes])


def change_by_sharing(policy: PolicyModel, episodes: Sequence[Episode]) -> float:
    """Mean change of a token's log-probability between replies that share one reading of their prompt and the same
    replies each with its own copy of it; nats.
    """
    siblings = [Episode(first.prompt, reply.completion, ended=True) for first in episodes[:2] for reply in episodes]
    return _change(policy, policy.batch(siblings), [Batch.of(siblings, policy.device, shared=False)])


def _change(policy: PolicyModel, batch: Batch, parts: Sequence[Batch]) -> float:
    """The same between `batch` and its episodes in `parts` of it."""
    with torch.no_grad():
        together = policy.logprobs(batch)  # (B, T)
        apart = torch.zeros_like(together)
        for rows, part in zip(apart.split([len(part.completion) for part in parts]), parts, strict=True):
            rows[:, : part.completion.shape[1]] = policy.logprobs(part)
    return ((together - apart).abs().sum() / batch.mask.sum()).item()


# -- the trunk of the reward model


def check_features(trunk: FeatureTrunk, lora_rank: int = 0) -> None:
    """Check that a FeatureTrunk gives a reply the same features alone, among longer replies and in another order.
    SelfTestFailed otherwise.

    With a rank, the trunk gets the LoRA that the fit trains, at zero, and every tensor of it must get a gradient.
    """
    replies = [episode.reply for episode in fixed_episodes(trunk.model)]
    alone = torch.cat([trunk.features([reply]) for reply in replies])  # (N, D)
    deviation = alone.std(0).clamp(min=1e-6)
    dtype = structure.input_embeddings(trunk.model).weight.dtype
    if getattr(trunk.model, "is_loaded_in_8bit", False):
        dtype = torch.int8
    batches = {
        "a batch": trunk.features(replies),
        "a batch in another order": trunk.features(replies[::-1]).flip(0),
    }
    for where, features in batches.items():
        error = ((features - alone) / deviation).square().mean(-1).sqrt().max().item()
        if not error <= FEATURES[dtype]:
            cause = repacked(trunk.model) or (
                "the mask, the positions or the pooling do not fit the model, or the forward is random; try "
                "--reward.quantisation none or another --model"
            )
            raise SelfTestFailed(
                f"read in {where}, a reply has features that are {error:.2e} deviations off from those it has alone, "
                f"and at most {FEATURES[dtype]:.0e} is accepted in {dtype}, or its score would "
                f"depend on its neighbours: {cause}."
            )
    if lora_rank:
        parameters = trunk.attach_lora(lora_rank)
        with restored(parameters):
            check_gradients(trunk.model, parameters, lambda: trunk.batch_features(replies).square().mean())


# -- gradients


def check_gradients(
    model: torch.nn.Module, parameters: Parameters, loss: Callable[[], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """{name: gradient of loss()} of the LoRA tensors; SelfTestFailed unless each gradient is finite and not zero. The
    LoRA tensors are changed.

    B's gradients are taken at B = 0, where they pass through the trunk alone. Otherwise they would pass a layer without
    a backward by the path through its LoRA, and the fault would be hidden. A's are taken at another B, since at B = 0
    they are zero.
    """
    gradients: dict[str, torch.Tensor] = {}
    for part, size in (("lora_B", 0.0), ("lora_A", 0.01)):
        set_b(parameters, size)
        value = loss()
        if not value.requires_grad:
            continue
        trained = {name: p for name, p in parameters.items() if part in name and p.requires_grad}
        if trained:
            of_loss = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
            gradients |= {
                name: gradient for name, gradient in zip(trained, of_loss, strict=True) if gradient is not None
            }

    def is_dead(name: str) -> bool:
        return name not in gradients or not 0 < gradients[name].abs().max().item() < math.inf

    dead = [name for name in parameters if is_dead(name)]
    if not dead:
        return gradients
    cause = repacked(model) or (
        "something cuts them off from the loss, or spoils it: a detach, a kernel without a backward, requires_grad "
        "switched off, or NaN"
    )
    raise SelfTestFailed(
        f"{len(dead)} of {len(parameters)} LoRA tensors get no gradient that is finite and not zero, the first is "
        f"{dead[0]}: {cause}."
    )


def repacked(model: torch.nn.Module) -> str | None:
    """What to say when bitsandbytes has repacked 4-bit layers, on a forward without gradients; None when it has not."""
    quant_states = [getattr(parameter, "quant_state", None) for parameter in model.parameters()]
    layers = sum(getattr(state, "packing_format_for_cpu", False) for state in quant_states)
    if not layers:
        return None
    return (
        f"bitsandbytes repacked {layers} of its 4-bit layers for AVX512-BF16, and what it repacked has no "
        "backward; set support_avx512bf16_for_cpu = False on every layer right after loading, as loading.load_trunk "
        "does"
    )


# -- helpers


def fixed_episodes(model: PreTrainedModel) -> list[Episode]:
    """Replies of random tokens of the model's vocabulary, the same ones every time."""
    vocabulary = cast(torch.nn.Embedding, model.get_input_embeddings()).num_embeddings
    source = torch.Generator().manual_seed(0)

    def random_tokens(n: int) -> list[int]:
        return torch.randint(vocabulary, (n,), generator=source).tolist()

    return [Episode(random_tokens(prompt), random_tokens(reply), ended=True) for prompt, reply in LENGTHS]


def set_b(parameters: Parameters, size: float) -> None:
    """Fill every LoRA's B with the same noise of deviation `size`: at B = 0 a LoRA does nothing, so no test would see a
    fault in it.
    """
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=source))


@contextmanager
def restored(parameters: Parameters) -> Iterator[None]:
    """Afterwards the LoRA tensors are exactly what they were before, whatever happens in between."""
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        yield
    finally:
        adapters.copy_strictly(before, parameters)
