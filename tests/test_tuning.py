"""How a machine decodes: measured once, remembered, overridden."""

import json
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from playground.decoding import fused, kept_choices, measuring, tuning
from playground.decoding.choice import Choice
from playground.decoding.transformers_forward import TransformersForward
from playground.models import loading
from playground.serving.engine import Engine
from playground.settings import Settings
from playground.store import Store
from playground.system import compiling
from playground.system.languages import Words
from tests.families import LONG_TOKENS, gemma3, phi3
from tests.tiny import tiny_folder, tiny_model


@pytest.fixture
def settings(tmp_path):
    return Settings(
        model=str(tiny_folder(tmp_path / "model")), data_dir=tmp_path, device="cpu", dtype="float32", threads=1
    )


def chosen(settings):
    model = loading.load_trunk(settings)
    return tuning.choose(settings, model, loading.base_identity(model, settings)), model


def test_a_choice_is_measured_and_remembered(settings, monkeypatch):
    first, model = chosen(settings)
    assert first.number_format in tuning.AUTO_FORMATS and first.threads == 1 and first.milliseconds > 0
    assert isinstance(first.forward(model), fused.FusedForward)
    monkeypatch.setattr(tuning, "_measure", lambda *_: pytest.fail("measured again"))
    assert chosen(settings)[0] == first


def test_a_step_that_is_still_being_compiled_beside_the_start_is_waited_for(settings, monkeypatch):
    waited = []
    monkeypatch.setattr(compiling, "wait", lambda: waited.append(True))
    chosen(settings)
    assert waited
    monkeypatch.setattr(compiling, "wait", lambda: pytest.fail("waited for a step that is not wanted"))
    chosen(settings.with_values(decode_format="int8"))


@pytest.fixture
def packed_is_faster(monkeypatch):
    monkeypatch.setattr(measuring, "prefills_faster_packed", lambda _: True)


def test_prompts_go_through_the_packed_weights_where_that_is_faster(settings, packed_is_faster):
    for _ in range(2):  # measured, and remembered
        choice, model = chosen(settings)
        assert choice.prefills_packed and 0 <= choice.nats < tuning.MAX_KL
        assert choice.forward(model).prefills_packed


def test_prompts_go_through_the_models_layers_where_these_are_faster(settings, monkeypatch):
    monkeypatch.setattr(measuring, "prefills_faster_packed", lambda _: False)
    assert not chosen(settings)[0].prefills_packed


def test_prompts_go_through_the_models_layers_where_the_packed_weights_are_far_from_it(
    settings, packed_is_faster, monkeypatch
):
    prefill = fused.FusedForward.prefill
    flat = torch.zeros(loading.load_trunk(settings).config.vocab_size)
    monkeypatch.setattr(fused.FusedForward, "prefill", lambda f, *a: flat if f.prefills_packed else prefill(f, *a))
    choice, _ = chosen(settings.with_values(decode_format="float32"))
    assert choice.number_format == "float32" and not choice.prefills_packed and choice.nats < 1e-3


@pytest.mark.parametrize("slow", ["model_blocks", "packed_blocks"])
def test_what_is_faster_is_measured_by_one_block(slow, monkeypatch):
    forward = fused.FusedForward(tiny_model(), "float32")
    heads = getattr(forward, slow)[0].heads
    monkeypatch.setattr(getattr(forward, slow)[0], "heads", lambda x: time.sleep(0.05) or heads(x))
    assert measuring.prefills_faster_packed(forward) == (slow == "model_blocks")


def test_another_machine_measures_for_itself(settings, monkeypatch):
    chosen(settings)
    monkeypatch.setattr(kept_choices, "_cpu", lambda: "another")
    chosen(settings)
    assert len(json.loads((settings.data_dir / "tuning.json").read_text())) == 2


def test_a_setting_overrides(settings):
    assert chosen(settings.with_values(decode_format="bfloat16"))[0].number_format == "bfloat16"
    choice, model = chosen(settings.with_values(decode_format="plain"))
    assert choice.number_format == "plain" and isinstance(choice.forward(model), TransformersForward)


def test_a_format_far_from_the_model_is_not_chosen(settings, monkeypatch):
    monkeypatch.setattr(tuning, "MAX_KL", -1)
    assert chosen(settings)[0].number_format == "float32"  # the model's own


