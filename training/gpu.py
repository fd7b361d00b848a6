"""What a round needs on a GPU, and whether it is free."""

import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from playground.models import loading, sources, structure


class NotEnoughMemory(Exception):
    """The GPU has no room for a round; the message says what it needs and what to do."""


def need(settings):
    """About how many bytes a round takes on a GPU: the policy's trunk, the reward model's, LoRA with Adam's moments,
    and one microbatch's activations.
    """
    config = loading.load_config(sources.source_of(settings))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = sum(p.numel() for p in model.parameters())
    width, depth = model.get_input_embeddings().embedding_dim, len(structure.blocks(model))
    lora = sum(
        settings.lora_rank * sum(m.weight.shape)
        for m in structure.blocks(model).modules()
        if isinstance(m, (torch.nn.Linear, Conv1D))
    )
    tokens = settings.ppo_microbatch * (settings.rollout_context + settings.rollout_tokens)
    reward = {"nf4": 0.6, "int8": 1.1, "none": 2.0}[settings.reward_quantisation]
    activations = (
        tokens * width * depth * 50
        + 3 * 4 * settings.ppo_microbatch * settings.rollout_tokens * config.get_text_config().vocab_size
    )
    return int(weights * (2 + reward) + 16 * lora + activations)


def check(settings):
    """NotEnoughMemory unless the GPU, if training runs on one, has free what a round needs."""
    device = loading.device_of(settings)
    if device.type != "cuda":
        return
    free, needed = torch.cuda.mem_get_info(device)[0], need(settings)
    if free < needed:
        raise NotEnoughMemory(
            f"The GPU has {free / 1e9:.1f} GB free and a round needs about {needed / 1e9:.1f} GB. End other programs "
            "on it, or lower "
            f"--ppo-microbatch (now {settings.ppo_microbatch}) or --rollout-context (now {settings.rollout_context})."
        )
