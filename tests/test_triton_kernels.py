"""Triton's kernels against torch's operations: on a GPU, or with TRITON_INTERPRET=1 in the environment in Triton's
interpreter, where Triton is installed.
"""

import os

import pytest
import torch

CUDA = torch.cuda.is_available()
pytest.importorskip("triton")
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)

from playground.decoding import kernels  # noqa: E402
from playground.decoding.decoder import run  # noqa: E402
from playground.decoding.graph_forward import GraphForward  # noqa: E402
from playground.decoding.prompt_cache import AttentionShape  # noqa: E402
from playground.decoding.sampling import Sampling  # noqa: E402
from playground.decoding.triton_kernels import TRITON  # noqa: E402
from tests.test_fused import IDS, MODELS  # noqa: E402

DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPES = (torch.bfloat16, torch.float16) if CUDA else (torch.float16, torch.float32)  # the interpreter has no bf16
SHAPES = {
    "grouped": (AttentionShape(1, 3, 3, 64), 576),
    "one group of seven": (AttentionShape(1, 1, 7, 128), 640),
    "nothing shared": (AttentionShape(1, 2, 1, 32), 100),
    "more queries than a product's rows": (AttentionShape(1, 1, 12, 32), 64),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernels_compute_what_torch_does(name, dtype):
    shape, hidden = SHAPES[name]
    error = kernels.disagreement(TRITON, shape, hidden, dtype, DEVICE)
    assert error < {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]


def test_replies_are_those_of_torchs_operations():
    model = MODELS["wide heads"]().to(DEVICE)
    sampling = Sampling(temperature=0.8, max_tokens=6)
    prompts = [IDS, IDS[:5]]
    ours, theirs = (
        run(GraphForward(model, 2, 96, kernels=which), prompts, [1, 2, 3, 4], sampling, frozenset(), n=2)
        for which in (TRITON, kernels.TORCH)
    )
    assert [r.token_ids for r in ours] == [r.token_ids for r in theirs]
