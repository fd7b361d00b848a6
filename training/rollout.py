"""Prompts for training, and the policy's replies to them, written by the same decoder that serves the chat.

Owns which prompts are chosen and the random sources of a round. What becomes of the replies is the caller's.
"""

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from playground.decoding import decoder, fused, graph_forward
from playground.decoding.choose_forward import transformers_forward_of
from playground.decoding.forward import AnyForward
from playground.decoding.graph_forward import GraphForward
from playground.decoding.sampling import Sampling
from playground.models import loading, prompts
from playground.models.loading import EndTokens

SEED_PROMPTS = prompts.SHIPPED
HALF_LIFE = 100  # contexts
ROWS = 32  # replies that are decoded at once on a CPU
ROWS_GPU = 256  # on a GPU, where a step takes about as long for many rows as for few

T = TypeVar("T")


@dataclass
class Episode:
    """One reply of the policy, as token ids."""

    prompt: list[int]
    completion: list[int]  # with the end token where the reply ended by itself
    ended: bool  # by itself, not at the token limit

    @property
    def reply(self) -> tuple[list[int], list[int]]:
        """Prompt and completion, as the reward model reads them."""
        return self.prompt, self.completion


def seed_prompts(part: str, tokenizer: PreTrainedTokenizerBase, budget: int) -> list[list[int]]:
    """The shipped first messages (`train` or `heldout`) as prompt ids: those that fit into `budget` tokens. BadMessage
    where none does.
    """
    lines = (SEED_PROMPTS / f"{part}.txt").read_text(encoding="utf-8").splitlines()
    return prompts.encode_those_that_fit([line for line in lines if line.strip()], tokenizer, budget)


def canaries(tokenizer: PreTrainedTokenizerBase, budget: int, max_tokens: int | None = None) -> list[Episode]:
    """The shipped plain requests, each with a plain reply that a sound policy still finds likely.

    The replies have no end token, since that becomes unlikely where the votes favour longer replies. Prompt and reply
    are cut to the `max_tokens` that the model takes.
    """
    found = []
    for request, reply in prompts.canaries():
        prompt = prompts.encode([{"role": "user", "content": request}], tokenizer, budget)
        completion = prompts.encode_reply(reply, tokenizer, ended=False)
        prompt, completion = loading.cut(prompt, completion, max_tokens)
        found.append(Episode(prompt, completion, ended=False))
    return found


def choose(contexts: Sequence[list[int]], seeds: Sequence[list[int]], n: int, rng: random.Random) -> list[list[int]]:
    """`n` distinct prompts, or as many as there are. Up to half of them are `contexts`, prompts that people had, given
    from the oldest to the latest, of which later ones are likelier. The rest are shipped prompts, `seeds`.
    """
    chosen = recent(contexts, min(len(contexts), n // 2), rng)
    return chosen + rng.sample(seeds, min(len(seeds), n - len(chosen)))


def recent(items: Sequence[T], n: int, rng: random.Random) -> list[T]:
    """Draw `n` distinct `items`, which are ordered from the oldest to the latest. An item is half as likely as the one
    HALF_LIFE places after it (Gumbel's top n).
    """
    keys = [place * math.log(2) / HALF_LIFE - math.log(rng.expovariate(1)) for place in range(len(items))]
    places = sorted(range(len(items)), key=keys.__getitem__, reverse=True)
    return [items[place] for place in places[:n]]


def generator(*key: object) -> random.Random:
    """A random source that depends on the key alone, so that a resumed round draws what an uninterrupted one would have
    drawn.
    """
    return random.Random(hashlib.sha256("/".join(map(str, key)).encode()).digest())


def sample(
    model: PreTrainedModel,
    prompt_ids: Sequence[list[int]],
    rng: random.Random,
    *,
    replies: int,
    max_tokens: int,
    temperature: float,
    end_tokens: EndTokens,
    rows: int | None = None,
) -> list[Episode]:
    """`replies` episodes for each prompt, in the order of the prompts; at most `rows` replies (by default ROWS or
    ROWS_GPU) are decoded at once.

    There is no top-p and no top-k, since they would bias the estimate of the KL.
    """
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
    episodes: list[Episode] = []
    if rows is None:
        rows = ROWS if model.device.type == "cpu" else ROWS_GPU
    prompts_at_once = max(1, rows // replies)
    longest = max((len(prompt) for prompt in prompt_ids), default=0)
    forward = forward_for(
        model, pairs=min(len(prompt_ids), prompts_at_once) * -(-replies // 2), tokens=longest + 2 * max_tokens + 2
    )
    for start in range(0, len(prompt_ids), prompts_at_once):
        chunk = prompt_ids[start : start + prompts_at_once]
        seeds = [rng.getrandbits(48) for _ in range(len(chunk) * replies)]
        decoded = decoder.run(forward, chunk, seeds, sampling, end_tokens, n=replies)
        for i, reply in enumerate(decoded):
            episodes.append(Episode(chunk[i // replies], reply.token_ids, reply.finish_reason == "end"))
    return episodes


def forward_for(model: PreTrainedModel, pairs: int, tokens: int) -> AnyForward:
    """The fastest forward of a model for rollouts. On a GPU it has room for so many pairs of replies, with `tokens`
    columns each: the prompt's, and one of each reply's in turn.
    """
    if graph_forward.fits(model):
        return GraphForward(model, pairs, tokens)
    if fused.fits(model):
        return fused.FusedForward(model, str(model.dtype).removeprefix("torch."))
    return transformers_forward_of(model)
