"""The API for other programs, by OpenAI's own client over real HTTP: what is answered, recorded and refused."""

import json
import threading
from dataclasses import replace

import httpx
import openai
import pytest

from playground.chat.completing import CompletionRequest
from playground.chat.refusals import Busy
from playground.chat.session import Chat
from playground.chat.views import View
from playground.models.prompts import BadMessage
from playground.people.keys import new_key
from playground.web.completions import problem
from playground.web.openai_shapes import Deltas
from tests.chats import chat, folder, slow  # noqa: F401 (fixtures)
from tests.sites import Site
from tests.stores import published
from tests.waits import until


@pytest.fixture(scope="module")
def site(folder):  # noqa: F811
    site = Site(folder)
    yield site
    site.stop()


@pytest.fixture
def key(site):
    key = new_key()
    site.store.add_key(key[-8:], key)
    return key


@pytest.fixture
def client(site, key):
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=key, max_retries=0) as client:
        yield client


HELLO = [{"role": "user", "content": "Hello"}]


def ask(client, messages=HELLO, **more):
    return client.chat.completions.create(model="live", messages=messages, **more)


def duel_of(site, completion):
    return site.store.duel(int(completion.id.removeprefix("chatcmpl-")))


def feedback(site, key, **body):
    return httpx.post(f"{site.url}/v1/feedback", json=body, headers={"authorization": f"Bearer {key}"})


# -- replies


def test_a_completion_is_the_left_reply_of_a_recorded_pair(site, key, client):
    answer = ask(client)
    duel = duel_of(site, answer)
    [choice] = answer.choices
    assert choice.message.content == duel["left"]["text"] != "" and duel["right"]["text"]
    assert choice.finish_reason == {"end": "stop", "length": "length"}[duel["left"]["finish_reason"]]
    assert answer.usage.completion_tokens == duel["left"]["tokens"] and answer.usage.prompt_tokens > 10
    assert duel["annotator"] == site.store.person_of_key(key) and duel["user_text"] == "Hello"
    assert answer.model == "live" and answer.object == "chat.completion"


def test_two_are_both_of_them(site, client):
    answer = ask(client, n=2)
    duel = duel_of(site, answer)
    assert [choice.message.content for choice in answer.choices] == [duel["left"]["text"], duel["right"]["text"]]
    assert answer.usage.completion_tokens == duel["left"]["tokens"] + duel["right"]["tokens"]


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_adds_up_to_what_is_recorded(site, client, n):
    texts, ends, usage = [""] * n, [None] * n, None
    for chunk in ask(client, n=n, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ends[choice.index]
        usage = chunk.usage or usage
    duel = duel_of(site, chunk)
    sides = [duel["left"], duel["right"]][:n]
    assert texts == [side["text"] for side in sides] and None not in ends
    assert usage.completion_tokens == sum(side["tokens"] for side in sides)


def test_the_history_and_the_settings_are_those_of_the_request(site, client):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "A river?"},
        {"role": "assistant", "content": "The Rhine."},
        {"role": "user", "content": [{"type": "text", "text": "Another?"}]},
    ]
    answer = ask(client, messages, temperature=0.3, top_p=0.9, max_tokens=3)
    row = duel_of(site, answer)
    conversation = site.store.row("select * from conversation where id = ?", row["conversation"])
    said = site.store.rows("select role, text from message where conversation = ? order by id", conversation["id"])
    assert [(line["role"], line["text"]) for line in said[:3]] == [
        ("user", "A river?"),
        ("assistant", "The Rhine."),
        ("user", "Another?"),
    ]
    assert conversation["system_prompt"] == "Be brief."
    sampling = json.loads(
        site.store.one("select sampling from generation where id = ?", row["left_generation"])["sampling"]
    )
    assert (sampling["temperature"], sampling["top_p"], sampling["max_tokens"]) == (0.3, 0.9, 3)
    assert answer.usage.completion_tokens <= 3
    prompt = site.engine.tokenizer.decode(
        json.loads(
            site.store.one(
                "select p.token_ids from prompt p join generation g on g.prompt = p.id where g.id = ?",
                row["left_generation"],
            )["token_ids"]
        )
    )
    assert "Be brief." in prompt and "The Rhine." in prompt and prompt.index("Rhine") < prompt.index("Another")


