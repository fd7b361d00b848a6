"""One training round, resumable by phase: collect → sft → reward → ppo → gate → publish.

Owns what each phase does and which files of the round's folder it writes. A restarted worker continues at the phase
that the round's row names, and PPO continues after its last finished iteration. The order of phases, progress and
interruptions are `round_control.py`'s; where the policy starts is `round_start.py`'s; loading is `round_models.py`'s;
when rounds run is `worker.py`'s.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from playground.models import adapters
from playground.settings import Settings
from playground.store import Store
from playground.store.reasons import not_published
from playground.system import memory
from playground.system.messages import Message, from_data, joined
from playground.system.safe_logging import Loggable
from training import (
    erase,
    gpu,
    people,
    ppo,
    preferences,
    ratchet,
    reward,
    round_gate,
    round_start,
    rules,
    selftest_files,
    sft_train,
)
from training.gate import GateReport
from training.preferences import Preferences, Row
from training.rollout import Episode
from training.round_control import RoundControl, write_json
from training.round_gate import GateReplies
from training.round_models import RoundModels
from training.trainer import Metrics, Trainer

log = logging.getLogger(__name__)


class Round(RoundControl):
    """A running round: its row, its folder and its models."""

    def __init__(self, store: Store, settings: Settings, row: Row, owner: str) -> None:
        super().__init__(store, settings, row, owner)
        self.drop_models()

    def drop_models(self) -> None:
        self.models = RoundModels(self.store, self.settings, self.id, self.folder, self.obey, self.show_part)

    def run_phase(self, phase: str) -> None:
        phases = {
            "collect": self._collect,
            "sft": self._sft,
            "reward": self._reward,
            "ppo": self._ppo,
            "gate": self._gate,
            "publish": self._publish,
        }
        phases[phase]()
        if phase != "publish":  # after it the row is closed
            self.record(part_seconds=self.models.seconds)

    # -- collect

    def _collect(self) -> None:
        """Votes become preferences.json; the round ends where there are fewer than two pairs."""
        erase.remove_all_but_log(self.folder)
        rules.read(self.settings.reward.rules)  # a rule that is not there ends the round before it has cost anything
        prefs = self._read_preferences()
        write_json(self.folder / "preferences.json", prefs.as_json())
        self.store.record_used_votes(self.id, [(vote.id, vote.group in prefs.heldout) for vote in prefs.votes])
        imported = len(prefs.pairs) - len(prefs.judged)
        self.record(
            votes=len(prefs.votes), imported=imported, split_by=prefs.split_by, heldout_units=len(prefs.heldout)
        )
        log.info(
            "%d votes: %d pairs to compare (%d of them imported), and %d replies judged alone; held out: %d of the %ss",
            len(prefs.votes),
            len(prefs.pairs),
            imported,
            len(prefs.labels),
            len(prefs.heldout),
            Loggable(prefs.split_by),
        )
        if len(prefs.judged) < 2:
            self.end(
                "not_enough",
                Message("Not enough evidence yet. Votes so far: {n}; vote on more replies.", n=len(prefs.votes)),
            )

    def _read_preferences(self) -> Preferences:
        """Preferences of all votes. They are read again if an erasure is requested meanwhile, since what was taken back
        may have been read.
        """
        while True:
            erasure_before = self.store.last_erasure()
            prefs = preferences.from_store(
                self.store, self.models.base["hash"], self.models.tokenizer, self.settings, self.obey
            )
            self.store.record_read_conversations(self.id)
            if self.store.last_erasure() == erasure_before:
                return prefs

    # -- sft

    def _sft(self) -> None:
        """The policy's start becomes start.safetensors."""
        settings = self.settings
        policy = self.models.policy
        live = self.store.live_policy()
        from_live = round_start.is_from_live(self.models, live) and round_start.load_live(self.models, live)
        no_step = round_start.why_no_step(settings, live) if from_live else None
        if no_step:
            self.end("not_enough", no_step)
        demonstrations = self.models.demonstrations(live if from_live else None)
        fine_tune = bool(demonstrations) and settings.sft.epochs > 0
        if fine_tune:

            def on_step(step: int, steps: int, loss: float) -> None:
                self.progress(step, steps, {"sft_loss": loss})

            loss = sft_train.train(policy, demonstrations, settings, on_step)
            self.record(demonstrations=len(demonstrations), sft_loss=loss)
        save_file(policy.state(), self.folder / "start.safetensors")
        self.record(started_from=live["version"] if from_live else 0)

    # -- reward

    def _reward(self) -> None:
        """The reward model becomes reward.safetensors; the round ends where the votes are not enough evidence."""
        models = self.models

        def show_percent(percent: float) -> None:
            self.progress(round(percent), 100, {})

        # features and folds take about 70 % of the phase, the replies of the reference most of the rest
        trunk = models.trunk
        with models.seconds.part("fit reward model"):
            model, report = reward.fit(
                models.preferences, trunk, self.settings, lambda done, total: show_percent(70 * done / total)
            )
        self.record(**report.as_metrics())
        log.info(
            "reward model: %s; cross-validated accuracy %.2f [%.2f, %.2f]",
            ", ".join(f"{head.share:.0%} {head.feature_set} with penalty {head.penalty:g}" for head in report.heads),
            report.cv_accuracy,
            *report.cv_interval,
        )
        if not report.enough:
            self.end("not_enough", report.reason)
        nothing_left = self._nothing_left()
        if nothing_left:
            self.record(nothing_left=True)
            self.end("not_enough", nothing_left)
        with models.seconds.part("standardise: replies"), models.policy.reference():
            chosen = models.training_prompts(self.settings.ppo.episodes, models.rng("reference"))
            episodes = models.sample(models.policy.rollouts, chosen, "reference")
        show_percent(90)
        features = models.features(model, episodes)
        model.standardise(features)
        self._standardise_rules(episodes)
        people.save(model, self.folder / "people.safetensors")
        model.save(self.folder / "reward.safetensors")
        selftest_files.check_head(model, self.folder / "reward.safetensors", features)

    def _standardise_rules(self, episodes: Sequence[Episode]) -> None:
        """Mean and deviation of the rules on the reference's replies become rules.json."""
        named = rules.read(self.settings.reward.rules)
        if named:
            texts = self.models.texts(episodes)
            standardised = [rule.standardised_on(texts) for rule in named]
            figures = {rule.name: {"mean": rule.mean, "deviation": rule.deviation} for rule in standardised}
            write_json(self.folder / "rules.json", figures)
            self.record(rules={rule.name: rule.weight for rule in named})

    def _nothing_left(self) -> Message | None:
        """Why people's choices between replies of the live version leave nothing to learn, or None. The base is always
        trained, and a round that a person asked for always runs.
        """
        live = self.store.live_policy()["version"]
        if live == 0 or self.store.round(self.id)["asked"]:
            return None
        fresh = self.store.votes_on_own_pairs(live)
        return ratchet.nothing_left(fresh["hits"], fresh["forecasts"], fresh["ties"], fresh["votes"])

    # -- ppo

    def score(self, episodes: Sequence[Episode]) -> torch.Tensor:
        """Standardised rewards (N,) of an iteration's episodes."""
        self.obey()
        self.show_part("ppo: scores")
        rewards = self.models.reward(episodes)
        self.show_part("ppo: update")
        return rewards

    def _ppo(self) -> None:
        """PPO from the start or from the checkpoint ppo.pt; the policy becomes policy.safetensors."""
        policy = self.models.policy
        iterations = self.settings.ppo.iterations
        checkpoint = self.folder / "ppo.pt"
        self._keep_start()
        policy.load(self.models.start)
        kl_step = round_start.kl_step(self.models)
        self.record(kl_step=kl_step)
        trainer = Trainer(policy, gpu.with_room_used(self.settings), kl_step)
        if checkpoint.exists():
            trainer.load(checkpoint)
            log.info("ppo goes on after iteration %d", trainer.iteration)
        self.resumed_at_step(trainer.iteration)
        self.progress(trainer.iteration, iterations, {})
        self.show_part("ppo: rollouts")

        def on_iteration(trainer: Trainer, metrics: Metrics) -> None:
            # The point comes before the checkpoint: if the worker is killed in between, the iteration is run again and
            # replaces its point. The other way round the point would be lost.
            self.store.add_metrics(self.id, trainer.iteration, metrics)
            trainer.save(checkpoint)
            memory.trim()
            kl = {"kl_start": trainer.kl_start, "kl_target": trainer.kl_target}  # known from the first iteration on
            figures = {**kl, **self.pace(), "part": "ppo: rollouts"}
            self.store.update_round(self.id, self.owner, figures, step=trainer.iteration, steps=iterations, attempts=1)
            log.info(
                "ppo %d of %d: reward %.2f, KL %.2f, length %.0f",
                trainer.iteration,
                iterations,
                metrics["reward"],
                metrics["kl"],
                metrics["length"],
            )
            self.obey()

        ppo.train_ppo(trainer, self.models.training_prompts, self.score, self.models.end_tokens, on_iteration)
        self.show_part(None)
        save_file(policy.state(), self.folder / "policy.safetensors")

    def _keep_start(self) -> None:
        """Write start.safetensors where it is missing: earlier versions of this app wrote none for a round that starts
        from the base, and its start is the policy before anything is loaded into it.
        """
        file = self.folder / "start.safetensors"
        if not file.exists() and not self.store.round(self.id)["metrics"].get("started_from"):
            save_file(self.models.policy.state(), file)

    # -- gate

    def _gate(self) -> None:
        """The comparison with the live version and the base becomes gate.json."""
        models = self.models
        self._keep_start()

        def show_step(step: int) -> None:
            self.progress(step, 5, {})

        replies, report = self.judge(show_step)
        show_step(4)
        samples = round_gate.samples(models, replies)
        show_step(5)
        log.info(
            "gate: gain %+.2f [%+.2f, %+.2f], KL %.1f: %s",
            report.gain,
            *report.gain_interval,
            report.kl,
            joined(report.refused_because) if report.refused_because else "passed",
        )
        with models.seconds.part("gate: served"):
            served_kl = self.served_kl(replies.first_of_each(replies.new))
        write_json(self.folder / "gate.json", {**report.as_dict(), "served_kl": served_kl, "samples": samples})
        if not report.demonstrations:
            self.record(gate_gain=report.gain, gate_low=report.gain_interval[0])
            self.record(people=report.people, people_who_lose=report.people_who_lose)
        self.record(gate_share=report.share, kl=report.kl, served_kl=served_kl)

    def served_kl(self, episodes: Sequence[Episode]) -> float:
        """How far what the chat will serve is from the trained policy, in nats a token, on these replies of it."""
        return round_gate.served_kl(self.models, episodes)

    def judge(self, show_step: Callable[[int], None]) -> tuple[GateReplies, GateReport]:
        """The replies on which the gate judges, and what it says; `show_step(n)` counts the versions that replied."""
        return round_gate.judge(self.models, show_step, self.models.gate_prompts(), round_gate.by_reward)

    # -- publish

    def _publish(self) -> None:
        """The policy becomes a version on disk; it goes live, or is kept as refused."""
        settings = self.settings
        models = self.models
        report = json.loads((self.folder / "gate.json").read_text())
        # the samples hold people's words; they stay in the file, which an erasure clears
        report.pop("samples", None)
        version, path, sha256 = self._write_version(report)
        if report["refused_because"]:
            reason = not_published(from_data(refusal) for refusal in report["refused_because"])
            self.store.refuse(self.id, self.owner, version, path, sha256, report, reason)
            return
        selftest_files.check_adapter(
            models.trained_policy,
            settings,
            path,
            models.bare,
            base_hash=models.base["hash"],
            expected_sha256=sha256,
        )
        trial = settings.trial.duels > 0
        self.store.publish(self.id, self.owner, version, path, sha256, report, trial)

    def _write_version(self, report: Row) -> tuple[int, Path, str]:
        """Write the policy that the gate left; returns the version's number, its folder and its hash."""
        settings = self.settings
        models = self.models
        live = self.store.live_policy()
        version = self.store.add_policy(self.id, self.owner, parent=live["version"])
        path, sha256 = adapters.write(
            settings.adapters_dir,
            version,
            models.policy_of_the_gate(report.get("share", 1.0)).state(),
            rank=settings.ppo.lora_rank,
            alpha=settings.ppo.lora_alpha,
            targets=models.policy.targets,
            base=models.base,
            parent=live["version"],
            round_id=self.id,
            scores={name: report[name] for name in ("gain", "gain_interval", "kl", "served_kl", "prompts")},
        )
        return version, path, sha256
