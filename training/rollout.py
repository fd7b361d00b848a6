"""Prompts for training and the policy's replies to them, made with the same decoder that serves the chat."""

import hashlib
import math
import random
from dataclasses import dataclass

from playground.decoding import decoder, fused
from playground.decoding.choose_forward import transformers_forward_of
from playground.decoding.sampling import Sampling
from playground.models import loading, prompts

SEED_PROMPTS = prompts.SHIPPED
HALF_LIFE = 100  # contexts


@dataclass
class Episode:
    """One reply of the policy: prompt ids, completion ids (with the end token where it ended), and whether it ended by
    itself.
    """

    prompt: list
    completion: list
    ended: bool


def seed_prompts(part, tokenizer, budget):
    """The shipped first messages (`train` or `heldout`) as prompt ids, those that fit; BadMessage where none does."""
    lines = (SEED_PROMPTS / f"{part}.txt").read_text(encoding="utf-8").splitlines()
    return prompts.encode_those_that_fit([line for line in lines if line.strip()], tokenizer, budget)


def canaries(tokenizer, budget, most=None):
    """The shipped plain requests with a plain reply each, as Episodes; what a sound policy still finds likely. Without
    the end of the reply, which becomes unlikely where the votes favour longer ones. Cut to the `most` tokens that the
    model takes.
    """
    found = []
    for request, reply in prompts.canaries():
        prompt = prompts.encode([{"role": "user", "content": request}], tokenizer, budget)
        found.append(Episode(*loading.cut(prompt, prompts.encode_reply(reply, tokenizer, ended=False), most), False))
    return found


def choose(people, seeds, n, rng):
    """`n` distinct prompts, or as many as there are: up to half of them contexts that people had, given from the oldest
    to the latest, and likelier the later; the rest shipped ones."""
    own = recent(people, min(len(people), n // 2), rng)
    return own + rng.sample(seeds, min(len(seeds), n - len(own)))


def recent(items, n, rng):
    """`n` distinct ones of `items`, ordered from the oldest; one is half as likely as another HALF_LIFE places after it
    (Gumbel's top n).
    """
    keys = [place * math.log(2) / HALF_LIFE - math.log(rng.expovariate(1)) for place in range(len(items))]
    return [items[place] for place in sorted(range(len(items)), key=keys.__getitem__, reverse=True)[:n]]


def generator(*key):
    """A random source that depends on the key alone, so that a resumed round draws what an unbroken one would have
    drawn.
    """
    return random.Random(hashlib.sha256("/".join(map(str, key)).encode()).digest())


def sample(model, prompt_ids, rng, *, replies, max_tokens, temperature, end_tokens, rows=32):
    """`replies` episodes to each prompt, in order, decoding at most `rows` rows at once. top_p = 1 and top_k = 0, or
    the KL estimate is biased.
    """
    sampling, episodes = Sampling(temperature=temperature, max_tokens=max_tokens), []
    forward = (
        fused.FusedForward(model, str(model.dtype).removeprefix("torch."))
        if fused.fits(model)
        else transformers_forward_of(model)
    )
    at_once = max(1, rows // replies)
    for start in range(0, len(prompt_ids), at_once):
        chunk = prompt_ids[start : start + at_once]
        seeds = [rng.getrandbits(48) for _ in range(len(chunk) * replies)]
        done = decoder.run(forward, chunk, seeds, sampling, end_tokens, n=replies)
        episodes += [
            Episode(chunk[i // replies], reply.token_ids, reply.finish_reason == "end") for i, reply in enumerate(done)
        ]
    return episodes
