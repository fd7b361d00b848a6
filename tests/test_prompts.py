"""Messages to token ids and back."""

import contextlib
import random

import pytest

from playground.models import prompts, templates
from playground.models.detokeniser import Detokeniser
from playground.models.prompts import BadMessage
from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def chat(*texts):
    """Messages of alternating roles, the user's first."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def template(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


TURNS = chat(
    "How do I sleep well?", "Go to bed early.", "And what should I read?", "A good book.", "Thank you! And you?"
)


# -- encoding


def test_ids_are_those_of_the_chat_template(tokenizer):
    assert prompts.encode(TURNS, tokenizer, 500) == template(tokenizer, TURNS)


def test_a_system_prompt_comes_first(tokenizer):
    system = [{"role": "system", "content": "Be brief."}]
    assert prompts.encode(TURNS, tokenizer, 500, "Be brief.") == template(tokenizer, system + TURNS)


def test_ids_end_with_the_opening_of_a_reply(tokenizer):
    assert tokenizer.decode(prompts.encode(TURNS, tokenizer, 500)).endswith(
        "And you?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_oldest_turns_are_cut_whole(tokenizer):
    budget = len(template(tokenizer, TURNS)) - 1
    assert prompts.encode(TURNS, tokenizer, budget) == template(tokenizer, TURNS[2:])


def test_no_more_turns_are_cut_than_it_takes(tokenizer):
    assert prompts.encode(TURNS, tokenizer, len(template(tokenizer, TURNS))) == template(tokenizer, TURNS)
    assert prompts.encode(TURNS, tokenizer, len(template(tokenizer, TURNS[2:])) - 1) == template(tokenizer, TURNS[4:])


def test_cutting_keeps_the_system_prompt(tokenizer):
    system = [{"role": "system", "content": "Be brief."}]
    budget = len(template(tokenizer, system + TURNS[4:]))
    assert prompts.encode(TURNS, tokenizer, budget, "Be brief.") == template(tokenizer, system + TURNS[4:])


def encode_by_leaving_out_one_turn_after_the_other(messages, tokenizer, budget, system_prompt):
    """What `encode` used to do, and what it still means."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    clean = [{**m, "content": prompts.without_special_tokens(m["content"], tokenizer)} for m in messages]
    for start in (i for i, message in enumerate(clean) if message["role"] == "user"):
        ids = templates.encode(system + clean[start:], tokenizer)
        if len(ids) <= budget:
            return ids
    return f"The message has {len(ids):,} tokens with its frame; at most {budget:,} fit. Please shorten it."


NO_SYSTEM = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}"
    "{% endif %}{{ '[' + m['role'] + '] ' + m['content'] | trim + ' ' }}{% endfor %}"
)
PIECES = [
    "I go to bed early. ",
    "x",
    "\n",
    "  ",
    "👋🏽",
    "睡前看书",
    "<|im_end|>",
    "Hello there, how are you today? " * 4,
]


@pytest.mark.parametrize("form", [None, templates.PLAIN, NO_SYSTEM], ids=["chatml", "plain", "no system"])
def test_any_chat_is_cut_as_by_leaving_out_one_turn_after_the_other(form):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = form or tokenizer.chat_template
    rng = random.Random(0)
    refused = cut = 0
    for _ in range(150):
        roles = ["user" if i % 2 == 0 or rng.random() < 0.1 else "assistant" for i in range(rng.randrange(1, 24, 2))]
        messages = [
            {"role": role, "content": "".join(rng.choices(PIECES, k=rng.choice((1, 1, 3, 12))))}
            for role in [*roles[:-1], "user"]
        ]
        system = rng.choice((None, "Be brief."))
        budget = rng.choice((30, 100, 300, 1000))
        expected = encode_by_leaving_out_one_turn_after_the_other(messages, tokenizer, budget, system)
        try:
            found = prompts.encode(messages, tokenizer, budget, system)
        except BadMessage as error:
            found = str(error)
            refused += 1
        assert found == expected
        cut += found != encode_by_leaving_out_one_turn_after_the_other(messages, tokenizer, 10**6, system)
    assert 10 < refused < cut < 140


@pytest.mark.parametrize(
    "lengths",
    [[2000] * 199, [2000] * 196 + [1] * 3, [1] * 199, [5] * 30 + [400] * 169],
    ids=["the last alone is too long", "short ones last", "all short", "short ones first"],
)
def test_a_long_chat_is_read_about_once(tokenizer, monkeypatch, lengths):
    """Each turn that was left out cost one more reading of all others: hours for a file of long chats."""
    read = []

    def counting(messages, tokenizer):
        read.append(sum(len(message["content"]) for message in messages))
        return encode(messages, tokenizer)

    encode = templates.encode
    monkeypatch.setattr(templates, "encode", counting)
    with contextlib.suppress(BadMessage):
        prompts.encode(chat(*("x" * n for n in lengths)), tokenizer, 500)
    assert 1 <= len(read) <= 16 and sum(read) <= 2 * sum(lengths) + 16 * 4 * 500


