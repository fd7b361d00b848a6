"""How much GPU memory a round needs, whether that much is free, and what more of it is good for."""

import logging

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from playground.decoding.lean_model import MERGED_PARAMETERS
from playground.models import loading, sources, structure
from playground.settings import Settings
from playground.system import memory
from training import ppo_math

log = logging.getLogger(__name__)

QUANTISED_BYTES = {"nf4": 0.6, "int8": 1.1}  # of a quantised weight, with its scales
ROOM = 0.5  # of the free memory that a round may need with larger microbatches
# replies that a rollout decodes at once: as many as have room in a share of the free memory, at most and at least
MOST_ROWS = 256
LEAST_ROWS = 16
ROLLOUT_SHARE = 0.25
DRAWING_BYTES = 16  # of each logit of a row that a step draws a token from


class NotEnoughMemory(Exception):
    """The GPU has no room for a round; the message says what it needs and what to do."""


def need(settings: Settings) -> int:
    """About how many bytes a round takes on a GPU: the policy's trunk, the reward model's, the LoRA with Adam's
    moments, the activations of one microbatch, and what a rollout of LEAST_ROWS replies keeps: a copy of the blocks
    with the LoRA merged, and keys and values.
    """
    return need_of(loading.load_config(sources.source_of(settings)), settings)


def need_of(config: PretrainedConfig, settings: Settings) -> int:
    """`need` with a model of this config."""
    text = config.get_text_config()
    model = _without_weights(config)
    blocks = structure.blocks(model)
    weights = sum(parameter.numel() for parameter in model.parameters())
    width = structure.input_embeddings(model).embedding_dim
    linear = [module for module in blocks.modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    sizes = [int(module.weight.numel()) for module in linear]
    in_blocks = sum(sizes)  # quantisation leaves embeddings and head as they are
    lora = sum(settings.ppo.lora_rank * sum(module.weight.shape) for module in linear)
    tokens = settings.ppo.microbatch * (settings.ppo.rollout_context + settings.rollout_tokens)
    head_rows = min(settings.ppo.microbatch * settings.rollout_tokens, ppo_math.HEAD_ROWS_GPU)
    bytes_a_weight = loading.trunk_dtype(settings).itemsize
    trunks = _trunk_bytes(settings.ppo.quantisation, weights, in_blocks, bytes_a_weight)
    if not shares_trunk(settings):
        trunks += _trunk_bytes(settings.reward.quantisation, weights, in_blocks, bytes_a_weight)
    kept = len(blocks) * 25  # vectors for the backward, of each token
    if settings.ppo.gradient_checkpointing:
        kept = len(blocks) + 25  # the blocks' inputs, and all of one block
    activations = tokens * width * kept * bytes_a_weight
    if settings.ppo.quantisation != "none":
        activations += 2 * max(sizes) * bytes_a_weight  # dequantised
    logits = 2 * (bytes_a_weight + 4 + 4) * head_rows * text.vocab_size  # of policy and reference
    graphs = settings.ppo.quantisation == "none"
    merged = in_blocks * bytes_a_weight if graphs and weights <= MERGED_PARAMETERS else 0
    columns = settings.ppo.rollout_context + 2 * settings.rollout_tokens + 2
    rollout = LEAST_ROWS // 2 * slot_bytes(config, bytes_a_weight, columns)
    return int(trunks + 16 * lora + activations + logits + merged + rollout)


def _without_weights(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _trunk_bytes(quantisation: str, weights: int, in_blocks: int, bytes_a_weight: int) -> float:
    """Of a trunk; quantisation leaves embeddings and head as they are."""
    return (weights - in_blocks) * bytes_a_weight + in_blocks * QUANTISED_BYTES.get(quantisation, bytes_a_weight)


def shares_trunk(settings: Settings) -> bool:
    """Whether policy and reward model are in the same format and use one trunk: unquantised, the reward model's lacks
    the policy's attention, and loads one of its own.
    """
    return settings.ppo.quantisation == settings.reward.quantisation == "nf4"


def on_cpu(settings: Settings) -> Settings:
    """The settings for a trunk on the CPU, in the number format that it has on the device."""
    dtype = str(loading.trunk_dtype(settings)).removeprefix("torch.")
    return settings.with_values(device="cpu", dtype=dtype)


def where_unquantised_fits(settings: Settings) -> Settings:
    """The settings for an unquantised trunk beside what is loaded: on a GPU with room for it, else on the CPU."""
    device = loading.device_of(settings)
    if device.type != "cuda":
        return settings
    model = _without_weights(loading.load_config(sources.source_of(settings)))
    nbytes = sum(parameter.numel() for parameter in model.parameters()) * loading.trunk_dtype(settings).itemsize
    return settings if nbytes < ROOM * free_bytes(device) else on_cpu(settings)


def slot_bytes(config: PretrainedConfig, bytes_a_weight: int, columns: int) -> int:
    """What a rollout takes for two replies to a prompt: the keys and values of `columns` columns, and the logits of a
    step.
    """
    text = config.get_text_config()
    all_heads = getattr(text, "num_attention_heads", 1)  # a state-space model has none, and less to keep
    heads = getattr(text, "num_key_value_heads", None) or all_heads
    kv_width = heads * (getattr(text, "head_dim", None) or text.hidden_size // all_heads)
    kv_bytes = 2 * text.num_hidden_layers * kv_width * bytes_a_weight
    return columns * kv_bytes + 2 * DRAWING_BYTES * text.vocab_size


def slots_with_room(model: PreTrainedModel, columns: int) -> int:
    """How many pairs of replies with `columns` columns each a rollout on the model's GPU has room for, within
    LEAST_ROWS and MOST_ROWS.
    """
    room = int(ROLLOUT_SHARE * free_bytes(model.device)) // slot_bytes(model.config, model.dtype.itemsize, columns)
    return min(max(room, LEAST_ROWS // 2), MOST_ROWS // 2)


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
    log.info("needs about %.1f GB of the GPU, %.1f GB are free", needed / 1e9, free / 1e9)
    if free < needed:
        raise NotEnoughMemory(
            f"The GPU has {free / 1e9:.1f} GB free and a round needs about {needed / 1e9:.1f} GB. End other programs "
            f"on it, lower --ppo.microbatch (now {settings.ppo.microbatch}) or --ppo.rollout-context (now "
            f"{settings.ppo.rollout_context}), or take --ppo.quantisation nf4 and --ppo.gradient-checkpointing true."
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
