"""Every architecture that people bring answers, with tiny random weights, and can be trained where a round is to run on
it.
"""

import pytest
import torch

from playground.decoding.choose_forward import divergence, transformers_forward_of
from playground.decoding.fused import FusedForward
from playground.decoding.sampling import Sampling
from playground.decoding.transformers_forward import TransformersForward
from playground.decoding.unbatched import OwnCacheForward, RereadForward
from playground.models import adapters, feature_trunk, loading, lora, prompts, structure
from playground.serving.engine import Engine
from playground.settings import Settings
from playground.store import Store
from tests.architectures import ARCHITECTURES
from training import ppo, rollout, selftest, selftest_files, served
from training.policy import PolicyModel
from training.rollout import Episode

ONE_BY_ONE = {"Mamba", "LFM2", "Bamba"}  # their cache holds more than keys and values
FAST = ["Qwen3", "SmolLM3", "Phi-4-mini", "Gemma 3"]  # trained here, and written by the fused forward
OWN_PROMPTS = {
    "BLOOM",
    "Mamba",
}  # of those trained here: replies that share a reading of their prompt would see each other


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Makes a folder of an architecture, once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = ARCHITECTURES[name](tmp_path_factory.mktemp("model"))
        return made[name]

    return make


def settings_of(folder, **changes):
    return loading.bounded(
        Settings(
            model=str(folder),
            device="cpu",
            dtype="float32",
            decode_format="float32",
            threads=1,
            ppo={
                "lora_rank": 2,
                "lora_alpha": 4,
                "iterations": 1,
                "epochs": 1,
                "episodes": 4,
                "replies": 2,
                "microbatch": 4,
                "minibatch": 4,
                "rollout_tokens": 6,
                "value_warmup": 1,
            },
            _env_file=None,
        ).with_values(**changes)
    )


def answer(engine, prompt, seeds):
    stream = engine.duel(prompt, seeds, Sampling(temperature=1.0, max_tokens=8))
    while not stream.finished.is_set():
        engine.step()
    assert stream.error is None
    return stream.decoding.replies


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_pair_is_what_the_model_says_and_the_same_for_the_same_seeds(folder, name, tmp_path):
    """GPT-2, Mamba, LFM2 and other hybrids ended in a traceback."""
    settings = settings_of(folder(name), data_dir=tmp_path)
    engine = Engine(Store(), settings, loading.load_trunk(settings), loading.load_tokenizer(settings))
    prompt = prompts.encode(
        [{"role": "user", "content": "What is the capital of France?"}],
        engine.tokenizer,
        settings.chat.context_tokens,
        "You are brief.",
    )
    first, again = answer(engine, prompt, [1, 2]), answer(engine, prompt, [1, 2])
    assert [r.token_ids for r in first] == [r.token_ids for r in again]
    assert first[0].token_ids != first[1].token_ids
    for reply in first:
        with torch.no_grad():
            logits = engine.base(torch.tensor([prompt + reply.token_ids]), use_cache=False).logits[
                0, len(prompt) - 1 : -1
            ]
        said = torch.log_softmax(logits, -1).gather(-1, torch.tensor(reply.token_ids)[:, None])[:, 0]
        assert reply.logprobs == pytest.approx(said.tolist(), abs=1e-4)


@pytest.mark.parametrize("name", ["Mamba", "LFM2", "Bamba", "BLOOM", "GPT-2"])
def test_the_forward_is_the_first_that_is_faithful(folder, name, caplog):
    forward = transformers_forward_of(loading.load_trunk(settings_of(folder(name))))
    assert type(forward) is (OwnCacheForward if name in ONE_BY_ONE else TransformersForward)
    assert ("replies are decoded one by one" in caplog.text) == (name in ONE_BY_ONE)


def test_a_model_that_no_cache_serves_reads_the_whole_text_again(folder, caplog):
    """A cache that forgets: what the model says with it is not what it says without."""
    model = loading.load_trunk(settings_of(folder("Llama")))
    whole = model.forward

    def forgetful(*args, past_key_values=None, use_cache=None, **inputs):
        out = whole(*args, use_cache=False, **inputs)
        out["past_key_values"] = past_key_values or {}
        return out

    model.forward = forgetful
    forward = transformers_forward_of(model)
    assert isinstance(forward, RereadForward) and "reads the whole text again" in caplog.text
    assert divergence(forward) < 1e-6


def test_what_cannot_be_shared_is_not_kept(folder, tmp_path):
    """Lines without keys took no room, so that they were kept for ever."""
    settings = settings_of(folder("Mamba"), data_dir=tmp_path)
    engine = Engine(Store(), settings, loading.load_trunk(settings), loading.load_tokenizer(settings))
    answer(engine, [5, 6, 7], [1, 2])
    assert engine.kv_pool.retained == [] and engine.kv_pool.used == 0


