"""What a round needs on a GPU, said before it starts."""

import pytest
import torch

from playground.models import loading
from playground.settings import Settings
from tests.tiny import tiny_folder, tiny_model
from training import gpu


@pytest.fixture
def settings(tmp_path):
    return Settings(model=str(tiny_folder(tmp_path)), data_dir=tmp_path, device="cpu", dtype="float32")


def test_the_need_counts_both_trunks_and_grows_with_the_microbatch(settings):
    model = tiny_model()
    weights = sum(p.numel() for p in model.parameters())
    in_blocks = sum(p.numel() for p in model.model.layers.parameters() if p.dim() == 2)
    small, large = (gpu.need(settings.with_values(ppo={"microbatch": n})) for n in (1, 64))
    assert 2 * 4 * weights < small + (4 - 0.6) * in_blocks < large
    unquantised = gpu.need(settings.with_values(reward={"quantisation": "none"}))
    assert unquantised - gpu.need(settings) == pytest.approx((4 - 0.6) * in_blocks, abs=2)
    halved = gpu.need(settings.with_values(dtype="bfloat16", reward={"quantisation": "none"}))
    assert halved < 0.6 * unquantised


def test_a_gpu_without_room_is_refused_in_words(settings, monkeypatch):
    gpu.check(settings)  # no GPU, no question
    monkeypatch.setattr(gpu.loading, "device_of", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 2000))
    with pytest.raises(
        gpu.NotEnoughMemory, match=r"has 0\.0 GB free and a round needs about .* lower --ppo.microbatch \(now 4\)"
    ):
        gpu.check(settings)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**12, 10**12))
    gpu.check(settings)


def test_a_gpu_with_room_gets_whole_minibatches_and_one_without_keeps_its_own(settings, monkeypatch):
    assert gpu.with_room_used(settings) is settings  # a CPU's cache is small
    monkeypatch.setattr(gpu.loading, "device_of", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**12, 10**12))
    larger = gpu.with_room_used(settings)
    assert larger.ppo.microbatch == settings.ppo.minibatch > settings.ppo.microbatch
    assert gpu.with_room_used(larger) is larger
    just_enough = gpu.need(larger)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (just_enough, 10**12))
    assert gpu.with_room_used(settings) is settings


def test_memory_that_the_allocator_keeps_counts_as_free(settings, monkeypatch):
    """The round before has left freed blocks in torch's cache, where they count as taken; the next one must not be
    refused for them.
    """
    free = [1000]
    monkeypatch.setattr(gpu.loading, "device_of", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(10**12))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free[-1], 10**12))
    gpu.check(settings)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_a_gpu_without_bf16_gets_fp32(settings, monkeypatch, capability, dtype):
    monkeypatch.setattr(loading, "device_of", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert loading.trunk_dtype(settings.with_values(dtype="auto")) == dtype
    assert loading.trunk_dtype(settings.with_values(dtype="bfloat16")) == torch.bfloat16


def test_the_need_has_room_for_the_fewest_replies_of_a_rollout_and_more_room_takes_more(settings, monkeypatch):
    model = tiny_model()
    config = model.config
    a_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    a_slot = gpu.slot_bytes(config, 4, 100)
    assert a_slot == 100 * a_token + 2 * gpu.DRAWING_BYTES * config.vocab_size
    shorter, longer = (gpu.need(settings.with_values(ppo={"rollout_tokens": n})) for n in (1000, 1100))
    keys_and_values = gpu.LEAST_ROWS // 2 * 200 * a_token
    assert longer - shorter >= keys_and_values
    for slots in (20, 30):
        free = slots * a_slot / gpu.ROLLOUT_SHARE
        monkeypatch.setattr(gpu, "free_bytes", lambda _device, free=free: int(free) + 1)
        assert gpu.slots_with_room(model, 100) == slots
    for free, slots in ((0, gpu.LEAST_ROWS // 2), (10**13, gpu.MOST_ROWS // 2)):
        monkeypatch.setattr(gpu, "free_bytes", lambda _device, free=free: free)
        assert gpu.slots_with_room(model, 100) == slots
