"""The routes by which other programs chat and vote, in the shapes of OpenAI's API: `/v1/models`,
`/v1/chat/completions` and `/v1/feedback`.

A key says who asks (`playground/people/keys.py`). What is asked goes through `Chat`, as on the page;
here is only its HTTP side.
"""

import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from playground.chat.completing import Completed, CompletionRequest
from playground.chat.refusals import Busy, Refused, Unavailable
from playground.chat.session import Chat
from playground.chat.turns import BUSY
from playground.chat.views import View
from playground.chat.votes import NOT_YOURS
from playground.models import export
from playground.models.prompts import BadMessage
from playground.people import keys
from playground.store import StoreError, StoreUnavailable
from playground.system.messages import UserFacingError
from playground.web import openai_shapes as shapes
from playground.web.openai_shapes import ChatRequest, Deltas, FeedbackRequest, Problem
from playground.web.stream_threads import EXTRA_STREAMS, StreamThreads

LIVE = "live"  # the model that is whatever answers people
VERSION = re.compile(r"v([0-9]{1,6})", re.ASCII)
IN_TURN = "Another request with this person's keys is being answered; send one after the other."
PRIVATE = {"cache-control": "no-store"}
STREAM_HEADERS = {**PRIVATE, "x-accel-buffering": "no"}  # nginx would gather the words otherwise
GONE = 499  # as nginx logs it: the client closed the request, so nobody reads the answer
SWAPPED = {"a": "b", "b": "a"}


class Completions:
    """Answers for `chat`; `add_routes` adds the routes to an app."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.store = chat.store
        self.engine = chat.engine
        self.fingerprint = f"nudge-{str(self.engine.identity['hash'])[:12]}"
        self.threads = StreamThreads(chat.settings.limits.waiting_messages + EXTRA_STREAMS)

    def add_routes(self, app: FastAPI) -> None:
        app.add_api_route("/v1/models", self.models, methods=["GET"])
        app.add_api_route("/v1/chat/completions", self.complete, methods=["POST"], response_model=None)
        app.add_api_route("/v1/feedback", self.feedback, methods=["POST"])

    # -- routes

    def models(self, request: Request) -> Response:
        """The names that `model` may have now."""
        try:
            self._person(request)
            names = [LIVE, *(f"v{version}" for version in self.engine.versions.in_memory() if self._may_reply(version))]
        except (Problem, UserFacingError) as error:
            return problem(error).response()
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "nudge"} for name in names]
        return JSONResponse({"object": "list", "data": data}, headers=PRIVATE)

    async def complete(self, request: Request) -> Response:
        """One or two replies to a chat, whole or as a stream."""
        try:
            person = await run_in_threadpool(self._person, request)
            body = shapes.read(ChatRequest, await request.body())
            body.check_supported()
            chat_request = body.for_chat(await run_in_threadpool(self._version, body.model))
            address = request.client.host if request.client else ""
            turn = CompletionTurn(self, person, body, chat_request, address)
            await turn.begin()
            if body.stream:
                return StreamingResponse(turn.events(), media_type="text/event-stream", headers=STREAM_HEADERS)
            answer = await turn.whole(request)
            return Response(status_code=GONE) if answer is None else JSONResponse(answer, headers=PRIVATE)
        except (Problem, UserFacingError) as error:
            return problem(error).response()

    async def feedback(self, request: Request) -> Response:
        """A vote on the two completions of one request, or a thumb on one."""
        try:
            person = await run_in_threadpool(self._person, request)
            body = shapes.read(FeedbackRequest, await request.body())
            answer = await run_in_threadpool(self._take, person, body)
        except (Problem, UserFacingError) as error:
            return problem(error).response()
        return JSONResponse(answer, headers=PRIVATE)

    # -- steps

    def _person(self, request: Request) -> int:
        authorization = request.headers.get("authorization", "")
        if not authorization:
            raise Problem(401, "Pass a key: Authorization: Bearer nudge-…", "invalid_request_error", "invalid_api_key")
        person = keys.person_of(self.store, authorization)
        if person is None:
            raise Problem(401, "This key is not known, or it was revoked.", "invalid_request_error", "invalid_api_key")
        return person

    def _version(self, model: str) -> int | None:
        """The version that a model's name means, None for the live one; Problem where it cannot answer."""
        if model == LIVE:
            return None
        match = VERSION.fullmatch(model)
        version = int(match[1]) if match else -1
        if version not in self.engine.versions.in_memory() or not self._may_reply(version):
            message = "There is no such model in memory; /v1/models lists those that are."
            raise Problem(404, message, "invalid_request_error", "model_not_found", "model")
        return version

    def _may_reply(self, version: int) -> bool:
        row = self.store.policy(version)
        return row is not None and export.may_reply(row)

    def _take(self, person: int, body: FeedbackRequest) -> dict[str, Any]:
        """Record a vote or a thumb; returns the answer."""
        if body.completion_ids and body.choice and body.completion_id is None:
            return self._vote(person, body.completion_ids, body.choice)
        if body.completion_id and "thumb" in body.model_fields_set and body.completion_ids is None:
            duel, side = shapes.duel_and_side(body.completion_id)
            self.chat.rate_reply(person, duel, side, body.thumb)
            return {"object": "feedback", "completion_id": body.completion_id, "thumb": body.thumb}
        raise shapes.invalid("Feedback is completion_ids with a choice, or a completion_id with a thumb.")

    def _vote(self, person: int, ids: list[str], choice: str) -> dict[str, Any]:
        """A vote on a pair, whose first id is a; the answer tells which versions wrote it."""
        (first, side), (second, other) = (shapes.duel_and_side(completion_id) for completion_id in ids)
        if first != second or side == other:
            raise shapes.invalid("The two completions must be those of one request with n=2.", "completion_ids")
        self.chat.vote(person, first, SWAPPED.get(choice, choice) if side else choice)
        replies = self.chat.completed(person, first).replies
        models = [f"v{replies[i].version}" for i in (side, other)]
        return {"object": "feedback", "completion_ids": ids, "choice": choice, "models": models}


