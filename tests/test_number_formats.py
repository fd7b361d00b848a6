"""The packed weights multiply as the weights they stand for, whatever their sizes."""

import pytest
import torch

from playground.decoding import tuning
from playground.decoding.decoder import run
from playground.decoding.number_formats import BFloat16Weight, Float32Weight, Int4Weight, Int8Weight
from playground.decoding.sampling import Sampling
from playground.settings import Settings
from tests.families import IDS, SIZES, made
from tests.tiny import tiny_model

ERROR = {Float32Weight: 1e-5, BFloat16Weight: 0.01, Int8Weight: 0.015, Int4Weight: 0.12}  # of rounding, relative


def error(packed, weight, rows):
    x = torch.randn(rows, weight.shape[1]).to(packed.dtype)
    exact = x.float() @ weight.T
    return ((packed(x).float() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("kind", [Float32Weight, BFloat16Weight, Int8Weight])
@pytest.mark.parametrize("inputs", [8, 16, 100, 120, 121, 128])
def test_a_product_is_right_whatever_the_sizes(kind, inputs):
    """Torch's int8 product read beyond a row whose inputs are no multiple of 16: nonsense with one row of x and the end
    of the process with two, on machines with AVX512 alone.
    """
    torch.manual_seed(0)
    for outputs in (17, 32, 48):
        weight = torch.randn(outputs, inputs)
        packed = kind(weight)
        assert max(error(packed, weight, rows) for rows in (1, 2, 4, 9)) < ERROR[kind]


@pytest.mark.parametrize(("outputs", "inputs", "fits"), [(32, 64, True), (17, 64, False), (32, 120, False)])
def test_int4_packs_what_it_says_it_can(outputs, inputs, fits):
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs)
    assert Int4Weight.fits(outputs, inputs) == fits
    if fits:
        assert error(Int4Weight(weight), weight, 3) < ERROR[Int4Weight]
    else:
        with pytest.raises(RuntimeError):
            Int4Weight(weight)


@pytest.mark.parametrize("asked", ["int4", "int8"])
def test_a_model_of_odd_sizes_is_served_whatever_the_format_asked_for(asked, tmp_path):
    """`--decode-format int4` ended the start with an error of torch, int8 the process."""
    model = made(type(tiny_model().config)(**{**SIZES, "intermediate_size": 120}))
    assert not tuning.int4_fits(model)
    settings = Settings(data_dir=tmp_path, device="cpu", dtype="float32", threads=1, decode_format=asked)
    choice = tuning.choose(settings, model, {"hash": "x" * 64})
    assert choice.number_format == "int8" if asked == "int8" else choice.number_format in tuning.AUTO_FORMATS
    said = run(choice.forward(model), [IDS], [0], Sampling(temperature=0, max_tokens=8), frozenset())
    assert len(said[0].token_ids) == 8
