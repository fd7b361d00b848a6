"""A self-test of the loaded models and of what is written from them: what would spoil a round in silence ends it with
its cause named.

A few short forwards and two backwards, seconds in all, whenever a worker loads a model for a round. Owns the fixed
replies, the tolerances and the messages; leaves weights, gradients and random states as they were.
"""

import copy
import logging
import math
from contextlib import contextmanager

import torch

from playground.models import adapters, lora, scorer
from training.rollout import Episode

log = logging.getLogger(__name__)

LENGTHS = (
    (3, 5),
    (12, 12),
    (1, 9),
    (7, 6),
    (5, 8),
)  # tokens of each prompt and its reply: padding on both sides, 8 to 24 in all

# Largest mean change of a token's log-probability by padding, in nats. Another batch shape is another order of
# summation, so it is
# rounding, and goes by the format: on the default model 1e-5 in fp32 and 0.08 in bf16, whose logits beyond 16 are 0.125
# apart. A lost mask
# makes 0.9 to 2.
PADDING = {torch.float32: 1e-3, torch.bfloat16: 0.3}

# Largest change of a reply's features by its batch, in deviations between replies (root mean square over features). On
# the default model
# 2e-6 in fp32, nf4 or not, and 0.05 in bf16; 0.2 in int8, which looks for outlying columns over the whole batch. One
# token too few makes
# 0.6, one too many 3.
FEATURES = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.int8: 0.5}

HEAD = 1e-4  # largest change of a standardised score by saving and loading: other memory layouts round otherwise


class SelfTestFailed(Exception):
    """A loaded model, or what was written of it, lacks a property that training needs; the message names the cause and
    what to do.
    """


# -- at the start


def check_policy(policy, settings):
    """Ratio 1, a gradient for every LoRA tensor, log-probabilities that padding leaves alone, a reference that training
    leaves alone.

    SelfTestFailed otherwise. The policy is as before afterwards, bit for bit; but prompts are no longer shared where
    the model cannot.
    """
    episodes = fixed_episodes(policy.causal)
    batch = policy.batch(episodes)
    with torch.no_grad(), policy.reference():
        reference = policy.logprobs(batch)
    with restored(policy.parameters):
        set_b(policy.parameters, 0.01)
        with torch.no_grad():
            old = policy.logprobs(batch)
        check_ratio(policy.causal, old, policy.logprobs(batch).detach(), settings.ratio_tolerance)
        gradients = check_gradients(
            policy.causal, policy.parameters, lambda: -policy.logprobs(batch).sum() / batch.mask.sum()
        )
        with torch.no_grad():
            for name, parameter in policy.parameters.items():
                parameter.sub_(0.01 * gradients[name].sign())  # Adam's first step
            with policy.reference():
                drift = (policy.logprobs(batch) - reference).abs().max().item()
        check_drift(drift, settings.ratio_tolerance)
        check_padding(policy, episodes)
        share_prompts_if_sound(policy, episodes)


def check_ratio(model, old, new, tolerance):
    """The forward without gradients and the one with them give the same log-probabilities (B, T)."""
    error = (torch.exp(new - old) - 1).abs().max().item()
    if error <= tolerance:
        return
    training = sum(m.training for m in model.modules())
    cause = (
        f"{training} modules are in training mode, where dropout is random; call eval() on the model"
        if training
        else "the forward is random, changes the model, or takes another path with gradients than without; remove the "
        "hook or kernel "
        "that does"
    )
    raise SelfTestFailed(
        f"two forwards of the same replies give a ratio that is off from 1 by {error:.2e}, and at most {tolerance:.0e} "
        "is accepted: "
        f"{cause}."
    )


def check_drift(drift, tolerance):
    """The reference's log-probabilities moved by no more than rounding, `drift` in nats, in a step of the LoRA."""
    if not drift <= tolerance:
        raise SelfTestFailed(
            f"the reference's log-probabilities moved by {drift:.2e} nats in a step of the LoRA, and at most "
            f"{tolerance:.0e} is accepted: "
            "the LoRA stays on in PolicyModel.reference(), or the trunk changes with training, and the KL would be "
            "measured against a "
            "moving target. Switch off every LoRA layer there, and let nothing write into the trunk."
        )