def decoded(forward, monkeypatch):
    """A list that has an entry for each step of `forward`."""
    decode, calls = forward.decode, []
    monkeypatch.setattr(forward, "decode", lambda *arguments: calls.append(1) or decode(*arguments))
    return calls


@pytest.mark.parametrize(("best", "steps"), [(float("inf"), measuring.STEPS + 1), (1e-9, 2)])
def test_a_format_that_takes_far_longer_is_measured_by_one_step(settings, monkeypatch, best, steps):
    """Each of six slow formats took two seconds of the first start."""
    model = loading.load_trunk(settings)
    forward = fused.FusedForward(model, "float32")
    calls = decoded(forward, monkeypatch)
    ids = [5, 6, 7]
    [measured] = measuring.measure(forward, ids, measuring.next_token(model, ids), [1], best)
    assert measured.milliseconds > 0 and abs(measured.nats) < 1e-4
    assert len(calls) == steps


def test_two_numbers_of_threads_share_a_prompt(settings, monkeypatch):
    model = loading.load_trunk(settings)
    forward = fused.FusedForward(model, "float32")
    calls = decoded(forward, monkeypatch)
    monkeypatch.setattr(measuring, "FAR", float("inf"))
    ids = [5, 6, 7]
    one, two = measuring.measure(forward, ids, measuring.next_token(model, ids), [1, 2], 1.0)
    assert (one.threads, two.threads) == (1, 2) and one.nats == two.nats
    assert len(calls) == 2 * (measuring.STEPS + 1) and torch.get_num_threads() == 1


def least_milliseconds(monkeypatch, milliseconds):
    """Let the products of a step take this long in each format, {format: milliseconds}; returns which were asked."""
    asked = []

    class Products:
        def __init__(self, model, number_format, rows=2):
            asked.append(number_format)
            self.milliseconds = lambda: milliseconds[number_format]

    monkeypatch.setattr(measuring, "Products", Products)
    return asked


def packed(monkeypatch):
    """A list of the formats of which all weights are packed."""
    make, formats = tuning.fused_forward, []
    monkeypatch.setattr(tuning, "fused_forward", lambda m, name: formats.append(name) or make(m, name))
    return formats


def test_a_format_whose_products_alone_take_longer_is_not_measured(settings, monkeypatch):
    """Fourteen seconds of the first start went into formats that could not win."""
    least_milliseconds(monkeypatch, {"bfloat16": 1e9, "float32": 1e9})
    formats = packed(monkeypatch)
    choice = tuning._measure(settings, loading.load_trunk(settings), ("int8", "bfloat16", "float32"))
    assert choice.number_format == "int8" and formats == ["int8"]


def test_fewer_threads_are_not_asked_where_products_take_far_longer_on_many(monkeypatch):
    asked = []
    times = {4: 25.0, 2: 15.0, 1: 8.0}

    class Products:
        def __init__(self, model, number_format):
            pass

        def milliseconds(self):
            asked.append(torch.get_num_threads())
            return times[asked[-1]]

    monkeypatch.setattr(measuring, "Products", Products)
    before = torch.get_num_threads()
    assert tuning._that_may_win(None, "int8", [1, 2, 4], 10.0) == [] and asked == [4]
    times[4] = 19.0
    assert tuning._that_may_win(None, "int8", [1, 2, 4], 10.0) == [1] and asked == [4, 4, 2, 1]
    times[2] = 5.0
    assert tuning._that_may_win(None, "int8", [1, 2, 4], 10.0) == [1, 2]
    assert torch.get_num_threads() == before


def test_a_format_whose_products_take_less_is_measured_and_may_win(settings, monkeypatch):
    model = loading.load_trunk(settings)
    asked = least_milliseconds(monkeypatch, {"bfloat16": 1e9, "float32": 0})
    formats = packed(monkeypatch)
    times = {"int8": 5.0, "float32": 2.0}

    def measure(forward, ids, truth, thread_counts, best):
        assert best == (float("inf") if forward.number_format == "int8" else 5.0)
        return [measuring.Measurement(1, times[forward.number_format], 0.001)]

    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(measuring, "prefills_faster_packed", lambda _: False)
    choice = tuning._measure(settings, model, ("int8", "bfloat16", "float32"))
    assert choice == Choice("float32", 1, 2.0, 0.001)
    assert formats == ["int8", "float32"] and asked == ["bfloat16", "float32"]


