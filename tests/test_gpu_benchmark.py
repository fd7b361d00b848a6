"""The benchmark of a GPU runs its sections on the CPU too, with the tiny model; figures of a GPU need one."""

import json

import pytest
import torch

from benchmarks import gpu, gpu_ppo
from playground.settings import SettingsError
from tests.test_loop import planted_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return planted_folder(tmp_path_factory.mktemp("gpu") / "model")


def settings_for(folder, **changes):
    return gpu.GpuSettings(
        model=str(folder), device="cpu", dtype="float32", threads=1, quick=True, decode_format="float32"
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


def test_three_rounds_run_and_each_version_is_read_again(folder):
    rows = run(folder, only="round")
    assert rows["round 1: ends by itself"]["ok"] and rows["round 1: all phases"]["value"] > 0
    for number in (2, 3):
        assert rows[f"round {number}, in one process with the next: ends by itself"]["ok"]
        assert rows[f"version of round {number}: KL of the device to fp32 on the CPU"]["value"] < 1e-4


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


def test_a_cpu_has_no_figures_of_a_gpu():
    with gpu.Stopwatch(torch.device("cpu")) as watch, gpu_ppo.counted_waits(torch.device("cpu")) as waits:
        pass
    assert watch.seconds >= 0 and watch.peak_mb is None and waits == [None]
