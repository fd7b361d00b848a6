"""One training round, resumable by phase: collect → sft → reward → ppo → gate → publish.

Owns the round's folder, its checkpoints and its progress row. Each phase leaves its files; a restarted
round goes on at the phase that its row names, and PPO resumes at its last iteration. When rounds run is `worker.py`'s
affair.
"""

import json
import logging
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save_file

from playground.decoding import tuning
from playground.models import adapters, loading, prompts, scorer
from playground.settings import Settings
from playground.store import STOPPED
from playground.store.reasons import not_published
from playground.system import memory
from playground.system.messages import Message, from_data, joined
from training import erase, gate, gpu, ppo, preferences, reward, rollout, selftest, served, sft
from training.policy import PolicyModel

log = logging.getLogger(__name__)

PHASES = ("collect", "sft", "reward", "ppo", "gate", "publish")
MAX_ATTEMPTS = 3  # taken over this often without getting further, a round has failed
SAMPLES = 8  # shown of each kind
OWN = {
    "data_dir",
    "models_dir",
    "device",
    "dtype",
    "threads",
    "host",
    "port",
    "worker",
}  # of this machine, not of the round


class RoundEnded(Exception):
    """The round is over before its last phase; the store has the reason."""


class BeginsAgain(Exception):
    """Somebody took back a chat that this round has read: it goes back to its first phase without it."""