def test_a_reply_ends_at_the_last_learned_position(folder, tmp_path):
    """A longer one read beyond the table of positions."""
    settings = settings_of(folder("GPT-2"), data_dir=tmp_path)
    engine = Engine(Store(), settings, loading.load_trunk(settings), loading.load_tokenizer(settings))
    engine.end_tokens = frozenset()
    stream = engine.duel([5] * 508, [1, 2], Sampling(temperature=1.0, max_tokens=192))
    while not stream.finished.is_set():
        engine.step()
    assert stream.error is None and [len(r.token_ids) for r in stream.decoding.replies] == [4, 4]


# -- training


@pytest.mark.parametrize("name", ["GPT-2", "OPT", "BLOOM", "Gemma 2", "Mamba", *FAST])
def test_an_iteration_of_ppo_runs_and_the_version_is_served_as_trained(folder, name, tmp_path, caplog):
    """BLOOM, whose ALiBi takes no mask of its own for each token, failed the round instead of reading a prompt for each
    reply.
    """
    settings = settings_of(folder(name))
    tokenizer, trunk = loading.load_tokenizer(settings), loading.load_trunk(settings, training=True)
    bare = lora.tied_copy(trunk)
    policy = PolicyModel(trunk, settings)
    selftest.check_policy(policy, settings)
    assert policy.share_prompts == (name not in OWN_PROMPTS)
    assert ("each reply reads its own copy of its prompt" in caplog.text) == (name in OWN_PROMPTS)
    seeds = rollout.seed_prompts("heldout", tokenizer, settings.ppo.rollout_context)[:2]
    trainer = ppo.Trainer(policy, settings)
    ppo.train_ppo(
        trainer,
        lambda n, rng: seeds,
        lambda episodes: torch.tensor([1.0, -1.0, 1.0, -1.0]),
        loading.end_tokens(trunk, tokenizer),
    )
    assert trainer.iteration == 1 and any(v.abs().max() > 0 for k, v in policy.state().items() if "lora_B" in k)
    base = {"model": name, "hash": "base"}
    path, _ = adapters.write(
        tmp_path, 1, policy.state(), rank=2, alpha=4, targets=policy.targets, base=base, parent=0, round_id=1, scores={}
    )
    selftest_files.check_adapter(policy, settings, path, bare, base_hash="base")
    episodes = [Episode(prompt, [5, 6, 7], False) for prompt in seeds]
    forward = rollout.forward_of(policy.causal, 256)
    assert isinstance(forward, FusedForward) == (name in FAST)
    assert abs(served.divergence(policy.causal, forward, episodes)) < 1e-6


@pytest.mark.parametrize(
    ("name", "quantisation"), [("GPT-2", "nf4"), ("GPT-2", "int8"), ("BLOOM", "none"), ("Mamba", "nf4")]
)
def test_the_reward_models_trunk_reads_it(folder, name, quantisation):
    """Mamba multiplies by the weight of dt_proj itself, which a quantised layer does not have."""
    trunk = feature_trunk.FeatureTrunk(settings_of(folder(name), reward={"quantisation": quantisation}))
    selftest.check_features(trunk, lora_rank=2)
    assert (
        trunk.features([(list(range(400)), list(range(400)))]).isfinite().all()
    )  # longer than GPT-2 takes: cut, oldest first


def test_gpt2s_targets_are_its_transposed_layers(folder):
    """Conv1D layers are no Linear: there was nothing to put a LoRA on."""
    trunk = loading.load_trunk(settings_of(folder("GPT-2")))
    assert lora.linear_targets(trunk) == ["c_attn", "c_fc", "c_proj"]
    tuned = lora.with_lora(lora.tied_copy(trunk), rank=2, alpha=4, targets=lora.linear_targets(trunk))
    for parameter in lora.lora_parameters(tuned).values():
        torch.nn.init.normal_(parameter, std=0.2)
    ids = torch.arange(8)[None]
    said = tuned(ids).logits
    assert not torch.allclose(said, trunk(ids).logits, atol=1e-2)
    assert torch.allclose(tuned.merge_and_unload()(ids).logits, said, atol=1e-4)


def test_experts_are_not_taken_for_blocks():
    """A list of eight experts in each of two blocks is longer than the list of blocks."""
    block = torch.nn.ModuleDict({"experts": torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(8))})
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([block, block])})
    assert len(structure.blocks(model)) == 2
