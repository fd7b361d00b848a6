"""All settings in one frozen object, read from flags, `NUDGE_…` variables and `.env`, in this order, and from defaults.

Each field's docstring gives its meaning and unit; its bounds are checked when the object is built. What the values do
is up to the modules that read them.
"""

import codecs
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, overload

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from playground.system.messages import Message, UserFacingError, lines, plain

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]

ON_SPACE = "SPACE_ID" in os.environ  # Hugging Face sets it inside a Space
SPACE_SIGN_IN = ON_SPACE and "OAUTH_CLIENT_ID" in os.environ  # and this where the Space's README says `hf_oauth: true`
# a Space can only be reached through the proxy of Hugging Face, which connects from inside its own network
SPACE_PROXIES = "10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10, 127.0.0.0/8, fc00::/7, ::1"


@dataclass(frozen=True)
class ForRounds:
    """Marks a setting of training, which an admin may change for the next rounds, and no other setting. `section` is
    the part of the page's form that it stands in.
    """

    section: str


WHEN = ForRounds("When a round runs")
PREFERENCES = ForRounds("Preferences")
START = ForRounds("Where a round starts")
SFT = ForRounds("SFT")
REWARD = ForRounds("Reward model")
PPO = ForRounds("PPO")
GATE = ForRounds("Gate")

# encodings by the first bytes of a file; UTF-16's mark is the beginning of UTF-32's, so UTF-32 comes first
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class SettingsError(UserFacingError):
    """A setting cannot be used; the message names it, the value given and what is accepted. A plain text is for the
    command line; what the page may show is a Message.
    """

    def __init__(self, message: str | Message) -> None:
        super().__init__(message if isinstance(message, Message) else plain(message))


