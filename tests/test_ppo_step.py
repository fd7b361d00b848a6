"""What the comparison with TRL is made of, without TRL: the figures themselves are the benchmark's own."""

import ast
import json
import sys

import pytest
import torch

from benchmarks import peer, ppo_side, ppo_step
from playground.models import loading
from tests.tiny import tiny_folder
from training import ppo_math
from training.rollout import Episode

PROMPTS = [[5, 6, 7], [30, 31]]


def settings_for(folder, **changes):
    """As small as the benchmark can be; what `sizes` makes of it."""
    return ppo_step.sizes(
        ppo_step.PpoStepSettings(
            model=str(tiny_folder(folder / "model")),
            data_dir=folder,
            dtype="float32",
            threads=1,
            iterations=2,
            repeats=2,
            ppo={"episodes": 4, "replies": 2, "minibatch": 2, "microbatch": 1, "rollout_tokens": 6, "value_warmup": 1},
        ).with_values(**changes)
    )


def figures(seconds, peak, tensors=None, settings=None):
    """What a side prints: 100 tokens in every iteration."""
    arithmetic = (
        {name: x.tolist() for name, x in ppo_step.our_arithmetic(tensors, settings).items()} if tensors else None
    )
    cpu = [2 * s for s in seconds]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "tokens": [100] * len(seconds),
        "peak_mb": peak,
        "arithmetic": arithmetic,
    }


# -- our side


def test_our_side_runs_all_iterations_and_every_reply_has_all_its_tokens(tmp_path):
    settings = settings_for(tmp_path)
    figures = ppo_side.train(ppo_step.make_job(settings, PROMPTS, 64), settings)
    assert (
        len(figures["seconds"]) == len(figures["cpu_seconds"]) == 3 and min(figures["seconds"]) > 0
    )  # one to warm up, two that count
    assert figures["tokens"] == [4 * 6] * 3


