"""The groups of settings: each is a frozen model whose fields have bounds, and a docstring with meaning and unit.

What an admin may change for the next rounds is marked on the field, by `ForRounds`.
"""

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1, le=1_000_000)]


class AdminMayChange:
    """The mark of a setting of training, which an admin may change for the next rounds, and of no other setting."""


Value = TypeVar("Value")
ForRounds = Annotated[Value, AdminMayChange()]


class Group(BaseModel):
    """Settings that belong together. A name that the group does not have is refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), validate_default=True
    )


class LimitSettings(Group):
    """What a stranger can send."""

    request_kb: int = Field(256, ge=16, le=1 << 20)
    """Largest body of a request, in KB."""
    request_seconds: float = Field(20, gt=0, le=600)
    """Longest time in which a request's head and body must have come, and in which a browser must have taken a part of
    an answer, in seconds.
    """
    unread_seconds: float = Field(15, gt=0, le=600)
    """Replies that no page has begun to read for this long are stopped, in seconds."""
    requests_per_minute: int = Field(3000, ge=60, le=1_000_000)
    """Most requests of one network address in a minute; an open page sends about 100, and its loading counts as ten."""
    requests_at_once: int = Field(24, ge=4, le=10_000)
    """Most requests of one browser that are answered at once; a network address may have four times as many."""
    sessions: int = Field(1000, ge=10, le=100_000)
    """Most pages that are kept, all visitors together; each takes half a megabyte."""
    sessions_per_person: int = Field(20, ge=2, le=10_000)
    """Most pages of one browser; the one that was used longest ago is forgotten first."""
    sessions_per_address: int = Field(100, ge=2, le=100_000)
    """Most pages of one network address."""
    waiting_messages: int = Field(64, ge=1, le=10000)
    """Messages that may wait for room at once, of all people together; one more is returned to its sender."""
    messages_per_address: int = Field(8, ge=1, le=10000)
    """Messages from one network address that may run and wait at once; of each person it is one."""
    sign_in_tries: int = Field(5, ge=1, le=1000)
    """Wrong passwords that one address may give for one name within a quarter of an hour; four times as many for all
    names together.
    """
    message_chars: int = Field(4000, ge=1, le=100000)
    """Longest message, in characters."""


class ChatSettings(Group):
    """How replies are written."""

    temperature: float = Field(0.7, ge=0.05, le=2)
    """Sampling temperature; it divides the logits in the chat, in rollouts and in every PPO log-probability."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling in the chat; 1 is off. Rollouts never use it."""
    top_k: int = Field(0, ge=0, le=1000)
    """Top-k sampling in the chat; 0 is off. Rollouts never use it."""
    reply_tokens: int = Field(192, ge=1, le=8192)
    """Longest reply in the chat, in tokens."""
    repetition_penalty: float = Field(1.0, ge=1, le=2)
    """The logits of tokens that were there before are divided by this in the chat; 1 is off. Rollouts never use it."""
    stop: str = ""
    """A reply in the chat ends where this text begins; empty is off."""
    candidates: int = Field(2, ge=2, le=32)
    """Replies sampled to each message. Of more than two, a person sees the two that `pick` picks,
    once all are written.
    """
    pick: Literal["thompson", "best"] = "thompson"
    """thompson: the two from which a vote says most, by double Thompson sampling; best: the best of each half, by the
    reward model.
    """
    context_tokens: int = Field(1024, ge=64, le=131072)
    """Longest prompt, in tokens; the oldest turns are cut to fit."""
    stream_hz: float = Field(12, gt=0, le=60)
    """Updates of the page a second while replies stream."""


class RoundSettings(Group):
    """When a round runs, and where it starts."""

    votes: ForRounds[int] = Field(16, ge=1, le=100000)
    """New votes after which a training round starts by itself."""
    auto: ForRounds[bool] = True
    """Start rounds by themselves; otherwise only on demand."""
    start_from: ForRounds[Literal["base", "live"]] = "live"
    """Every round goes on from the live version, by `ppo.kl_step`, or trains from the base model, to `ppo.kl_target`.
    Both learn from all votes.
    """
    poll_seconds: float = Field(1.0, gt=0, le=60)
    """How often the worker looks for work and the server for a new version, in seconds."""
    lease_seconds: float = Field(30.0, gt=0, le=3600)
    """A round whose worker has been silent this long, in seconds, is taken over by the next worker."""


class PreferenceSettings(Group):
    """How votes become pairs."""

    heldout_fraction: ForRounds[float] = Field(0.2, gt=0, lt=1)
    """Share of votes, taken in whole conversations, on which the reward model's accuracy is reported and the gate
    compares; never rolled out on.
    """
    annotator_weight: ForRounds[float] = Field(64.0, gt=0)
    """Largest total weight of one annotator's votes, and of the imported pairs of one source, in votes."""
    imported: ForRounds[int] = Field(200, ge=0, le=10_000)
    """Most imported pairs, demonstrations and prompts that a round reads, of each kind; 0 leaves them out."""


