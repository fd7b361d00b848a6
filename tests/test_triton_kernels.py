"""Triton's kernels: their numbers against torch's operations, on a GPU or with TRITON_INTERPRET=1 in Triton's
interpreter; and whether they compile for GPUs, which needs none. Where Triton is not installed nothing is tested.
"""

import os

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from playground.decoding import kernels, triton_kernels  # noqa: E402
from playground.decoding.decoder import run  # noqa: E402
from playground.decoding.graph_forward import GraphForward  # noqa: E402
from playground.decoding.prompt_cache import AttentionShape  # noqa: E402
from playground.decoding.sampling import Sampling  # noqa: E402
from playground.decoding.triton_kernels import TRITON  # noqa: E402
from tests.families import IDS, MODELS  # noqa: E402

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPES = (torch.bfloat16, torch.float16) if CUDA else (torch.float16, torch.float32)  # the interpreter has no bf16
SHAPES = {
    "grouped": (AttentionShape(1, 3, 3, 64), 576),
    "one group of seven": (AttentionShape(1, 1, 7, 128), 640),
    "nothing shared": (AttentionShape(1, 2, 1, 32), 100),
    "more queries than a product's rows": (AttentionShape(1, 1, 12, 32), 64),
}

runs = pytest.mark.skipif(not CUDA and not INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1")


@runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernels_compute_what_torch_does(name, dtype):
    shape, hidden = SHAPES[name]
    error = kernels.disagreement(TRITON, shape, hidden, dtype, DEVICE)
    assert error < {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]


@runs
@pytest.mark.parametrize("name", ["wide heads", "qwen3", "gemma3"])  # the last one with windows, in some layers
def test_replies_are_those_of_torchs_operations(name):
    model = MODELS[name]().to(DEVICE)
    sampling = Sampling(temperature=0.8, max_tokens=6)
    prompts = [IDS, IDS[:5]]
    ours, theirs = (
        run(GraphForward(model, 2, 96, kernels=which), prompts, [1, 2, 3, 4], sampling, frozenset(), n=2)
        for which in (TRITON, kernels.TORCH)
    )
    assert [r.token_ids for r in ours] == [r.token_ids for r in theirs]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("kv_heads", "group", "half"), [(3, 3, 32), (2, 6, 64)])
def test_the_attention_compiles_for_a_gpu(kv_heads, group, half, capability):
    kernel = triton_kernels._attend_slot
    sizes = {
        "KV_HEADS": kv_heads, "GROUP": group, "HALF": half, "COLUMNS": triton_kernels.HEAD_NUMBERS // (2 * half),
        "SLOT_COLUMNS": 1536, "QUERIES": 16,
    }  # fmt: skip
    types = dict.fromkeys(kernel.arg_names, "*bf16") | dict.fromkeys(sizes, "constexpr")
    types |= {"shared_columns": "*i64", "steps_taken": "*i64", "cosines": "*fp32", "sines": "*fp32"}
    types |= {"scale": "fp32", "stride": "i32"}
    constants = {(kernel.arg_names.index(name),): value for name, value in sizes.items()}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=triton_kernels.ATTEND_OPTIONS)
    assert "mma.sync" in compiled.asm["ptx"]
    assert compiled.metadata.shared < 99 << 10  # bytes, of the smallest cards with bf16
