"""The benchmark of Qwen3's shape on a tiny model: the GGUF is the model, and ratios are of the sides they name."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import peer, qwen3, qwen3_shape
from playground.decoding import fused, measuring
from playground.models import loading, prompts

PROMPT = list(range(300, 340))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3") / "model"
    qwen3_shape.make_folder(folder, qwen3_shape.TINY)
    return folder


@pytest.fixture(scope="module")
def settings(folder):
    return qwen3.Qwen3Settings(
        model=str(folder), data_dir=folder.parent, device="cpu", dtype="float32", threads=1, quick=True
    )


@pytest.fixture(scope="module")
def model(settings):
    return loading.load_trunk(settings)


def test_the_gguf_is_the_model_and_one_with_two_norms_exchanged_is_not(model, tmp_path):
    def written():
        qwen3_shape.write_gguf(model, tmp_path / "model.gguf")
        return AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).eval()

    truth = measuring.next_token(model, PROMPT)
    assert qwen3.kl(truth, measuring.next_token(written(), PROMPT)) < 1e-5
    attention = model.model.layers[0].self_attn
    attention.q_norm, attention.k_norm = attention.k_norm, attention.q_norm
    other = written()
    attention.q_norm, attention.k_norm = attention.k_norm, attention.q_norm
    assert qwen3.kl(truth, measuring.next_token(other, PROMPT)) > 0.005


def test_the_folder_can_chat(settings, model):
    tokenizer = loading.load_tokenizer(settings)
    ids = prompts.encode([{"role": "user", "content": "héllo word7"}], tokenizer, 100)
    assert "héllo word7" in tokenizer.decode(ids)
    assert len(tokenizer) == qwen3_shape.TINY["vocab_size"] and fused.fits(model, 1000)


def test_what_is_served_is_set_beside_the_model_where_llama_cpp_is_missing(settings, model):
    assert not peer.is_made(settings, qwen3.llama_cpp.NAME, qwen3.llama_cpp.PINS)
    made = qwen3.files(settings, lambda text: None)
    [row] = qwen3.same_model_rows(settings, made, fused.FusedForward(model, "float32"), PROMPT, lambda text: None)
    assert row["ok"] and abs(row["value"]) < 1e-5
    [row] = qwen3.same_model_rows(settings, made, fused.FusedForward(model, "int4"), PROMPT, lambda text: None)
    assert row["value"] > 1e-4


def test_ratios_are_ours_to_theirs():
    def runs(seconds):
        return [{"seconds": factor * seconds, "first": factor * seconds / 10} for factor in (1, 1, 9)]

    sides = {"ours": runs(2.0), "llama.cpp Q4_1": runs(1.0), "two generates": runs(12.0)}
    rows = {row["what"]: row for row in qwen3.speed_rows(sides)}
    assert rows["ours: two replies of 64 tokens, prompt of 181"]["value"] == 64
    to_llama = rows["speed, ours to llama.cpp Q4_1"]
    assert (to_llama["value"], to_llama["ok"]) == (0.5, False)
    assert rows["time to first token, ours to llama.cpp Q4_1"]["value"] == 2
    assert rows["speed, ours to two generates"]["ok"] and rows["speed, ours to two generates"]["value"] == 6
    assert rows["speed, ours to llama.cpp Q4_K_M"]["value"] is None