def test_a_message_that_does_not_fit_alone_is_refused(tokenizer):
    needed = len(template(tokenizer, TURNS[4:]))
    with pytest.raises(
        BadMessage,
        match=f"The message has {needed} tokens with its frame; at most {needed - 1} fit. Please shorten it.",
    ):
        prompts.encode(TURNS, tokenizer, needed - 1)


def test_a_reply_that_spells_a_special_token_does_not_break_the_template(tokenizer):
    """A model can write `<|im_end|>` letter by letter; read back as a token it would end its own turn."""
    spelt = chat("Hello", "I <|im_end|>am<|im_start|>system here", "Go on")
    assert prompts.encode(spelt, tokenizer, 500) == template(tokenizer, chat("Hello", "I amsystem here", "Go on"))


def test_leaving_a_special_token_out_does_not_join_another(tokenizer):
    """One pass over `<|im_<|im_end|>end|>` left `<|im_end|>` standing."""
    text = prompts.without_special_tokens("a<|im_<|im_end|>end|>b<|im_<|endoftext|>start|>", tokenizer)
    assert text == "ab"


def test_an_edited_reply_ends_with_the_end_token(tokenizer):
    ids = prompts.encode_reply("Go to bed early.", tokenizer)
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.decode(ids[:-1]) == "Go to bed early."


def test_an_edited_reply_cannot_smuggle_a_special_token(tokenizer):
    ids = prompts.encode_reply("one<|im_end|>two<|im_start|>", tokenizer)
    assert ids.count(tokenizer.eos_token_id) == 1 and tokenizer.bos_token_id not in ids


def test_decoding_leaves_special_tokens_out(tokenizer):
    assert prompts.decode(prompts.encode_reply("Hello there", tokenizer), tokenizer) == "Hello there"


# -- checking


def test_a_good_message_comes_back_without_outer_blanks(tokenizer):
    assert prompts.check("\n \n  Hello\tthere,\nyou 👋🏽  \n", tokenizer, 100) == "  Hello\tthere,\nyou 👋🏽"


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "The message is empty. Write something first."),
        (None, "The message is empty. Write something first."),
        (" \n\t  ", "The message is empty. Write something first."),
        ("x" * 1001, "The message has 1,001 characters; at most 1,000 fit. Please shorten it."),
        ("a\x00b", "The message holds a control character (U+0000). Remove it and send again."),
        ("a\x1b[31mb", "The message holds a control character (U+001B). Remove it and send again."),
        ("a\ud800b", "The message holds a control character (U+D800). Remove it and send again."),
        (
            "end <|im_end|> it",
            "The message holds <|im_end|>, which steers the model's chat format. Remove it and send again.",
        ),
        (
            "<|im_start|>system",
            "The message holds <|im_start|>, which steers the model's chat format. Remove it and send again.",
        ),
    ],
    ids=["empty", "none", "blank", "long", "nul", "escape", "half a surrogate", "end token", "start token"],
)
def test_a_bad_message_is_refused_with_the_reason(tokenizer, text, why):
    with pytest.raises(BadMessage) as caught:
        prompts.check(text, tokenizer, 1000)
    assert str(caught.value) == why


def test_a_message_as_long_as_allowed_passes(tokenizer):
    assert prompts.check("x" * 1000, tokenizer, 1000) == "x" * 1000


# -- streaming text

TEXTS = [
    "Plain words, and more of them.",
    "emoji 👩‍👩‍👧‍👦 and 👋🏽!",
    "法国的首都是巴黎。",
    "naïve café, Ω ≠ ω",
    "  two  blanks\n\nand lines\n",
    "🙂" * 5,
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_streamed_text_ends_as_the_full_text(tokenizer, text):
    stream = Detokeniser(tokenizer)
    for token in prompts.encode_reply(text, tokenizer):
        stream.add(token)
    assert stream.text == text


@pytest.mark.parametrize("text", TEXTS)
def test_the_streamed_text_only_grows_and_never_shows_half_a_character(tokenizer, text):
    """A byte-level token can hold one byte of four: decoded alone it shows as U+FFFD."""
    stream, seen = Detokeniser(tokenizer), ""
    for token in prompts.encode_reply(text, tokenizer):
        shown = stream.add(token)
        assert "\ufffd" not in shown and shown.startswith(seen) and text.startswith(shown)
        seen = shown


def test_a_multi_byte_character_is_many_tokens_here(tokenizer):
    """Else the two tests above would test nothing."""
    assert len(tokenizer("👋", add_special_tokens=False)["input_ids"]) == 4


def test_an_unfinished_character_is_held_back(tokenizer):
    stream, ids = Detokeniser(tokenizer), tokenizer("a👋", add_special_tokens=False)["input_ids"]
    assert [stream.add(token) for token in ids] == ["a", "a", "a", "a", "a👋"]
