"""Is what the chat serves what was trained? The chat decodes a version in a number format of its own; this measures how
far that is from the policy, on the policy's own replies.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from playground.decoding.forward import AnyForward
from training.rollout import Episode

EPISODES = 8  # of the gate's; logits over the whole vocabulary are compared


@torch.no_grad()
def divergence(model: PreTrainedModel, forward: AnyForward, episodes: Sequence[Episode]) -> float:
    """Mean KL(trained ‖ served) in nats a token, at temperature 1: `model` as it was trained, `forward` as the decoder
    reads it (a forward of `playground/decoding`).
    """
    total = 0.0
    tokens = 0
    device = next(model.parameters()).device
    for episode in episodes[:EPISODES]:
        prompt, reply = episode.prompt, episode.completion
        ids = torch.tensor([prompt + reply], device=device)  # (1, P + T)
        trained_logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        trained = torch.log_softmax(trained_logits.float(), -1)  # (T, V)
        cache = forward.new_cache(1, len(prompt), len(reply))
        while len(cache.prompt) < len(prompt):
            logits = forward.prefill(cache, prompt[len(cache.prompt) :][: forward.prefill_chunk])[None]
        for position, token in enumerate(reply):
            served = torch.log_softmax(logits, -1)[0]  # (V,)
            total += (trained[position].exp() * (trained[position] - served)).sum().item()
            if position + 1 < len(reply):
                logits = forward.decode([cache], [token])
        tokens += len(reply)
        forward.finish(cache)
    return total / max(tokens, 1)