def test_before_each_trial_the_other_blocks_weights_are_read(monkeypatch):
    model = tiny_model()
    products = measuring.Products(model, "bfloat16")
    block = sum(layer.weight.numel() for layer in model.model.layers[0].modules() if isinstance(layer, torch.nn.Linear))
    assert products._others.nbytes == 2 * block * (len(model.model.layers) - 1)
    order = []
    monkeypatch.setattr(products, "_read_others", lambda: order.append("others"))
    monkeypatch.setattr(products, "_multiply_block", lambda: order.append("block"))
    products.milliseconds()
    trials = measuring.PRODUCT_TRIALS
    assert order == ["others", "block"] * trials + ["others"] * trials


@pytest.mark.parametrize("number_format", ["int8", "bfloat16", "float32"])
def test_products_of_one_block_and_the_head_say_the_least_that_a_step_can_take(settings, number_format):
    model = loading.load_trunk(settings)
    forward = fused.FusedForward(model, number_format)
    step = min(
        m.milliseconds
        for _ in range(3)
        for m in measuring.measure(forward, [5, 6, 7], torch.zeros(model.config.vocab_size), [1], float("inf"))
    )
    assert 0 < measuring.Products(model, number_format).milliseconds() < step


# -- too slow


def test_a_step_that_takes_too_long_is_told_with_what_helps(settings):
    slow = Choice("int8", 1, 400.0)
    assert "about 2.5 tokens a second here" in str(tuning.slowness(slow, settings))
    assert "--decode-format auto" not in str(tuning.slowness(slow, settings))
    assert "--decode-format auto" in str(tuning.slowness(slow, settings.with_values(decode_format="float32")))
    assert "每秒大约增加 2.5 个词元" in Words("zh-CN").message(tuning.slowness(slow, settings))


@pytest.mark.parametrize("milliseconds", [None, 1.0, 199.0])
def test_a_step_that_is_fast_enough_or_not_known_is_not_told(settings, milliseconds):
    assert tuning.slowness(Choice("int8", 1, milliseconds), settings) is None


def test_transformers_own_forward_is_timed_by_the_step_that_answers(settings, caplog):
    model = loading.load_trunk(settings)
    decode = model.forward
    model.forward = lambda *arguments, **more: time.sleep(0.21) or decode(*arguments, **more)
    choice = tuning.timed(Choice("plain", 1), TransformersForward(model))
    assert 210 <= choice.milliseconds < 2000
    assert tuning.slowness(choice, settings) is not None


def test_an_engine_of_a_slow_model_says_so_in_the_log(settings, monkeypatch, caplog):
    decode = TransformersForward.decode
    monkeypatch.setattr(TransformersForward, "decode", lambda *arguments: time.sleep(0.21) or decode(*arguments))
    plain = settings.with_values(decode_format="plain")
    engine = Engine(Store(), plain, loading.load_trunk(plain), loading.load_tokenizer(plain))
    assert engine.choice.number_format == "plain" and engine.choice.milliseconds >= 210
    assert str(engine.slowness) in caplog.messages and "A smaller model (--model)" in str(engine.slowness)


def test_a_forward_that_cannot_be_timed_is_not_slow(settings, monkeypatch):
    monkeypatch.setattr(measuring, "plain_milliseconds", lambda _: 1 / 0)
    choice = Choice("plain", 1)
    assert tuning.timed(choice, None) is choice and tuning.slowness(choice, settings) is None


def test_what_is_measured_is_the_format_and_not_unwritten_memory(settings):
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert chosen(settings.with_values(decode_format="float32"))[0].nats < 1e-4
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("text", ["{", "[]", "null", "[" * 100_000, '{"a": 1}'])
def test_a_damaged_file_is_measured_anew(settings, text):
    (settings.data_dir / "tuning.json").write_text(text)
    assert chosen(settings)[0].milliseconds > 0


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        {},
        {"number_format": "int3"},
        {"number_format": "graph"},
        {"number_format": ["int8"]},
        {"threads": 0},
        {"threads": "1"},
        {"threads": 2},  # more than the settings allow
        {"threads": True},
        {"milliseconds": None},
        {"milliseconds": 0},
        {"milliseconds": "1"},
        {"milliseconds": float("nan")},
        {"nats": float("inf")},
        {"prefills_packed": "false"},
    ],
)
def test_a_choice_that_no_measurement_makes_is_measured_anew(settings, monkeypatch, fields):
    first, _ = chosen(settings)
    file = settings.data_dir / "tuning.json"
    ((key, right),) = json.loads(file.read_text()).items()
    file.write_text(json.dumps({key: {**right, **fields} if fields else fields, "another": right}))
    monkeypatch.setattr(tuning, "_measure", lambda *_: first)
    assert chosen(settings)[0] == first
    assert json.loads(file.read_text()) == {key: right, "another": right}