def test_our_reward_is_the_head_on_each_replys_last_hidden_state_however_it_is_padded(tmp_path):
    settings = settings_for(tmp_path)
    job, trunk = ppo_step.make_job(settings, PROMPTS, 64), loading.load_trunk(settings)
    episodes = [Episode([5, 6, 7], [20, 21, 22], False), Episode([8], [60], False)]
    scores = ppo_side.Reward(trunk, job["reward_head"], 2)(episodes)
    with torch.no_grad():
        last = [trunk.base_model(torch.tensor([e.prompt + e.completion])).last_hidden_state[0, -1] for e in episodes]
    expected = [hidden @ torch.tensor(job["reward_head"]) for hidden in last]
    torch.testing.assert_close(scores, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_our_sides_process_prints_what_the_table_needs(tmp_path):
    settings, job_file = settings_for(tmp_path, repeats=1), tmp_path / "job.json"
    job_file.write_text(json.dumps(ppo_step.make_job(settings, PROMPTS, 64)))
    (ours,) = ppo_step.measure(
        settings, {"ours": ppo_step.commands(sys.executable, job_file)["ours"]}, lambda text: None
    )["ours"]
    assert ours["tokens"] == [24] * 3 and len(ours["seconds"]) == 3 and ours["peak_mb"] > 100


def test_the_sides_take_turns_and_only_their_last_line_counts(tmp_path):
    def side(name, peak):
        script = tmp_path / f"{name}.py"
        script.write_text(f"import json\nprint('===training policy===')\nprint(json.dumps({figures([1, 2, 2], peak)}))")
        return [sys.executable, script]

    said = []
    found = ppo_step.measure(settings_for(tmp_path), {"ours": side("ours", 100), "TRL": side("peer", 200)}, said.append)
    assert [line.split(":")[0] for line in said] == ["ours", "TRL"] * 2
    assert found == {"ours": [figures([1, 2, 2], 100)] * 2, "TRL": [figures([1, 2, 2], 200)] * 2}


def test_a_side_that_fails_says_why(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no such model')")
    with pytest.raises(peer.SideFailed, match="no such model"):
        ppo_step.measure(settings_for(tmp_path), {"TRL": [sys.executable, broken]})


# -- what is asked of both


def test_nothing_ends_an_iteration_early_and_both_sides_read_the_same_numbers(tmp_path):
    settings = settings_for(tmp_path, ppo={"kl_target": 0.5, "kl_stop": 0.01})
    job = ppo_step.make_job(settings, PROMPTS, 64)
    assert settings.ppo.kl_target == settings.ppo.kl_stop == 1e9 and settings.device == "cpu"
    assert job["dtype"] == "float32" and job["ppo.iterations"] == settings.ppo.iterations == 3
    assert len(job["reward_head"]) == 64 and json.loads(json.dumps(job)) == job


def test_quick_is_smaller(tmp_path):
    settings = settings_for(tmp_path, quick=True)
    assert (settings.ppo.episodes, settings.ppo.rollout_tokens, settings.repeats, settings.ppo.iterations) == (
        8,
        16,
        1,
        3,
    )


# -- the peer


def test_the_peer_gets_our_versions_and_its_environment_is_made_once(tmp_path):
    settings, pins = settings_for(tmp_path), ppo_step.PINS
    assert "trl==1.12.0" in pins and {p.split("==")[0] for p in pins} >= {"torch", "transformers", "peft", "accelerate"}
    folder = tmp_path / "benchmarks" / "trl-1.12"
    folder.mkdir(parents=True)
    (folder / "pins.txt").write_text("\n".join(pins))
    assert peer.python(settings, ppo_step.PEER, pins, pytest.fail) == folder / "bin" / "python"


@pytest.mark.parametrize("script", sorted((peer.ROOT / "benchmarks" / "peers").glob("*.py")), ids=lambda p: p.name)
def test_a_peers_script_imports_nothing_of_ours(script):
    tree = ast.parse(script.read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    ours = {name.split(".")[0] for name in names} & {"app", "benchmarks", "playground", "tests", "training"}
    # our Parquet files are what is tried there, where pyarrow is
    assert ours == ({"playground"} if script.name == "trl_formats.py" else set())


# -- the table


def table(ours, theirs, tmp_path, change=lambda arithmetic: None):
    settings, tensors = settings_for(tmp_path), {name: x.tolist() for name, x in ppo_step.example().items()}
    found = {"ours": [figures(*p) for p in ours], "TRL": [figures(*p, tensors, settings) for p in theirs]}
    change(found["TRL"][0]["arithmetic"])
    return {r["what"]: r for r in ppo_step.rows_of(found, tensors, settings)}


def test_rows_are_medians_without_the_first_iterations_and_the_highest_peak(tmp_path):
    rows = table([([50, 1, 2], 1000), ([50, 4, 1], 1100)], [([1, 10, 10], 3000)], tmp_path)
    assert rows["ours: tokens of replies, rollout and update"]["value"] == 75  # median of 100, 50, 25, 100
    assert rows["speed, ours to TRL's"]["value"] == 7.5 and rows["speed, ours to TRL's"]["ok"]
    assert rows["the same by processor time, which a busy machine changes less"]["value"] == 7.5
    assert rows["ours: peak memory"]["value"] == 1100 and rows["peak memory, ours to TRL's"]["value"] == pytest.approx(
        1100 / 3000
    )
    differences = [r["ok"] for what, r in rows.items() if what.endswith("largest difference")]
    assert differences == [True] * 5


def test_rows_that_fall_short_stay(tmp_path):
    def off(arithmetic):
        arithmetic["policy loss"] += 1e-3

    rows = table([([1, 2, 2], 900)], [([1, 3, 3], 1000)], tmp_path, off)
    short = {what for what, r in rows.items() if r["ok"] is False}
    assert short == {"speed, ours to TRL's", "peak memory, ours to TRL's", "policy loss: largest difference"}


def test_the_tensors_have_replies_of_different_lengths_and_ratios_outside_the_clip():
    t = ppo_step.example()
    lengths, ratio = t["mask"].sum(-1), torch.exp(t["logprobs"] - t["old_logprobs"])
    assert len(set(lengths.tolist())) > 3 and lengths.max() == 48 and lengths.min() >= 1
    assert ppo_math.policy_loss(t["logprobs"], t["old_logprobs"], t["advantages"], t["mask"], 0.2)[1] > 0.05
    assert ratio.min() < 0.8 and ratio.max() > 1.2 and not t["rewards"][t["mask"] == 0].any()
