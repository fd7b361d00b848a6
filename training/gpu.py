"""How much GPU memory a round needs, whether that much is free, and what more of it is good for."""

import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from playground.models import loading, sources, structure
from playground.settings import Settings
from playground.system import memory
from training import ppo_math, rollout

REWARD_BYTES = {"nf4": 0.6, "int8": 1.1}  # of a quantised weight, with its scales
ROOM = 0.5  # of the free memory that a round may need with larger microbatches


class NotEnoughMemory(Exception):
    """The GPU has no room for a round; the message says what it needs and what to do."""


def need(settings: Settings) -> int:
    """About how many bytes a round takes on a GPU: the policy's trunk, the reward model's, the LoRA with Adam's
    moments, and the larger one of what an update and a rollout need beside them: the activations of one microbatch, or
    keys and values.
    """
    config = loading.load_config(sources.source_of(settings))
    text = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    blocks = structure.blocks(model)
    weights = sum(parameter.numel() for parameter in model.parameters())
    width = model.get_input_embeddings().embedding_dim
    linear = [module for module in blocks.modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    in_blocks = sum(module.weight.numel() for module in linear)  # quantisation leaves embeddings and head as they are
    lora = sum(settings.ppo.lora_rank * sum(module.weight.shape) for module in linear)
    tokens = settings.ppo.microbatch * (settings.ppo.rollout_context + settings.rollout_tokens)
    head_rows = min(settings.ppo.microbatch * settings.rollout_tokens, ppo_math.HEAD_ROWS_GPU)
    bytes_a_weight = loading.trunk_dtype(settings).itemsize
    reward_bytes = REWARD_BYTES.get(settings.reward.quantisation, bytes_a_weight)
    trunks = weights * bytes_a_weight + (weights - in_blocks) * bytes_a_weight + in_blocks * reward_bytes
    activations = tokens * width * len(blocks) * 25 * bytes_a_weight
    logits = 2 * (bytes_a_weight + 4 + 4) * head_rows * text.vocab_size  # of policy and reference
    all_heads = getattr(text, "num_attention_heads", 1)  # a state-space model has none, and less to keep
    heads = getattr(text, "num_key_value_heads", None) or all_heads
    kv_width = heads * (getattr(text, "head_dim", None) or width // all_heads)
    rollout_tokens = rollout.ROWS_GPU * (settings.ppo.rollout_context + settings.rollout_tokens)
    keys_values = 2 * len(blocks) * kv_width * bytes_a_weight * rollout_tokens
    return int(trunks + 16 * lora + max(activations + logits, keys_values))


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, with what this process has freed and torch's allocator still keeps."""
    memory.release()
    free, _total = torch.cuda.mem_get_info(device)
    return free


def check(settings: Settings) -> None:
    """NotEnoughMemory if training runs on a GPU that has less memory free than a round needs."""
    device = loading.device_of(settings)
    if device.type != "cuda":
        return
    free = free_bytes(device)
    needed = need(settings)
    if free < needed:
        raise NotEnoughMemory(
            f"The GPU has {free / 1e9:.1f} GB free and a round needs about {needed / 1e9:.1f} GB. End other programs "
            f"on it, or lower --ppo.microbatch (now {settings.ppo.microbatch}) or --ppo.rollout-context (now "
            f"{settings.ppo.rollout_context})."
        )


def with_room_used(settings: Settings) -> Settings:
    """The settings with PPO's microbatches as large as its minibatches, where training runs on a GPU with room for
    them. That changes no update, and takes a quarter of the time: a GPU is kept waiting by each of a small
    microbatch's kernels.
    """
    device = loading.device_of(settings)
    if device.type != "cuda" or settings.ppo.microbatch >= settings.ppo.minibatch:
        return settings
    larger = settings.with_values(ppo={"microbatch": settings.ppo.minibatch})
    return larger if need(larger) < ROOM * free_bytes(device) else settings
