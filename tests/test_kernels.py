"""The choice between Triton's kernels and torch's operations."""

import logging

import pytest
import torch

from playground.decoding import kernels
from playground.decoding.kernels import TORCH, TorchSlotStep
from playground.decoding.prompt_cache import AttentionShape

SIZES = (AttentionShape(1, 2, 3, 16), 48, torch.float32, torch.device("cpu"))


class AttendsToEverything(TorchSlotStep):
    """Forgets that a reply does not see the other one's columns."""

    def __init__(self, rope, columns):
        super().__init__(rope, columns)
        self.mask = torch.zeros_like(self.mask)


class WritesNothing(TorchSlotStep):
    def attend(self, qkv, kv):
        return super().attend(qkv, kv.clone())


class WritesIntoAnotherSlot(TorchSlotStep):
    def attend(self, qkv, kv):
        kv[:, -1] = 0
        return super().attend(qkv, kv)


WRONG = {
    "rms_norm": TORCH._replace(rms_norm=lambda x, weight, eps: x * weight),
    "silu_and_mul": TORCH._replace(silu_and_mul=lambda gate_up: gate_up.chunk(2, -1)[0]),
    "numbers": TORCH._replace(rms_norm=lambda x, weight, eps: x * float("nan")),
    **{
        step.__name__: TORCH._replace(slot_step=step)
        for step in (AttendsToEverything, WritesNothing, WritesIntoAnotherSlot)
    },
}


def test_kernels_that_agree_are_used():
    others = TORCH._replace(name="others")
    assert kernels.faithful(lambda: others, *SIZES) is others


@pytest.mark.parametrize("name", WRONG)
def test_kernels_that_differ_are_not_used_and_the_log_says_so(name, caplog):
    with caplog.at_level(logging.WARNING):
        assert kernels.faithful(lambda: WRONG[name], *SIZES) is TORCH
    assert "its kernels are off by" in caplog.text


def test_kernels_that_cannot_run_are_not_used_and_the_log_says_why(caplog):
    def missing():
        raise ImportError("no module named triton")

    with caplog.at_level(logging.WARNING):
        assert kernels.faithful(missing, *SIZES) is TORCH
    assert "no module named triton" in caplog.text


def test_a_cpu_has_torchs_operations():
    assert kernels.kernels_for(*SIZES) is TORCH
