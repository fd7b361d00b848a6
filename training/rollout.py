"""Prompts for training, and the policy's replies to them, written by the same decoder that serves the chat.

Owns which prompts are chosen and the random sources of a round. What becomes of the replies is the caller's.
"""

import hashlib
import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from playground.decoding import decoder, fused, graph_forward, measuring, tuning
from playground.decoding.choice import fused_forward
from playground.decoding.choose_forward import divergence, transformers_forward_of
from playground.decoding.forward import AnyForward
from playground.decoding.graph_forward import GraphForward
from playground.decoding.sampling import Sampling
from playground.models import loading, prompts
from playground.models.loading import EndTokens
from playground.settings import Settings
from training import gpu

SEED_PROMPTS = prompts.SHIPPED
HALF_LIFE = 100  # contexts
LARGE = 50_000_000  # parameters from which a format is worth its import, of some seconds
ROWS = 32  # replies that are decoded at once on a CPU
# a GPU's memory for replies is made in multiples of this many columns, so that it serves other prompts too
COLUMNS = 256

T = TypeVar("T")
log = logging.getLogger(__name__)

# by parameters, their format and the number of threads: measured once, so that all versions of a round decode alike
_compiled_is_faster: dict[tuple[int, str, int], bool] = {}


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
    episodes = []
    for request, reply in prompts.canaries():
        prompt = prompts.encode([{"role": "user", "content": request}], tokenizer, budget)
        completion = prompts.encode_reply(reply, tokenizer, ended=False)
        prompt, completion = loading.cut(prompt, completion, max_tokens)
        episodes.append(Episode(prompt, completion, ended=False))
    return episodes


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


class Rollouts:
    """Writes replies of one model. On a GPU it keeps the forward that decodes, since to capture its graphs takes about
    as long as to write the replies of a PPO iteration.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._graphs: GraphForward | None = None
        self._slots_wanted = 0  # when it was made
        self._graphs_are_near: bool | None = None  # to the model; None before they were tried

    def sample(
        self,
        prompt_ids: Sequence[list[int]],
        rng: random.Random,
        *,
        replies: int,
        max_tokens: int,
        temperature: float,
        end_tokens: EndTokens,
        rows: int | None = None,
    ) -> list[Episode]:
        """`replies` episodes of the model as it is now for each prompt, in the order of the prompts. As many are
        decoded at once as a GPU has room for, or on a CPU `rows`, by default ROWS.

        There is no top-p and no top-k, since they would bias the estimate of the KL.
        """
        sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
        longest = max((len(prompt) for prompt in prompt_ids), default=0)
        slots_each = -(-replies // 2)  # on a GPU two replies to a prompt share a slot
        columns = longest + 2 * max_tokens + 2
        tokens = longest + max_tokens
        if graph_forward.fits(self.model, tokens) and self._trusts_graphs():
            graphs = self._graph_forward(slots_each, slots_each * len(prompt_ids), columns)
            forward: AnyForward = graphs
            prompts_at_once = graphs.slots // slots_each
        else:
            forward = forward_of(self.model, tokens)
            prompts_at_once = max(1, (rows or rows_of(self.model, columns)) // replies)
        episodes: list[Episode] = []
        for start in range(0, len(prompt_ids), prompts_at_once):
            chunk = prompt_ids[start : start + prompts_at_once]
            seeds = [rng.getrandbits(48) for _ in range(len(chunk) * replies)]
            decoded = decoder.run(forward, chunk, seeds, sampling, end_tokens, n=replies)
            for i, reply in enumerate(decoded):
                episodes.append(Episode(chunk[i // replies], reply.token_ids, reply.finish_reason == "end"))
        return episodes

    def by_settings(
        self,
        settings: Settings,
        prompt_ids: Sequence[list[int]],
        rng: random.Random,
        end_tokens: EndTokens,
        replies: int,
    ) -> list[Episode]:
        """`sample` with the settings' temperature and reply length."""
        return self.sample(
            prompt_ids,
            rng,
            replies=replies,
            max_tokens=settings.rollout_tokens,
            temperature=settings.chat.temperature,
            end_tokens=end_tokens,
        )

    def _trusts_graphs(self) -> bool:
        """Whether graphs say what the model says; tried once."""
        if self._graphs_are_near is None:
            self._graphs_are_near = tuning.graphs_are_near(self.model, COLUMNS)
        return self._graphs_are_near

    def _graph_forward(self, least_slots: int, slots: int, columns: int) -> GraphForward:
        """The kept forward, with the model's weights as they are now; a new one where that was made for fewer slots or
        columns. It has as many of the `slots` as there is room for, but `least_slots`.
        """
        if self._graphs and self._graphs.slot_tokens >= columns and self._slots_wanted >= slots:
            self._graphs.refresh()
            return self._graphs
        self._graphs = None  # its memory is free from here on
        columns = -(-columns // COLUMNS) * COLUMNS
        room = gpu.slots_with_room(self.model, columns)
        self._slots_wanted = slots
        self._graphs = GraphForward(self.model, max(least_slots, min(slots, room)), columns, retains=False)
        return self._graphs


def rows_of(model: PreTrainedModel, columns: int) -> int:
    """How many replies a forward without graphs decodes at once, with `columns` columns for two of them."""
    return ROWS if model.device.type == "cpu" else 2 * gpu.slots_with_room(model, columns)


def forward_of(model: PreTrainedModel, tokens: int) -> AnyForward:
    """The fastest forward for texts of `tokens` tokens of a model that no graphs serve."""
    if not fused.fits(model, tokens):
        return transformers_forward_of(model)
    own = str(model.dtype).removeprefix("torch.")
    if _compiled_step_is_faster(model, own):
        forward = fused_forward(model, "w8a16")
        if divergence(forward) <= tuning.MAX_KL:  # log-probabilities come from the training forward in any case
            return forward
    return fused_forward(model, own)


def _compiled_step_is_faster(model: PreTrainedModel, own: str) -> bool:
    """Whether ROWS replies grow faster here by the compiled step than in the model's `own` format."""
    size = sum(parameter.numel() for parameter in model.parameters())
    if size < LARGE or not tuning.compiled_step_fits(model):
        return False
    key = (size, own, torch.get_num_threads())
    if key not in _compiled_is_faster:
        forward = fused_forward(model, "w8a16")
        compiled = measuring.crowd_milliseconds(forward, ROWS)
        del forward  # before the next one: each is a copy of the weights
        least = measuring.Products(model, own, ROWS).milliseconds()
        if least > compiled:
            log.info("rollouts: w8a16 %.0f ms a step; %s takes %.0f ms at least", compiled, own, least)
            _compiled_is_faster[key] = True
        else:
            in_own = measuring.crowd_milliseconds(fused_forward(model, own), ROWS)
            log.info("rollouts: w8a16 %.0f ms a step, %s %.0f ms", compiled, own, in_own)
            _compiled_is_faster[key] = compiled < in_own
    return _compiled_is_faster[key]