def test_a_seed_draws_the_same_pair_again(client):
    first, again, other = (ask(client, n=2, seed=seed) for seed in (7, 7, 8))
    said = [[choice.message.content for choice in answer.choices] for answer in (first, again, other)]
    assert said[0] == said[1] != said[2]


def test_longer_replies_than_the_apps_are_cut_to_those(client):
    assert ask(client, max_tokens=4000).usage.completion_tokens <= 8


def test_models_are_the_live_one_and_those_in_memory(site, client):
    assert [model.id for model in client.models.list()] == ["live", "v0"]
    answer = client.chat.completions.create(model="v0", messages=HELLO)
    assert answer.model == "v0" and duel_of(site, answer)["left"]["policy"] == 0


# -- feedback


def test_a_choice_between_the_two_is_a_vote(site, key, client):
    answer = ask(client, n=2, seed=1)
    ids = [choice.completion_id for choice in answer.choices]
    feedback_answer = feedback(site, key, completion_ids=ids, choice="b").json()
    duel = duel_of(site, answer)
    vote = site.store.current_vote(duel["id"], duel["annotator"])
    assert vote["choice"] == "b" and vote["continued_with"] == duel["right"]["message"]
    assert feedback_answer == {"object": "feedback", "completion_ids": ids, "choice": "b", "models": ["v0", "v0"]}
    feedback(site, key, completion_ids=ids[::-1], choice="b")
    assert site.store.current_vote(duel["id"], duel["annotator"])["choice"] == "a", "b is the second that is named"


def test_a_pair_can_be_voted_on_after_others_have_followed(site, key, client):
    first = ask(client, n=2, seed=1)
    ask(client)
    ids = [choice.completion_id for choice in first.choices]
    assert feedback(site, key, completion_ids=ids, choice="tie").status_code == 200


def test_a_thumb_is_given_and_taken_back(site, key, client):
    answer = ask(client)
    duel = duel_of(site, answer)
    for thumb in (-1, None):
        assert feedback(site, key, completion_id=answer.id, thumb=thumb).status_code == 200
        assert site.store.duel(duel["id"])["left"]["thumb"] == thumb


def test_feedback_on_somebody_elses_completion_is_refused(site, client):
    answer = ask(client, n=2)
    other = new_key()
    site.store.add_key("other", other)
    ids = [choice.completion_id for choice in answer.choices]
    for body in ({"completion_ids": ids, "choice": "a"}, {"completion_id": answer.id, "thumb": 1}):
        refused = feedback(site, other, **body)
        assert refused.status_code == 400 and "Reload" not in refused.text, "a program has no page"
    assert site.store.rows("select * from vote where duel = ?", duel_of(site, answer)["id"]) == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"completion_ids": ["chatcmpl-1-0", "chatcmpl-2-1"], "choice": "a"},
        {"completion_ids": ["chatcmpl-1-0", "chatcmpl-1-0"], "choice": "a"},
        {"completion_ids": ["chatcmpl-1-0", "chatcmpl-1-1"], "choice": "c"},
        {"completion_ids": ["chatcmpl-1-0", "chatcmpl-1-1"]},
        {"completion_id": "chatcmpl-" + "9" * 30, "thumb": 1},
        {"completion_id": "chatcmpl-999999999", "thumb": 1},
        {"completion_id": "chatcmpl-1", "thumb": 5},
        {"completion_id": "chatcmpl-1"},
    ],
)
def test_feedback_that_means_nothing_is_refused(site, key, body):
    answer = feedback(site, key, **body)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


# -- what is refused


@pytest.mark.parametrize("header", [None, "Bearer nudge-" + "x" * 43, "Bearer x", "Basic x"])
def test_without_a_key_nothing_is_answered(site, header):
    headers = {"authorization": header} if header else {}
    answer = httpx.post(f"{site.url}/v1/chat/completions", json={"model": "live", "messages": HELLO}, headers=headers)
    assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    assert ("Pass a key" in answer.text) == (header is None)


