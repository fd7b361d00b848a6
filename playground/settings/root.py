"""The settings in one frozen object, whose groups are in `groups.py`."""

import codecs
import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from playground.settings import groups, names, operating, space
from playground.settings.explain import SettingsError, settings_error

ON_SPACE = space.KIND != "none"
SPACE_SIGN_IN = ON_SPACE and "OAUTH_CLIENT_ID" in os.environ  # set where the Space's README says `hf_oauth: true`
# a Space can only be reached through the proxy of Hugging Face, which connects from inside its own network
SPACE_PROXIES = "10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10, 127.0.0.0/8, fc00::/7, ::1"

# encodings by the first bytes of a file; UTF-16's mark is the beginning of UTF-32's, so UTF-32 comes first
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Settings(BaseSettings):
    """Nudge: a chat playground whose model learns from the people who chat with it."""

    model_config = SettingsConfigDict(
        env_prefix=names.PREFIX,
        env_file=".env",
        env_nested_delimiter="_",
        env_nested_max_split=1,  # NUDGE_PPO_KL_TARGET is `kl_target` of `ppo`
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
        cli_avoid_json=True,
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
    """Folder of the database, the adapter versions and the rounds, on a disk of this machine. Where that does not last,
    as on a Space, see `backup.url`.
    """
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """Where the models run: auto, cpu, mps, cuda or cuda:N. On a ZeroGPU Space only auto or cpu: it has no GPU
    outside of single calls.
    """
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the frozen trunk; auto measures which one this machine multiplies faster."""
    threads: int = Field(0, ge=0, le=256)
    """CPU threads of the chat, and of the worker beside it at the lowest priority; 0 takes one for each core, on a
    Space for each of its own.
    """

    decode_format: Literal["auto", "w8a16", "int8", "int4", "bfloat16", "float32", "plain"] = "auto"
    """Number format of the weights that write replies on a CPU; auto measures, among those that stay close to the
    model. w8a16: int8 weights and int16 activations, a step compiled at the first start. plain: transformers' own
    forward.
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

    log_format: Literal["text", "json"] = "text"
    """Log lines for people, or one JSON object a line for programs: with the ids of request, pair and version, and with
    the template of a message instead of its values, numbers aside.
    """

    # -- training
    train_on: str = Field("here", pattern=r"^(here|hf-job:[a-z0-9][a-z0-9-]{0,39})$")
    """Where rounds train: here, or hf-job:FLAVOUR, such as hf-job:t4-small, on a machine of Hugging Face that the owner
    of HF_TOKEN pays by the minute. That needs `backup.url`, by which what a round needs travels.
    """
    gpu_share: float = Field(0.3, ge=0.05, le=1)
    """Share of the time in which a round works on a GPU while replies stream; 1: all the time."""
    seed: int = Field(0, ge=0)
    """Seed of the training rounds."""

    # -- groups
    limits: groups.LimitSettings = groups.LimitSettings()
    """What a stranger can send."""
    chat: groups.ChatSettings = groups.ChatSettings()
    """How replies are written."""
    round: groups.RoundSettings = groups.RoundSettings()
    """When a round runs, and where it starts."""
    preferences: groups.PreferenceSettings = groups.PreferenceSettings()
    """How votes become pairs."""
    sft: groups.SFTSettings = groups.SFTSettings()
    """The warm start on demonstrations."""
    reward: groups.RewardSettings = groups.RewardSettings()
    """The reward model."""
    ppo: groups.PPOSettings = groups.PPOSettings()
    """How the policy is trained."""
    gate: groups.GateSettings = groups.GateSettings()
    """What a new version must pass."""
    trial: groups.TrialSettings = groups.TrialSettings()
    """How people decide whether a new version stays."""
    backup: groups.BackupSettings = groups.BackupSettings()
    """Where the database and the versions are kept a second time."""

    metrics: operating.MetricsSettings = operating.MetricsSettings()
    """Who reads the figures for Prometheus."""
    alerts: operating.AlertSettings = operating.AlertSettings()
    """Where events are posted for the operator."""
    people: operating.PeopleSettings = operating.PeopleSettings()
    """Who may come in, and guidelines for people who vote."""
    oidc: operating.OIDCSettings = operating.OIDCSettings()
    """A provider by which people sign in, that speaks OpenID Connect."""
    queue: operating.QueueSettings = operating.QueueSettings()
    """Prompts that people are asked to judge."""
    job: operating.JobSettings = operating.JobSettings()
    """A round on a machine of Hugging Face."""

    @field_validator("threads")
    @classmethod
    def _all_cores(cls, value: int) -> int:
        return value or min(space.cores_of(os.environ) or 256, usable_cores())

    @field_validator("device")
    @classmethod
    def _a_real_one(cls, value: str) -> str:
        if value.startswith("cuda") and space.KIND == "zero-gpu":
            raise ValueError("there is no GPU")  # the docstring says the rest
        return value

    @field_validator("model")
    @classmethod
    def _expand_home(cls, value: str) -> str:
        return str(Path(value).expanduser()) if value.startswith("~") else value

    @field_validator("data_dir", "models_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()

    _networks = field_validator("trusted_proxies")(operating.networks)

    @property
    def job_flavour(self) -> str:
        """The kind of machine of Hugging Face on which rounds train; empty where they train here."""
        return self.train_on.partition(":")[2]

    @property
    def database(self) -> Path:
        return self.data_dir / "nudge.db"

    @property
    def everybody_signs_in(self) -> bool:
        """Whether nobody sees the page without having signed in."""
        return bool(self.people.users or self.oidc.issuer)

    @property
    def streaming_file(self) -> Path:
        return self.data_dir / "streaming"

    @property
    def adapters_dir(self) -> Path:
        return self.data_dir / "adapters"

    @property
    def rounds_dir(self) -> Path:
        return self.data_dir / "rounds"

    @property
    def rollout_tokens(self) -> int:
        """Longest reply in a rollout and in the gate, in tokens."""
        return self.ppo.rollout_tokens or self.chat.reply_tokens

    # -- other forms and other values

    def flat(self, mode: Literal["python", "json"] = "python") -> dict[str, Any]:
        """Every setting of the app by its dotted name; in mode "json", as values that JSON has. What a subclass adds is
        not in it.
        """
        return names.flattened(self.model_dump(mode=mode, include=set(Settings.model_fields)))

    def recorded(self) -> dict[str, Any]:
        """As `flat("json")`, without secrets and without who is who: what a round keeps of its settings."""
        secret = {
            name
            for name, field in names.fields(type(self)).items()
            if any(isinstance(mark, operating.Secret) for mark in field.metadata)
        }
        named = secret | {"admins", "users_file"}
        values = self.flat("json").items()
        return {
            name: value for name, value in values if name not in named and not name.startswith(("oidc.", "people."))
        }

    def environ(self) -> dict[str, str]:
        """The settings as `NUDGE_…` variables, so that a child process reads the same ones."""
        return {names.variable(name): str(value) for name, value in self.flat().items()}

    def with_values(self, **changes: Any) -> Self:
        """A copy with other values, those of a group as a dict: `settings.with_values(seed=1, ppo={"lr": 1e-3})`.

        SettingsError names every value that is not accepted.
        """
        return self.like(self, **changes)

    @classmethod
    def like(cls, other: "Settings", **changes: Any) -> Self:
        """Settings of this class with the values of `other`, as far as it has them, but for the `changes`: as for
        `with_values`.
        """
        own = {field.alias or name for name, field in cls.model_fields.items()}
        kept = {name: value for name, value in other.model_dump(by_alias=True).items() if name in own}
        if unknown := changes.keys() - own:
            raise SettingsError(f"{', '.join(sorted(unknown))}: there is no such setting")
        try:
            return cls(_env_file=None, **names.merged(kept, changes))
        except ValidationError as error:
            raise settings_error(cls, error) from None


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
