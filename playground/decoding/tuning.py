"""Which number format and how many threads decode fastest here: measured in a few seconds at the first start, then
remembered for this machine and model. And what to tell people where that is too slow.

How it is measured is `measuring.py`'s, what is remembered `kept_choices.py`'s.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from math import inf

import torch
from transformers import PreTrainedModel

from playground.decoding import fused, graph_forward, llama, measuring
from playground.decoding.choice import Choice, fused_forward
from playground.decoding.choose_forward import divergence, kl, most_divergence
from playground.decoding.forward import AnyForward, TokenIds
from playground.decoding.graph_forward import GraphForward
from playground.decoding.kept_choices import KeptChoices
from playground.decoding.number_formats import FORMATS, Int4Weight
from playground.models import structure
from playground.models.loading import BaseIdentity
from playground.settings import Settings
from playground.system import compiling, safe_logging
from playground.system.messages import Message
from playground.system.safe_logging import Loggable

log = logging.getLogger(__name__)

MAX_KL = 0.01  # nats; a format further from the model than this is not chosen
# among which one is chosen where the settings name none; the one that is mostly the fastest comes first, since what
# cannot be faster is then seen from a few products
AUTO_FORMATS = ("w8a16", "int8", "bfloat16", "float32")
MAX_KL_CONFIGURED = 0.3  # nats; of a format that the settings name, what rounding alone does not exceed
SLOW = 5.0  # tokens a second of each reply; people read about as fast


def compiled_step_fits(model: PreTrainedModel) -> bool:
    """Whether `w8a16` serves the model on this machine; the log says why not."""
    compiling.wait()
    try:
        compiling.imported(compiling.MODULE)
        from playground.decoding import w8a16

        fits = w8a16.fits(model)
    except Exception as error:  # no numba, no OpenMP in torch, no folder that compiled code can be kept in
        log.warning(
            "the compiled step cannot be used here, other formats are: %s: %s", Loggable(type(error).__name__), error
        )
        return False
    if not fits:
        log.warning("the compiled step has no tiles for this model's sizes; other formats are used")
    return fits


def int4_fits(model: PreTrainedModel) -> bool:
    """Whether the weights of the model's blocks have sizes that can be packed in int4."""
    linears = (layer for layer in structure.blocks(model)[0].modules() if isinstance(layer, torch.nn.Linear))
    return all(Int4Weight.fits(layer.out_features, layer.in_features) for layer in linears)


def _formats(settings: Settings, model: PreTrainedModel) -> tuple[str, ...]:
    """The formats among which one is chosen."""
    if settings.decode_format == "int4" and not int4_fits(model):
        log.warning("int4 cannot pack weights of this model's sizes; other formats are used")
    elif settings.decode_format not in ("auto", "w8a16"):
        return (settings.decode_format,)
    if not compiled_step_fits(model):
        return AUTO_FORMATS[1:]
    return ("w8a16",) if settings.decode_format == "w8a16" else AUTO_FORMATS


def choose(settings: Settings, model: PreTrainedModel, identity: BaseIdentity) -> Choice:
    """The Choice for `model`: what the settings say, else what was measured here before, else a measurement."""
    tokens = settings.chat.context_tokens + settings.chat.reply_tokens
    if settings.decode_format != "plain" and graph_forward.fits(model, tokens):
        return _on_gpu(settings, model)
    if settings.decode_format == "plain" or not fused.fits(model, tokens):
        return Choice("plain", settings.threads)
    formats = _formats(settings, model)
    kept = KeptChoices(settings, model, identity, formats)
    choice = kept.choice()
    if choice is None:
        choice = _measure(settings, model, formats)
        kept.keep(choice)
    if choice.number_format == "plain":
        log.warning(
            "no number format says what the model says: decoding with transformers' own forward, which is slower"
        )
        return choice
    log.info(
        "decoding in %s on %d threads, %.1f ms a step of two replies",
        Loggable(choice.number_format),
        choice.threads,
        choice.milliseconds,
    )
    return choice


