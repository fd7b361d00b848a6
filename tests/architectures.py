"""Model folders as people have them, in small: one for each architecture, and the odd ones. Random weights from a fixed
seed, two blocks of width 32.

`ARCHITECTURES` maps a name to a function that makes a folder which must answer; `FOLDERS` maps a name to a folder or
file that is out of the ordinary and to what is expected of it. Each function takes an empty folder that exists and
returns what `--model` is to be given.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from tests.tiny import tiny_tokenizer

WIDTH, BLOCKS, HEADS, POSITIONS = 32, 2, 4, 2048

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif "
    "%}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def bare_tokenizer():
    """GPT-2's kind: one special token, which is everything, and no chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = tokenizer.unk_token = "<|endoftext|>"
    return tokenizer


def chatml_on_endoftext():
    """ChatML added to a base model's tokenizer, whose eos is still `<|endoftext|>`."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    return tokenizer


def gemma_tokenizer():
    """Turns between `<start_of_turn>` and `<end_of_turn>`, which are added tokens and not eos; the template takes no
    system role and wants roles that alternate. HTML tags are tokens too, as in Gemma's own."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"})
    tokenizer.add_tokens(["<start_of_turn>", "<end_of_turn>", "<code>", "</code>", "  "])
    tokenizer.chat_template = GEMMA_TEMPLATE
    return tokenizer


# -- architectures


def save(path: Path, tokenizer, model_class: str, config_class: str, **config) -> Path:
    """Save a model of this class, with small sizes under the names that its config uses, and the tokenizer."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    made = getattr(transformers, config_class)(vocab_size=len(tokenizer), initializer_range=0.1, **{**ids, **config})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, model_class)(made)
        for name, parameter in model.named_parameters():  # so that a lost token, place or block shows in the logits
            if "A_log" not in name:
                parameter.data += 0.05 * torch.randn_like(parameter)
    model.float().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def sizes(**more) -> dict:
    """The sizes that most configs name alike."""
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        **more,
    }


def llama(path: Path) -> Path:
    return save(path, tiny_tokenizer(), "LlamaForCausalLM", "LlamaConfig", **sizes())


def qwen2(path: Path) -> Path:
    return save(path, chatml_on_endoftext(), "Qwen2ForCausalLM", "Qwen2Config", **sizes())


def qwen3(path: Path) -> Path:
    return save(path, chatml_on_endoftext(), "Qwen3ForCausalLM", "Qwen3Config", **sizes(head_dim=8))


def mistral(path: Path) -> Path:
    return save(path, tiny_tokenizer(), "MistralForCausalLM", "MistralConfig", **sizes(sliding_window=None))


def gemma2(path: Path) -> Path:
    return save(
        path,
        gemma_tokenizer(),
        "Gemma2ForCausalLM",
        "Gemma2Config",
        **sizes(head_dim=8, query_pre_attn_scalar=8, sliding_window=256),
    )


def gemma3(path: Path) -> Path:
    return save(
        path,
        gemma_tokenizer(),
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        **sizes(head_dim=8, query_pre_attn_scalar=8, sliding_window=256),
    )


def phi3(path: Path) -> Path:
    return save(path, tiny_tokenizer(), "Phi3ForCausalLM", "Phi3Config", **sizes())


def phi4_mini(path: Path) -> Path:
    """Three quarters of each head are rotated, with factors for short texts."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}
    factors = {"short_factor": [1.0, 1.5, 2.0], "long_factor": [4.0, 5.0, 6.0]}
    return save(
        path,
        tiny_tokenizer(),
        "Phi3ForCausalLM",
        "Phi3Config",
        **sizes(original_max_position_embeddings=1536, rope_parameters={**rope, **factors}),
    )


def smollm3(path: Path) -> Path:
    """A layer without rotations."""
    return save(path, tiny_tokenizer(), "SmolLM3ForCausalLM", "SmolLM3Config", **sizes(no_rope_layers=[1, 0]))


def gpt_neo(path: Path) -> Path:
    return save(
        path,
        tiny_tokenizer(),
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        hidden_size=WIDTH,
        num_layers=BLOCKS,
        num_heads=HEADS,
        window_size=256,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=POSITIONS,
    )


