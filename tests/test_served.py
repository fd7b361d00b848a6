"""How far what is served is from what was trained."""

import torch

from playground.decoding import fused
from playground.decoding.choice import Choice
from playground.decoding.transformers_forward import TransformersForward
from tests.families import trained
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
    forward = Choice("graph", 1, slots=slots, slot_tokens=slot_tokens).forward(model)
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


def test_only_the_beginnings_of_replies_are_decoded():
    model, other = trained(), tiny_model()
    long = [Episode(e.prompt, (e.completion * 40)[: served.TOKENS + 30], False) for e in EPISODES]
    cut = [Episode(e.prompt, e.completion[: served.TOKENS], False) for e in long]
    steps = []

    class Counted(fused.FusedForward):
        def decode(self, caches, tokens):
            steps.append(len(tokens))
            return super().decode(caches, tokens)

    found = served.divergence(model, Counted(other, "float32"), long)
    assert found == served.divergence(model, fused.FusedForward(other, "float32"), cut)
    assert len(steps) == served.TOKENS - 1
