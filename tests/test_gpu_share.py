"""A worker on the chat's GPU makes room while replies stream, and is not starved."""

import os
import subprocess
import sys
import time

import pytest
import torch

from playground.decoding.sampling import Sampling
from playground.models import loading
from playground.serving.engine import Engine
from playground.settings import Settings
from playground.store import Store
from playground.system import gpu_share
from playground.system.gpu_share import GpuShare, StreamingSign
from tests.test_policy import EPISODES, settings
from tests.tiny import tiny_folder, tiny_model
from training import ppo, program, rollout
from training.policy import PolicyModel

PROMPTS = [[5, 6, 7], [30, 31], [8, 9, 10, 11], [40]]


class World:
    """A clock that only work and sleep move. Replies stream from `begins` to `ends`."""

    def __init__(self, begins, ends, share=0.3):
        self.now = self.rested = self.queued = 0.0
        self.begins, self.ends = begins, ends
        self.share = GpuShare(self.streaming, share, self.wait, lambda: self.now, self.sleep)

    def streaming(self):
        return self.begins <= self.now < self.ends

    def wait(self):
        """What was given to the GPU and not waited for takes its time now."""
        self.now += self.queued
        self.queued = 0.0

    def sleep(self, seconds):
        self.now += seconds
        self.rested += seconds

    def work(self, seconds, units, on_gpu=0.0):
        for _ in range(units):
            self.now += seconds - on_gpu
            self.queued += on_gpu
            self.share.rest()


@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("on_gpu", [0.0, 0.018])
def test_while_replies_stream_training_works_for_its_share_of_the_time_and_not_less(share, on_gpu):
    world = World(0, 1e9, share)
    world.work(0.02, 100, on_gpu)
    assert 2.0 / world.now == pytest.approx(share, abs=0.03)


def test_it_works_all_the_time_while_nobody_reads_and_goes_on_as_soon_as_a_reply_has_ended():
    world = World(1.0, 1.03)
    world.work(0.02, 49)
    assert world.rested == 0
    world.work(0.02, 100)
    assert 0 < world.rested < 0.035


def test_a_long_part_without_the_gpu_is_not_paid_for_by_a_long_rest():
    world = World(0, 1e9)
    world.work(30.0, 1)
    assert world.rested <= gpu_share.LONGEST_UNIT * 7 / 3 + 0.002


def test_another_process_sees_the_sign_and_a_server_that_is_gone_shows_none(tmp_path, monkeypatch):
    file = tmp_path / "data" / "streaming"
    sign = StreamingSign(file)
    assert not sign.shown()
    code = f"from playground.system.gpu_share import *; StreamingSign(Path({str(file)!r})).show()"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    shown_at = time.time()
    monkeypatch.setattr(gpu_share, "FRESH", 60)
    assert sign.shown()
    monkeypatch.setattr(gpu_share.time, "time", lambda: shown_at + 61)
    assert not sign.shown()


def test_the_engine_shows_that_replies_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_share, "FRESH", 60)  # a step on a busy machine takes longer than the usual 0.25 s
    own = Settings(model=str(tiny_folder(tmp_path)), data_dir=tmp_path / "data", device="cpu", dtype="float32")
    own = own.with_values(threads=1, decode_format="float32")
    engine = Engine(Store(), own, loading.load_trunk(own), loading.load_tokenizer(own))
    assert engine.streaming_sign is None  # on a CPU `nice` does it
    engine.streaming_sign = StreamingSign(own.streaming_file)
    engine.step()
    assert not StreamingSign(own.streaming_file).shown()
    engine.versions.follow_store()
    engine.duel([3, 4, 5], [1, 2], Sampling(max_tokens=4))
    engine.step()
    assert StreamingSign(own.streaming_file).shown()


def test_every_microbatch_and_every_step_of_a_rollout_is_a_unit(monkeypatch):
    units = []

    class Counted:
        def rest(self):
            units.append(1)

    monkeypatch.setattr(gpu_share, "_of_this_process", Counted())
    policy, chosen = PolicyModel(tiny_model(), settings()), settings(ppo={"microbatch": 2})
    trainer = ppo.Trainer(policy, chosen)
    written = rollout.Rollouts(policy.causal).sample(
        PROMPTS, rollout.generator("x"), replies=1, max_tokens=8, temperature=1.0, end_tokens=set()
    )
    assert len(units) >= max(len(episode.completion) for episode in written) == 8
    units.clear()
    trajectories = [ppo.measure(policy, EPISODES[i : i + 2], torch.tensor([1.0, -1.0]), 0.1, chosen)[0] for i in (0, 2)]
    assert len(units) == 4  # policy and reference
    ppo.estimate_advantages(trajectories, chosen)
    units.clear()
    ppo.optimise(trainer, trajectories, rollout.generator("y"))
    assert len(units) == 2 * chosen.ppo.epochs


def test_a_worker_keeps_to_its_share_on_a_gpu_alone(tmp_path, monkeypatch):
    own = Settings(data_dir=tmp_path, device="cpu")
    kept = []
    monkeypatch.setattr(gpu_share, "keep_to", kept.append)
    program.share_gpu(own)
    assert not kept and not own.streaming_file.exists()
    program.share_gpu(own.with_values(device="cuda"))
    assert kept[0].rest_per_work == pytest.approx(7 / 3)
    program.share_gpu(own.with_values(device="cuda", gpu_share=1.0))
    assert len(kept) == 1
