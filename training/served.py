"""Is what the chat serves what was trained? The chat decodes a version in a number format of its own; this measures how
far that is from the policy, on the policy's own replies.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from playground.decoding.forward import AnyForward
from training.rollout import Episode

EPISODES = 8  # of the gate's; logits over the whole vocabulary are compared
TOKENS = 48  # of each, which are decoded one after the other


def room(episodes: Sequence[Episode]) -> tuple[int, int]:
    """`slots` and `slot_tokens` that a `choice.Choice` needs so that its forward can decode what `divergence` does."""
    episodes = episodes[:EPISODES]
    longest = max((len(episode.prompt) + 2 * len(episode.completion) for episode in episodes), default=0)
    return max(len(episodes), 1), longest + 2


@torch.no_grad()
def divergence(model: PreTrainedModel, forward: AnyForward, episodes: Sequence[Episode]) -> float:
    """Mean KL(trained ‖ served) in nats a token, at temperature 1: `model` as it was trained, `forward` as the decoder
    reads it (a forward of `playground/decoding`), which decodes the beginnings of the replies together.
    """
    episodes = [Episode(episode.prompt, episode.completion[:TOKENS], False) for episode in episodes[:EPISODES]]
    to = next(forward.model.parameters()).device
    trained = [logprobs(model, episode).to(to) for episode in episodes]  # (T, V) each
    caches = []
    logits = []  # (V,) of each growing reply
    for episode in episodes:
        cache = forward.new_cache(1, len(episode.prompt), len(episode.completion))
        while len(cache.prompt) < len(episode.prompt):
            after_prompt = forward.prefill(cache, episode.prompt[len(cache.prompt) :][: forward.prefill_chunk])
        caches.append(cache)
        logits.append(after_prompt)
    total = torch.zeros((), device=trained[0].device)
    growing = [place for place, episode in enumerate(episodes) if episode.completion]
    position = 0
    while growing:
        for place, row in zip(growing, logits, strict=True):
            served = torch.log_softmax(row, -1)
            truth = trained[place][position]
            total += (truth.exp() * (truth - served)).sum()
        position += 1
        for place in growing:
            if len(episodes[place].completion) == position:
                caches[place].drop(0)
                forward.finish(caches[place])
        growing = [place for place in growing if len(episodes[place].completion) > position]
        if growing:
            tokens = [episodes[place].completion[position - 1] for place in growing]
            logits = list(forward.decode([caches[place] for place in growing], tokens))
    return total.item() / max(sum(len(episode.completion) for episode in episodes), 1)


def logprobs(model: PreTrainedModel, episode: Episode) -> torch.Tensor:
    """log π (T, V) at each token of a reply, over the whole vocabulary."""
    ids = torch.tensor([episode.prompt + episode.completion], device=next(model.parameters()).device)  # (1, P + T)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(episode.prompt) - 1 : -1]
    return torch.log_softmax(logits.float(), -1)