def test_a_choice_that_cannot_be_kept_is_measured_at_each_start(settings, caplog):
    (settings.data_dir / "tuning.json").mkdir()
    for _ in range(2):
        assert chosen(settings)[0].milliseconds > 0
    assert "tuning.json cannot be written, so that the next start measures again: Is a directory" in caplog.messages
    assert not list(settings.data_dir.glob("*.partial"))


def test_what_another_process_measures_meanwhile_is_kept_too(settings, monkeypatch):
    """Server and worker begin at once, with formats of their own."""
    file, measure = settings.data_dir / "tuning.json", tuning._measure

    def slow_measure(*arguments):
        file.write_text(json.dumps({"another": 1}))
        return measure(*arguments)

    monkeypatch.setattr(tuning, "_measure", slow_measure)
    chosen(settings)
    assert json.loads(file.read_text())["another"] == 1 and len(json.loads(file.read_text())) == 2


def test_other_architectures_decode_as_transformers_does(settings):
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=427, n_embd=64, n_layer=2, n_head=4)).eval()
    assert tuning.choose(settings, model, {"hash": "x" * 64}).number_format == "plain"


def test_a_model_whose_frequencies_change_with_the_length_decodes_as_transformers_does_where_texts_are_longer(settings):
    """Phi-4-mini beyond its original length."""
    model, identity = phi3(), {"hash": "x" * 64}
    replies = {"reply_tokens": LONG_TOKENS // 2}
    within = settings.with_values(chat={"context_tokens": LONG_TOKENS // 2, **replies}, decode_format="float32")
    beyond = settings.with_values(chat={"context_tokens": LONG_TOKENS, **replies}, decode_format="float32")
    assert tuning.choose(within, model, identity).number_format == "float32"
    assert tuning.choose(beyond, model, identity).number_format == "plain"


def unlike(forward):
    """The forward, as if a part of the model had not been read."""
    forward.embedding = 1.5 * forward.embedding
    return forward


@pytest.mark.parametrize("decode_format", ["auto", "float32"])
@pytest.mark.parametrize("make", [tiny_model, gemma3])
def test_where_no_format_says_what_the_model_says_transformers_own_forward_serves(
    settings, make, decode_format, monkeypatch, caplog
):
    """The model's own format was taken without a look."""
    settings = settings.with_values(decode_format=decode_format)
    fused_forward = tuning.fused_forward
    monkeypatch.setattr(tuning, "fused_forward", lambda *arguments: unlike(fused_forward(*arguments)))
    for _ in range(2):  # measured, and remembered
        caplog.clear()
        choice = tuning.choose(settings, make(), {"hash": "x" * 64})
        assert choice.number_format == "plain"
        assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
            "no number format says what the model says: decoding with transformers' own forward, which is slower"
        ]
        monkeypatch.setattr(tuning, "_measure", lambda *_: pytest.fail("measured again"))


def test_a_model_with_parts_of_its_own_is_compared_over_steps_of_replies(settings, monkeypatch):
    """One token after one text may be near by chance."""
    settings = settings.with_values(decode_format="float32")
    monkeypatch.setattr(tuning, "divergence", lambda _: 0.5)
    assert tuning.choose(settings, tiny_model(), {"hash": "x" * 64}).number_format == "float32"
    assert tuning.choose(settings, gemma3(), {"hash": "y" * 64}).number_format == "plain"
    monkeypatch.setattr(tuning, "divergence", lambda _: float("inf"))
    monkeypatch.setattr(measuring, "measure", lambda *_: pytest.fail("runs what cannot run"))
    assert tuning.choose(settings, gemma3(), {"hash": "z" * 64}).number_format == "plain"
