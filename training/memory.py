"""Memory of a training process that lives beside a chat: what it freed goes back to the system."""

import ctypes
import os

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from playground import models

MAPPED, TRIMMED = 8 << 20, 1 << 20  # bytes: blocks mapped one by one, and free space at the top of the heap that is given back
PRIMITIVES = "32"  # of 1,024: oneDNN keeps the scratch memory of every shape it has multiplied, and in PPO every batch has its own


def return_freed():
    """To be called before the first matrix product. Have blocks from 8 MB on mapped one by one, and given back when freed: PPO's activations, of
    another size in every batch, otherwise fragment the heap, and the peak nearly doubles. From 1 MB on it would cost a tenth of the time."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PRIMITIVES)  # read by oneDNN at its first product
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        libc.mallopt(mmap_threshold, MAPPED)
        libc.mallopt(trim_threshold, TRIMMED)


def trim():
    """Give back the free pages inside the heap; at the end of a phase or an iteration, a few milliseconds."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


class NotEnoughMemory(Exception):
    """The GPU has no room for a round; the message says what it needs and what to do."""


def gpu_need(settings):
    """About how many bytes a round takes on a GPU: the policy's trunk, the reward model's, LoRA with Adam's moments, and one microbatch's activations."""
    config = AutoConfig.from_pretrained(models.resolve(settings))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = sum(p.numel() for p in model.parameters())
    width, depth = model.get_input_embeddings().embedding_dim, len(models.blocks(model))
    lora = sum(settings.lora_rank * (m.in_features + m.out_features) for m in models.blocks(model).modules() if isinstance(m, torch.nn.Linear))
    tokens = settings.ppo_microbatch * (settings.rollout_context + settings.rollout_tokens)
    reward = {"nf4": 0.6, "int8": 1.1, "none": 2.0}[settings.reward_quantisation]
    activations = tokens * width * depth * 50 + 3 * 4 * settings.ppo_microbatch * settings.rollout_tokens * config.get_text_config().vocab_size
    return int(weights * (2 + reward) + 16 * lora + activations)


def check_gpu(settings):
    """NotEnoughMemory unless the GPU, if training runs on one, has free what a round needs."""
    device = models.device_of(settings)
    if device.type != "cuda":
        return
    free, need = torch.cuda.mem_get_info(device)[0], gpu_need(settings)
    if free < need:
        raise NotEnoughMemory(f"The GPU has {free / 1e9:.1f} GB free and a round needs about {need / 1e9:.1f} GB. End other programs on it, or lower "
                              f"--ppo-microbatch (now {settings.ppo_microbatch}) or --rollout-context (now {settings.rollout_context}).")