class SFTSettings(Group):
    """The warm start on demonstrations."""

    epochs: ForRounds[int] = Field(2, ge=0, le=100)
    """Passes over the demonstrations before PPO; 0 skips the warm start."""
    lr: ForRounds[float] = Field(1e-4, gt=0, le=1)
    """AdamW learning rate of the warm start."""


class RewardSettings(Group):
    """The reward model."""

    quantisation: ForRounds[Literal["nf4", "int8", "none"]] = "nf4"
    """bitsandbytes format of the reward model's frozen trunk."""
    layer: ForRounds[Fraction] = 0.0
    """Depth of the layer whose hidden states are the features, as a fraction of the blocks; 0 reads four: the first, a
    tenth, a third and two thirds deep.
    """
    features: ForRounds[Literal["auto", "layers", "words", "style", "meaning", "length"]] = "auto"
    """Feature set of the reward model: the layers' means, the shallowest's sum, counts of common tokens,
    the deep layers' means, or the length alone; auto averages heads on each, by how well they predict other votes."""
    lora_rank: ForRounds[int] = Field(0, ge=0, le=256)
    """Rank of an fp32 LoRA trained below the reward head; 0 trains the head alone."""
    lora_epochs: ForRounds[int] = Field(3, ge=1, le=50)
    """Most epochs of that LoRA; it stops at the best held-out NLL."""
    pessimism: ForRounds[float] = Field(0.0, ge=0, le=10)
    """λ of reward = mean − λ·deviation under the votes' posterior, in posterior deviations."""
    batch: ForRounds[Positive] = 16
    """Replies scored at once."""
    rules: str = ""
    """Rewards of one's own that are added to the votes', `module:function=weight` with commas between. Each takes
    prompt and reply as texts and returns a number; its weight is in deviations over the base's replies.
    """
    evidence_confidence: ForRounds[float] = Field(0.8, ge=0, lt=1)
    """Confidence that votes agree with each other, by forecasts of each from those before it, which a round needs, or
    it ends; 0 is off. It holds however often one looks.
    """


