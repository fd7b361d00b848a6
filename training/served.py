"""Is what is served what was trained? The chat runs a version in a number format of its own; how far that is from the
policy, on its own replies.
"""

import torch

EPISODES = 8  # of the gate's; logits of the whole vocabulary are compared


@torch.no_grad()
def divergence(model, forward, episodes):
    """Mean KL(trained ‖ served) in nats a token: `model` as it was trained against `forward`, which decodes it, both at
    temperature 1.
    """
    total = tokens = 0
    for episode in episodes[:EPISODES]:
        prompt, reply = episode.prompt, episode.completion
        ids = torch.tensor([prompt + reply], device=next(model.parameters()).device)
        trained = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float(), -1)
        cache = forward.new_cache(1, len(prompt), len(reply))
        while len(cache.prompt) < len(prompt):
            logits = forward.prefill(cache, prompt[len(cache.prompt) :][: forward.prefill_chunk])[None]
        for at, token in enumerate(reply):
            served = torch.log_softmax(logits, -1)[0]
            total += (trained[at].exp() * (trained[at] - served)).sum().item()
            if at + 1 < len(reply):
                logits = forward.decode([cache], [token])
        tokens += len(reply)
        forward.finish(cache)
    return total / max(tokens, 1)
