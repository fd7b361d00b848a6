"""How much GPU memory a round needs, and whether that much is free."""

import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from playground.models import loading, sources, structure
from playground.settings import Settings


class NotEnoughMemory(Exception):
    """The GPU has no room for a round; the message says what it needs and what to do."""


def need(settings: Settings) -> int:
    """About how many bytes a round takes on a GPU: the policy's trunk, the reward model's, the LoRA with Adam's
    moments, and the activations of one microbatch.
    """
    config = loading.load_config(sources.source_of(settings))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    blocks = structure.blocks(model)
    weights = sum(parameter.numel() for parameter in model.parameters())
    width = model.get_input_embeddings().embedding_dim
    linear = [module for module in blocks.modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    lora = sum(settings.ppo.lora_rank * sum(module.weight.shape) for module in linear)
    tokens = settings.ppo.microbatch * (settings.ppo.rollout_context + settings.rollout_tokens)
    reply_tokens = settings.ppo.microbatch * settings.rollout_tokens
    policy_bytes_a_weight = 2
    reward_bytes_a_weight = {"nf4": 0.6, "int8": 1.1, "none": 2.0}[settings.reward.quantisation]
    activations = tokens * width * len(blocks) * 50
    logits = 3 * 4 * reply_tokens * config.get_text_config().vocab_size
    return int(weights * (policy_bytes_a_weight + reward_bytes_a_weight) + 16 * lora + (activations + logits))


def check(settings: Settings) -> None:
    """NotEnoughMemory if training runs on a GPU that has less memory free than a round needs."""
    device = loading.device_of(settings)
    if device.type != "cuda":
        return
    free, _total = torch.cuda.mem_get_info(device)
    needed = need(settings)
    if free < needed:
        raise NotEnoughMemory(
            f"The GPU has {free / 1e9:.1f} GB free and a round needs about {needed / 1e9:.1f} GB. End other programs "
            f"on it, or lower --ppo.microbatch (now {settings.ppo.microbatch}) or --ppo.rollout-context (now "
            f"{settings.ppo.rollout_context})."
        )
