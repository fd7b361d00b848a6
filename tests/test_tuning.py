"""How a machine decodes: measured once, remembered, overridden."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from playground.decoding import fused, tuning
from playground.decoding.transformers_forward import TransformersForward
from playground.models import loading
from playground.settings import Settings
from tests.families import LONG_TOKENS, phi3
from tests.tiny import tiny_folder


@pytest.fixture
def settings(tmp_path):
    return Settings(
        model=str(tiny_folder(tmp_path / "model")), data_dir=tmp_path, device="cpu", dtype="float32", threads=1
    )


def chosen(settings):
    model = loading.load_trunk(settings)
    return tuning.choose(settings, model, loading.base_identity(model, settings)), model


def test_a_choice_is_measured_and_remembered(settings, monkeypatch):
    first, model = chosen(settings)
    assert first.number_format in tuning.AUTO_FORMATS and first.threads == 1 and first.milliseconds > 0
    assert isinstance(first.forward(model), fused.FusedForward)
    monkeypatch.setattr(tuning, "_measure", lambda *_: pytest.fail("measured again"))
    assert chosen(settings)[0] == first


def test_another_machine_measures_for_itself(settings, monkeypatch):
    chosen(settings)
    monkeypatch.setattr(tuning, "_cpu", lambda: "another")
    chosen(settings)
    assert len(json.loads((settings.data_dir / "tuning.json").read_text())) == 2


def test_a_setting_overrides(settings):
    assert chosen(settings.with_values(decode_format="bfloat16"))[0].number_format == "bfloat16"
    choice, model = chosen(settings.with_values(decode_format="plain"))
    assert choice.number_format == "plain" and isinstance(choice.forward(model), TransformersForward)


def test_a_format_far_from_the_model_is_not_chosen(settings, monkeypatch):
    monkeypatch.setattr(tuning, "MAX_KL", -1)
    assert chosen(settings)[0].number_format == "float32"  # the model's own


@pytest.mark.parametrize(("best", "steps"), [(float("inf"), tuning.STEPS + 1), (1e-9, 2)])
def test_a_format_that_takes_far_longer_is_measured_by_one_step(settings, monkeypatch, best, steps):
    """Each of six slow formats took two seconds of the first start."""
    model = loading.load_trunk(settings)
    forward = fused.FusedForward(model, "float32")
    decode, calls = forward.decode, []
    monkeypatch.setattr(forward, "decode", lambda *arguments: calls.append(1) or decode(*arguments))
    truth = torch.zeros(model.config.vocab_size)
    assert tuning._measure_steps(forward, [5, 6, 7], truth, best).milliseconds > 0
    assert len(calls) == steps


def test_what_is_measured_is_the_format_and_not_unwritten_memory(settings):
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert chosen(settings.with_values(decode_format="float32"))[0].nats < 1e-4
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_damaged_file_is_measured_anew(settings):
    (settings.data_dir / "tuning.json").write_text("{")
    assert chosen(settings)[0].milliseconds > 0


def test_other_architectures_decode_as_transformers_does(settings):
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=427, n_embd=64, n_layer=2, n_head=4)).eval()
    assert tuning.choose(settings, model, {"hash": "x" * 64}).number_format == "plain"


def test_a_model_whose_frequencies_change_with_the_length_decodes_as_transformers_does_where_texts_are_longer(settings):
    """Phi-4-mini beyond its original length."""
    model, identity = phi3(), {"hash": "x" * 64}
    replies = {"reply_tokens": LONG_TOKENS // 2}
    within = settings.with_values(chat={"context_tokens": LONG_TOKENS // 2, **replies}, decode_format="float32")
    beyond = settings.with_values(chat={"context_tokens": LONG_TOKENS, **replies}, decode_format="float32")
    assert tuning.choose(within, model, identity).number_format == "float32"
    assert tuning.choose(beyond, model, identity).number_format == "plain"
