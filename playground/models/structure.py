"""What a model is made of and what its forward takes, whatever its architecture."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from transformers import PretrainedConfig, PreTrainedModel

# Causal LMs of which is known which layers' masks have the config's sliding window: it may name one for no layer, and
# what an attention has as an attribute does not count, since the masks come from the model.
WINDOWED_LAYERS = {
    "LlamaForCausalLM": "none",
    "MistralForCausalLM": "all",
    "Phi3ForCausalLM": "all",
    "Qwen2ForCausalLM": "by type",
    "Qwen3ForCausalLM": "by type",
    "SmolLM3ForCausalLM": "by type",
    "Gemma3ForCausalLM": "by type",
}


def blocks(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The list of transformer blocks of a decoder-only model: the longest list that is not inside another one (lists
    of experts are).
    """
    outer: dict[str, torch.nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and not any(name.startswith(f"{other}.") for other in outer):
            outer[name] = module
    return max(outer.values(), key=len)


def input_embeddings(model: PreTrainedModel) -> torch.nn.Embedding:
    return cast("torch.nn.Embedding", model.get_input_embeddings())


def output_embeddings(model: PreTrainedModel) -> torch.nn.Linear:
    """The head: hidden states to logits."""
    return cast("torch.nn.Linear", model.get_output_embeddings())


def positions(config: PretrainedConfig) -> int | None:
    """How many tokens a model takes at most; None where nothing bounds them (ALiBi, state-space models)."""
    text = config.get_text_config()
    if getattr(text, "alibi", False):
        return None
    return getattr(text, "max_position_embeddings", None)


def windows(model: PreTrainedModel) -> list[int | None]:
    """How many tokens, its own among them, a token sees in each layer of a model of WINDOWED_LAYERS; None in a layer
    where it sees all before it.
    """
    config = model.config
    layers = config.num_hidden_layers
    windowed = WINDOWED_LAYERS[type(model).__name__]
    if windowed == "none":
        return [None] * layers
    if windowed == "all":
        return [config.sliding_window] * layers
    types = config.layer_types[:layers]
    return [config.sliding_window if layer_type == "sliding_attention" else None for layer_type in types]


def window(model: PreTrainedModel) -> int | None:
    """How many tokens, its own among them, a token sees at least in every layer; None where it sees all before it."""
    if type(model).__name__ in WINDOWED_LAYERS:
        return min((window for window in windows(model) if window is not None), default=None)
    text = model.config.get_text_config()
    return getattr(text, "sliding_window", None) or getattr(text, "window_size", None)  # the latter is GPT-Neo's


def takes(model: torch.nn.Module, argument: str) -> bool:
    """Whether the model's forward has an argument of this name."""
    return argument in inspect.signature(type(model).forward).parameters


def inputs(model: torch.nn.Module, **arguments: Any) -> dict[str, Any]:
    """The arguments without `position_ids` where the model's forward takes none (ALiBi, state-space models)."""
    return {name: value for name, value in arguments.items() if name != "position_ids" or takes(model, name)}


@cache
def same_source(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two functions have the same source: transformers' models repeat what they have in common."""
    try:
        return inspect.getsource(one) == inspect.getsource(other)
    except (OSError, TypeError):  # written in C, or in a console
        return False
