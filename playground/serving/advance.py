"""Advances the turns that run by one step: a part of one prompt is read, and every growing reply gets a token.

How tokens are made is `playground/decoding`'s; here they become the texts of each turn's `Stream`. A turn that fails
fails alone: `fail(stream, error)` ends it, and the others have their token. All functions are for the engine's thread.
"""

from collections.abc import Callable

from playground.decoding import decoder
from playground.decoding.decoder import Decoding, Failure
from playground.serving.stream import Stream

Running = dict[Decoding, Stream]
Fail = Callable[[Stream, Exception], None]


def advance(running: Running, fail: Fail) -> None:
    """Prefill a part of the prompt that has waited longest, then add one token to every reply that grows, version by
    version.
    """
    _prefill(running, list(running), fail)
    for policy in dict.fromkeys(stream.policy for stream in running.values()):
        of_policy = [
            decoding for decoding, stream in running.items() if stream.policy is policy and not stream.finished.is_set()
        ]
        for failure in _step_policy(of_policy, running):
            fail(running[failure.decoding], failure.error)


def stop_replies(decoding: Decoding, stream: Stream, fail: Fail) -> None:
    """End the replies that somebody stopped one by one, where they are."""
    try:
        stopped = list(stream.stopped)
        for i in stopped:
            reply = decoding.replies[i]
            if not reply.finish_reason:
                decoding.end(reply, "stopped")
                stream.total_ms[i] = stream.elapsed_ms()
        stream.stopped.difference_update(stopped)
    except Exception as error:
        fail(stream, error)


def _prefill(running: Running, decodings: list[Decoding], fail: Fail) -> None:
    """Read the next part of the first of these prompts that is not read, and with it others where the forward can."""
    chosen = decoder.next_to_prefill(decodings)
    try:
        decoder.prefill(chosen)
    except Exception as error:
        if len(chosen) == 1:
            fail(running[chosen[0]], error)
            return
        for decoding in chosen:  # each by itself: one of them may be the cause
            _prefill(running, [decoding], fail)


def _step_policy(decodings: list[Decoding], running: Running) -> list[Failure]:
    """One token for each growing reply of one version; returns the turns that failed."""
    failures: list[Failure] = []
    try:
        added = decoder.step(decodings, failures)
    except Exception as error:
        return [Failure(decoding, error) for decoding in decodings]
    for decoding, i, token in added:
        try:
            _add_token(running[decoding], decoding, i, token)
        except Exception as error:
            failures.append(Failure(decoding, error))
    return failures


def _add_token(stream: Stream, decoding: Decoding, i: int, token: int) -> None:
    """Add a token to the text of reply `i`, and end the reply where a stop text begins."""
    now = stream.elapsed_ms()
    stream.first_token_ms[i] = stream.first_token_ms[i] or now
    text = stream.detokenisers[i].add(token)
    reply = decoding.replies[i]
    if not reply.finish_reason and any(stop in text for stop in stream.stops):
        decoding.end(reply, "end")
    if reply.finish_reason:
        stream.total_ms[i] = now
