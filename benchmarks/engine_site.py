"""What every part of the engine's benchmark works with: its settings, an engine whose replies never end by themselves,
and prompts of a given length.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks import cpu_kind
from playground.decoding.sampling import Sampling
from playground.models import adapters, lora, prompts
from playground.serving.engine import Engine
from playground.serving.versions import Policy
from playground.settings import Positive, Settings
from playground.store import Store
from playground.system.threads import run_in_own_thread
from training import rollout

TOKENS = 64  # of each reply, where nothing else is said

Run = dict[str, Any]  # what one repetition took: "seconds", "first" and "both", as of `Site.duel`


class EngineSettings(Settings):
    """The duel engine beside its peers."""

    quick: bool = False
    """Fewer repetitions and swaps, no round beside the chat, no llama.cpp (which compiles for ten minutes)."""
    repeats: Positive = 5
    """Repetitions of each figure; medians count."""
    swaps: Positive = 1000
    """Versions swapped under running streams."""
    cpu: cpu_kind.Name = ""
    """Both sides as if the CPU had AVX2 alone (avx2), or AVX512 with VNNI but without bf16 and AMX (avx512)."""
    only: str = ""
    """Parts to measure, with commas between: duel, crowd, prefix, swaps, round, process; empty takes all."""
    json_file: str = Field("", alias="json")
    """File for the rows, as JSON."""


class Site:
    """An engine with its threads running, over a fresh store, whose replies never end by themselves."""

    def __init__(
        self, settings: Settings, folder: Path | str, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.settings = settings.with_values(data_dir=Path(folder), round={"poll_seconds": 0.02})
        (Path(folder) / "tuning.json").write_text((settings.data_dir / "tuning.json").read_text())
        self.engine = Engine(Store(self.settings.database), self.settings, base, tokenizer)
        self.engine.end_tokens = frozenset()
        self.engine.start()

    def publish(self, size: float, seed: int) -> int:
        """A version of random LoRA tensors, the usual rank and targets; returns its number once it answers."""
        store = self.engine.store
        ppo = self.settings.ppo
        store.request_round()
        round_id = store.take_round("benchmark", lease_seconds=30)["id"]
        version = store.add_policy(round_id, "benchmark", parent=store.live_policy()["version"])
        targets = lora.linear_targets(self.engine.base)
        path, sha256 = adapters.write(
            self.settings.adapters_dir,
            version,
            run_in_own_thread(1, lambda: self._random_lora(size, seed, targets)),
            rank=ppo.lora_rank,
            alpha=ppo.lora_alpha,
            targets=targets,
            base=self.engine.identity,
            parent=0,
            round_id=round_id,
            scores={},
        )
        store.publish(round_id, "benchmark", version, path, sha256, {})
        while self.engine.live.version != version:
            time.sleep(0.01)
        return version

    def _random_lora(self, size: float, seed: int, targets: list[str]) -> dict[str, torch.Tensor]:
        ppo = self.settings.ppo
        noise = torch.Generator().manual_seed(seed)
        model = lora.with_lora(
            lora.tied_copy(self.engine.base), rank=ppo.lora_rank, alpha=ppo.lora_alpha, targets=targets
        )
        return {
            name: size * torch.randn(parameter.shape, generator=noise)
            for name, parameter in lora.lora_parameters(model).items()
        }

    def duel(
        self,
        prompt: list[int],
        tokens: int = TOKENS,
        seed: int = 0,
        temperature: float = 0.7,
        policy: Policy | None = None,
    ) -> Run:
        """One duel of the live version, or of `policy`, to its end: {"seconds", "first", "both", "stream"}; first:
        until a reply's first token, both: until both have one.
        """
        start = time.perf_counter()
        sampling = Sampling(temperature=temperature, max_tokens=tokens)
        stream = self.engine.duel(prompt, [seed, seed + 1], sampling, policy=policy)
        stream.wait(600)
        firsts = sorted(stream.first_token_ms)
        return {
            "seconds": time.perf_counter() - start,
            "first": firsts[0] / 1e3,
            "both": firsts[1] / 1e3,
            "stream": stream,
        }

    def forget_prompts(self) -> None:
        """Have each prompt read whole, as the peers read it."""
        self.engine.kv_pool.retained.clear()

    def repeated_duels(self, prompt: list[int], repeats: int) -> list[Run]:
        """The live version's duels, each with other seeds, after one that warms up."""
        (runs,) = self.duels_in_turn(prompt, repeats, [None])
        return runs

    def duels_in_turn(self, prompt: list[int], repeats: int, policies: Sequence[Policy | None]) -> list[list[Run]]:
        """Each policy's duels, one of each in turn, so that what else the machine does meets all of them; before that,
        one that warms up.
        """
        for policy in policies:
            self.duel(prompt, 8, policy=policy)
        runs: list[list[Run]] = [[] for _ in policies]
        for seed in range(repeats):
            for policy, of_policy in zip(policies, runs, strict=True):
                self.forget_prompts()
                of_policy.append(self.duel(prompt, seed=2 * seed, policy=policy))
        return runs


def text_prompt(tokenizer: PreTrainedTokenizerBase, tokens: int, seed: int = 0) -> list[int]:
    """Token ids of a chat of this length: shipped lines in a row, cut to fit."""
    lines = (rollout.SEED_PROMPTS / "train.txt").read_text().splitlines()
    frame = prompts.encode([{"role": "user", "content": ""}], tokenizer, 10**6)
    words = tokenizer(" ".join(lines[seed:] + lines[:seed]), add_special_tokens=False)["input_ids"]
    at = len(frame) - 1 - frame[::-1].index(tokenizer.eos_token_id)  # the place of the empty message
    return frame[:at] + words[: tokens - len(frame)] + frame[at:]


def speed(runs: Sequence[Run]) -> float:
    """Tokens a second of two replies of TOKENS tokens, in the median run."""
    return 2 * TOKENS / median(run["seconds"] for run in runs)
