"""Where a round's policy starts: from the live version, or from the base; and how far it may go from there.

The sizes of steps are `ratchet.py`'s.
"""

import json
import logging

from playground.models import adapter_reading, adapters
from playground.models.trial import tally_against_base, tally_of
from playground.settings import Settings
from playground.system.messages import Message
from training import ratchet
from training.preferences import Row
from training.ratchet import EndedTrial
from training.round_models import RoundModels

log = logging.getLogger(__name__)


def is_from_live(models: RoundModels, live: Row) -> bool:
    """Whether a round starts from the live version (a row of the store), not from the base."""
    if models.settings.round.start_from == "base" or live["version"] == 0:
        return False
    against_base = tally_against_base(models.store, live["version"])
    if ratchet.retreats(against_base):
        log.info(
            "people preferred the base to v%04d in %d of %d pairs, so this round starts from the base",
            live["version"],
            against_base.losses,
            against_base.decided,
        )
        return False
    return True


def load_live(models: RoundModels, live: Row) -> bool:
    """Put the live version's update into the policy; False where its LoRA has another shape."""
    settings = models.settings
    manifest, tensors = adapter_reading.read(
        adapters.place(settings.adapters_dir, live["path"]),
        base_hash=models.base["hash"],
        expected_sha256=live["sha256"],
    )
    if (manifest["rank"], manifest["alpha"]) != (settings.ppo.lora_rank, settings.ppo.lora_alpha):
        log.info(
            "v%04d has a LoRA of rank %s and alpha %s, so this round starts from the base",
            live["version"],
            manifest["rank"],
            manifest["alpha"],
        )
        return False
    models.policy.load(tensors)
    return True


def why_no_step(settings: Settings, live: Row) -> Message | None:
    """Why the live version is so near the gate's KL budget that no step is left; None where one is."""
    kl = json.loads(live["gate_report"] or "{}").get("kl", 0.0)
    budget = settings.gate.kl_budget
    if kl <= budget - ratchet.LEAST * min(settings.ppo.kl_step, budget):
        return None
    return Message(
        "The current version is as far from the base as it may go: {kl} nats a reply, and the budget is "
        "{limit}. Raise gate.kl_budget, or start rounds from the base.",
        kl=f"{kl:.1f}",
        limit=f"{budget:g}",
    )


def kl_step(models: RoundModels) -> float | None:
    """By how much a round may raise the KL to the base; None where it starts from the base."""
    store = models.store
    figures = store.round(models.round_id)["metrics"]
    if not figures.get("started_from"):
        return None
    trials = [EndedTrial(row["state"], tally_of(store, row)) for row in store.ended_trials()]
    return ratchet.step(models.settings.ppo.kl_step, trials, figures["cv_accuracy"])
