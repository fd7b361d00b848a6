"""Where settings come from, and what is said of one that does not fit."""

import ast
import inspect
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from playground import settings
from playground.settings import Settings, SettingsError, read


@pytest.fixture(autouse=True)
def bare(tmp_path, monkeypatch):
    """A working folder without a .env, an environment without NUDGE_."""
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith("NUDGE_")]:
        monkeypatch.delenv(name)


# -- sources


def test_a_default_is_used_where_nothing_is_said():
    assert read([]).port == 7860


def test_dotenv_beats_the_default():
    Path(".env").write_text("NUDGE_PORT=1001\nUNRELATED=1\n")
    assert read([]).port == 1001


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_dotenv_is_read_in_the_encoding_that_it_is_in(encoding):
    """PowerShell's `>` writes UTF-16, which ended in a UnicodeDecodeError; a byte-order mark hid the first setting."""
    Path(".env").write_bytes("NUDGE_PORT=1001\r\nNUDGE_MODEL=modèle\r\n".encode(encoding))
    assert (read([]).port, read([]).model, Settings().model) == (1001, "modèle", "modèle")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le"])
def test_a_dotenv_whose_encoding_cannot_be_told_is_refused_in_one_sentence(encoding):
    Path(".env").write_bytes("NUDGE_MODEL=modèle\n".encode(encoding))
    with pytest.raises(SettingsError) as refused:
        read([])
    assert str(refused.value) == ".env is in an encoding that cannot be told from its bytes: save it as UTF-8."


def test_the_environment_beats_dotenv(monkeypatch):
    Path(".env").write_text("NUDGE_PORT=1001\n")
    monkeypatch.setenv("NUDGE_PORT", "1002")
    assert read([]).port == 1002


def test_a_flag_beats_the_environment(monkeypatch):
    Path(".env").write_text("NUDGE_PORT=1001\n")
    monkeypatch.setenv("NUDGE_PORT", "1002")
    assert read(["--port", "1003"]).port == 1003


def test_each_source_speaks_only_of_what_it_names(monkeypatch):
    Path(".env").write_text("NUDGE_PORT=1001\nNUDGE_SEED=5\n")
    monkeypatch.setenv("NUDGE_TOP_K", "7")
    s = read(["--port", "1003"])
    assert (s.port, s.seed, s.top_k) == (1003, 5, 7)


@pytest.mark.parametrize("flags, expected", [([], True), (["--no-worker"], False), (["--worker"], True)])
def test_a_switch_has_a_flag_for_on_and_for_off(flags, expected):
    assert read(flags).worker is expected


def test_an_unknown_flag_stops_with_its_name(capsys):
    with pytest.raises(SystemExit):
        read(["--prot", "1"])
    assert "--prot" in capsys.readouterr().err


# -- values that do not fit

BAD = {
    "port": ("99999", "an integer at least 0 and at most 65535"),
    "temperature": ("0", "a number at least 0.05 and at most 2"),
    "heldout_fraction": ("1", "a number above 0 and below 1"),
    "dtype": ("float16", "auto or float32 or bfloat16"),
    "device": ("gpu", "text matching ^(auto|cpu|mps|cuda(:\\d+)?)$"),
    "reward_layer": ("1.5", "a number at least 0 and at most 1"),
    "worker": ("maybe", "true or false"),
    "reward_batch": ("0", "an integer at least 1"),
    "ppo_lr": ("fast", "a number above 0 and at most 1"),
    "reward_quantisation": ("nf8", "nf4 or int8 or none"),
    "threads": ("-1", "an integer at least 0 and at most 256"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_named_with_its_flag_variable_value_and_what_is_accepted(name, monkeypatch):
    value, accepted = BAD[name]
    monkeypatch.setenv(f"NUDGE_{name.upper()}", value)
    with pytest.raises(SettingsError) as caught:
        read([])
    assert str(caught.value).startswith(
        f"--{name.replace('_', '-')} (NUDGE_{name.upper()}): got {value!r}; accepted: {accepted}. "
    )


def test_a_bad_flag_is_explained_like_a_bad_variable():
    with pytest.raises(
        SettingsError,
        match=r"^--heldout-fraction \(NUDGE_HELDOUT_FRACTION\): got '2'; accepted: a number above 0 and below 1\. ",
    ):
        read(["--heldout-fraction", "2"])


def test_all_bad_values_are_told_at_once():
    with pytest.raises(SettingsError) as caught:
        read(["--port", "x", "--top-k", "-1"])
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["--port", "--top-k"]


@pytest.mark.parametrize(
    "name, value",
    [("port", 65535), ("port", 0), ("temperature", 0.05), ("temperature", 2), ("gae_lambda", 1), ("top_p", 1)],
)
def test_a_bound_itself_is_accepted(name, value):
    assert getattr(Settings(**{name: value}), name) == value


@pytest.mark.parametrize("name", Settings.model_fields)
def test_what_a_setting_accepts_can_be_said_in_words(name):
    assert str(settings.accepted(Settings.model_fields[name])).split()[0] in (
        "an",
        "a",
        "true",
        "text",
        "auto",
        "nf4",
        "thompson",
        "base",
    )


# -- the object


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_docstring(name):
    description = Settings.model_fields[name].description
    assert description and description.endswith(".")


def test_every_setting_is_read_somewhere():
    """A setting that nothing reads is a promise that nothing keeps."""
    folder = Path(settings.__file__).parent.parent
    sources = [
        p for part in ("playground", "training") for p in (folder / part).rglob("*.py") if p.name != "settings.py"
    ] + [folder / "app.py"]
    # besides attributes, the derived folders inside Settings itself
    trees = [ast.parse(p.read_text()) for p in sources if p.exists()] + [ast.parse(inspect.getsource(Settings))]
    read_somewhere = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert set(Settings.model_fields) - read_somewhere == set()


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        read(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert [n for n in Settings.model_fields if f"--{n.replace('_', '-')}" not in text] == []


def test_help_gives_meaning_and_default(capsys):
    with pytest.raises(SystemExit):
        read(["--help"])
    assert "TCP port of the page; 0 takes a free one. (default: 7860)" in " ".join(capsys.readouterr().out.split())


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_a_child_process_reads_the_same_settings(monkeypatch):
    here = read(
        [
            "--port",
            "1003",
            "--no-worker",
            "--data-dir",
            "other data",
            "--dtype",
            "float32",
            "--ppo-lr",
            "3e-5",
            "--threads",
            "3",
        ]
    )
    for name, value in here.environ().items():
        monkeypatch.setenv(name, value)
    assert read([]) == here


def test_environ_names_every_setting():
    assert set(Settings().environ()) == {f"NUDGE_{name.upper()}" for name in Settings.model_fields}


def test_no_threads_given_means_one_for_each_core():
    assert Settings().threads == os.cpu_count()


def test_a_home_folder_is_expanded():
    assert Settings(data_dir="~/nudge").data_dir == Path.home() / "nudge"


def test_everything_that_is_written_lies_in_the_data_folder():
    s = Settings(data_dir="some")
    assert {s.database.parent, s.adapters_dir.parent, s.rounds_dir.parent} == {Path("some")}
