"""A model and a tokenizer that fit in a test: random weights from a fixed seed, a byte-level BPE trained in this
process. No network, no files.
"""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = (
    "You are a helpful assistant. What is the capital of France? The capital of France is Paris. Please write a short "
    "story about you and me. "
    "How do I sleep well? Here are three things that you can do: read a book, go to bed early, and turn the light off. "
    "I think that this is a "
    "good answer, and the other one is not as good, because it is long and says nothing. user assistant system Hello "
    "there, how are you today? "
)


def tiny_tokenizer():
    """A byte-level BPE (any text goes there and back) with SmolLM2's kind of chat template; `<|im_end|>` ends a reply
    and pads.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([CORPUS], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_model(tokenizer=None, seed=0):
    """A random Llama of four blocks in fp32, in eval mode and frozen, as `models.load_trunk` returns it."""
    tokenizer = tokenizer or tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return model.float().eval().requires_grad_(False)


def tiny_folder(path, seed=0):
    """Save both as a folder that `--model` takes; returns `path`."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(path)
    tiny_model(tokenizer, seed).save_pretrained(path)
    return path
