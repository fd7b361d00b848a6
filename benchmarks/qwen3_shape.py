"""A model of Qwen3-0.6B's shape with random weights, made without a hub: as a folder that `--model` takes, and the same
weights as a GGUF for llama.cpp.

The norms' weights are random too, so that a file with two of them exchanged is another model.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config

QWEN3_600M = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "initializer_range": 0.02,
}
TINY = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "intermediate_size": 512,
    "vocab_size": 2048,
    "max_position_embeddings": 4096,
    "initializer_range": 0.04,  # products are as large as in the wide one
}
ROPE_THETA = 1e6
MATRICES = np.float16  # number format of matrices in the GGUF; vectors are in fp32

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_folder(folder: Path, shape: dict[str, Any]) -> None:
    """Write model (bf16) and tokenizer."""
    tokenizer = _tokenizer(shape["vocab_size"])
    config = Qwen3Config(
        **shape,
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.data += 0.5 * torch.rand_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Byte-level, of `size` tokens: the special ones, the bytes, and words that no text becomes."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"Ġword{i}" for i in range(size - len(tokens))]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[1:2]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_gguf(model: PreTrainedModel, file: Path) -> None:
    """The model for llama.cpp, in f16 and without a tokenizer. One matrix at a time is in memory beside the model."""
    config = model.config
    arch = gguf.MODEL_ARCH.QWEN3
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")  # llama.cpp makes up as many tokens

    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors = dict(model.named_parameters())  # without the head, which is the embeddings
    for name, tensor in tensors.items():
        dtype = np.dtype(MATRICES if tensor.dim() > 1 else np.float32)
        target = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor_info(target, list(tensor.shape), dtype, tensor.numel() * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors.values():
        writer.write_tensor_data(tensor.detach().float().numpy().astype(MATRICES if tensor.dim() > 1 else np.float32))
    writer.close()