class PPOSettings(Group):
    """The policy's training."""

    lora_rank: ForRounds[int] = Field(16, ge=1, le=256)
    """Rank of the policy's LoRA, on all linear layers of the blocks."""
    lora_alpha: ForRounds[int] = Field(32, ge=1, le=1024)
    """LoRA alpha; the update is scaled by alpha/rank."""
    quantisation: ForRounds[Literal["nf4", "none"]] = "none"
    """Format of the policy's frozen trunk: none is the model's own; bitsandbytes' nf4 (QLoRA) takes a third of the
    memory and more time, and the reward model shares it. The chat serves the model's own format all the same.
    """
    multiply_in: ForRounds[Literal["auto", "int8", "trunk"]] = "auto"
    """How training on a CPU multiplies by the policy's frozen weights: in int8, as the chat's w8a16 does, or in the
    trunk's format; auto takes int8 where the trunk is in fp32, that saves time and the model says what it says.
    """
    gradient_checkpointing: ForRounds[bool] = False
    """Keep only the inputs of each block for the backward, which computes the rest again: less memory, more time."""
    iterations: ForRounds[int] = Field(8, ge=1, le=10000)
    """Most PPO iterations (rollout, then update) in a round."""
    episodes: ForRounds[int] = Field(64, ge=2, le=4096)
    """Replies sampled in each iteration."""
    replies: ForRounds[int] = Field(4, ge=1, le=64)
    """Replies sampled to each prompt."""
    rollout_tokens: ForRounds[int] = Field(0, ge=0, le=8192)
    """Longest reply in a rollout, in tokens; 0: as long as in the chat. Of shorter ones, nobody sees how they end."""
    rollout_context: ForRounds[int] = Field(256, ge=32, le=131072)
    """Longest prompt in a rollout, in tokens; the oldest turns are cut to fit."""
    epochs: ForRounds[int] = Field(2, ge=1, le=16)
    """Passes over each iteration's episodes."""
    minibatch: ForRounds[Positive] = 32
    """Episodes in each optimizer step; all of an iteration's where it has fewer."""
    microbatch: ForRounds[Positive] = 4
    """Episodes in one forward and backward; in PPO, gradients add up to a minibatch, and a GPU with room takes a whole
    one. Changes memory, not PPO's update.
    """
    share_prompts: ForRounds[bool] = True
    """Read a prompt once for all replies to it in an update; off for a model that does not take a mask of its own for
    each token.
    """
    lr: ForRounds[float] = Field(5e-4, gt=0, le=1)
    """Adam learning rate of the policy's LoRA."""
    value_head: ForRounds[bool] = True
    """Learn what each token's return is; otherwise a reply counts by its score above the other replies to its prompt
    alone."""
    value_lr: ForRounds[float] = Field(2e-3, gt=0, le=1)
    """Adam learning rate of the value head."""
    value_warmup: ForRounds[int] = Field(20, ge=0, le=1000)
    """Steps of the value head on the first rollouts' returns before the first policy step."""
    kl_coefficient: ForRounds[float] = Field(0.05, ge=0, le=10)
    """First β, the weight of the per-token KL penalty, in reward deviations a nat."""
    kl_step: ForRounds[float] = Field(8.0, gt=0)
    """By how much a round from the live version may raise the KL to the base, in nats a reply. PPO ends there. People's
    choices make later steps longer or shorter.
    """
    kl_target: ForRounds[float] = Field(8.0, gt=0)
    """KL to the base at which PPO ends in a round from the base, in nats a reply."""
    kl_horizon: ForRounds[float] = Field(64.0, gt=0)
    """Episodes over which β adapts."""
    gae_lambda: ForRounds[Fraction] = 1.0
    """GAE λ."""
    ratio_clip: ForRounds[float] = Field(0.2, gt=0, lt=1)
    """PPO clip range of the probability ratio."""
    value_clip: ForRounds[float] = Field(0.2, gt=0)
    """PPO clip range of the value."""
    value_coefficient: ForRounds[float] = Field(0.1, ge=0)
    """Weight of the value loss."""
    max_grad_norm: ForRounds[float] = Field(1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    kl_stop: ForRounds[float] = Field(0.1, gt=0)
    """Approximate KL between old and new policy, in nats a token, at which an iteration's epochs end."""
    ratio_tolerance: ForRounds[float] = Field(1e-3, gt=0)
    """Largest distance of the first minibatch's ratio from 1 before the round is stopped as broken."""
    missing_end_penalty: ForRounds[float] = Field(0.0, ge=0)
    """Subtracted from the score of a rollout that reaches its token limit, in reward deviations."""
    repeats_penalty: ForRounds[float] = Field(0.0, ge=0)
    """Subtracted from a rollout's score for its share of repeated four-token runs: this many reward deviations for a
    share of 1.
    """


class GateSettings(Group):
    """What a new version must pass."""

    prompts: ForRounds[int] = Field(64, ge=4, le=4096)
    """Held-out prompts on which a new version is compared with the live one."""
    replies: ForRounds[int] = Field(4, ge=1, le=64)
    """Replies of each version to each of these prompts."""
    better: ForRounds[float] = Field(0.75, gt=0, lt=1)
    """Least probability, by the reward model, that the new version's replies are better than the live one's."""
    not_worse: ForRounds[float] = Field(0.9, gt=0, lt=1)
    """Least probability that they are not worse by more than a tenth of a deviation of the reward."""
    confidence: ForRounds[float] = Field(0.95, gt=0, lt=1)
    """Two-sided confidence of the intervals that the gate shows, and of what the votes say about length."""
    kl_budget: ForRounds[float] = Field(60.0, gt=0)
    """Largest KL to the base, in nats a reply, that the gate lets through."""
    length_factor: ForRounds[float] = Field(8.0, gt=1)
    """The mean reply may become this many times longer, or shorter, where the votes clearly favour that."""
    length_drift: ForRounds[float] = Field(1.75, gt=1)
    """The mean reply may become this many times longer, or shorter, where the votes do not clearly favour that."""
    empty_replies: ForRounds[Fraction] = 0.1
    """Largest share of empty replies that the gate lets through."""
    repetition_rise: ForRounds[Fraction] = 0.15
    """The share of repeated four-token runs may rise by this much over the base's."""
    distinct_share: ForRounds[Fraction] = 0.7
    """Share of the base's distinct-2 that must be left."""
    ended_fall: ForRounds[Fraction] = 0.25
    """The share of replies that end by themselves may fall by this much below the base's, unless the votes clearly
    favour longer ones.
    """
    canary_fall: ForRounds[float] = Field(1.0, gt=0)
    """Plain replies to plain requests may become this much less likely than under the base, in nats a token at
    `chat.temperature`.
    """


class TrialSettings(Group):
    """How people decide whether a new version stays."""

    duels: int = Field(25, ge=0, le=1000)
    """Votes for A or B between a new version and the one before it, after which its trial is over; 0: no trial.
    Fewer than five roll nothing back at the usual `trial.error`.
    """
    before_share: Fraction = 0.45
    """Share of the turns of a trial in which one reply is by the version before it."""
    base_share: Fraction = 0.2
    """Share of the turns of a trial in which one reply is by the base model."""
    keep: float = Field(0.95, gt=0.5, lt=1)
    """Probability that people prefer a version, at which its trial is over early and it stays."""
    error: float = Field(0.06, gt=0, lt=0.5)
    """Probability that a version as good as the one before it is rolled back."""


class BackupSettings(Group):
    """Where the database and the versions are kept a second time."""

    url: str = ""
    """Folder for snapshots, as an fsspec URL such as hf://buckets/OWNER/NAME/nudge, s3://BUCKET/nudge or
    file:///mnt/backup. A start with an empty data folder restores the newest one. Empty: no backup.
    """
    interval: float = Field(60, ge=1, le=86400)
    """A change is in a snapshot after at most this long, in seconds."""
    lease_seconds: float = Field(90, ge=3, le=3600)
    """Of several servers with the same URL one records, and the others only show what there is. One that has been
    silent this long, in seconds, is taken for dead, and another one takes over.
    """
    keep: int = Field(20, ge=2, le=1000)
    """Snapshots that are kept, the newest ones. Those that hold what somebody has deleted go within an hour."""