class Round:
    """A running round: its row, its folder and, once they are needed, its models."""

    def __init__(self, store, settings, row, owner):
        self.store, self.owner, self.id, self.phase = store, owner, row["id"], row["phase"]
        config = {k: v for k, v in row["config"].items() if k not in OWN}
        self.settings = loading.bounded(Settings(**{**settings.model_dump(), **config}))
        self.folder = settings.rounds_dir / f"{self.id:04d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._cache, self._began = {}, time.time()
        # the running phase, pauses left out; `_began` is the time of day, for the page alone
        self._started = time.monotonic()
        self._eraser = erase.Eraser(store, settings)

    # -- parts, loaded when first needed

    def _once(self, name, make):
        if name not in self._cache:
            self._cache[name] = make()
        return self._cache[name]

    @property
    def tokenizer(self):
        return self._once("tokenizer", lambda: loading.load_tokenizer(self.settings))

    @property
    def base(self):
        """{"model", "hash"} of the base; measured before the LoRA is attached."""
        _ = self.policy  # which loads the base
        return self._cache["base"]

    @property
    def policy(self):
        def make():
            trunk = loading.load_trunk(self.settings, training=True)
            self._cache["base"] = loading.base_identity(trunk, self.settings)
            self._cache["end_tokens"] = loading.end_tokens(trunk, self.tokenizer)
            self._cache["live_shell"] = loading.shell(trunk)
            policy = PolicyModel(trunk, self.settings)
            selftest.check_policy(policy, self.settings)
            return policy

        return self._once("policy", make)

    @property
    def trained(self):
        """The policy as PPO left it, read once, so that what is published can be compared with what the gate
        measured.
        """

        def load():
            self.policy.load(load_file(self.folder / "policy.safetensors"))
            return self.policy

        return self._once("trained", load)

    @property
    def most(self):
        """How many tokens the base takes, prompt and reply together; None where nothing bounds them."""
        return loading.positions(self.policy.causal.config)

    @property
    def end_tokens(self):
        _ = self.policy  # which loads the base
        return self._cache["end_tokens"]

    @property
    def trunk(self):
        def make():
            trunk = scorer.FeatureTrunk(self.settings)
            selftest.check_features(trunk, self.settings.reward_lora_rank)
            return trunk

        return self._once("trunk", make)

    @property
    def preferences(self):
        def read():
            data = json.loads((self.folder / "preferences.json").read_text())
            return preferences.Preferences(**{**data, "heldout": frozenset(data["heldout"])})

        return self._once("preferences", read)

    @property
    def reward_model(self):
        def load():
            model = scorer.RewardModel.load(self.folder / "reward.safetensors")
            if model.lora:
                self.trunk.attach_lora(self.settings.reward_lora_rank, model.lora)
            return model

        return self._once("reward_model", load)

    def score(self, episodes):
        """Standardised rewards (N,) of episodes."""
        self.obey()
        return self.reward_model.reward(
            self.reward_model.features(self.trunk, [(e.prompt, e.completion) for e in episodes])
        )

    # -- phases

    def run(self):
        """Run what is left of the round; it ends published, refused, or with too little evidence."""
        gpu.check(self.settings)
        while True:
            try:
                return self._run_phases()
            except BeginsAgain:
                log.info("round %s begins again: somebody took back a chat that it had read", self.id)
                self.phase, self._cache = "collect", {}
                memory.trim()

    def _run_phases(self):
        resumed_at = self.phase
        for phase in PHASES[PHASES.index(resumed_at) :]:
            got_further = {} if phase == resumed_at else {"attempts": 1}
            self.store.update_round(self.id, self.owner, phase=phase, step=0, steps=0, **got_further)
            log.info("round %s: %s", self.id, phase)
            with self._clocked(phase):
                self.obey()
                getattr(self, f"_{phase}")()
            memory.trim()

    def progress(self, step, steps, metrics, **columns):
        self.store.update_round(self.id, self.owner, step=step, steps=steps, **columns)
        self.store.add_metrics(self.id, step, metrics)
        self.obey()

    def obey(self):
        """Do what an admin wishes: wait while the round is to pause, end where it is to stop. Called wherever a round
        can be left.
        """
        paused = 0.0
        self._erase()
        while (wish := self.store.wish_of(self.id)) == "pause":
            self._erase()
            if not paused:
                log.info("round %s is paused", self.id)
            began = time.monotonic()
            time.sleep(self.settings.poll_seconds)
            self.store.update_round(self.id, self.owner)  # LeaseLost where another worker has taken it over
            paused += time.monotonic() - began
        if paused:
            log.info("round %s goes on after %.0f s", self.id, paused)
            self._begin(self._began + paused)
            self._started += paused
        if wish == "stop":
            log.info("round %s is stopped", self.id)
            self.end("failed", STOPPED)

    def _erase(self):
        """Begin again without what people took back, and let nothing of it stay in any file."""
        if self.store.must_begin_again(self.id):
            self.store.begin_again(
                self.id, self.owner
            )  # first: a worker that is killed after this is followed by one that begins at `collect`
            erase.begin_anew(self.folder)
            raise BeginsAgain
        self._eraser.step()

    def end(self, state, reason):
        self.store.end_round(self.id, self.owner, state, reason)
        raise RoundEnded(reason)

    @contextmanager
    def _clocked(self, phase):
        """Record since when this phase runs and, once it is done, how many seconds it took, pauses left out."""
        self._begin(time.time())
        self._started = time.monotonic()
        yield
        row = self.store.round(self.id)
        if row["state"] == "running":
            seconds = row["metrics"].get("phase_seconds", {})
            self.store.update_round(
                self.id,
                self.owner,
                metrics={"phase_seconds": {**seconds, phase: seconds.get(phase, 0) + time.monotonic() - self._started}},
            )

    def _begin(self, moment, step=None):
        """The running phase counts from `moment` and, where it resumed, from `step`: how the page knows what
        is left.
        """
        self._began = moment
        self.store.update_round(
            self.id, self.owner, metrics={"phase_began": moment, **({} if step is None else {"phase_from": step})}
        )

    def _collect(self):
        erase.begin_anew(self.folder)
        asked = None
        while (
            asked is None or asked != self.store.last_erasure()
        ):  # what is taken back while it is read may have been read
            asked = self.store.last_erasure()
            prefs = preferences.from_store(
                self.store, self.base["hash"], lambda text: prompts.encode_reply(text, self.tokenizer), self.settings
            )
            self.store.read_conversations(self.id)
        _write_json(self.folder / "preferences.json", {**asdict(prefs), "heldout": sorted(prefs.heldout)})
        self.store.use_votes(self.id, [(vote, unit in prefs.heldout) for vote, unit in prefs.votes])
        self.store.update_round(
            self.id,
            self.owner,
            metrics={"votes": len(prefs.votes), "split_by": prefs.split_by, "heldout_units": len(prefs.heldout)},
        )
        log.info(
            "%d votes: %d pairs to compare, edited replies among them, and %d replies judged alone; held out: %d of "
            "the %ss",
            len(prefs.votes),
            len(prefs.pairs),
            len(prefs.points),
            len(prefs.heldout),
            prefs.split_by,
        )
        if len(prefs.pairs) < 2:
            self.end(
                "not_enough",
                Message("Not enough evidence yet: {n} votes. Vote on more replies.", n=len(prefs.votes)),
            )

    def _sft(self):
        s, live = self.settings, self.store.live_policy()
        warm = s.start_from == "live" and live["version"] > 0
        if warm:
            self._go_on_from(live)
        rows = self.store.demonstrations(self.base["hash"])
        demonstrations = sft.examples(
            rows, lambda text: prompts.encode_reply(text, self.tokenizer), s.rollout_context, self.most
        )
        if demonstrations and s.sft_epochs:
            loss = sft.train(
                self.policy, demonstrations, s, lambda step, steps, loss: self.progress(step, steps, {"sft_loss": loss})
            )
            self.store.update_round(
                self.id, self.owner, metrics={"demonstrations": len(demonstrations), "sft_loss": loss}
            )
        if warm or (demonstrations and s.sft_epochs):
            save_file(self.policy.state(), self.folder / "start.safetensors")
            self.store.update_round(self.id, self.owner, metrics={"started_from": live["version"] if warm else 0})

    def _go_on_from(self, live):
        """Put the live version's update into the policy, scaled down to half the KL target: the direction is kept, and
        there is room to move.
        """
        s = self.settings
        manifest, tensors = adapters.read(
            adapters.place(self.settings.adapters_dir, live["path"]),
            base_hash=self.base["hash"],
            expected_sha256=live["sha256"],
        )
        if (manifest["rank"], manifest["alpha"]) != (s.lora_rank, s.lora_alpha):
            raise adapters.BadAdapter(
                f"v{live['version']:04d} has a LoRA of rank {manifest['rank']} and alpha {manifest['alpha']}; start "
                "with "
                f"--lora-rank {manifest['rank']} --lora-alpha {manifest['alpha']}, or with --start-from base"
            )
        self.policy.load(tensors)
        ppo.take_back(
            self.policy,
            s.kl_target / 2,
            lambda: self._sample(self.policy.causal, self._prompts(s.ppo_episodes, self._rng("start")), "start"),
            s,
        )

    def _reward(self):
        def share(percent):  # features and folds are most of the phase, the reference's replies the rest
            self.progress(round(percent), 100, {})

        model, report = reward.fit(
            self.preferences, self.trunk, self.settings, lambda done, total: share(70 * done / total)
        )
        self.store.update_round(
            self.id, self.owner, metrics={**asdict(report), "reason": report.reason and str(report.reason)}
        )
        log.info(
            "reward model: view %s, penalty %g, cross-validated accuracy %.2f [%.2f, %.2f]",
            report.view,
            report.penalty,
            report.cv_accuracy,
            *report.cv_interval,
        )
        if not report.enough:
            self.end("not_enough", report.reason)
        with self.policy.reference():
            episodes = self._sample(
                self.policy.causal, self._prompts(self.settings.ppo_episodes, self._rng("reference")), "reference"
            )
        share(90)
        features = model.features(self.trunk, [(e.prompt, e.completion) for e in episodes])
        model.standardise(features)
        model.save(self.folder / "reward.safetensors")
        selftest.check_head(model, self.folder / "reward.safetensors", features)

    def _ppo(self):
        trainer, checkpoint = ppo.Trainer(self.policy, self.settings), self.folder / "ppo.pt"
        if checkpoint.exists():
            trainer.load(checkpoint)
            log.info("ppo goes on after iteration %d", trainer.iteration)
        elif (self.folder / "start.safetensors").exists():
            self.policy.load(load_file(self.folder / "start.safetensors"))

        self._begin(self._began, trainer.iteration)
        self.progress(trainer.iteration, self.settings.ppo_iterations, {})

        def on_iteration(trainer, metrics):
            # the point first: killed in between, the iteration is run again and its point replaced, but never lost
            self.store.add_metrics(self.id, trainer.iteration, metrics)
            trainer.save(checkpoint)
            memory.trim()
            self.store.update_round(
                self.id, self.owner, step=trainer.iteration, steps=self.settings.ppo_iterations, attempts=1
            )
            log.info(
                "ppo %d of %d: reward %.2f, KL %.2f, length %.0f",
                trainer.iteration,
                self.settings.ppo_iterations,
                metrics["reward"],
                metrics["kl"],
                metrics["length"],
            )
            self.obey()

        ppo.train_ppo(trainer, self._prompts, self.score, self.end_tokens, on_iteration)
        save_file(self.policy.state(), self.folder / "policy.safetensors")

    def _gate(self):
        s, contexts = self.settings, self._contexts(heldout=True)
        steps = iter(range(1, 5))

        def step():
            self.progress(next(steps), 4, {})

        chosen = rollout.choose(
            contexts,
            rollout.seed_prompts("heldout", self.tokenizer, s.rollout_context),
            s.gate_prompts,
            self._rng("gate"),
        )
        new = self._sample(self.trained.causal, chosen, "gate-sample", replies=1)
        step()
        live = self._sample(self._live_model(), chosen, "gate-sample", replies=1)
        step()
        texts = [prompts.reply_text(e.completion, self.tokenizer) for e in new]
        model = self.reward_model
        x_new, x_live = (
            model.features(self.trunk, [(e.prompt, e.completion) for e in episodes]) for episodes in (new, live)
        )
        gains = (model.draws(x_new, gate.DRAWS, s.seed) - model.draws(x_live, gate.DRAWS, s.seed)) / model.spread
        step()
        canaries = rollout.canaries(self.tokenizer, s.rollout_context, self.most)
        plain = sum(len(e.completion) for e in canaries)  # tokens
        told = self.trained.totals(canaries, s.ppo_microbatch)
        report = gate.decide(
            new,
            live,
            model.reward(x_new).numpy(),
            model.reward(x_live).numpy(),
            gains.numpy(),
            kl=self.trained.totals(new, s.ppo_microbatch)["kl"],
            texts=texts,
            canary_new=sum(told["logprob"]) / plain,
            canary_base=sum(told["ref_logprob"]) / plain,
            length_votes=gate.favoured_length(self.preferences, s.gate_confidence, s.seed),
            settings=s,
        )
        samples = self._samples(new, live, texts)
        step()
        log.info(
            "gate: gain %+.2f [%+.2f, %+.2f], KL %.1f: %s",
            report.gain,
            *report.gain_interval,
            report.kl,
            joined(report.refused_because) if report.refused_because else "passed",
        )
        forward = tuning.choose(s, self.trained.causal, self.base).forward(self.trained.causal)
        served_kl = served.divergence(self.trained.causal, forward, new)
        _write_json(self.folder / "gate.json", {**report.as_dict(), "served_kl": served_kl, "samples": samples})
        self.store.update_round(
            self.id,
            self.owner,
            metrics={
                "gate_gain": report.gain,
                "gate_low": report.gain_interval[0],
                "kl": report.kl,
                "served_kl": served_kl,
            },
        )

    def _samples(self, new, live, texts):
        """Some replies before and after, each marked whether its prompt is a shipped one: everybody may read those, of
        the others admins alone.
        """
        shipped = {
            tuple(prompt)
            for part in ("train", "heldout")
            for prompt in rollout.seed_prompts(part, self.tokenizer, self.settings.rollout_context)
        }
        samples, left = [], {True: SAMPLES, False: SAMPLES}
        for after, before, text in zip(new, live, texts, strict=True):
            public = tuple(after.prompt) in shipped
            if left[public]:
                left[public] -= 1
                samples.append(
                    {
                        "prompt": prompts.decode(after.prompt, self.tokenizer),
                        "new": text,
                        "live": prompts.reply_text(before.completion, self.tokenizer),
                        "shipped": public,
                    }
                )
        return samples

    def _publish(self):
        report, s = json.loads((self.folder / "gate.json").read_text()), self.settings
        # the samples hold people's words; they stay in the file, which an erasure clears
        report.pop("samples", None)
        live = self.store.live_policy()
        version = self.store.add_policy(self.id, self.owner, parent=live["version"])
        path, sha256 = adapters.write(
            s.adapters_dir,
            version,
            load_file(self.folder / "policy.safetensors"),
            rank=s.lora_rank,
            alpha=s.lora_alpha,
            targets=self.policy.targets,
            base=self.base,
            parent=live["version"],
            round_id=self.id,
            scores={k: report[k] for k in ("gain", "gain_interval", "kl", "served_kl", "prompts")},
        )
        if report["refused_because"]:
            reason = not_published(from_data(refusal) for refusal in report["refused_because"])
            self.store.refuse(self.id, self.owner, version, path, sha256, report, reason)
        else:
            selftest.check_adapter(
                self.trained, s, path, self._cache["live_shell"], base_hash=self.base["hash"], expected_sha256=sha256
            )
            self.store.publish(self.id, self.owner, version, path, sha256, report)

    # -- helpers

    def _rng(self, name):
        return rollout.generator(self.settings.seed, self.id, name)

    def _contexts(self, heldout):
        """Prompts that people had, from the one voted on longest ago, in or out of the held-out units, that fit into a
        rollout.
        """
        prefs = self.preferences
        voted = [tuple(prefs.replies[p[0]][0]) for p in prefs.pairs if (p[4] in prefs.heldout) == heldout]
        latest_first = dict.fromkeys(reversed(voted))
        return [list(p) for p in reversed(latest_first) if len(p) <= self.settings.rollout_context]

    def _prompts(self, n, rng):
        seeds = self._once(
            "seeds", lambda: rollout.seed_prompts("train", self.tokenizer, self.settings.rollout_context)
        )
        return rollout.choose(self._once("contexts", lambda: self._contexts(heldout=False)), seeds, n, rng)

    def _sample(self, model, chosen, name, replies=1):
        s = self.settings
        return rollout.sample(
            model,
            chosen,
            self._rng(name),
            replies=replies,
            max_tokens=s.rollout_tokens,
            temperature=s.temperature,
            end_tokens=self.end_tokens,
        )

    def _live_model(self):
        """The version that is answering people now, on a module tree of its own."""
        row = self.store.live_policy()
        shell = self._cache["live_shell"]
        if row["version"] == 0:
            return shell
        return adapters.load(
            adapters.place(self.settings.adapters_dir, row["path"]),
            shell,
            base_hash=self.base["hash"],
            expected_sha256=row["sha256"],
        )


def _write_json(path, data):
    partial = Path(f"{path}.partial")
    partial.write_text(json.dumps(data))
    partial.rename(path)
