"""The benchmark of a GPU runs its sections on the CPU too, with the tiny model; figures of a GPU need one."""

import json

import pytest
import torch

from benchmarks import gpu, gpu_ppo
from playground.decoding import graph_forward
from playground.settings import SettingsError
from tests.test_loop import planted_folder
from training import gpu as gpu_memory


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return planted_folder(tmp_path_factory.mktemp("gpu") / "model")


def settings_for(folder, **changes):
    return gpu.GpuSettings(
        model=str(folder),
        device="cpu",
        dtype="float32",
        threads=1,
        quick=True,
        decode_format="float32",
        reward={"features": "layers"},
    ).with_values(**changes)


def found(rows):
    return {row["what"]: row for row in rows}


def run(folder, **changes):
    said = []
    rows = found(gpu.run(settings_for(folder, **changes), log=said.append))
    assert not [what for what in rows if "not measured" in what], said
    return rows


def test_the_self_test_has_margins_and_every_trunk_its_row(folder, tmp_path):
    file = tmp_path / "rows.json"
    rows = run(folder, only="selftest,trunks", json=str(file), reward={"quantisation": "nf4"})
    assert rows["self-test, float32: first ratio off 1 by"]["ok"]
    for quantisation in ("none", "nf4", "int8"):
        assert rows[f"reward trunk, {quantisation}: passes its self-test"]["ok"]
    away = {q: rows[f"reward trunk, {q}: features away from none"]["value"] for q in ("none", "nf4", "int8")}
    assert away["none"] == 0 < min(away["nf4"], away["int8"])
    assert found(json.loads(file.read_text())).keys() == rows.keys()


def test_an_update_and_a_checkpoint_have_their_rows(folder):
    small = {"episodes": 8, "replies": 2, "minibatch": 4, "microbatch": 2, "rollout_tokens": 6, "value_warmup": 1}
    rows = run(folder, only="ppo,resume", ppo=small)
    assert rows["rollout: tokens a second"]["value"] > 0
    assert rows["update, microbatches of 2"]["value"] > 0 and rows["update, microbatches of 4"]["value"] > 0
    assert rows["checkpoint, and back: same tensors, goes on"]["ok"]


@pytest.mark.parametrize("graphs", [False, True])
def test_two_rounds_leave_no_more_in_memory_than_one_and_each_version_is_read_again(folder, monkeypatch, graphs):
    """With `graphs`, rollouts run as on a GPU."""
    if graphs:
        monkeypatch.setattr(graph_forward, "fits", lambda _model, _tokens: True)
        monkeypatch.setattr(gpu_memory, "free_bytes", lambda _device: 10**9)
    rows = run(folder, only="rounds")
    for number in (1, 2):
        assert rows[f"round {number}: ends by itself"]["ok"] and rows[f"round {number}: all phases"]["value"] > 0
        assert rows[f"round {number}: part gate: replies of new"]["value"] > 0
        assert rows[f"version of round {number}: KL of the device to fp32 on the CPU"]["value"] < 1e-4
    assert rows["tensors after one round and swap"]["value"] > 0
    assert rows["tensors after two rounds and swaps, over those after one"]["ok"]


def test_a_section_that_fails_leaves_the_others_their_rows(folder, monkeypatch):
    def broken(settings, device, log):
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(gpu_ppo.SECTIONS, "ppo", broken)
    said = []
    rows = found(gpu.run(settings_for(folder, only="ppo,selftest"), log=said.append))
    assert rows["ppo: not measured"]["value"] is None and "self-test, float32: loading and testing" in rows
    assert any("no kernel image" in line for line in said)


def test_a_missing_gpu_and_an_unknown_part_are_refused_in_words(folder):
    with pytest.raises(SettingsError, match="there is no CUDA here"):
        gpu.run(settings_for(folder, quick=False))
    with pytest.raises(SettingsError, match="nothing: choose among .*train"):
        gpu.run(settings_for(folder, only="nothing"))


def test_sections_run_in_the_order_in_which_they_are_named(folder):
    named = [name for name, _ in gpu.sections(settings_for(folder, only="rounds,selftest,rounds"))]
    assert named == ["rounds", "selftest"]
    everything = [name for name, _ in gpu.sections(settings_for(folder))]
    assert {"selftest", "trunks", "ppo", "resume", "rounds", "worker", "qlora", "beside", "decode"} == set(everything)


def test_a_cpu_has_no_figures_of_a_gpu():
    with gpu.Stopwatch(torch.device("cpu")) as watch, gpu_ppo.counted_waits(torch.device("cpu")) as waits:
        pass
    assert watch.seconds >= 0 and watch.peak_mb is None and waits == [None]


def test_a_round_in_a_worker_has_its_rows(folder):
    rows = run(folder, only="worker")
    assert rows["worker's round: ends by itself"]["ok"] and rows["worker's round: all phases"]["value"] > 0


def test_qlora_has_its_rows(folder):
    rows = run(folder, only="qlora")
    assert rows["tiny in nf4: first ratio off 1 by"]["value"] == 0
    assert rows["tiny in nf4: PPO ran and moved the policy"]["ok"]
    assert 0 < rows["model of the settings: KL of what is served to its trunk in nf4"]["value"] < 1


def test_chat_and_training_on_one_device_have_their_rows(folder):
    small = {"episodes": 8, "replies": 2, "minibatch": 8, "microbatch": 4, "rollout_tokens": 6, "value_warmup": 1}
    rows = run(folder, only="beside", chat={"reply_tokens": 12}, ppo=small)
    assert rows["chat beside PPO: two replies, tokens a second"]["value"] > 0
    assert rows["chat beside PPO: of its tokens a second"]["ok"] is not None
    assert rows["PPO beside chat: share of the time that it may take"]["value"] == 0.3
