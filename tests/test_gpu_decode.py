"""The benchmark of decoding on a GPU, with a tiny model on the CPU."""

import torch
from transformers import LlamaConfig

from benchmarks import gpu_decode
from playground.decoding.graph_forward import GraphForward

CPU = torch.device("cpu")


def tiny():
    return gpu_decode.build(LlamaConfig(**gpu_decode.TINY), CPU, torch.float32)


def test_the_graph_forward_and_transformers_are_compared_reply_by_reply(monkeypatch):
    values = {row["what"]: row["value"] for row in gpu_decode.match(tiny(), True, CPU)}
    assert values["greedy replies of 24 tokens that are transformers', of 4"] == 4
    assert abs(values["KL of transformers' next token to the graph forward's, mean"]) < 1e-5
    assert values["seeded replies that are the same again, of 2"] == 2

    prefill = GraphForward.prefill_together
    monkeypatch.setattr(GraphForward, "prefill_together", lambda *args: 10 * prefill(*args))
    wrong = {row["what"]: row["value"] for row in gpu_decode.match(tiny(), True, CPU)}
    assert wrong["KL of transformers' next token to the graph forward's, mean"] > 1e-3


def test_the_weights_that_a_step_reads_are_counted():
    forward = GraphForward(tiny(), 1, 64)
    embedding = 512 * 64  # the head is the embedding; a step reads it once
    attention = 64 * (64 + 2 * 32) + 64 * 64
    mlp = 3 * 64 * 128
    assert gpu_decode.weight_bytes(forward) == 4 * (embedding + 2 * (attention + mlp + 2 * 64))


def test_a_model_of_a_seed_is_the_same_again_and_the_default_format_stays():
    first, second = tiny(), tiny()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    gpu_decode.build(LlamaConfig(**gpu_decode.TINY), CPU, torch.bfloat16)
    assert torch.get_default_dtype() == torch.float32
