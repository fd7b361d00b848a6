"""The small world: its closed form, its people, and that every arm runs to its end."""

import numpy as np
import pytest

from benchmarks import small_world
from benchmarks.small_world import ARMS, LENGTH, Chain, SmallWorldSettings, World, tilted

SETTINGS = SmallWorldSettings(_env_file=None, votes=12, seeds=1, rounds=2)


@pytest.mark.parametrize("kl", [0.5, 3.0, 12.0])
def test_the_best_policy_has_the_kl_that_was_asked_for(kl):
    base = World("kind", 0).base
    policy = tilted(base, np.random.default_rng(0).standard_normal(len(base.logits)), kl)
    p, q = policy.probabilities, base.probabilities
    assert policy.kl == pytest.approx(kl, rel=1e-3)
    assert LENGTH * np.sum(p * np.log(p / q)) == pytest.approx(kl, rel=1e-3)


def test_going_on_pays_in_the_kind_world_turns_in_the_mixed_one_and_harms_in_the_harmful_one():
    rng = np.random.default_rng(0)
    rates = {}
    for kind in small_world.WORLDS:
        world = World(kind, 0)
        assert world.win_rate(world.base, rng, 20_000) == pytest.approx(0.5, abs=0.02)
        rates[kind] = [world.win_rate(tilted(world.base, world.liked, kl), rng) for kl in (3, 12, 40)]
    assert rates["kind"] == sorted(rates["kind"]) and rates["kind"][0] > 0.7
    assert rates["mixed"][2] < rates["mixed"][1]
    assert rates["harmful"] == sorted(rates["harmful"], reverse=True) and rates["harmful"][0] < 0.5


def test_votes_of_the_shuffled_world_say_nothing():
    rng = np.random.default_rng(0)
    shares = {}
    for kind in ("kind", "shuffled"):
        world = World(kind, 0)
        better = tilted(world.base, world.liked, 12)
        shares[kind] = world.prefers_first(better.sample(4000, rng), world.base.sample(4000, rng), rng).mean()
        assert world.win_rate(better, rng) > 0.8, "what people like is the same in both"
    assert shares["kind"] > 0.8 and shares["shuffled"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_gives_a_win_rate_for_each_round_and_the_same_again(arm):
    rates = [list(Chain(arm, World("kind", 1), SETTINGS, seed=1).run(2)) for _ in range(2)]
    assert rates[0] == rates[1] and len(rates[0]) == 2 and all(0 <= rate <= 1 for rate in rates[0])


def test_the_table_has_every_world_and_arm():
    rows = small_world.run(SETTINGS, log=lambda text: None)
    assert len(rows) == 3 * len(ARMS) * len(small_world.WORLDS)
    assert [row["bar"] for row in rows].count("≤ 0") == 1, "of one chain, none may show a worse version twice"
    assert [row["bar"] for row in rows].count("≥ 0.45") == 1
