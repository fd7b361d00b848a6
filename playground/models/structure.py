"""What a model is made of and what its forward takes, whatever its architecture."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from transformers import PretrainedConfig, PreTrainedModel


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


def window(config: PretrainedConfig) -> int | None:
    """How many tokens, its own among them, a token sees at least in every layer; None where it sees all before it."""
    text = config.get_text_config()
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
