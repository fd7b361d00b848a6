"""The self-test: sound models pass it and are left alone; each property, broken for real, fails with its cause in the
message.
"""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from playground.models import adapter_reading, adapters, feature_trunk, loading, scorer, sources, structure
from playground.settings import Settings
from playground.store import Store
from tests.test_policy import moved, settings
from tests.tiny import tiny_folder, tiny_model
from training import selftest, selftest_files
from training.policy import PolicyModel
from training.round import Round
from training.selftest import SelfTestFailed
from training.worker import run_once

aten = torch.ops.aten
REAL = Path(sources.resolve(Settings()))
real = [
    pytest.mark.real,
    pytest.mark.skipif(not REAL.exists(), reason="the embedded model is not there; `make setup` converts it"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture
def policy():
    return PolicyModel(tiny_model(), settings())


def block(policy, n=2):
    return structure.blocks(policy.causal)[n]


def message(check, *args, **options):
    with pytest.raises(SelfTestFailed) as failure:
        check(*args, **options)
    return str(failure.value)


# -- the policy


@pytest.mark.parametrize("start", [lambda policy: policy, moved], ids=["fresh", "trained"])
def test_a_sound_policy_passes_and_is_as_before(policy, start):
    def everything():
        tensors = [*policy.peft.state_dict().values(), *policy.value_head.state_dict().values(), torch.get_rng_state()]
        return [t.clone() for t in tensors], [p.requires_grad for p in policy.peft.parameters()]

    start(policy)
    tensors, trainable = everything()
    selftest.check_policy(policy, settings())
    assert (
        all(torch.equal(a, b) for a, b in zip(everything()[0], tensors, strict=True)) and everything()[1] == trainable
    )
    assert all(p.grad is None for p in [*policy.peft.parameters(), *policy.value_head.parameters()])


def test_the_lora_is_put_back_after_a_failure_too(policy):
    before = policy.state()
    policy.reference = nullcontext
    message(selftest.check_policy, policy, settings())
    assert all(torch.equal(v, policy.state()[k]) for k, v in before.items())


def test_dropout_is_named(policy):
    block(policy).mlp.act_fn = torch.nn.Sequential(block(policy).mlp.act_fn, torch.nn.Dropout(0.1)).train()
    text = message(selftest.check_policy, policy, settings())
    assert "off from 1 by" in text and "at most 1e-03" in text
    assert "3 modules are in training mode, where dropout is random; call eval()" in text


def slightly_larger(module, args, output):
    return 1.01 * output if torch.is_grad_enabled() else output


def noise(module, args, output):
    return output + 0.01 * torch.randn_like(output)


def wear(module, args, output):
    module.base_layer.weight.mul_(1.01)


@pytest.mark.parametrize("hook", [slightly_larger, noise, wear])
def test_a_forward_that_differs_the_second_time_is_named(policy, hook):
    block(policy).mlp.down_proj.register_forward_hook(hook)
    text = message(selftest.check_policy, policy, settings())
    assert "the forward is random, changes the model, or takes another path with gradients" in text


def test_a_detached_layer_is_named(policy):
    block(policy).mlp.register_forward_hook(lambda module, args, output: output.detach())
    text = message(selftest.check_policy, policy, settings())
    assert text.startswith("6 of 56 LoRA tensors get no gradient")
    assert "first is model.layers.2.mlp.gate_proj.lora_A" in text and "a detach" in text


def test_a_layer_without_a_backward_is_not_hidden_by_its_lora(policy):
    """With B off zero, gradients go round such a layer through its LoRA: every tensor has one, only a wrong one."""
    block(policy).mlp.down_proj.base_layer.register_forward_hook(lambda module, args, output: output.detach())
    text = message(selftest.check_policy, policy, settings())
    assert text.startswith("2 of 56") and "gate_proj.lora_B" in text  # and up_proj's


def on_backward(module, act):
    """Call act(gradient) in every backward through the module's output."""
    module.register_forward_hook(
        lambda module, args, output: output.register_hook(act) and None if output.requires_grad else None
    )


def test_a_gradient_that_is_no_number_is_named(policy):
    on_backward(block(policy, 3).mlp, lambda gradient: gradient * torch.nan)
    assert "or NaN" in message(selftest.check_policy, policy, settings())


def test_a_reference_with_the_lora_on_is_named(policy):
    policy.reference = nullcontext
    text = message(selftest.check_policy, policy, settings())
    assert (
        "the reference's log-probabilities moved by" in text and "at most 1e-03" in text and "the LoRA stays on" in text
    )


def test_a_trunk_that_changes_with_training_is_named(policy):
    """Each forward is as the one before; only a backward wears the weights."""

    def wear_embeddings(gradient):
        policy.causal.get_input_embeddings().weight.mul_(1.01)

    on_backward(block(policy).mlp, wear_embeddings)
    assert "the trunk changes with training" in message(selftest.check_policy, policy, settings())


def without_mask(module, args, inputs):
    return args, {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}


def by_slot(module, args, inputs):
    """Every token is scaled by how far it stands from the first slot, padding or not."""
    embedded = module.embed_tokens(inputs["input_ids"])
    slots = torch.arange(embedded.shape[1])[None, :, None]
    return args, {**inputs, "input_ids": None, "inputs_embeds": embedded * (1 + slots / 10)}


@pytest.mark.parametrize("hook", [without_mask, by_slot])
def test_padding_that_changes_logprobs_is_named(policy, hook):
    policy.causal.base_model.register_forward_pre_hook(hook, with_kwargs=True)
    text = message(selftest.check_policy, policy, settings())
    assert (
        text.startswith("padding changes log-probabilities by") and "at most 1e-03 is accepted in torch.float32" in text
    )


def one_branch(module, args, inputs):
    """A causal mask, as a model that makes its own would use: branches see those before them."""
    mask = inputs["attention_mask"]
    if mask.dim() == 4:
        causal = torch.full(mask.shape[-2:], torch.finfo(mask.dtype).min).triu(1)
        inputs = {
            **inputs,
            "attention_mask": torch.where((mask == 0).any(-2, keepdim=True), causal, torch.finfo(mask.dtype).min),
        }
    return args, inputs


def test_where_replies_would_see_each_other_each_reads_its_prompt_and_the_log_says_so(policy, caplog):
    """The round failed, and asked for a setting that it could see for itself."""
    policy.causal.base_model.register_forward_pre_hook(one_branch, with_kwargs=True)
    selftest.check_policy(policy, settings())
    assert not policy.share_prompts
    assert "each reply reads its own copy of its prompt" in caplog.text and "at most 1e-03 is accepted" in caplog.text


def test_sound_replies_go_on_sharing_their_prompt(policy, caplog):
    selftest.check_policy(policy, settings())
    assert policy.share_prompts and not caplog.records


# -- the features


def trunk(folder, quantisation="none", **changes):
    own = settings(model=folder, reward={"quantisation": quantisation})
    return feature_trunk.FeatureTrunk(own.with_values(**changes))


@pytest.mark.parametrize("quantisation", ["none", "nf4", "int8"])
def test_a_sound_trunk_passes(folder, quantisation):
    sound = trunk(folder, quantisation)
    before = sound.features([([5, 6, 7], [20, 21])])
    selftest.check_features(sound)
    selftest.check_features(sound, lora_rank=2)
    assert torch.equal(sound.features([([5, 6, 7], [20, 21])]), before)


def test_int8_is_known_for_what_it_is(folder):
    """Its activations are quantised with their whole batch, so that it is allowed more."""
    assert trunk(folder, "int8").model.is_loaded_in_8bit


def neighbours(broken):
    structure.blocks(broken.model)[0].register_forward_hook(lambda module, args, output: output + 0.1 * output.mean(0))


def pads(broken):
    whole = broken.batch_features
    longest = max(map(sum, selftest.LENGTHS))
    broken.batch_features = lambda replies: whole(
        [(p, c + [0] * (longest - len(p) - len(c)) if len(replies) > 1 else c) for p, c in replies]
    )


def crowd(broken):
    structure.blocks(broken.model)[0].register_forward_hook(
        lambda module, args, output: output * (1 + len(output) / 10)
    )


def mixed_up(broken):
    whole = broken.features
    broken.features = lambda replies: whole(sorted(replies, key=lambda reply: len(reply[1])))


def chance(broken):
    structure.blocks(broken.model)[0].register_forward_hook(noise)


@pytest.mark.parametrize("fault", [neighbours, pads, crowd, mixed_up, chance])
def test_features_that_hang_on_the_batch_are_named(folder, fault):
    broken = trunk(folder)
    fault(broken)
    text = message(selftest.check_features, broken)
    assert (
        text.startswith("read in a batch")
        and "at most 1e-03 is accepted in torch.float32" in text
        and "depend on its neighbours" in text
    )


def test_one_token_too_many_in_the_mean_is_seen_in_every_format(folder):
    for quantisation, dtype in (("none", "float32"), ("nf4", "bfloat16"), ("int8", "float32")):
        broken = trunk(folder, quantisation, dtype=dtype)
        pads(broken)
        message(selftest.check_features, broken)


def test_a_reward_lora_without_gradients_is_named(folder):
    broken = trunk(folder, reward={"layer": 0.67})
    structure.blocks(broken.model)[1].register_forward_hook(lambda module, args, output: output.detach())
    selftest.check_features(broken)
    assert message(selftest.check_features, broken, lora_rank=2).startswith("28 of 42 LoRA tensors get no gradient")


def test_a_frozen_reward_lora_is_named(folder):
    broken = trunk(folder)
    broken.attach_lora(2)
    broken.peft.requires_grad_(False)
    assert message(selftest.check_features, broken, lora_rank=2).startswith("42 of 42")


# -- what is written


def head(d=3, **changes):
    only = scorer.Head(
        "layers",
        1.0,
        centre=torch.zeros(d + 1),
        scale=torch.ones(d + 1),
        weight=torch.arange(1.0, d + 2),
        basis=torch.eye(d + 1)[:, :2],
        factor=torch.eye(2),
        influence=torch.eye(2),
    )
    return scorer.RewardModel([only], [d, 1, 0], [], **changes)


def test_a_head_that_was_saved_whole_passes(tmp_path):
    model = head(shift=0.5, spread=2.0, pessimism=0.3, lora={"a": torch.ones(2)})
    model.save(tmp_path / "reward.safetensors")
    selftest_files.check_head(model, tmp_path / "reward.safetensors", torch.randn(4, 4))


@pytest.mark.parametrize("lost", [{"shift": 0.5}, {"pessimism": 0.3}, {"lora": {"a": torch.ones(2)}}])
def test_a_head_that_lost_something_is_named(tmp_path, lost):
    head().save(tmp_path / "reward.safetensors")
    text = message(selftest_files.check_head, head(**lost), tmp_path / "reward.safetensors", torch.randn(4, 4))
    assert text.startswith("read back from reward.safetensors") and "at most 1e-04" in text


BASE = {"model": "tiny", "hash": "base"}


def write(root, policy, tensors=None, alpha=8):
    return adapters.write(
        root,
        1,
        tensors or policy.state(),
        rank=4,
        alpha=alpha,
        targets=policy.targets,
        base=BASE,
        parent=0,
        round_id=1,
        scores={},
    )


def check(policy, folder, sha256):
    selftest_files.check_adapter(policy, settings(), folder, tiny_model(), base_hash="base", expected_sha256=sha256)


def test_a_version_that_is_the_policy_passes(policy, tmp_path):
    check(moved(policy), *write(tmp_path, policy))


def test_a_version_of_another_policy_is_named(policy, tmp_path):
    tensors = {k: v.clone() for k, v in moved(policy).state().items()}
    tensors["model.layers.3.mlp.up_proj.lora_B.weight"][0, 0] += 1e-6
    text = message(check, policy, *write(tmp_path, policy, tensors))
    assert (
        text.startswith("1 of 56 tensors in v0001 are not those that the gate measured")
        and "layers.3.mlp.up_proj.lora_B" in text
    )


def test_a_version_with_another_scale_is_named(policy, tmp_path):
    text = message(check, moved(policy), *write(tmp_path, policy, alpha=16))
    assert "loaded from v0001" in text and "rank, alpha or targets in its manifest are not" in text


def test_a_version_that_the_disk_spoiled_is_named(policy, tmp_path):
    folder, sha256 = write(tmp_path, policy)
    weights = bytearray((folder / adapter_reading.WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / adapter_reading.WEIGHTS).write_bytes(weights)
    assert "does not match the hash" in message(check, policy, folder, sha256)


# -- in a round


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "nudge.db")
    store.request_round()
    return store


def running(store, folder, tmp_path):
    """The requested round, taken."""
    return Round(store, settings(model=folder, data_dir=tmp_path), store.take_round("w", lease_seconds=60), "w")


def break_trunk(monkeypatch):
    load = loading.load_trunk

    def broken(*args, **options):
        trunk = load(*args, **options)
        structure.blocks(trunk)[1].register_forward_hook(noise)
        return trunk

    monkeypatch.setattr(loading, "load_trunk", broken)


def test_a_round_on_a_broken_model_fails_with_the_cause_as_its_reason(store, folder, tmp_path, monkeypatch):
    break_trunk(monkeypatch)
    row = run_once(store, settings(model=folder, data_dir=tmp_path), "w")
    assert row["state"] == "failed"
    assert str(row["reason"]).startswith(
        "SelfTestFailed in phase collect: two forwards of the same replies give a ratio"
    )


def test_a_round_does_not_score_with_a_broken_trunk(store, folder, tmp_path, monkeypatch):
    break_trunk(monkeypatch)
    assert "depend on its neighbours" in message(lambda: running(store, folder, tmp_path).models.trunk)


def gated(store, folder, tmp_path):
    """A round that has passed its gate."""
    this = running(store, folder, tmp_path)
    save_file(moved(PolicyModel(tiny_model(), settings())).state(), this.folder / "policy.safetensors")
    report = {"gain": 1, "gain_interval": [0.5, 1.5], "kl": 1, "served_kl": 0.001, "prompts": 4, "refused_because": []}
    (this.folder / "gate.json").write_text(json.dumps(report))
    return this


def test_what_was_gated_is_published(store, folder, tmp_path):
    gated(store, folder, tmp_path)._publish()
    assert store.live_policy()["version"] == 1


def test_something_else_than_what_was_gated_is_not_published(store, folder, tmp_path, monkeypatch):
    write = adapters.write
    monkeypatch.setattr(
        adapters,
        "write",
        lambda root, version, tensors, **rest: write(
            root, version, {name: tensor / 2 for name, tensor in tensors.items()}, **rest
        ),
    )
    assert "not those that the gate measured" in message(gated(store, folder, tmp_path)._publish)
    assert store.live_policy()["version"] == 0


# -- the default model


class ProductsByFloat32(TorchDispatchMode):
    """Products of bf16 matrices are summed up in fp32 and then rounded, as the kernel for bf16 does. That one takes ten
    times as long on a CPU without instructions for it, a minute and a half here.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket not in (aten.mm, aten.addmm, aten.bmm) or args[0].dtype != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        options = dict(kwargs or {})
        out = options.pop("out", None)
        product = func.overloadpacket(*(a.float() for a in args), **options).bfloat16()
        return product if out is None else out.copy_(product)


class TestTheDefaultModel:
    pytestmark = real

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_it_passes(self, dtype):
        s = Settings(model=str(REAL), device="cpu", dtype=dtype)
        with nullcontext() if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ProductsByFloat32():
            selftest.check_policy(PolicyModel(loading.load_trunk(s), s), s)
            selftest.check_features(feature_trunk.FeatureTrunk(s))

    @pytest.mark.skipif(not has_avx512bf16(), reason="bitsandbytes repacks 4-bit layers only on CPUs with AVX512-BF16")
    @pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit. an autograd kernel was not registered")
    def test_layers_that_repacked_themselves_are_named(self):
        """The loss looks right, and more than a third of the LoRA tensors learn nothing. Its first blocks show it."""
        s = Settings(model=str(REAL), device="cpu", dtype="float32")
        trunk = as_they_come(loading.load_trunk(s, "nf4"))
        trunk.base_model.layers = trunk.base_model.layers[:6]
        text = message(selftest.check_policy, PolicyModel(trunk, s), s)
        assert text.startswith(
            "30 of 84 LoRA tensors get no gradient"
        )  # every B whose layer does not write to the residual stream
        assert (
            "bitsandbytes repacked 42 of its 4-bit layers for AVX512-BF16" in text
            and "set support_avx512bf16_for_cpu = False" in text
        )
        features = feature_trunk.FeatureTrunk(s.with_values(reward={"layer": 0.2}))
        as_they_come(features.model)
        assert "bitsandbytes repacked" in message(selftest.check_features, features, lora_rank=2)


def as_they_come(trunk):
    """The 4-bit layers free to repack themselves, as bitsandbytes makes them."""
    for module in trunk.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    return trunk
