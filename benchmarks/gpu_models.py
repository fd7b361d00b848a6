"""The loaded models on a GPU: the policy's self-test with its margins, and the reward model's trunk in each format."""

import random

import torch

from benchmarks import gpu, report
from benchmarks.report import Log, Row
from playground.models import loading
from playground.models.feature_trunk import FeatureTrunk
from playground.settings import Settings
from training import selftest
from training.policy import PolicyModel

REPLIES = 200
PROMPT_TOKENS, REPLY_TOKENS = 60, 96


def margins(settings: Settings, device: torch.device) -> tuple[PolicyModel, dict[str, float]]:
    """(policy, {what: value}): how far the self-test's quantities are from their limits."""
    policy = PolicyModel(loading.load_trunk(settings, training=True), settings)
    episodes = selftest.fixed_episodes(policy.causal)
    batch = policy.batch(episodes)
    with selftest.restored(policy.parameters):
        selftest.set_b(policy.parameters, 0.01)
        with torch.no_grad():
            old = policy.logprobs(batch)
        new = policy.logprobs(batch).detach()
        padding = selftest.change_by_padding(policy, episodes)
        sharing = selftest.change_by_sharing(policy, episodes)
    ratio = (torch.exp(new - old) - 1).abs().max().item()
    return policy, {"ratio": ratio, "padding": padding, "sharing": sharing}


def self_test(settings: Settings, device: torch.device, log: Log) -> list[Row]:
    """Rows: the policy's self-test in the trunk's own format, and in fp32, which a GPU without bf16 gets."""
    rows = []
    for dtype in ("auto", "float32"):
        of_dtype = settings.with_values(dtype=dtype)
        with gpu.Stopwatch(device) as watch:
            policy, measured = margins(of_dtype, device)
            selftest.check_policy(policy, of_dtype)
        name = str(policy.causal.dtype).removeprefix("torch.")
        limit = selftest.PADDING[policy.causal.dtype]
        tolerance = settings.ppo.ratio_tolerance
        rows += [
            report.row(f"self-test, {name}: first ratio off 1 by", measured["ratio"], "", f"≤ {tolerance}"),
            report.row(f"self-test, {name}: change by padding", measured["padding"], "nats a token", f"≤ {limit}"),
            report.row(
                f"self-test, {name}: change by a shared prompt", measured["sharing"], "nats a token", f"≤ {limit}"
            ),
            report.row(f"self-test, {name}: prompts are shared", int(policy.share_prompts), "", "≥ 1"),
            report.row(f"self-test, {name}: loading and testing", watch.seconds, "s"),
            report.row(f"self-test, {name}: peak of tensors", watch.peak_mb, "MB"),
        ]
        del policy
    return rows


def random_replies(model, n):
    """Replies of random tokens, of different lengths: [(prompt ids, completion ids)]."""
    source = random.Random(0)
    vocabulary = model.get_input_embeddings().num_embeddings

    def tokens(most):
        return [source.randrange(vocabulary) for _ in range(source.randint(most // 4, most))]

    return [(tokens(PROMPT_TOKENS), tokens(REPLY_TOKENS)) for _ in range(n)]


def trunks(settings, device, log):
    """Rows: each format of the reward model's trunk passes its self-test, and how far its features are from those of
    the unquantised trunk, in deviations between replies.
    """
    rows = []
    reference = None
    for quantisation in ("none", "nf4", "int8"):
        of_format = settings.with_values(reward={"quantisation": quantisation})
        with gpu.Stopwatch(device) as loaded:
            trunk = FeatureTrunk(of_format)
        replies = random_replies(trunk.model, 16 if settings.quick else REPLIES)
        try:
            selftest.check_features(trunk, lora_rank=8)
            passed = 1
        except selftest.SelfTestFailed as error:
            log(f"{quantisation}: {error}")
            passed = 0
        trunk.features(replies)  # warms up
        with gpu.Stopwatch(device) as watch:
            features = trunk.features(replies)
        reference = features if reference is None else reference
        away = ((features - reference) / reference.std(0).clamp(min=1e-6)).square().mean().sqrt().item()
        rows += [
            report.row(f"reward trunk, {quantisation}: passes its self-test", passed, "", "≥ 1"),
            report.row(f"reward trunk, {quantisation}: loading", loaded.seconds, "s"),
            report.row(f"reward trunk, {quantisation}: replies a second", len(replies) / watch.seconds),
            report.row(f"reward trunk, {quantisation}: features away from none", away, "deviations"),
            report.row(f"reward trunk, {quantisation}: peak of tensors", watch.peak_mb, "MB"),
        ]
        del trunk
    return rows


SECTIONS = {"selftest": self_test, "trunks": trunks}