def check_padding(policy, episodes):
    """A reply's log-probabilities in a padded batch are those it has alone, to within what PADDING says."""
    error, accepted = change(policy, policy.batch(episodes), episodes)
    if not error <= accepted:
        raise SelfTestFailed(
            f"padding changes log-probabilities by {error:.2e} nats a token, and at most {accepted:.0e} is accepted in "
            f"{policy.causal.dtype}: the "
            "model does not heed the attention mask or the positions of a left-padded batch. If --dtype float32 does "
            "not cure it, this "
            "--model cannot be trained."
        )


def share_prompts_if_sound(policy, episodes):
    """Read a prompt once for all replies to it only where those then have the log-probabilities they have alone, to
    within what PADDING says; a model that does not heed a mask of its own for each token (ALiBi, states) lets replies
    see each other, or refuses the mask.
    """
    if not policy.share_prompts:
        return
    siblings = [Episode(prompt.prompt, reply.completion, True) for prompt in episodes[:2] for reply in episodes]
    try:
        error, accepted = change(policy, policy.batch(siblings), siblings)
        fault = (
            None
            if error <= accepted
            else f"their log-probabilities are then {error:.2e} nats a token off, and at most {accepted:.0e} is "
            "accepted"
        )
    except Exception as error:  # a model of any kind: what it raises on a mask that it does not know is its own affair
        fault = f"it refuses such a mask: {type(error).__name__}"
    if fault:
        policy.share_prompts = False
        log.warning(
            "each reply reads its prompt for itself, which takes longer: %s does not keep replies apart that share one "
            "reading of their prompt (%s)",
            type(policy.causal).__name__,
            fault,
        )


def change(policy, batch, episodes):
    """(mean change of a token's log-probability from what its reply has alone, in nats; what is accepted)."""
    with torch.no_grad():
        together = policy.logprobs(batch)  # (B, T)
        alone = torch.zeros_like(together)
        for row, episode in zip(alone, episodes, strict=True):
            row[: len(episode.completion)] = policy.logprobs(policy.batch([episode]))[0]
    return ((together - alone).abs().sum() / batch.mask.sum()).item(), PADDING[policy.causal.dtype]


def check_features(trunk, lora_rank=0):
    """A FeatureTrunk reads a reply alike alone, among longer ones and in another order. SelfTestFailed otherwise.

    With a rank it gets the LoRA that the fit trains, at zero, and every tensor of that a gradient.
    """
    replies = [(e.prompt, e.completion) for e in fixed_episodes(trunk.model)]
    alone = torch.cat([trunk.features([reply]) for reply in replies])  # (N, D)
    deviation = alone.std(0).clamp(min=1e-6)
    dtype = (
        torch.int8
        if getattr(trunk.model, "is_loaded_in_8bit", False)
        else trunk.model.get_input_embeddings().weight.dtype
    )
    for where, features in (
        ("a batch", trunk.features(replies)),
        ("a batch in another order", trunk.features(replies[::-1]).flip(0)),
    ):
        error = ((features - alone) / deviation).square().mean(-1).sqrt().max().item()
        if not error <= FEATURES[dtype]:
            cause = repacked(trunk.model) or (
                "the mask, the positions or the pooling do not fit the model, or the forward is random; try "
                "--reward-quantisation none or another --model"
            )
            raise SelfTestFailed(
                f"read in {where}, a reply has features that are {error:.2e} deviations off from those it has alone, "
                "and at most "
                f"{FEATURES[dtype]:.0e} is accepted in {dtype}, or its score would hang on its neighbours: {cause}."
            )
    if lora_rank:
        parameters = trunk.attach_lora(lora_rank)
        with restored(parameters):
            check_gradients(trunk.model, parameters, lambda: trunk.batch_features(replies).square().mean())


def check_gradients(model, parameters, loss):
    """{name: gradient of loss()} of the LoRA tensors, which are left moved; SelfTestFailed unless each gradient is
    finite and not zero.

    B's are taken at B = 0: there they come through the trunk alone, and not around a layer without a backward through
    its LoRA, which would hide it. A's are taken at another B, since at B = 0 they are zero.
    """
    gradients = {}
    for part, size in (("lora_B", 0.0), ("lora_A", 0.01)):
        set_b(parameters, size)
        value = loss()
        trained = {
            name: p for name, p in parameters.items() if part in name and p.requires_grad and value.requires_grad
        }
        if trained:
            gradients |= zip(
                trained, torch.autograd.grad(value, list(trained.values()), allow_unused=True), strict=True
            )
    dead = [
        name
        for name in parameters
        if gradients.get(name) is None or not 0 < gradients[name].abs().max().item() < math.inf
    ]
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