def gpt_neox(path: Path) -> Path:
    return save(path, tiny_tokenizer(), "GPTNeoXForCausalLM", "GPTNeoXConfig", **sizes())


def opt(path: Path) -> Path:
    """Learned positions, which begin at 2."""
    return save(
        path,
        tiny_tokenizer(),
        "OPTForCausalLM",
        "OPTConfig",
        hidden_size=WIDTH,
        ffn_dim=2 * WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        max_position_embeddings=512,
        word_embed_proj_dim=WIDTH,
    )


def bloom(path: Path) -> Path:
    """ALiBi: no positions, and no mask of its own for each token."""
    return save(
        path, tiny_tokenizer(), "BloomForCausalLM", "BloomConfig", hidden_size=WIDTH, n_layer=BLOCKS, n_head=HEADS
    )


def falcon(path: Path) -> Path:
    return save(
        path,
        tiny_tokenizer(),
        "FalconForCausalLM",
        "FalconConfig",
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
    )


def qwen2_moe(path: Path) -> Path:
    return save(
        path,
        tiny_tokenizer(),
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        **sizes(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16),
    )


def gpt2(path: Path) -> Path:
    """Conv1D layers, learned positions, no chat template, and one special token for everything."""
    return save(
        path,
        bare_tokenizer(),
        "GPT2LMHeadModel",
        "GPT2Config",
        n_embd=WIDTH,
        n_layer=BLOCKS,
        n_head=HEADS,
        n_positions=512,
    )


def mamba(path: Path) -> Path:
    """No attention: the cache is a state, without keys."""
    return save(
        path,
        tiny_tokenizer(),
        "MambaForCausalLM",
        "MambaConfig",
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        state_size=4,
    )


def lfm2(path: Path) -> Path:
    """Short convolutions and attention in turn."""
    return save(
        path,
        tiny_tokenizer(),
        "Lfm2ForCausalLM",
        "Lfm2Config",
        **sizes(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    )


def bamba(path: Path) -> Path:
    """A hybrid: Mamba 2 and attention in turn."""
    return save(
        path,
        tiny_tokenizer(),
        "BambaForCausalLM",
        "BambaConfig",
        **sizes(attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1),
    )


ARCHITECTURES: dict[str, Callable[[Path], Path]] = {
    "Llama": llama,
    "Qwen2": qwen2,
    "Qwen3": qwen3,
    "Mistral": mistral,
    "Gemma 2": gemma2,
    "Gemma 3": gemma3,
    "Phi-3": phi3,
    "Phi-4-mini": phi4_mini,
    "SmolLM3": smollm3,
    "GPT-Neo": gpt_neo,
    "GPT-NeoX": gpt_neox,
    "OPT": opt,
    "BLOOM": bloom,
    "Falcon": falcon,
    "Qwen2-MoE": qwen2_moe,
    "GPT-2": gpt2,
    "Mamba": mamba,
    "LFM2": lfm2,
    "Bamba": bamba,
}


# -- odd folders


def with_template(path: Path, template) -> Path:
    """A sound model whose tokenizer has this chat template (a text, or a list of named ones)."""
    llama(path)
    (path / "chat_template.jinja").unlink(missing_ok=True)
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    return path


def named_templates(path: Path) -> Path:
    template = tiny_tokenizer().chat_template
    return with_template(
        path, [{"name": "default", "template": template}, {"name": "tool_use", "template": "tools" + template}]
    )


def named_without_default(path: Path) -> Path:
    template = tiny_tokenizer().chat_template
    return with_template(path, [{"name": "rag", "template": template}, {"name": "tool_use", "template": template}])


def template_with_an_error(path: Path) -> Path:
    return with_template(path, "{% for message in messages %}{{ message['content'] }")


def template_that_refuses(path: Path) -> Path:
    return with_template(path, "{{ raise_exception('Only tools may call this model') }}")


def no_template(path: Path) -> Path:
    return with_template(path, None)


def peft_adapter(path: Path, zero: bool = False, base: str = "") -> Path:
    """A LoRA's folder, and the base it names beside it; with `zero` it changes nothing."""
    (path / "base").mkdir()
    model = transformers.AutoModelForCausalLM.from_pretrained(llama(path / "base"))
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name and not zero:
                parameter.data = 0.3 * torch.randn_like(parameter)
    tuned.save_pretrained(path / "adapter")
    file = path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": base or str(path / "base")}))
    return path / "adapter"


def adapter_without_its_base(path: Path) -> Path:
    return peft_adapter(path, base=str(path / "gone"))


def adapter_that_cannot_be_merged(path: Path) -> Path:
    (path / "base").mkdir()
    model = transformers.AutoModelForCausalLM.from_pretrained(llama(path / "base"))
    get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(
        path / "adapter"
    )
    return path / "adapter"


def more_tokens_than_embeddings(path: Path) -> Path:
    """Words were added to the tokenizer, and the model was never resized."""
    llama(path)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["onomatopoeia"])
    tokenizer.save_pretrained(path)
    return path