class CompletionTurn:
    """One request for replies. `begin` comes first; then either `whole` or `events`."""

    def __init__(
        self, api: Completions, person: int, body: ChatRequest, chat_request: CompletionRequest, address: str
    ) -> None:
        self.api = api
        self.person = person
        self.model = body.model
        self.n = body.n or 1
        self.includes_usage = bool(body.stream_options and body.stream_options.include_usage)
        self.created = int(time.time())
        self._views = api.threads.run(api.chat.complete(person, chat_request, address))
        self._first: View

    async def begin(self) -> None:
        """Wait until the turn is recorded. Refused and its like where it cannot be had, Problem where it was erased as
        soon as it was recorded.
        """
        self._first = await anext(self._views)
        if self._first.duel is None:
            await self._views.aclose()
            raise shapes.gone()

    async def whole(self, request: Request) -> dict[str, Any] | None:
        """The answer once both replies are complete. They are stopped, and there is none, where nobody waits for it any
        more.
        """
        async with aclosing(self._views):
            async for _ in self._views:
                if await request.is_disconnected():
                    return None
        completed = await self._completed()
        return shapes.completion(completed, self.model, self.n, self.created, self.api.fingerprint)

    async def events(self) -> AsyncGenerator[bytes]:
        """The server-sent events of the replies as they grow."""
        deltas = Deltas(self.n)
        async with aclosing(self._views):
            yield self._chunk([self._choice(i, {"role": "assistant", "content": ""}) for i in range(self.n)])
            try:
                async for view in self._views:
                    texts = [side.text if side else "" for side in (view.left, view.right)]
                    added = deltas.added(texts)
                    if added:
                        yield self._chunk([self._choice(i, {"content": text}) for i, text in added])
                    elif view.progress:
                        yield b": waiting\n\n"
                completed = await self._completed()
                ends = [shapes.finish(reply) for reply in completed.replies[: self.n]]
                texts = [reply.text for reply in completed.replies]
                for i, text in deltas.added(texts, complete=True):
                    yield self._chunk([self._choice(i, {"content": text})])
            except (Problem, UserFacingError, ValueError) as error:
                yield shapes.event(problem(error).body)
                return
            for i, end in enumerate(ends):
                yield self._chunk([self._choice(i, {}, end)])
            if self.includes_usage:
                yield self._chunk([], shapes.usage(completed, self.n))
            yield shapes.event("[DONE]")

    @property
    def _duel(self) -> int:
        assert self._first.duel is not None, "the first view comes once the pair is recorded"
        return self._first.duel

    async def _completed(self) -> Completed:
        return await run_in_threadpool(self.api.chat.completed, self.person, self._duel)

    def _choice(self, index: int, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        return shapes.chunk_choice(self._duel, index, delta, finish_reason)

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        head = shapes.head_of("chat.completion.chunk", self._duel, self.model, self.created, self.api.fingerprint)
        body = {**head, "choices": choices}
        if self.includes_usage:
            body["usage"] = usage
        return shapes.event(body)


def problem(error: Exception) -> Problem:
    """An error as a program reads it: a program has no page to reload, and no button."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Busy):
        text = IN_TURN if error.message == BUSY else str(error)
        return Problem(429, text, "rate_limit_error", "rate_limit_exceeded")
    if isinstance(error, Refused) and error.message == NOT_YOURS:
        return shapes.invalid("No pair of this key's person has these completion ids.")
    if isinstance(error, Unavailable | StoreUnavailable):
        return Problem(503, str(error), "server_error")
    if isinstance(error, BadMessage | Refused | StoreError):
        return shapes.invalid(str(error))
    return Problem(500, "The replies could not be returned. Send the request again.", "server_error")
