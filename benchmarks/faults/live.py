"""A data folder with votes and a published version in it, made once and copied for each section that needs one;
and a small model whose rounds take seconds.

The version is put there by hand, with a LoRA that changes the model a little: a round of its own would take minutes
on a busy machine, and what is asked
here is what becomes of a published version, not how it came to be.
"""

import random
import shutil
from pathlib import Path

from benchmarks.faults.running import Scene
from playground.settings import Settings

VOTES = 40
OWN = {"model", "data_dir"}  # what App sets
STRENGTH = 0.02  # deviation of the LoRA's B: enough that its logits are its own, far from what the canaries refuse
# so wide that whatever the tiny model learns is let through
GATE = {
    "better": 0.01,
    "not_worse": 0.01,
    "kl_budget": 1000.0,
    "length_factor": 1000.0,
    "length_drift": 1000.0,
    "empty_replies": 1.0,
    "repetition_rise": 1.0,
    "distinct_share": 0.0,
    "ended_fall": 1.0,
    "canary_fall": 100.0,
}
CHANGES = {
    "round": {"votes": 12},
    "chat": {"reply_tokens": 24},
    "reward": {"evidence_confidence": 0.0},
    "ppo": {"iterations": 4, "episodes": 32},
    "gate": {"prompts": 8, **GATE},
}


class Live:
    """`model`, the `options` that rounds of seconds need, and `fresh()`: `data`, always at the same path, as it was
    with its first version.
    """

    def __init__(self, scene: Scene):
        from tests.test_loop import settings_for

        self.folder = scene.scratch / "live"
        self.data, self.model, self._saved = self.folder / "data", self.folder / "model", self.folder / "saved"
        self._settings = settings_for(self.folder, **CHANGES)
        usual = Settings(_env_file=None).flat()
        self.options = {
            name.replace("_", "-"): value
            for name, value in self._settings.flat().items()
            if value != usual[name] and name not in OWN
        }
        if not self._saved.exists():
            shutil.rmtree(self.data, ignore_errors=True)
            make(self._settings)
            shutil.copytree(self.data, self._saved)

    def fresh(self) -> Path:
        """The data folder as with its first version."""
        shutil.rmtree(self.data, ignore_errors=True)
        shutil.copytree(self._saved, self.data)
        return self.data


def make(settings) -> None:
    """Votes by taste, a round on them that is over, and the version that it published."""
    from playground.models import loading
    from playground.store import Store
    from tests.test_loop import liking
    from training import simulate
    from training.annotators import Person

    tokenizer, trunk, store = loading.load_tokenizer(settings), loading.load_trunk(settings), Store(settings.database)
    job = simulate.SimulateSettings.like(settings, votes=VOTES)
    simulate.make_duels(
        store, job, trunk, tokenizer, {"liking": Person(lambda prompt, reply: liking(reply))}, log=lambda text: None
    )
    store.request_round()
    row = store.take_round("benchmark", lease_seconds=60)
    version = store.add_policy(row["id"], "benchmark", parent=0)
    path, digest = write(settings, trunk, version, row["id"])
    store.publish(row["id"], "benchmark", version, path, digest, {})


def write(settings, trunk, version: int, round_id: int):
    """(folder, hash) of a version with a small LoRA over `trunk`, which is given its layers."""
    import torch

    from playground.models import adapters, loading, lora

    base, targets = loading.base_identity(trunk, settings), lora.linear_targets(trunk)
    tuned = lora.with_lora(trunk, rank=settings.ppo.lora_rank, alpha=settings.ppo.lora_alpha, targets=targets)
    generator = torch.Generator().manual_seed(random.Random("live").randrange(2**31))
    tensors = {}
    for name, parameter in lora.lora_parameters(tuned).items():
        drawn = torch.randn(parameter.shape, generator=generator)
        tensors[name] = STRENGTH * drawn if "lora_B" in name else parameter.detach().float()
    return adapters.write(
        settings.adapters_dir,
        version,
        tensors,
        rank=settings.ppo.lora_rank,
        alpha=settings.ppo.lora_alpha,
        targets=targets,
        base=base,
        parent=0,
        round_id=round_id,
        scores={},
    )
