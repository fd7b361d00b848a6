"""What a round needs on a GPU, said before it starts."""

import pytest
import torch

from playground.settings import Settings
from tests.tiny import tiny_folder, tiny_model
from training import gpu


@pytest.fixture
def settings(tmp_path):
    return Settings(model=str(tiny_folder(tmp_path)), data_dir=tmp_path, device="cpu", dtype="float32")


def test_the_need_counts_both_trunks_and_grows_with_the_microbatch(settings):
    weights = sum(p.numel() for p in tiny_model().parameters())
    small, large = (gpu.need(settings.with_values(ppo={"microbatch": n})) for n in (1, 64))
    assert 2.6 * weights < small < large
    assert gpu.need(settings.with_values(reward={"quantisation": "none"})) - gpu.need(settings) == pytest.approx(
        1.4 * weights, abs=2
    )


def test_a_gpu_without_room_is_refused_in_words(settings, monkeypatch):
    gpu.check(settings)  # no GPU, no question
    monkeypatch.setattr(gpu.loading, "device_of", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 2000))
    with pytest.raises(
        gpu.NotEnoughMemory, match=r"has 0\.0 GB free and a round needs about .* lower --ppo.microbatch \(now 8\)"
    ):
        gpu.check(settings)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**12, 10**12))
    gpu.check(settings)
