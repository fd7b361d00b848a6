"""Draws of rows that differ in their sampling, against the draw of one sampling at a time."""

import pytest
import torch

from playground.decoding.row_sampling import NO_TOP_P, RowSampling, draw_rows
from playground.decoding.sampling import Sampling, draw

SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(temperature=0.7),
    Sampling(temperature=1.3, top_p=0.9),
    Sampling(temperature=1.0, top_k=7),
    Sampling(temperature=0.9, top_k=40, top_p=0.5),
    Sampling(temperature=0.8, repetition_penalty=1.7),
    Sampling(temperature=1.0, top_k=3000, top_p=0.05),
]


def drawn(logits, samplings, seen, uniform):
    how = RowSampling(
        torch.tensor([s.temperature for s in samplings]),
        torch.tensor([s.top_p if s.top_p < 1 else NO_TOP_P for s in samplings]),
        torch.tensor([s.top_k or logits.shape[1] for s in samplings]),
        torch.tensor([s.repetition_penalty for s in samplings]),
        uniform,
    )
    mask = torch.zeros(logits.shape, dtype=torch.bool)
    for row, tokens in enumerate(seen):
        mask[row, tokens] = True
    return draw_rows(logits, how, mask, truncates=True)


@pytest.mark.parametrize("vocabulary", [5, 256, 1000, 2560])
def test_each_row_is_drawn_as_its_sampling_says(vocabulary):
    rng = torch.Generator().manual_seed(vocabulary)
    same = 0
    for _ in range(40):
        logits = 3 * torch.randn(len(SAMPLINGS), vocabulary, generator=rng)
        uniform = torch.rand(len(SAMPLINGS), generator=rng)
        seen = torch.randint(0, vocabulary, (len(SAMPLINGS), 4), generator=rng).tolist()
        tokens, logprobs = drawn(logits, SAMPLINGS, seen, uniform)
        for row, sampling in enumerate(SAMPLINGS):
            one = None if sampling.temperature == 0 else uniform[row : row + 1]
            alone, logprob = draw(logits[row : row + 1], sampling, seen[row : row + 1], one)
            if alone == [tokens[row].item()]:
                same += 1
                assert logprobs[row].item() == pytest.approx(logprob[0], abs=1e-4)
    assert same >= 40 * len(SAMPLINGS) - 1  # a number may fall between two roundings of one sum


def test_tokens_come_as_often_as_they_are_likely():
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0, 0.5]).expand(20000, 5)
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    tokens, _ = drawn(logits, [Sampling(temperature=0.5)] * 20000, [[]] * 20000, uniform)
    found = torch.bincount(tokens, minlength=5) / 20000
    torch.testing.assert_close(found, (logits[0] / 0.5).softmax(-1), atol=0.01, rtol=0)
    assert found[2] == 0


@pytest.mark.parametrize("number", [0.0, 1 - 2**-24])
def test_an_impossible_token_is_not_drawn_at_the_edges(number):
    logits = torch.full((1, 700), -torch.inf)
    logits[0, [300, 301]] = 1.0
    tokens, logprobs = drawn(logits, [Sampling(temperature=1.0)], [[]], torch.tensor([number]))
    assert tokens.item() == (300 if number == 0 else 301)
    assert logprobs.item() == pytest.approx(-0.6931, abs=1e-3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_not_finite_give_nan_and_a_token_that_exists(bad, temperature):
    logits = torch.randn(2, 300)
    logits[1, 17] = bad
    tokens, logprobs = drawn(logits, [Sampling(temperature=temperature)] * 2, [[], []], torch.tensor([0.4, 0.4]))
    assert torch.isfinite(logprobs).tolist() == [True, False]
    assert ((tokens >= 0) & (tokens < 300)).all()
