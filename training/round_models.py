"""What the phases of a round work with: tokenizer, policy, reward model, preferences and prompts. Each is loaded when
it is first needed, and then kept.

Reads the round's folder and never writes to it. Knows nothing about phases, leases or progress.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from playground.models import adapters, loading, lora, prompts, structure
from playground.models.feature_trunk import FeatureTrunk
from playground.models.loading import BaseIdentity, EndTokens
from playground.models.scorer import RewardModel
from playground.models.templates import Message
from playground.settings import Settings
from playground.store import Store, is_fine_tuning
from training import gpu, imported, people, rollout, rounding, rules, selftest, sft_train
from training.policy import PolicyModel
from training.preferences import Preferences, Row
from training.rollout import Episode, Rollouts
from training.rules import Rule
from training.timing import PartSeconds, ShowPart

CHECKED = 4  # replies on which a policy that multiplies in int8 is compared with itself


class RoundModels:
    """The models and data of one round, as its settings and its folder have them. `obey` is called where reading data
    takes long, `show_part` with the name of each part that begins, and None when it has ended.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        round_id: int,
        folder: Path,
        obey: imported.Obey = imported.go_on,
        show_part: ShowPart = lambda part: None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.round_id = round_id
        self.folder = folder
        self.obey = obey
        self.seconds = PartSeconds(show_part)

    # -- the policy and its base

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return loading.load_tokenizer(self.settings)

    @cached_property
    def _loaded_base(self) -> "LoadedBase":
        with self.seconds.part("load policy"):
            return LoadedBase(self.settings, self.tokenizer)

    @cached_property
    def policy(self) -> PolicyModel:
        """The policy being trained, loaded and tested."""
        base = self._loaded_base
        with self.seconds.part("add LoRA"):
            policy = PolicyModel(base.trunk, self.settings)
        with self.seconds.part("test policy"):
            most = structure.positions(policy.causal.config)
            canaries = rollout.canaries(self.tokenizer, self.settings.ppo.rollout_context, most)
            rounding.check(policy, canaries[:CHECKED], self.settings)
            selftest.check_policy(policy, self.settings)
        return policy

    @cached_property
    def trained_policy(self) -> PolicyModel:
        """The policy as PPO left it, read once, so that what is published can be compared with what the gate
        measured.
        """
        self.policy.load(load_file(self.folder / "policy.safetensors"))
        return self.policy

    @cached_property
    def start(self) -> dict[str, torch.Tensor]:
        """The LoRA tensors at which PPO starts."""
        return load_file(self.folder / "start.safetensors")

    def policy_of_the_gate(self, share: float) -> PolicyModel:
        """The trained policy at this share of the way from its start, where the gate has left it. The files stay as PPO
        left them, so that a gate that was killed starts over with the same policy.
        """
        if share < 1:
            self.trained_policy.interpolate(self.start, load_file(self.folder / "policy.safetensors"), share)
        return self.trained_policy

    @property
    def base(self) -> BaseIdentity:
        """{"model", "hash"} of the base."""
        return self._tested_base.identity

    @property
    def end_tokens(self) -> EndTokens:
        return self._tested_base.end_tokens

    @property
    def bare(self) -> PreTrainedModel:
        """A module tree without a LoRA over the base's tensors."""
        return self._tested_base.shell

    @property
    def _tested_base(self) -> "LoadedBase":
        _ = self.policy  # a faulty base ends the round in its first phase
        return self._loaded_base

    @cached_property
    def settings_with_room(self) -> Settings:
        """The settings with larger microbatches where a GPU has room for them beside these models."""
        return gpu.with_room_used(self.settings)

    @property
    def max_tokens(self) -> int | None:
        """How many tokens the base takes, prompt and reply together; None where nothing bounds them."""
        return structure.positions(self.policy.causal.config)

    @property
    def live_version(self) -> int:
        """The version that answers people now; 0 is the base."""
        return self.store.live_policy()["version"]

    def live_model(self) -> PreTrainedModel:
        """The version that answers people now, on a module tree of its own."""
        row = self.store.live_policy()
        if row["version"] == 0:
            return self.bare
        return adapters.load(
            adapters.place(self.settings.adapters_dir, row["path"]),
            self.bare,
            base_hash=self.base["hash"],
            expected_sha256=row["sha256"],
        )

    def served_models(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        """The base as the chat loads it, and the trained policy over it. Where the trunk is quantised, that is another
        one: on the same device where it has room, else on the CPU.
        """
        policy = self.trained_policy
        if self.settings.ppo.quantisation == "none":
            return self.bare, policy.causal
        base = loading.load_trunk(gpu.where_unquantised_fits(self.settings))
        bare = lora.tied_copy(base)
        served = lora.with_lora(base, rank=policy.rank, alpha=policy.alpha, targets=policy.targets)
        adapters.copy_strictly(policy.state(), lora.lora_parameters(served))
        return bare, cast("PreTrainedModel", served.get_base_model())

    # -- the reward model

    @cached_property
    def trunk(self) -> FeatureTrunk:
        """The reward model's trunk."""
        with self.seconds.part("load reward trunk"):
            shared = gpu.shares_trunk(self.settings)
            trunk = FeatureTrunk(self.settings, lora.tied_copy(self.bare) if shared else None)
        with self.seconds.part("test reward trunk"):
            selftest.check_features(trunk, self.settings.reward.lora_rank)
        return trunk

    @cached_property
    def reward_model(self) -> RewardModel:
        model = RewardModel.load(self.folder / "reward.safetensors")
        people.load(model, self.folder / "people.safetensors")
        if model.lora:
            self.trunk.attach_lora(self.settings.reward.lora_rank, model.lora)
        return model

    def reward(self, episodes: Sequence[Episode]) -> torch.Tensor:
        """Rewards (N,) of episodes: the reward model's, standardised, and those of the rules."""
        return self.reward_model.reward(self.features(self.reward_model, episodes)) + self.rule_rewards(episodes)

    @cached_property
    def rules(self) -> list[Rule]:
        """The rewards that the settings name, standardised as the round's reward phase left it."""
        named = rules.read(self.settings.reward.rules)
        figures = json.loads((self.folder / "rules.json").read_text()) if named else {}
        return [replace(rule, **figures[rule.name]) for rule in named]

    def rule_rewards(self, episodes: Sequence[Episode]) -> torch.Tensor:
        """What the rules add to the rewards (N,) of episodes; 0 without rules."""
        if not self.rules:
            return torch.zeros(len(episodes))
        return rules.rewards(self.rules, self.texts(episodes))

    def texts(self, episodes: Sequence[Episode]) -> list[tuple[str, str]]:
        """Prompt and reply of each episode, as a person reads them."""
        tokenizer = self.tokenizer
        return [(prompts.decode(e.prompt, tokenizer), prompts.reply_text(e.completion, tokenizer)) for e in episodes]

    def features(self, model: RewardModel, episodes: Sequence[Episode]) -> torch.Tensor:
        """Features (N, D) of episodes, as this reward model reads them."""
        return model.features(self.trunk, [episode.reply for episode in episodes])

    # -- preferences and prompts

    @cached_property
    def preferences(self) -> Preferences:
        return Preferences.from_json(json.loads((self.folder / "preferences.json").read_text()))

    def rng(self, name: str) -> random.Random:
        """A random source that depends on the seed, the round and the name."""
        return rollout.generator(self.settings.seed, self.round_id, name)

    def contexts(self, heldout: bool) -> list[list[int]]:
        """Distinct prompts that people voted on, from the one whose last vote is oldest; those in held-out groups, or
        in the others. Each is cut to what fits into a rollout.
        """
        prefs = self.preferences
        pairs = [pair for pair in prefs.judged if (pair.group in prefs.heldout) == heldout]
        voted = [tuple(prefs.replies[pair.left][0]) for pair in pairs]
        latest_first = [self.cut_prompt(list(prompt)) for prompt in dict.fromkeys(reversed(voted))]
        distinct = dict.fromkeys(map(tuple, latest_first))
        return [list(prompt) for prompt in reversed(distinct)]

    def cut_prompt(self, prompt: list[int]) -> list[int]:
        """A prompt of at most `ppo.rollout_context` tokens. The oldest turns of a longer one are left out, as in the
        chat; where its last message alone is too long, or its chat is no longer there, its end is kept.
        """
        budget = self.settings.ppo.rollout_context
        if len(prompt) <= budget:
            return prompt
        chat = self.store.messages_of_prompt(prompt)
        if chat is not None:
            system_prompt, messages = chat
            try:
                return prompts.encode(cast("list[Message]", messages), self.tokenizer, budget, system_prompt)
            except prompts.BadMessage:
                pass
        return prompt[-budget:]

    def demonstrations(self, live: Row | None) -> list[Episode]:
        """Edited replies and imported demonstrations to learn from, none of them in a held-out group. Where training
        goes on from the version `live` (a row of the store), only those that are new to it.
        """
        prefs = self.preferences
        edits = [
            row for row in self.store.demonstrations(self.base["hash"]) if prefs.group_of(row) not in prefs.heldout
        ]
        known = imported.demonstrations(self.store, self.tokenizer, self.settings, self.obey)
        rows: list[Row] = [*edits, *known]
        known_until = self._known_until(live)
        if known_until is not None:
            rows = [row for row in rows if row["created"] > known_until]
        return sft_train.examples(rows, self.encode_reply, self.cut_prompt, self.max_tokens)

    def _known_until(self, version: Row | None) -> str | None:
        """When the round began by which a version, or one that it was made from, learned from the store's
        demonstrations; None where none did. Fine-tuning on a file learns from that file alone.
        """
        while version is not None and version["round"] is not None:
            row = self.store.round(version["round"])
            if not is_fine_tuning(row):
                return str(row["started"])
            version = self.store.policy(row["metrics"].get("started_from", 0))
        return None

    @cached_property
    def _training_contexts(self) -> list[list[int]]:
        return self.contexts(heldout=False)

    @cached_property
    def _training_seeds(self) -> list[list[int]]:
        """The shipped prompts, and those that were imported."""
        known = imported.prompts(self.store, self.tokenizer, self.settings, self.obey)
        return self.seed_prompts("train") + known

    def seed_prompts(self, part: str) -> list[list[int]]:
        """The shipped prompts, `train` or `heldout`, that fit into a rollout."""
        return rollout.seed_prompts(part, self.tokenizer, self.settings.ppo.rollout_context)

    def training_prompts(self, n: int, rng: random.Random) -> list[list[int]]:
        """`n` prompts to train on."""
        return rollout.choose(self._training_contexts, self._training_seeds, n, rng)

    def gate_prompts(self) -> list[list[int]]:
        """The held-out prompts of the gate, in a random order."""
        seeds = self.seed_prompts("heldout")
        rng = self.rng("gate")
        chosen = rollout.choose(self.contexts(heldout=True), seeds, self.settings.gate.prompts, rng)
        return rng.sample(chosen, len(chosen))

    def sample(self, rollouts: Rollouts, prompt_ids: Sequence[list[int]], name: str, replies: int = 1) -> list[Episode]:
        """`replies` of a model to each prompt, with the random source `name`."""
        return rollouts.by_settings(self.settings, prompt_ids, self.rng(name), self.end_tokens, replies)

    def encode_reply(self, text: str) -> list[int]:
        return prompts.encode_reply(text, self.tokenizer)


class LoadedBase:
    """The base as it was loaded, and what must be read from it before a LoRA is put into its layers."""

    def __init__(self, settings: Settings, tokenizer: PreTrainedTokenizerBase) -> None:
        quantisation = settings.ppo.quantisation
        self.trunk = trunk = loading.load_trunk(settings, quantisation, training=True)
        # the hash is over the weights before they are quantised, as the chat has them
        whole = trunk if quantisation == "none" else loading.load_trunk(gpu.on_cpu(settings))
        self.identity = loading.base_identity(whole, settings)
        self.end_tokens = loading.end_tokens(trunk, tokenizer)
        self.shell: PreTrainedModel = lora.tied_copy(trunk)
