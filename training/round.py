"""One training round, resumable by phase: collect → sft → reward → ppo → gate → publish.

Owns what each phase does and which files of the round's folder it writes. A restarted worker goes on at the phase that
the round's row names, and PPO goes on after its last finished iteration. The order of phases, progress and
interruptions are `round_control.py`'s; loading is `round_models.py`'s; when rounds run is `worker.py`'s.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from playground.decoding import tuning
from playground.models import adapters, prompts
from playground.settings import Settings
from playground.store import Store
from playground.store.reasons import not_published
from playground.system import memory
from playground.system.messages import Message, from_data, joined
from training import erase, gate, ppo, preferences, reward, rollout, selftest, served, sft
from training.gate import GateReport
from training.ppo import Metrics, Trainer
from training.preferences import Preferences, Row
from training.rollout import Episode
from training.round_control import RoundControl, write_json
from training.round_models import RoundModels

log = logging.getLogger(__name__)

SAMPLES = 8  # that a gate's report keeps, of shipped prompts and of people's prompts each


@dataclass(frozen=True)
class GateReplies:
    """Replies of two versions to the gate's prompts, in the same order."""

    new: list[Episode]
    live: list[Episode]
    new_texts: list[str]


class Round(RoundControl):
    """A running round: its row, its folder and its models."""

    def __init__(self, store: Store, settings: Settings, row: Row, owner: str) -> None:
        super().__init__(store, settings, row, owner)
        self.drop_models()

    def drop_models(self) -> None:
        self.models = RoundModels(self.store, self.settings, self.id, self.folder)

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

    # -- collect

    def _collect(self) -> None:
        """Votes become preferences.json; the round ends where there are fewer than two pairs."""
        erase.begin_anew(self.folder)
        prefs = self._read_preferences()
        write_json(self.folder / "preferences.json", prefs.as_json())
        self.store.record_used_votes(self.id, [(vote.id, vote.group in prefs.heldout) for vote in prefs.votes])
        self.record(votes=len(prefs.votes), split_by=prefs.split_by, heldout_units=len(prefs.heldout))
        log.info(
            "%d votes: %d pairs to compare, edited replies among them, and %d replies judged alone; held out: %d of "
            "the %ss",
            len(prefs.votes),
            len(prefs.pairs),
            len(prefs.labels),
            len(prefs.heldout),
            prefs.split_by,
        )
        if len(prefs.pairs) < 2:
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
                self.store, self.models.base["hash"], self.models.encode_reply, self.settings
            )
            self.store.record_read_conversations(self.id)
            if self.store.last_erasure() == erasure_before:
                return prefs

    # -- sft

    def _sft(self) -> None:
        """The policy's start becomes start.safetensors, unless the start is the base."""
        settings = self.settings
        policy = self.models.policy
        live = self.store.live_policy()
        from_live = settings.round.start_from == "live" and live["version"] > 0
        if from_live:
            self._start_from_live(live)
        rows = self.store.demonstrations(self.models.base["hash"])
        demonstrations = sft.examples(
            rows, self.models.encode_reply, settings.ppo.rollout_context, self.models.max_tokens
        )
        fine_tune = bool(demonstrations) and settings.sft.epochs > 0
        if fine_tune:

            def on_step(step: int, steps: int, loss: float) -> None:
                self.progress(step, steps, {"sft_loss": loss})

            loss = sft.train(policy, demonstrations, settings, on_step)
            self.record(demonstrations=len(demonstrations), sft_loss=loss)
        if from_live or fine_tune:
            save_file(policy.state(), self.folder / "start.safetensors")
            self.record(started_from=live["version"] if from_live else 0)

    def _start_from_live(self, live: Row) -> None:
        """Put the live version's update into the policy, scaled down to half the KL target: PPO then has room to move
        on in the same direction.
        """
        settings = self.settings
        manifest, tensors = adapters.read(
            adapters.place(settings.adapters_dir, live["path"]),
            base_hash=self.models.base["hash"],
            expected_sha256=live["sha256"],
        )
        if (manifest["rank"], manifest["alpha"]) != (settings.ppo.lora_rank, settings.ppo.lora_alpha):
            raise adapters.BadAdapter(
                f"v{live['version']:04d} has a LoRA of rank {manifest['rank']} and alpha {manifest['alpha']}; start "
                f"with --ppo.lora-rank {manifest['rank']} --ppo.lora-alpha {manifest['alpha']}, or with "
                "--round.start-from base"
            )
        policy = self.models.policy
        policy.load(tensors)

        def sample_policy() -> list[Episode]:
            chosen = self.models.training_prompts(settings.ppo.episodes, self.models.rng("start"))
            return self.models.sample(policy.causal, chosen, "start")

        ppo.scale_to_kl_target(policy, settings.ppo.kl_target / 2, sample_policy, settings)

    # -- reward

    def _reward(self) -> None:
        """The reward model becomes reward.safetensors; the round ends where the votes are not enough evidence."""
        models = self.models

        def show_percent(percent: float) -> None:
            self.progress(round(percent), 100, {})

        # features and folds take about 70 % of the phase, the replies of the reference most of the rest
        model, report = reward.fit(
            models.preferences, models.trunk, self.settings, lambda done, total: show_percent(70 * done / total)
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
        with models.policy.reference():
            chosen = models.training_prompts(self.settings.ppo.episodes, models.rng("reference"))
            episodes = models.sample(models.policy.causal, chosen, "reference")
        show_percent(90)
        features = models.features(model, episodes)
        model.standardise(features)
        model.save(self.folder / "reward.safetensors")
        selftest.check_head(model, self.folder / "reward.safetensors", features)

    # -- ppo

    def score(self, episodes: Sequence[Episode]) -> torch.Tensor:
        """Standardised rewards (N,) of episodes."""
        self.obey()
        return self.models.reward(episodes)

    def _ppo(self) -> None:
        """PPO from the start or from the checkpoint ppo.pt; the policy becomes policy.safetensors."""
        policy = self.models.policy
        iterations = self.settings.ppo.iterations
        trainer = Trainer(policy, self.settings)
        checkpoint = self.folder / "ppo.pt"
        start = self.folder / "start.safetensors"
        if checkpoint.exists():
            trainer.load(checkpoint)
            log.info("ppo goes on after iteration %d", trainer.iteration)
        elif start.exists():
            policy.load(load_file(start))
        self.resumed_at_step(trainer.iteration)
        self.progress(trainer.iteration, iterations, {})

        def on_iteration(trainer: Trainer, metrics: Metrics) -> None:
            # The point comes before the checkpoint: if the worker is killed in between, the iteration is run again and
            # replaces its point. The other way round the point would be lost.
            self.store.add_metrics(self.id, trainer.iteration, metrics)
            trainer.save(checkpoint)
            memory.trim()
            self.store.update_round(self.id, self.owner, step=trainer.iteration, steps=iterations, attempts=1)
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
        save_file(policy.state(), self.folder / "policy.safetensors")

    # -- gate

    def _gate(self) -> None:
        """The comparison with the live version becomes gate.json."""
        models = self.models
        chosen = models.gate_prompts()
        new = models.sample(models.trained_policy.causal, chosen, "gate-sample")
        self.progress(1, 4, {})
        live = models.sample(models.live_model(), chosen, "gate-sample")
        self.progress(2, 4, {})
        texts = [prompts.reply_text(episode.completion, models.tokenizer) for episode in new]
        replies = GateReplies(new=new, live=live, new_texts=texts)
        report = self._compare(replies)
        samples = self._samples(replies)
        self.progress(4, 4, {})
        log.info(
            "gate: gain %+.2f [%+.2f, %+.2f], KL %.1f: %s",
            report.gain,
            *report.gain_interval,
            report.kl,
            joined(report.refused_because) if report.refused_because else "passed",
        )
        trained = models.trained_policy.causal
        forward = tuning.choose(self.settings, trained, models.base).forward(trained)
        served_kl = served.divergence(trained, forward, new)
        write_json(self.folder / "gate.json", {**report.as_dict(), "served_kl": served_kl, "samples": samples})
        self.record(gate_gain=report.gain, gate_low=report.gain_interval[0], kl=report.kl, served_kl=served_kl)

    def _compare(self, replies: GateReplies) -> GateReport:
        settings = self.settings
        models = self.models
        model = models.reward_model
        policy = models.trained_policy
        features_new = models.features(model, replies.new)
        features_live = models.features(model, replies.live)
        draws_new = model.draws(features_new, gate.DRAWS, settings.seed)  # (S, N)
        draws_live = model.draws(features_live, gate.DRAWS, settings.seed)
        gains = (draws_new - draws_live) / model.spread
        self.progress(3, 4, {})
        canaries = rollout.canaries(models.tokenizer, settings.ppo.rollout_context, models.max_tokens)
        canary_tokens = sum(len(episode.completion) for episode in canaries)
        canary_totals = policy.totals(canaries, settings.ppo.microbatch)
        return gate.decide(
            replies.new,
            replies.live,
            reward_new=model.reward(features_new).numpy(),
            reward_live=model.reward(features_live).numpy(),
            gains=gains.numpy(),
            kl=policy.totals(replies.new, settings.ppo.microbatch).kl,
            texts=replies.new_texts,
            canary_new=sum(canary_totals.logprob) / canary_tokens,
            canary_base=sum(canary_totals.ref_logprob) / canary_tokens,
            length_votes=gate.favoured_length(models.preferences, settings.gate.confidence, settings.seed),
            settings=settings,
        )

    def _samples(self, replies: GateReplies) -> list[dict[str, Any]]:
        """Some replies before and after, each marked whether its prompt is a shipped one: everybody may read those, and
        only admins the others.
        """
        tokenizer = self.models.tokenizer
        shipped = {tuple(prompt) for part in ("train", "heldout") for prompt in self.models.seed_prompts(part)}
        samples = []
        room = {True: SAMPLES, False: SAMPLES}  # by whether the prompt is shipped
        for after, before, text in zip(replies.new, replies.live, replies.new_texts, strict=True):
            is_shipped = tuple(after.prompt) in shipped
            if not room[is_shipped]:
                continue
            room[is_shipped] -= 1
            samples.append(
                {
                    "prompt": prompts.decode(after.prompt, tokenizer),
                    "new": text,
                    "live": prompts.reply_text(before.completion, tokenizer),
                    "shipped": is_shipped,
                }
            )
        return samples

    # -- publish

    def _publish(self) -> None:
        """The policy becomes a version on disk; it goes live, or is kept as refused."""
        settings = self.settings
        models = self.models
        report = json.loads((self.folder / "gate.json").read_text())
        # the samples hold people's words; they stay in the file, which an erasure clears
        report.pop("samples", None)
        live = self.store.live_policy()
        version = self.store.add_policy(self.id, self.owner, parent=live["version"])
        path, sha256 = adapters.write(
            settings.adapters_dir,
            version,
            load_file(self.folder / "policy.safetensors"),
            rank=settings.ppo.lora_rank,
            alpha=settings.ppo.lora_alpha,
            targets=models.policy.targets,
            base=models.base,
            parent=live["version"],
            round_id=self.id,
            scores={name: report[name] for name in ("gain", "gain_interval", "kl", "served_kl", "prompts")},
        )
        if report["refused_because"]:
            reason = not_published(from_data(refusal) for refusal in report["refused_because"])
            self.store.refuse(self.id, self.owner, version, path, sha256, report, reason)
            return
        selftest.check_adapter(
            models.trained_policy,
            settings,
            path,
            models.bare,
            base_hash=models.base["hash"],
            expected_sha256=sha256,
        )
        trial = settings.trial.duels > 0
        self.store.publish(self.id, self.owner, version, path, sha256, report, trial)