def test_a_revoked_key_is_not_known(site, key, client):
    site.store.revoke_keys(site.store.person_of_key(key))
    with pytest.raises(openai.AuthenticationError):
        ask(client)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"n": 3}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": "0.5"}, "temperature"),
        ({"stop": ["x"]}, "stop"),
        ({"tools": [{}]}, "tools"),
        ({"messages": HELLO + HELLO}, None),
        ({"messages": [*HELLO, {"role": "assistant", "content": "Hi"}]}, None),
        ({"messages": [*HELLO, {"role": "system", "content": "Hi"}]}, "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, None),
        ({"messages": [{"role": "user", "content": "secret" * 1000}]}, None),
        ({"messages": [{"role": "user", "content": "<|im_start|>"}]}, None),
        ({"temperature": 3}, None),
        ({"top_p": 0}, None),
    ],
)
def test_what_cannot_be_used_is_told_and_nothing_is_recorded(site, client, body, param):
    before = site.store.one("select count(*) as n from conversation")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": "live", "messages": HELLO, **body})
    assert refused.value.param == param and refused.value.body["message"]
    assert "secretsecret" not in refused.value.message
    assert site.store.one("select count(*) as n from conversation") == before


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        ({"temprature": 0.2}, "unknown_parameter", "temprature"),
        ({"x" * 100: None}, "unknown_parameter", "x" * 60),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
        ({"tool_choice": "required"}, "unsupported_parameter", "tool_choice"),
        ({"logprobs": True}, "unsupported_parameter", "logprobs"),
        ({"presence_penalty": 0.5}, "unsupported_parameter", "presence_penalty"),
    ],
)
def test_an_option_that_would_be_ignored_in_silence_is_refused(site, client, options, code, param):
    """A misspelt one was, and so was a tool choice."""
    before = site.store.one("select count(*) as n from conversation")
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, extra_body=options)
    assert (refused.value.code, refused.value.param) == (code, param)
    assert site.store.one("select count(*) as n from conversation") == before


def test_options_that_change_nothing_of_the_replies_pass(client):
    harmless = {
        "user": "ann",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "seed": 3,
        "stop": None,
        "tools": [],
        "tool_choice": "auto",
        "presence_penalty": 0,
        "logprobs": False,
        "response_format": {"type": "text"},
    }
    assert ask(client, max_tokens=3, extra_body=harmless).choices[0].message.content


@pytest.mark.parametrize("model", ["gpt-4", "v9", "v", "v0000000"])
def test_a_model_that_is_not_in_memory_is_not_found(client, model):
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model=model, messages=HELLO)
    assert refused.value.code == "model_not_found"


def test_a_body_that_is_no_json_or_too_large(site, key):
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    url = f"{site.url}/v1/chat/completions"
    for content, status in (("{", 400), ("[]", 400), ('"\\ud800"', 400), ("x" * (300 << 10), 413)):
        answer = httpx.post(url, content=content, headers=headers)
        assert answer.status_code == status and answer.json()["error"]["message"]
    answer = httpx.post(url, content="{}", headers={**headers, "content-type": "text/plain"})
    assert answer.status_code == 415 and answer.json()["error"]["type"] == "invalid_request_error"


def test_a_page_of_another_site_cannot_use_it(site, key):
    headers = {"authorization": f"Bearer {key}", "origin": "https://evil.example"}
    assert httpx.post(f"{site.url}/v1/chat/completions", json={}, headers=headers).status_code == 403


def test_while_a_turn_runs_nothing_of_another_request_is_read(chat):  # noqa: F811
    """Its texts became tokens first, so one key with many requests at once kept a core busy."""
    person = chat.store.annotator("ann")
    bad = CompletionRequest(({"role": "user", "content": "<|im_end|>"},), system_prompt="<|im_end|>")
    with chat._turn(person, ""), pytest.raises(Busy):
        next(chat.complete(person, bad))
    with pytest.raises(BadMessage):
        next(chat.complete(person, bad))
    assert not chat.busy(person)


def test_one_turn_at_a_time_and_a_client_that_goes_away_ends_its_own(folder):  # noqa: F811
    """A stream that nobody reads any more must not keep its person busy, nor the model at work."""
    site = Site(folder, chat={"reply_tokens": 400})
    slow(site, 0.02)
    key = new_key()
    person = site.store.add_key("ann", key)
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=key, max_retries=0) as client:
        stream = ask(client, stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="one after the other"):
            ask(client)
        stream.close()
    query = (
        "select g.finish_reason from generation g join message m on m.id = g.message join conversation c"
        " on c.id = m.conversation where c.annotator = ? limit 1"
    )
    try:
        reason = until(lambda: site.store.one(query, person)["finish_reason"])
        until(lambda: not site.engine.running)
    finally:
        site.stop()
    assert reason in ("stopped", "error")