def unused_pad_token(path: Path) -> Path:
    """A padding token was added after the embeddings, as many fine-tunes of Llama 2 have it: no text holds it."""
    llama(path)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(path)
    return path


def classifier(path: Path) -> Path:
    return save(path, tiny_tokenizer(), "LlamaForSequenceClassification", "LlamaConfig", **sizes())


def without_a_head(path: Path) -> Path:
    """The weights of the blocks alone: the head would be random."""
    return save(path, tiny_tokenizer(), "LlamaModel", "LlamaConfig", **sizes())


def encoder(path: Path) -> Path:
    return save(
        path,
        tiny_tokenizer(),
        "T5ForConditionalGeneration",
        "T5Config",
        d_model=WIDTH,
        d_kv=8,
        d_ff=WIDTH,
        num_layers=1,
        num_heads=HEADS,
        decoder_start_token_id=0,
    )


def lfs_pointer(path: Path) -> Path:
    llama(path)
    (path / "model.safetensors").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 269060552\n"
    )
    return path


def lfs_tokenizer(path: Path) -> Path:
    llama(path)
    (path / "tokenizer.json").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 2104556\n"
    )
    return path


def cut_off(path: Path) -> Path:
    weights = llama(path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return path


def damaged(path: Path) -> Path:
    weights = llama(path) / "model.safetensors"
    weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])
    return path


def missing_shard(path: Path) -> Path:
    model = transformers.AutoModelForCausalLM.from_pretrained(llama(path))
    (path / "model.safetensors").unlink()
    model.save_pretrained(path, max_shard_size="50KB")
    sorted(path.glob("model-*.safetensors"))[0].unlink()
    return path


def no_tokenizer(path: Path) -> Path:
    llama(path)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (path / file).unlink(missing_ok=True)
    return path


def no_config(path: Path) -> Path:
    (llama(path) / "config.json").unlink()
    return path


def broken_config(path: Path) -> Path:
    (llama(path) / "config.json").write_text('{"model_type": "llama", ')
    return path


def no_weights(path: Path) -> Path:
    (llama(path) / "model.safetensors").unlink()
    return path


def unknown_type(path: Path) -> Path:
    file = llama(path) / "config.json"
    file.write_text(
        json.dumps(
            {**json.loads(file.read_text()), "model_type": "brand_new", "architectures": ["BrandNewForCausalLM"]}
        )
    )
    return path


def own_code(path: Path) -> Path:
    """A model that comes with its own Python (`trust_remote_code`)."""
    file = llama(path) / "config.json"
    auto = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "own", "auto_map": auto}))
    (path / "modeling_own.py").write_text("raise SystemExit('this must never run')\n")
    (path / "configuration_own.py").write_text("raise SystemExit('this must never run')\n")
    return path


def pickled(path: Path) -> Path:
    """Weights as torch.save leaves them, which hold nothing but tensors."""
    model = transformers.AutoModelForCausalLM.from_pretrained(llama(path))
    (path / "model.safetensors").unlink()
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    return path