class Settings(BaseSettings):
    """Nudge: a chat playground whose model learns from the people who chat with it."""

    model_config = SettingsConfigDict(
        env_prefix="NUDGE_",
        env_file=".env",
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="python app.py",
        cli_hide_none_type=True,
        protected_namespaces=(),
        validate_default=True,
    )

    def __init__(self, **values: Any) -> None:
        """As of any pydantic settings, but `.env` is read in the encoding that it has."""
        values.setdefault("_env_file_encoding", encoding_of(values.get("_env_file", ".env")))
        super().__init__(**values)

    # -- model and machine
    model: str = ""
    """Base model: a hub id, a folder or a GGUF file; a PEFT adapter is merged into its base. Empty: the embedded
    SmolLM2-135M-Instruct where `make setup` made it, else its hub id.
    """
    models_dir: Path = Path("data/models")
    """Folder that holds the embedded model once it is converted."""
    data_dir: Path = Path("data")
    """Folder of the database, the adapter versions and the rounds. On a Space, a persistent disk such as /data."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """Where the models run: auto, cpu, mps, cuda or cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the frozen trunk; auto measures which one this machine multiplies faster."""
    threads: int = Field(0, ge=0, le=256)
    """CPU threads of the chat, and of the worker beside it at the lowest priority; 0 takes one for each core."""

    decode_format: Literal["auto", "int8", "int4", "bfloat16", "float32", "plain"] = "auto"
    """Number format of the weights that write replies on a CPU; auto measures, among those that stay close to the
    model. plain: transformers' own forward.
    """
    kv_cache_mb: int = Field(384, ge=1, le=1 << 20)
    """Memory for keys and values, in MB; when it is full, new messages wait in line. Memory that is not in
    use keeps earlier turns for the next one.
    """

    # -- web
    host: str = "0.0.0.0" if ON_SPACE else "127.0.0.1"
    """Address to listen on."""
    port: int = Field(7860, ge=0, le=65535)
    """TCP port of the page; 0 takes a free one."""
    worker: bool = True
    """Start the training worker beside the web process."""
    root_path: str = Field("", pattern=r"^(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*$")
    """Path below which a reverse proxy shows the page, such as /nudge; empty where it has an address of its own. The
    proxy may cut it off or pass it on.
    """
    trusted_proxies: str = SPACE_PROXIES if ON_SPACE else ""
    """Reverse proxies whose X-Forwarded headers are believed: addresses or networks such as 10.0.0.0/8, with commas
    between. Empty believes nobody.
    """
    allowed_hosts: str = ""
    """Names by which browsers may call the app, with commas between; this machine's own always pass. Empty: every name,
    but only this machine's where the app listens on it alone and no proxy is named."""
    admins: str = ""
    """Who may start, pause and stop rounds and change their settings, besides whoever opened the admin link: names,
    with commas between.
    """
    users_file: str = ""
    """File of names and hashed passwords that admins sign in with; `python -m playground.people.admins --name NAME`
    writes it. On a Space they sign in with Hugging Face.
    """
    sign_in_tries: int = Field(5, ge=1, le=1000)
    """Wrong passwords that one address may give for one name within a quarter of an hour; four times as many for all
    names together.
    """

    # -- what a stranger can send
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

    # -- chat
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
    message_chars: int = Field(4000, ge=1, le=100000)
    """Longest message, in characters."""
    stream_hz: float = Field(12, gt=0, le=60)
    """Updates of the page a second while replies stream."""
    waiting_messages: int = Field(64, ge=1, le=10000)
    """Messages that may wait for room at once, of all people together; who sends one more gets it back and is told."""
    messages_per_address: int = Field(8, ge=1, le=10000)
    """Messages from one network address that may run and wait at once; of each person it is one."""

    # -- when a round runs
    round_votes: Annotated[int, WHEN] = Field(16, ge=1, le=100000)
    """New votes after which a training round starts by itself."""
    auto_train: Annotated[bool, WHEN] = True
    """Start rounds by themselves; otherwise only on demand."""
    poll_seconds: float = Field(1.0, gt=0, le=60)
    """How often the worker looks for work and the server for a new version, in seconds."""
    lease_seconds: float = Field(30.0, gt=0, le=3600)
    """A round whose worker has been silent this long, in seconds, is taken over by the next worker."""
    seed: int = Field(0, ge=0)
    """Seed of the training rounds."""

    # -- preferences
    heldout_fraction: Annotated[float, PREFERENCES] = Field(0.2, gt=0, lt=1)
    """Share of votes, taken in whole conversations, on which the reward model's accuracy is reported and the gate
    compares; never rolled out on.
    """
    annotator_weight: Annotated[float, PREFERENCES] = Field(64.0, gt=0)
    """Largest total weight of one annotator's votes, in votes."""

    # -- where a round starts
    start_from: Annotated[Literal["base", "live"], START] = "base"
    """Every round trains from the base model on all votes, or goes on from the live version, scaled down to half the KL
    target.
    """

    # -- SFT
    sft_epochs: Annotated[int, SFT] = Field(2, ge=0, le=100)
    """Passes over the demonstrations before PPO; 0 skips the warm start."""
    sft_lr: Annotated[float, SFT] = Field(1e-4, gt=0, le=1)
    """AdamW learning rate of the warm start."""

    # -- reward model
    reward_quantisation: Annotated[Literal["nf4", "int8", "none"], REWARD] = "nf4"
    """bitsandbytes format of the reward model's frozen trunk."""
    reward_layer: Annotated[Fraction, REWARD] = 0.0
    """Depth of the layer whose hidden states are the features, as a fraction of the blocks; 0 reads four: the first, a
    tenth, a third and two thirds deep.
    """
    reward_view: Annotated[Literal["auto", "layers", "words", "style", "meaning", "length"], REWARD] = "auto"
    """What of the features the head reads: the layers' means, the shallowest's sum, counts of common tokens, the deep
    layers' means, or the length alone (a control); auto chooses among the first four by cross-validation."""
    reward_lora_rank: Annotated[int, REWARD] = Field(0, ge=0, le=256)
    """Rank of an fp32 LoRA trained below the reward head; 0 trains the head alone."""
    reward_lora_epochs: Annotated[int, REWARD] = Field(3, ge=1, le=50)
    """Most epochs of that LoRA; it stops at the best held-out NLL."""
    reward_pessimism: Annotated[float, REWARD] = Field(0.0, ge=0, le=10)
    """λ of reward = mean − λ·deviation under the votes' posterior, in posterior deviations."""
    reward_batch: Annotated[Positive, REWARD] = 16
    """Replies scored at once."""
    evidence_confidence: Annotated[float, REWARD] = Field(0.98, ge=0, lt=1)
    """The reward model's cross-validated accuracy must clear chance at this two-sided confidence, or the round ends; 0
    is off.
    """

    # -- PPO
    lora_rank: Annotated[int, PPO] = Field(16, ge=1, le=256)
    """Rank of the policy's LoRA, on all linear layers of the blocks."""
    lora_alpha: Annotated[int, PPO] = Field(32, ge=1, le=1024)
    """LoRA alpha; the update is scaled by alpha/rank."""
    ppo_iterations: Annotated[int, PPO] = Field(12, ge=1, le=10000)
    """Most PPO iterations (rollout, then update) in a round."""
    ppo_episodes: Annotated[int, PPO] = Field(64, ge=2, le=4096)
    """Replies sampled in each iteration."""
    ppo_replies: Annotated[int, PPO] = Field(4, ge=1, le=64)
    """Replies sampled to each prompt."""
    rollout_tokens: Annotated[int, PPO] = Field(48, ge=4, le=4096)
    """Longest reply in a rollout, in tokens."""
    rollout_context: Annotated[int, PPO] = Field(256, ge=32, le=131072)
    """Longest prompt in a rollout, in tokens; the oldest turns are cut to fit."""
    ppo_epochs: Annotated[int, PPO] = Field(2, ge=1, le=16)
    """Passes over each iteration's episodes."""
    ppo_minibatch: Annotated[Positive, PPO] = 32
    """Episodes in each optimizer step."""
    ppo_microbatch: Annotated[Positive, PPO] = 8
    """Episodes in one forward and backward; in PPO, gradients add up to a minibatch.
    Changes memory, not PPO's update.
    """
    ppo_share_prompts: Annotated[bool, PPO] = True
    """Read a prompt once for all replies to it in an update; off for a model that does not take a mask of its own for
    each token.
    """
    ppo_lr: Annotated[float, PPO] = Field(5e-4, gt=0, le=1)
    """Adam learning rate of the policy's LoRA."""
    value_lr: Annotated[float, PPO] = Field(2e-3, gt=0, le=1)
    """Adam learning rate of the value head."""
    value_warmup: Annotated[int, PPO] = Field(20, ge=0, le=1000)
    """Steps of the value head on the first rollouts' returns before the first policy step."""
    kl_coefficient: Annotated[float, PPO] = Field(0.05, ge=0, le=10)
    """First β, the weight of the per-token KL penalty, in reward deviations a nat."""
    kl_target: Annotated[float, PPO] = Field(6.0, gt=0)
    """KL to the base that β aims at, in nats a reply; PPO ends when it is reached."""
    kl_horizon: Annotated[float, PPO] = Field(64.0, gt=0)
    """Episodes over which β adapts."""
    gae_lambda: Annotated[Fraction, PPO] = 1.0
    """GAE λ."""
    ratio_clip: Annotated[float, PPO] = Field(0.2, gt=0, lt=1)
    """PPO clip range of the probability ratio."""
    value_clip: Annotated[float, PPO] = Field(0.2, gt=0)
    """PPO clip range of the value."""
    value_coefficient: Annotated[float, PPO] = Field(0.1, ge=0)
    """Weight of the value loss."""
    max_grad_norm: Annotated[float, PPO] = Field(1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    kl_stop: Annotated[float, PPO] = Field(0.1, gt=0)
    """Approximate KL between old and new policy, in nats a token, at which an iteration's epochs end."""
    ratio_tolerance: Annotated[float, PPO] = Field(1e-3, gt=0)
    """Largest distance of the first minibatch's ratio from 1 before the round is stopped as broken."""
    missing_end_penalty: Annotated[float, PPO] = Field(0.0, ge=0)
    """Subtracted from the score of a rollout that reaches its token limit, in reward deviations."""

    # -- gate
    gate_prompts: Annotated[int, GATE] = Field(32, ge=4, le=4096)
    """Held-out prompts on which a new version is compared with the live one."""
    gate_confidence: Annotated[float, GATE] = Field(0.95, gt=0, lt=1)
    """Two-sided confidence of the gate's interval of the gain, which must lie above 0."""
    kl_budget: Annotated[float, GATE] = Field(12.0, gt=0)
    """Largest KL to the base, in nats a reply, that the gate lets through."""
    length_factor: Annotated[float, GATE] = Field(4.0, gt=1)
    """The mean reply may become this many times longer, or shorter, where the votes clearly favour that."""
    length_drift: Annotated[float, GATE] = Field(1.75, gt=1)
    """The same where they do not."""
    empty_replies: Annotated[Fraction, GATE] = 0.1
    """Largest share of empty replies that the gate lets through."""
    repetition_rise: Annotated[Fraction, GATE] = 0.15
    """The share of repeated four-token runs may rise by this much over the live version's."""
    distinct_share: Annotated[Fraction, GATE] = 0.7
    """Share of the live version's distinct-2 that must be left."""
    ended_fall: Annotated[Fraction, GATE] = 0.25
    """The share of replies that end by themselves may fall by this much."""
    canary_fall: Annotated[float, GATE] = Field(1.0, gt=0)
    """Plain replies to plain requests may become this much less likely than under the base, in nats a token at
    `temperature`.
    """

    @field_validator("threads")
    @classmethod
    def _all_cores(cls, value: int) -> int:
        return value or os.cpu_count() or 1

    @field_validator("model")
    @classmethod
    def _expand_home(cls, value: str) -> str:
        return str(Path(value).expanduser()) if value.startswith("~") else value

    @field_validator("data_dir", "models_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: str) -> str:
        for part in value.split(","):
            if part.strip():
                ip_network(part.strip(), strict=False)  # its ValueError names the part
        return value

    @property
    def database(self) -> Path:
        return self.data_dir / "nudge.db"

    @property
    def adapters_dir(self) -> Path:
        return self.data_dir / "adapters"

    @property
    def rounds_dir(self) -> Path:
        return self.data_dir / "rounds"

    def environ(self) -> dict[str, str]:
        """The settings as `NUDGE_…` variables, so that a child process reads the same ones."""
        values = self.model_dump(include=set(Settings.model_fields))
        return {f"NUDGE_{name.upper()}": str(value) for name, value in values.items()}


SomeSettings = TypeVar("SomeSettings", bound=Settings)


def encoding_of(env_file: str | Path | None) -> str:
    """The encoding of a `.env` file by its first bytes: PowerShell writes UTF-16, Notepad UTF-8 with a byte-order mark.

    SettingsError where it is in none of these, since its encoding cannot be guessed.
    """
    if env_file is None or not Path(env_file).is_file():
        return "utf-8"
    raw = Path(env_file).read_bytes()
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise SettingsError(f"{env_file} is in an encoding that cannot be told from its bytes: save it as UTF-8.")
    return encoding


def sections() -> dict[str, list[str]]:
    """The names of the settings that an admin may change, by section."""
    by_section: dict[str, list[str]] = {}
    for name, field in Settings.model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, ForRounds):
                by_section.setdefault(mark.section, []).append(name)
    return by_section


def overridden(settings: SomeSettings, values: Mapping[str, Any]) -> SomeSettings:
    """`settings` with other `values` for what an admin may change.

    SettingsError names every value that is not accepted, or every setting that an admin may not change.
    """
    unknown = values.keys() - {name for names in sections().values() for name in names}
    if unknown:
        raise SettingsError(f"{', '.join(sorted(unknown))}: no setting of the next rounds")
    try:
        return settings.__class__(**{**settings.model_dump(), **values})
    except ValidationError as error:
        raise _settings_error(settings.__class__, error) from None


# mypy cannot give the default of an argument a type variable's type, so this function has two signatures
@overload
def read(argv: Sequence[str] | None = None) -> Settings: ...
@overload
def read(argv: Sequence[str] | None, kind: type[SomeSettings], prog: str = ...) -> SomeSettings: ...
def read(argv: Sequence[str] | None = None, kind: type[Settings] = Settings, prog: str = "python app.py") -> Settings:
    """Settings of the class `kind`, built from flags, environment and `.env`.

    `argv`: the flags, by default those of this process. `prog`: the command that --help names. SettingsError names
    every value that is not accepted.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        return kind(_cli_parse_args=argv, _cli_prog_name=prog)
    except ValidationError as error:
        raise _settings_error(kind, error) from None


def _settings_error(kind: type[Settings], error: ValidationError) -> SettingsError:
    return SettingsError(lines(_explain(kind, problem) for problem in error.errors()))


def _explain(kind: type[Settings], problem: ErrorDetails) -> Message:
    """What is wrong with the value of one setting."""
    name = str(problem["loc"][0]).replace("-", "_")
    field = kind.model_fields.get(name)
    if field is None:
        return plain(f"{name}: {problem['msg']}")
    return Message(
        "--{setting} (NUDGE_{name}): got {what}; accepted: {accepted}. {reason}",
        setting=name.replace("_", "-"),
        name=name.upper(),
        what=repr(problem["input"]),
        accepted=accepted(field),
        reason=meaning(field),
    )


def meaning(field: FieldInfo) -> Message:
    """A field's docstring in one line."""
    return plain(" ".join((field.description or "").split()))


def accepted(field: FieldInfo) -> Message:
    """What a field takes, in words: `an integer at least 1 and at most 65535`."""
    kind, limits = field.annotation, list(field.metadata)
    if get_origin(kind) is Annotated:
        kind, *extra = get_args(kind)
        limits += [limit for info in extra for limit in info.metadata]
    if get_origin(kind) is Literal:
        return plain(" or ".join(map(str, get_args(kind))))
    text = _kind(kind)
    bounds = [bound for bound in map(_bound, limits) if bound]
    if not bounds:
        return text
    if len(bounds) == 1:
        return Message("{kind} {bound}", kind=text, bound=bounds[0])
    return Message("{kind} {bound} and {other}", kind=text, bound=bounds[0], other=bounds[1])


def _kind(kind: object) -> Message:
    """What values of a type are called."""
    if kind is int:
        return Message("an integer")
    if kind is float:
        return Message("a number")
    if kind is bool:
        return Message("true or false")
    return Message("a path") if kind is Path else Message("text")


def _bound(limit: object) -> Message | None:
    """One bound of a field's metadata; None where it is no bound."""
    match limit:
        case Ge(least):
            return Message("at least {value}", value=str(least))
        case Gt(below):
            return Message("above {value}", value=str(below))
        case Le(most):
            return Message("at most {value}", value=str(most))
        case Lt(above):
            return Message("below {value}", value=str(above))
    pattern = getattr(limit, "pattern", None)
    return Message("matching {value}", value=str(pattern)) if pattern else None
