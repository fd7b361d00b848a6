"""The streamed text is that of `prompts.decode`, whichever way it is made; and when the tokenizers library makes it."""

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from playground.models import detokeniser, prompts
from playground.models.detokeniser import Detokeniser
from tests.tiny import TEMPLATE, tiny_tokenizer

TEXTS = [
    "Plain words, and more of them.",
    "emoji 👩‍👩‍👧‍👦 and 👋🏽!",
    "法国的首都是巴黎。你好！",
    "naïve café, Ω ≠ ω",
    "  two  blanks\n\nand lines\n",
    " a leading blank",
    "🙂" * 5,
    "tabs\tand \u200b nothing, \ufffd itself too.",
]
WORDS = ["▁", "▁Hello", "▁the", "▁a", "▁▁", *"abcdefghilnoprstuwPT,.!法国"]


def byte_level():
    """As GPT-2's, SmolLM2's and Llama 3's."""
    return tiny_tokenizer()


def byte_fallback():
    """As Llama 2's: words, and a token for each byte of what has no other; decoding strips the first blank."""
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    model = models.BPE({token: i for i, token in enumerate(vocabulary)}, [], byte_fallback=True, unk_token="<unk>")
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>", "<unk>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE.replace("<|im_end|>", "</s>").replace("<|im_start|>", "<s>")
    return tokenizer


KINDS = {"byte-level": byte_level, "byte fallback": byte_fallback}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


def streamed(tokenizer, ids):
    """The text after each token."""
    stream = Detokeniser(tokenizer)
    return [stream.add(token) for token in ids]


def redecoded(tokenizer, ids):
    """The same by decoding the last tokens again, as is done for any tokenizer."""
    decoder, text, seen = detokeniser._TailDecoder(tokenizer), "", []
    for token in ids:
        text += decoder.add(token) or ""
        seen.append(text)
    return seen


def test_the_library_streams_where_tokens_are_bytes_and_nowhere_else():
    assert detokeniser._stream(byte_level()) is not None
    assert detokeniser._stream(byte_fallback()) is None
    cleaning = byte_level()
    cleaning.clean_up_tokenization_spaces = True
    assert detokeniser._stream(cleaning) is None


def test_a_tokenizer_that_decodes_in_its_own_way_is_not_streamed_by_the_library():
    class Own(PreTrainedTokenizerFast):
        def _decode(self, *args, **options):
            return super()._decode(*args, **options).upper()

    tokenizer = Own(tokenizer_object=byte_level().backend_tokenizer, eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    ids = tokenizer("a👋", add_special_tokens=False)["input_ids"]
    assert streamed(tokenizer, ids) == ["A", "A", "A", "A", "A👋"]


@pytest.mark.parametrize("text", TEXTS)
def test_the_streamed_text_is_the_whole_text_and_that_of_decoding_again(tokenizer, text):
    ids = prompts.encode_reply(text, tokenizer)
    assert len(ids) > 3
    texts = streamed(tokenizer, ids)
    assert texts == redecoded(tokenizer, ids)
    if not text.startswith(" "):  # the fallback's tokenizer strips a blank from a text that begins with its own
        assert texts[-1] == prompts.decode(ids, tokenizer)
    for before, after in zip(texts, texts[1:], strict=False):
        assert after.startswith(before)


@pytest.mark.parametrize("text", [text for text in TEXTS if "\ufffd" not in text])
def test_half_a_character_is_never_shown(tokenizer, text):
    assert not any("\ufffd" in shown for shown in streamed(tokenizer, prompts.encode_reply(text, tokenizer)))


def test_special_tokens_are_left_out_wherever_they_stand(tokenizer):
    ids = []
    for token in prompts.encode_reply("the 👋 hat", tokenizer):
        ids += [tokenizer.bos_token_id, token, tokenizer.eos_token_id]
    assert streamed(tokenizer, ids)[-1].strip() == "the 👋 hat"
    assert streamed(tokenizer, ids) == redecoded(tokenizer, ids)


def test_the_end_of_a_reply_is_left_out_where_the_tokenizer_does_not_call_it_special():
    backend = byte_level().backend_tokenizer
    backend.add_tokens([AddedToken("<|turn_end|>", special=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    tokenizer.chat_template = TEMPLATE.replace("<|im_end|>", "<|turn_end|>")
    ids = [*tokenizer("Hello", add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids("<|turn_end|>")]
    assert detokeniser._stream(tokenizer) is not None
    assert streamed(tokenizer, ids)[-1] == prompts.decode(ids, tokenizer) == "Hello"


def test_any_tokens_give_the_same_text_both_ways(tokenizer):
    """Random tokens: bytes that are no UTF-8 at the beginning, in the middle and at the end, special tokens, and ids
    that the tokenizer does not have, which models with padded embeddings can draw.
    """
    for seed in range(200):
        drawn = random.Random(seed)
        ids = [drawn.randrange(len(tokenizer) + 3) for _ in range(drawn.randrange(1, 40))]
        assert streamed(tokenizer, ids) == redecoded(tokenizer, ids), seed


def test_an_unfinished_character_at_the_end_stays_hidden(tokenizer):
    ids = prompts.encode_reply("the 👋", tokenizer, ended=False)[:-1]
    assert streamed(tokenizer, ids)[-1] in ("the", "the ")


def test_the_librarys_stream_fails_on_wrong_bytes_of_a_byte_fallback():
    """Why it is not used there: a newline, a broken character and a word end a reply with an error."""
    tokenizer = byte_fallback()
    ids = tokenizer.convert_tokens_to_ids(["▁the", "<0x0A>", "<0xE6>", "▁Hello"])
    stream = DecodeStream(skip_special_tokens=True)
    with pytest.raises(Exception, match="Invalid prefix"):
        for token in ids:
            stream.step(tokenizer.backend_tokenizer, token)
    assert streamed(tokenizer, ids)[-1].endswith("Hello")