class Harm:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def hostile_pickle(path: Path) -> Path:
    """Weights that run code when they are unpickled: `harm` appears beside them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(llama(path))
    (path / "model.safetensors").unlink()
    torch.save({**model.state_dict(), "harm": Harm(path / "harm")}, path / "pytorch_model.bin")
    return path


def small_window(path: Path) -> Path:
    """Learned positions for fewer tokens than the usual prompt and reply have together."""
    return save(
        path,
        bare_tokenizer(),
        "GPT2LMHeadModel",
        "GPT2Config",
        n_embd=WIDTH,
        n_layer=BLOCKS,
        n_head=HEADS,
        n_positions=160,
    )


def empty(path: Path) -> Path:
    return path


def missing(path: Path) -> Path:
    return path / "gone"


def a_text_file(path: Path) -> Path:
    (path / "model.txt").write_text("no model")
    return path / "model.txt"


# -- GGUF, as llama.cpp has it


def gguf_file(path: Path) -> Path:
    """The Llama of this module as one GGUF file in fp32, tokenizer and template in it."""
    import gguf

    source = path / "source"
    source.mkdir()
    model = transformers.AutoModelForCausalLM.from_pretrained(llama(source))
    tokenizer, file = tiny_tokenizer(), path / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(tokenizer))
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].get)
    control = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if i in control else gguf.TokenType.NORMAL for i in range(len(tokens))]
    )
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, BLOCKS)
    for name, tensor in model.state_dict().items():
        heads = {"q_proj": HEADS, "k_proj": 2}.get(name.split(".")[-2])
        if heads:  # llama.cpp keeps each rotary pair side by side
            tensor = tensor.reshape(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(tensor.float().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def gguf_folder(path: Path) -> Path:
    file = gguf_file(path)
    (path / "folder").mkdir()
    file.rename(path / "folder" / file.name)
    return path / "folder"


def two_ggufs(path: Path) -> Path:
    folder = gguf_folder(path)
    shutil.copy(folder / "tiny.gguf", folder / "tiny-Q8_0.gguf")
    return folder


def damaged_gguf(path: Path) -> Path:
    file = gguf_file(path)
    file.write_bytes(b"no GGUF" + file.read_bytes()[7:])
    return file


@dataclass(frozen=True)
class Folder:
    """What `make` gives is to work, or where `refusal` is not None to be refused at start-up by one sentence that holds
    it.
    """

    make: Callable[[Path], Path]
    refusal: str | None = None


FOLDERS: dict[str, Folder] = {
    "no chat template": Folder(no_template),
    "named chat templates": Folder(named_templates),
    "named chat templates without a default": Folder(named_without_default, "none of them is called default"),
    "chat template with an error": Folder(template_with_an_error, "cannot be used ("),
    "chat template that refuses everything": Folder(template_that_refuses, "cannot be used ("),
    "PEFT adapter": Folder(peft_adapter),
    "PEFT adapter without its base": Folder(adapter_without_its_base, "gone"),
    "PEFT adapter that cannot be merged": Folder(adapter_that_cannot_be_merged, "cannot be merged"),
    "more tokens than embeddings": Folder(more_tokens_than_embeddings, "embeddings"),
    "padding token after the embeddings": Folder(unused_pad_token),
    "classification model": Folder(classifier, "LlamaForSequenceClassification"),
    "weights without a head": Folder(without_a_head, "lm_head.weight"),
    "encoder and decoder": Folder(encoder, "T5ForConditionalGeneration"),
    "Git LFS pointer": Folder(lfs_pointer, "git lfs pull"),
    "Git LFS pointer for the tokenizer": Folder(lfs_tokenizer, "git lfs pull"),
    "safetensors cut off": Folder(cut_off, "model.safetensors"),
    "safetensors damaged": Folder(damaged, "model.safetensors"),
    "one shard missing": Folder(missing_shard, "model-00001-of"),
    "no tokenizer": Folder(no_tokenizer, "no tokenizer"),
    "no config.json": Folder(no_config, "config.json"),
    "broken config.json": Folder(broken_config, "config.json"),
    "no weights": Folder(no_weights, "no weights"),
    "unknown architecture": Folder(unknown_type, "brand_new"),
    "code of its own": Folder(own_code, "code of its own"),
    "pickled weights": Folder(pickled),
    "pickle that runs code": Folder(hostile_pickle, "hold more than tensors"),
    "160 learned positions": Folder(small_window),
    "empty folder": Folder(empty, "is empty"),
    "missing folder": Folder(missing, "does not exist"),
    "a text file": Folder(a_text_file, "is a file"),
    "GGUF file": Folder(gguf_file),
    "GGUF folder": Folder(gguf_folder),
    "two GGUF files": Folder(two_ggufs, "several GGUF files"),
    "damaged GGUF file": Folder(damaged_gguf, "tiny.gguf"),
}