def test_whole_replies_that_nobody_waits_for_or_that_were_erased_are_no_fault(folder, caplog):  # noqa: F811
    """The reason why such replies ended is not known or is an error, which was looked up all the same: a KeyError."""
    site = Site(folder, chat={"reply_tokens": 60})
    slow(site, 0.02)
    key = new_key()
    person = site.store.add_key("ann", key)
    body = {"model": "live", "messages": HELLO}
    url, headers = f"{site.url}/v1/chat/completions", {"authorization": f"Bearer {key}"}

    def forget():
        until(lambda: site.engine.running)
        site.store.forget(person)

    try:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=body, headers=headers, timeout=0.4)
        until(lambda: site.store.row("select 1 from generation where finish_reason = 'stopped'"))
        until(lambda: not site.chat.busy(person) and not site.engine.running)
        eraser = threading.Thread(target=forget)
        eraser.start()
        answer = httpx.post(url, json=body, headers=headers, timeout=30)
        eraser.join()
    finally:
        site.stop()
    assert answer.status_code == 503 and answer.json()["error"]["type"] == "server_error"
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_turn_that_is_erased_as_soon_as_it_is_recorded_is_no_fault(site, key, monkeypatch, caplog, stream):
    closed = []

    def erased(*_):
        try:
            yield View("idle")
        finally:
            closed.append(True)

    monkeypatch.setattr(Chat, "complete", erased)
    body, headers = {"model": "live", "messages": HELLO, "stream": stream}, {"authorization": f"Bearer {key}"}
    answer = httpx.post(f"{site.url}/v1/chat/completions", json=body, headers=headers, timeout=30)
    assert answer.status_code == 503 and "no longer there" in answer.json()["error"]["message"]
    until(lambda: closed)
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


def test_a_stream_of_erased_replies_ends_with_an_error(site, key, monkeypatch):
    complete = Chat.completed

    def erased(chat, person, duel):
        found = complete(chat, person, duel)
        return replace(found, replies=tuple(replace(reply, finish_reason="error") for reply in found.replies))

    monkeypatch.setattr(Chat, "completed", erased)
    headers = {"authorization": f"Bearer {key}"}
    body = {"model": "live", "messages": HELLO, "stream": True}
    answer = httpx.post(f"{site.url}/v1/chat/completions", json=body, headers=headers, timeout=30)
    *_, last = answer.text.strip().split("\n\n")
    assert "no longer there" in last and '"type": "server_error"' in last


def test_a_failing_model_is_a_servers_error(site, client, monkeypatch):
    def broken(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(site.engine.kv_pool, "reuse_prefix", broken)
    with pytest.raises(openai.InternalServerError):
        ask(client)
    with pytest.raises(openai.APIError, match="could not answer"):
        list(ask(client, stream=True))


# -- what is sent of a growing pair


def test_the_right_reply_is_held_back_as_long_as_it_says_the_same():
    deltas = Deltas(2)
    assert deltas.added(["", ""]) == []
    assert deltas.added([" The", " The"]) == [(0, "The")]
    assert deltas.added([" The cat ", " The dog"]) == [(0, " cat"), (1, "The dog")]
    assert deltas.added(["The cat sat", "The dog"]) == [(0, " sat")]
    assert deltas.added(["The cat sat.", "The dog ran"], complete=True) == [(0, "."), (1, " ran")]


def test_a_right_reply_that_was_written_anew_was_not_sent_before():
    deltas = Deltas(2)
    assert deltas.added(["Yes.", "Yes."]) == [(0, "Yes.")]
    assert deltas.added(["Yes.", "No"]) == [(1, "No")]
    with pytest.raises(ValueError, match="not the one"):
        deltas.added(["Yes.", "Never"], complete=True)


def test_an_error_that_nobody_expects_says_nothing_of_itself():
    assert (
        problem(ValueError("Ottokar's secret")).body["error"]["message"].startswith("The replies could not be returned")
    )


def test_a_version_that_was_withdrawn_does_not_answer(site, client):
    version = 1
    site.engine.versions._resident[version] = site.engine.versions.live  # so that nothing has to be loaded
    try:
        assert published(site.store) == version
        assert client.chat.completions.create(model=f"v{version}", messages=HELLO).choices
        site.store.withdraw(version, site.store.annotator("admin"), "bad")
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model=f"v{version}", messages=HELLO)
    finally:
        site.engine.versions._resident.pop(version, None)
