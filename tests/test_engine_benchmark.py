"""The engine's benchmark on a tiny model: its figures are measured, and wrong streams would be counted."""

import pytest

from benchmarks import engine as benchmark
from benchmarks import engine_site, engine_swaps
from playground.decoding import tuning
from playground.models import loading
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    return engine_site.EngineSettings(
        model=str(tiny_folder(folder / "model")),
        data_dir=folder,
        device="cpu",
        dtype="float32",
        threads=1,
        quick=True,
        repeats=2,
    )


@pytest.fixture(scope="module")
def site(settings, tmp_path_factory):
    trunk, tokenizer = loading.load_trunk(settings), loading.load_tokenizer(settings)
    tuning.choose(settings, trunk, loading.base_identity(trunk, settings))
    site = engine_site.Site(settings, tmp_path_factory.mktemp("site"), trunk, tokenizer)
    yield site
    site.engine.close()


def rows(found):
    return {r["what"]: r for r in found}


@pytest.mark.parametrize("tokens", [60, 181])
def test_a_prompt_has_the_length_asked_for(site, tokens):
    assert len(engine_site.text_prompt(site.engine.tokenizer, tokens)) == tokens


def test_swaps_under_load_lose_no_stream(settings, site):
    found = rows(engine_swaps.swap_rows(settings, site, site.engine.tokenizer, lambda _: None))
    wrong = next(r for what, r in found.items() if what.startswith("streams dropped or wrong, of"))
    assert wrong["value"] == 0 and int(wrong["what"].rsplit(" ", 1)[1]) > 5
    assert found["swaps under load"]["ok"]


def test_a_wrong_stream_is_counted(settings, site, monkeypatch):
    monkeypatch.setattr(engine_swaps.decoder, "run", lambda *_, **__: [])
    found = engine_swaps.swap_rows(settings, site, site.engine.tokenizer, lambda _: None)
    assert next(r for r in found if r["what"].startswith("streams dropped"))["value"] > 0


def test_the_other_figures_are_measured(settings, site):
    site.publish(0.01, 1)
    for part in (benchmark.prefix_rows, benchmark.faithful_rows):
        found = part(settings, site, site.engine.tokenizer)
        assert found and all(r["value"] is not None for r in found)


@pytest.mark.parametrize("quick", [True, False])
def test_eight_people_are_set_beside_as_many_sequences_of_llama_cpp(settings, site, quick, monkeypatch):
    asked = []

    def theirs(_settings, prompts, tokens, repeats, _log):
        asked.append((prompts, tokens, repeats))
        return [{"seconds": 4.0}]

    monkeypatch.setattr(benchmark.llama_cpp, "run", theirs)
    found = rows(
        benchmark.crowd_rows(settings.with_values(quick=quick), site, site.engine.tokenizer, lambda text: None)
    )
    ours, ratio = found["8 at once: all replies together"]["value"], found["8 at once, ours to llama.cpp's"]
    assert ours > 0 and ratio["bar"] == "≥ 1"
    if quick:
        assert ratio["value"] is None and not asked
    else:
        [(prompts, tokens, _)] = asked
        assert [len(prompt) for prompt in prompts] == [100 + 10 * (i // 2) for i in range(16)]
        assert ratio["value"] == pytest.approx(ours / (16 * tokens / 4.0))