def repacked(model):
    """What to say when bitsandbytes has repacked 4-bit layers, on a forward without gradients; None when it has not."""
    layers = sum(getattr(getattr(p, "quant_state", None), "packing_format_for_cpu", False) for p in model.parameters())
    return (
        (
            f"bitsandbytes repacked {layers} of its 4-bit layers for AVX512-BF16, and what it repacked has no "
            "backward; set "
            "support_avx512bf16_for_cpu = False on every layer right after loading, as loading.load_trunk does"
        )
        if layers
        else None
    )


# -- after writing


def check_head(model, path, features):
    """The RewardModel at `path` scores features (N, D) as the one in memory does, and carries the same LoRA.
    SelfTestFailed otherwise.
    """
    saved = scorer.RewardModel.load(path)
    error = (saved.reward(features) - model.reward(features)).abs().max().item()
    odd = [
        name
        for name in model.lora.keys() | saved.lora.keys()
        if name not in model.lora or name not in saved.lora or not torch.equal(model.lora[name].cpu(), saved.lora[name])
    ]
    if odd or not error <= HEAD:
        raise SelfTestFailed(
            f"read back from {path.name}, the reward head scores a reply by {error:.2e} deviations otherwise, and at "
            f"most {HEAD:.0e} is "
            f"accepted, and {len(odd)} tensors of its LoRA differ: RewardModel.save leaves out or changes what the "
            "score needs, or the "
            "disk is faulty."
        )


def check_adapter(policy, settings, folder, bare, **expected):
    """The version in `folder`, loaded over the trunk `bare` as the chat loads it, has the policy's tensors exactly and
    its log-probs.

    `expected` are `adapters.load`'s base_hash and expected_sha256. SelfTestFailed otherwise.
    """
    try:
        served = adapters.load(folder, bare, **expected)
    except adapters.BadAdapter as error:
        raise SelfTestFailed(
            f"the version just written cannot be read back: {error}. Check the disk, and start the round anew."
        ) from error
    on_disk = lora.lora_parameters(served)
    odd = [name for name, p in policy.parameters.items() if name not in on_disk or not torch.equal(p, on_disk[name])]
    if odd:
        raise SelfTestFailed(
            f"{len(odd)} of {len(policy.parameters)} tensors in {folder.name} are not those that the gate measured, "
            f"the first is {odd[0]}: "
            f"another policy was written, or the folder is left from another round. Delete {folder.name}, and start "
            "the round anew."
        )
    reader, batch = copy.copy(policy), policy.batch(fixed_episodes(bare))
    reader.causal = served
    with torch.no_grad():
        error = (reader.logprobs(batch) - policy.logprobs(batch)).abs().max().item()
    if not error <= settings.ratio_tolerance:
        raise SelfTestFailed(
            f"loaded from {folder.name}, the version gives log-probabilities that are {error:.2e} nats off from those "
            "of the policy that "
            f"the gate measured, and at most {settings.ratio_tolerance:.0e} is accepted: its tensors are right, so "
            "rank, alpha or targets "
            "in its manifest are not."
        )


# -- helpers


def fixed_episodes(model):
    """Replies of random tokens of the model's vocabulary, the same ones every time."""
    vocabulary, source = model.get_input_embeddings().num_embeddings, torch.Generator().manual_seed(0)
    return [
        Episode(*(torch.randint(vocabulary, (n,), generator=source).tolist() for n in lengths), True)
        for lengths in LENGTHS
    ]


def set_b(parameters, size):
    """Fill every LoRA's B with the same noise of this deviation: at B = 0 a LoRA does nothing, wrong or right."""
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=source))


@contextmanager
def restored(parameters):
    """The LoRA tensors afterwards are what they were before, exactly, whatever happens in between."""
    before = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        yield
    finally:
        adapters.copy_strictly(before, parameters)
