"""The names that settings had before, most of them before they had groups, and what becomes of them: refused at the
start, in a sentence that gives the current name. The store's migrations go by the same table.
"""

from collections.abc import Iterator, Sequence

from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource

from playground.settings.explain import SettingsError
from playground.settings.names import fields, flag, variable

RENAMED = {
    "request_kb": "limits.request_kb",
    "request_seconds": "limits.request_seconds",
    "unread_seconds": "limits.unread_seconds",
    "requests_per_minute": "limits.requests_per_minute",
    "requests_at_once": "limits.requests_at_once",
    "sessions": "limits.sessions",
    "sessions_per_person": "limits.sessions_per_person",
    "sessions_per_address": "limits.sessions_per_address",
    "waiting_messages": "limits.waiting_messages",
    "messages_per_address": "limits.messages_per_address",
    "sign_in_tries": "limits.sign_in_tries",
    "message_chars": "limits.message_chars",
    "temperature": "chat.temperature",
    "top_p": "chat.top_p",
    "top_k": "chat.top_k",
    "reply_tokens": "chat.reply_tokens",
    "repetition_penalty": "chat.repetition_penalty",
    "stop": "chat.stop",
    "candidates": "chat.candidates",
    "pick": "chat.pick",
    "context_tokens": "chat.context_tokens",
    "stream_hz": "chat.stream_hz",
    "round_votes": "round.votes",
    "auto_train": "round.auto",
    "start_from": "round.start_from",
    "poll_seconds": "round.poll_seconds",
    "lease_seconds": "round.lease_seconds",
    "heldout_fraction": "preferences.heldout_fraction",
    "annotator_weight": "preferences.annotator_weight",
    "sft_epochs": "sft.epochs",
    "sft_lr": "sft.lr",
    "reward_quantisation": "reward.quantisation",
    "reward_layer": "reward.layer",
    "reward_view": "reward.features",
    "reward.view": "reward.features",
    "reward_lora_rank": "reward.lora_rank",
    "reward_lora_epochs": "reward.lora_epochs",
    "reward_pessimism": "reward.pessimism",
    "reward_batch": "reward.batch",
    "evidence_confidence": "reward.evidence_confidence",
    "lora_rank": "ppo.lora_rank",
    "lora_alpha": "ppo.lora_alpha",
    "ppo_iterations": "ppo.iterations",
    "ppo_episodes": "ppo.episodes",
    "ppo_replies": "ppo.replies",
    "rollout_tokens": "ppo.rollout_tokens",
    "rollout_context": "ppo.rollout_context",
    "ppo_epochs": "ppo.epochs",
    "ppo_minibatch": "ppo.minibatch",
    "ppo_microbatch": "ppo.microbatch",
    "ppo_share_prompts": "ppo.share_prompts",
    "ppo_lr": "ppo.lr",
    "value_lr": "ppo.value_lr",
    "value_warmup": "ppo.value_warmup",
    "kl_coefficient": "ppo.kl_coefficient",
    "kl_target": "ppo.kl_target",
    "kl_horizon": "ppo.kl_horizon",
    "gae_lambda": "ppo.gae_lambda",
    "ratio_clip": "ppo.ratio_clip",
    "value_clip": "ppo.value_clip",
    "value_coefficient": "ppo.value_coefficient",
    "max_grad_norm": "ppo.max_grad_norm",
    "kl_stop": "ppo.kl_stop",
    "ratio_tolerance": "ppo.ratio_tolerance",
    "missing_end_penalty": "ppo.missing_end_penalty",
    "gate_prompts": "gate.prompts",
    "gate_confidence": "gate.confidence",
    "kl_budget": "gate.kl_budget",
    "length_factor": "gate.length_factor",
    "length_drift": "gate.length_drift",
    "empty_replies": "gate.empty_replies",
    "repetition_rise": "gate.repetition_rise",
    "distinct_share": "gate.distinct_share",
    "ended_fall": "gate.ended_fall",
    "canary_fall": "gate.canary_fall",
}


def refuse_old_names(kind: type[BaseSettings], argv: Sequence[str], env_encoding: str) -> None:
    """SettingsError where a flag, a variable or a line of `.env` has a name of before; it names all of them."""
    dotenv = DotEnvSettingsSource(kind, env_file_encoding=env_encoding)
    problems = [*_flags(argv), *_variables(kind, EnvSettingsSource(kind)), *_variables(kind, dotenv, " in .env")]
    if problems:
        raise SettingsError("\n".join(dict.fromkeys(problems)))


def _flags(argv: Sequence[str]) -> Iterator[str]:
    now = {flag(old): flag(new) for old, new in RENAMED.items()}
    now |= {f"--no-{old.removeprefix('--')}": f"--no-{new.removeprefix('--')}" for old, new in now.items()}
    for part in argv:
        given = part.split("=")[0]
        if given in now:
            yield f"{given} is now {now[given]}."


def _variables(kind: type[BaseSettings], source: EnvSettingsSource, where: str = "") -> Iterator[str]:
    """Many variables are called as before, so that these are no old names: NUDGE_PPO_LR is that of `ppo.lr`."""
    current = {variable(name) for name in fields(kind)}
    given = {name.upper() for name in source.env_vars}
    for old, new in RENAMED.items():
        if variable(old) in given - current:
            yield f"{variable(old)}{where} is now {variable(new)}."
