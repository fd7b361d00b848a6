"""How far what is served is from what was trained."""

import torch

from playground.decoding import fused, tuning
from playground.decoding.transformers_forward import TransformersForward
from tests.test_fused import trained
from tests.tiny import tiny_model
from training import served
from training.rollout import Episode

EPISODES = [Episode([3, 4, 5], [7, 8, 9, 10], True), Episode(list(range(20, 60)), [11, 12], False)]


def test_the_same_policy_is_no_distance_away():
    model = trained()
    for forward in (fused.FusedForward(model, "float32"), TransformersForward(model)):
        assert abs(served.divergence(model, forward, EPISODES)) < 1e-6


def test_a_forward_with_slots_gets_room_for_the_episodes():
    model = trained()
    slots, slot_tokens = served.room(EPISODES)
    forward = tuning.Choice("graph", 1, slots=slots, slot_tokens=slot_tokens).forward(model)
    assert abs(served.divergence(model, forward, EPISODES)) < 1e-6


def test_another_version_is_as_far_as_its_probabilities_say():
    model, other = trained(), tiny_model()
    total = tokens = 0
    for e in EPISODES:
        ids = torch.tensor([e.prompt + e.completion])
        p, q = (torch.log_softmax(m(ids).logits[0, len(e.prompt) - 1 : -1], -1) for m in (model, other))
        total += (p.exp() * (p - q)).sum().item()
        tokens += len(e.completion)
    found = served.divergence(model, fused.FusedForward(other, "float32"), EPISODES)
    assert found > 0.01 and abs(found - total / tokens) < 1e-5
