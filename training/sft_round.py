"""A round of supervised fine-tuning on a file: the phases of `round.py` that it needs, collect → sft → gate → publish,
with the same lease, folder, gate limits and publication as a round on votes.

Before the first vote there is no reward model, so the gate asks for likelihood instead: replies that are held out of
the file must probably become likelier than under the live version. All other limits are those of any version. It is
not resumed: a fine-tuning that ended in the middle is started again.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean as mean

import numpy as np
from safetensors.torch import save_file

from playground.settings import Settings
from playground.store import Store
from playground.system.messages import Message
from training import erase, gate, rollout, round_gate, round_start, sft_train
from training.gate import GateReport
from training.preferences import Preferences, Row
from training.rollout import Episode
from training.round import Round
from training.round_control import write_json
from training.round_gate import GateReplies, Liked
from training.round_models import RoundModels
from training.sft_data import Split
from training.sft_train import Look

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What a round fine-tunes on, and for how long at most."""

    data: Split
    seconds: float
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None


class SFTRound(Round):
    """A running round on a file."""

    phases = ("collect", "sft", "gate", "publish")

    def __init__(self, store: Store, settings: Settings, row: Row, owner: str, task: Task) -> None:
        super().__init__(store, settings, row, owner)
        self.task = task
        self.heldout_live: list[float] = []  # losses of the live version

    # -- collect

    def _collect(self) -> None:
        """There are no votes; the phases that look for preferences find none."""
        erase.remove_all_but_log(self.folder)
        write_json(self.folder / "preferences.json", Preferences().as_json())
        data = self.task.data
        self.record(demonstrations=len(data.train), heldout_demonstrations=len(data.heldout))

    # -- sft

    def _sft(self) -> None:
        """From the live version to the lowest held-out loss: start.safetensors and policy.safetensors."""
        policy, settings = self.models.policy, self.settings
        live = self.store.live_policy()
        from_live = round_start.is_from_live(self.models, live) and round_start.load_live(self.models, live)
        no_step = round_start.why_no_step(settings, live) if from_live else None
        if no_step:
            self.end("not_enough", no_step)
        self.heldout_live = self._losses_of(live)
        start = policy.state()
        save_file(start, self.folder / "start.safetensors")
        self.record(started_from=live["version"] if from_live else 0)

        def on_step(step: int, steps: int, loss: float) -> None:
            self.progress(step, steps, {"sft_loss": loss})
            self.task.on_step(step, steps, loss)

        def on_look(look: Look) -> None:
            self.store.add_metrics(self.id, look.step, {"sft_heldout_loss": look.heldout})
            training = "" if math.isnan(look.loss) else f" loss {look.loss:.3f},"
            log.info("step %d:%s held-out loss %.3f nats a token", look.step, training, look.heldout)

        looks = sft_train.train_until_heldout_rises(
            policy, self.task.data.train, self.task.data.heldout, settings, self.task.seconds, on_step, on_look
        )
        self._keep(looks)

    def _losses_of(self, live: Row) -> list[float]:
        """Held-out losses of the live version; the policy is left as it was."""
        policy, heldout = self.models.policy, self.task.data.heldout
        if live["version"] == 0:
            with policy.reference():
                return sft_train.losses(policy, heldout, self.settings)
        now = policy.state()
        if not round_start.load_live(self.models, live):
            reason = Message(
                "Version v{n}, which answers now, has a LoRA of another rank or alpha. Pass its --ppo.lora-rank and "
                "--ppo.lora-alpha.",
                n=live["version"],
            )
            self.end("failed", reason)
        found = sft_train.losses(policy, heldout, self.settings)
        policy.load(now)
        return found

    def _keep(self, looks: Sequence[Look]) -> None:
        """Write the policy at the lowest held-out loss; the round ends where that is the one before training."""
        best = min(looks, key=lambda look: look.heldout)
        self.record(heldout_loss=[mean(self.heldout_live), best.heldout], sft_steps=best.step)
        if not best.heldout < looks[0].heldout:
            reason = Message(
                "Nothing was learnt: the loss on {n} held-out demonstrations did not fall below {loss} nats a token.",
                n=len(self.task.data.heldout),
                loss=f"{looks[0].heldout:.3f}",
            )
            self.end("not_enough", reason)
        save_file(self.models.policy.state(), self.folder / "policy.safetensors")

    # -- gate

    def judge(self, show_step: Callable[[int], None]) -> tuple[GateReplies, GateReport]:
        """On held-out prompts of the file, and on shipped ones."""
        models = self.models
        rng = models.rng("gate")
        known = [episode.prompt for episode in self.task.data.heldout]
        chosen = rollout.choose(known, models.seed_prompts("heldout"), self.settings.gate.prompts, rng)
        return round_gate.judge(models, show_step, rng.sample(chosen, len(chosen)), self._compare)

    def _compare(self, models: RoundModels, replies: GateReplies) -> GateReport:
        """What the gate says by the likelihood of the held-out demonstrations, under the policy as it is now."""
        heldout = self.task.data.heldout
        losses = sft_train.losses(models.trained_policy, heldout, self.settings)
        before, after = np.array(self.heldout_live), np.array(losses)
        liked = Liked(
            reward_new=-after,
            reward_live=-before,
            gains=np.tile(before - after, (gate.DRAWS, 1)),
            length=demonstrated_length([*self.task.data.train, *heldout], replies.base, self.settings),
            demonstrations=len(heldout),
        )
        return round_gate.compare(models, replies, liked)


def demonstrated_length(
    demonstrations: Sequence[Episode], base: Sequence[Episode], settings: Settings
) -> tuple[float, float]:
    """Bootstrap interval of the mean log(length of a demonstration / geometric mean length of the base's replies):
    above 0 longer replies are demonstrated, below 0 shorter ones. As `gate.favoured_length` of votes.
    """
    usual = mean(math.log(max(len(episode.completion), 1)) for episode in base)
    ratios = [math.log(max(len(episode.completion), 1)) - usual for episode in demonstrations]
    return gate.interval(np.array(ratios), settings.gate.confidence, settings.seed)