def _on_gpu(settings: Settings, model: PreTrainedModel) -> Choice:
    """The graph forward where it says what the model says, with room for as many pairs of the longest replies as the
    setting for keys and values holds, and at least for one message's.
    """
    chat = settings.chat
    slot_tokens = chat.context_tokens + 2 * chat.reply_tokens + 2
    forward = GraphForward(model, 2, slot_tokens)
    nats = divergence(forward)
    if not _is_near(forward, nats):
        return Choice("plain", settings.threads)
    slots = (settings.kv_cache_mb << 20) // forward.cache_bytes(1, slot_tokens, 0)
    needed = -(-chat.candidates // 2)
    choice = Choice(
        "graph", settings.threads, None, nats, max(needed, min(slots, graph_forward.MAX_SLOTS)), slot_tokens
    )
    log.info(
        "decoding %d pairs of replies at once with kernels of %s, KL to the model %.2g nats",
        choice.slots,
        Loggable(forward.lean.kernels.name),
        nats,
    )
    return choice


def graphs_are_near(model: PreTrainedModel, slot_tokens: int) -> bool:
    """Whether the graph forward, with slots of `slot_tokens` columns, agrees with the model; the log says if not."""
    forward = GraphForward(model, 2, slot_tokens)
    return _is_near(forward, divergence(forward))


def _is_near(forward: GraphForward, nats: float) -> bool:
    if nats <= most_divergence(forward.lean.dtype):
        return True
    log.warning("the graph forward is %.3g nats from the model: decoding with transformers' own, which is slower", nats)
    return False


def _measure(settings: Settings, model: PreTrainedModel, formats: tuple[str, ...]) -> Choice:
    """The fastest of the formats that are near enough to the model, and its number of threads; transformers' own
    forward where none is.
    """
    # in a longer text than any here, the model may have other frequencies
    longest = settings.chat.context_tokens + settings.chat.reply_tokens
    ids = measuring.random_ids(model, min(measuring.CONTEXT_TOKENS, longest))
    truth = measuring.next_token(model, ids)
    fastest: Choice | None = None
    for number_format in formats:
        best = inf if fastest is None or fastest.milliseconds is None else fastest.milliseconds
        most = _most_nats(model, number_format, len(formats) == 1)
        thread_counts = _that_may_win(model, number_format, sorted({1, settings.threads}), best)
        if not thread_counts:
            continue
        forward = fused_forward(model, number_format)
        # One token's KL is measured anyway. That is enough for models without parts of their own.
        nats_of_replies = 0.0 if llama.is_plain(model) else divergence(forward)
        runs = nats_of_replies < inf
        measurements = measuring.measure(forward, ids, truth, thread_counts, best) if runs else ()
        for measured in measurements:
            nats = max(measured.nats, nats_of_replies)
            log.info(
                "%s on %d threads: %.1f ms a step, KL to the model %.4f nats a token",
                Loggable(number_format),
                measured.threads,
                measured.milliseconds,
                nats,
            )
            if nats <= most and measured.milliseconds < best:
                best = measured.milliseconds
                fastest = Choice(number_format, measured.threads, round(best, 2), round(nats, 6))
        if fastest and fastest.number_format == number_format:
            fastest = _with_prefill(fastest, forward, ids, truth)
        del forward, measurements  # before the next one takes as much memory
    return fastest or Choice("plain", settings.threads)


def _with_prefill(choice: Choice, forward: fused.FusedForward, ids: TokenIds, truth: torch.Tensor) -> Choice:
    """The choice, whose prompts go through the packed weights too where that is faster and within MAX_KL of the model.
    A format that the settings name may be further from it, but not in order to be faster.
    """
    with measuring.on_threads(choice.threads):
        if not measuring.prefills_faster_packed(forward):
            return choice
        forward.prefills_packed = True
        logits = forward.prefill(forward.new_cache(1, len(ids), 1), list(ids))
        nats = max(kl(truth, logits), 0.0 if llama.is_plain(forward.model) else divergence(forward))
    log.info(
        "%s reads prompts faster through the packed weights, KL to the model %.4f nats a token",
        Loggable(choice.number_format),
        nats,
    )
    if nats > MAX_KL:
        return choice
    return replace(choice, prefills_packed=True, nats=round(max(nats, choice.nats or 0.0), 6))


def _most_nats(model: PreTrainedModel, number_format: str, configured: bool) -> float:
    """How far from the model a format may be; `configured`: the settings name it."""
    if number_format == "float32":  # which rounds no more than the model
        return most_divergence(model.dtype)
    return MAX_KL_CONFIGURED if configured else MAX_KL


def _that_may_win(
    model: PreTrainedModel, number_format: str, thread_counts: Sequence[int], best: float
) -> Sequence[int]:
    """The numbers of threads on which a step in this format may take less than `best` milliseconds. Where it takes far
    longer on many threads, fewer are not asked.
    """
    if best == inf or number_format not in FORMATS:
        return thread_counts
    products = measuring.Products(model, number_format)
    left = []
    for threads in sorted(thread_counts, reverse=True):
        with measuring.on_threads(threads):
            least = products.milliseconds()
        if least < best:
            left.append(threads)
            continue
        log.info("%s on %d threads: products alone take %.1f ms a step", Loggable(number_format), threads, least)
        if least > measuring.FAR * best:
            break
    return sorted(left)


def timed(choice: Choice, forward: AnyForward) -> Choice:
    """The choice with the time of a step also where transformers' own forward decodes, which `choose` does not run."""
    if choice.number_format != "plain":
        return choice
    try:
        return replace(choice, milliseconds=round(measuring.plain_milliseconds(forward), 2))
    except Exception as error:  # a model of any kind may raise anything; its turns then say so
        log.warning("a step could not be timed: %s", safe_logging.describe_error(error))
        return choice


def slowness(choice: Choice, settings: Settings) -> Message | None:
    """What to tell people where replies grow more slowly than they read; None elsewhere."""
    if choice.milliseconds is None or 1e3 / choice.milliseconds >= SLOW:
        return None
    rate = f"{1e3 / choice.milliseconds:.1f}"
    if settings.decode_format == "auto":
        return Message(
            "With this model, a reply grows by about {rate} {rate:token|tokens} a second here, more slowly than people "
            "read. A smaller model (--model) or a GPU helps.",
            rate=rate,
        )
    return Message(
        "With this model, a reply grows by about {rate} {rate:token|tokens} a second here, more slowly than people "
        "read. A smaller model (--model), --decode-format auto or a GPU helps.",
        rate=rate,
    )
