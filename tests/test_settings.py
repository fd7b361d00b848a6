"""Where settings come from, and what is said of one that does not fit."""

import ast
import os
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest
from pydantic import Field, ValidationError

from playground import settings
from playground.settings import (
    RENAMED,
    Settings,
    SettingsError,
    accepted,
    fields,
    flag,
    nested,
    overridden,
    read,
    sections,
    variable,
)
from training.simulate import SimulateSettings

ROOT = Path(settings.__file__).parents[2]
NAMES = list(fields(Settings))


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
    """Also of one group."""
    Path(".env").write_text("NUDGE_SEED=5\nNUDGE_PPO_EPOCHS=3\nNUDGE_PPO_LR=0.1\n")
    monkeypatch.setenv("NUDGE_CHAT_TOP_K", "7")
    monkeypatch.setenv("NUDGE_PPO_LR", "0.2")
    settings = read(["--port", "1003", "--ppo.kl-target", "2"])
    assert (settings.port, settings.seed, settings.chat.top_k) == (1003, 5, 7)
    assert (settings.ppo.kl_target, settings.ppo.lr, settings.ppo.epochs, settings.ppo.minibatch) == (2, 0.2, 3, 32)


@pytest.mark.parametrize("flags, expected", [([], True), (["--no-worker"], False), (["--worker"], True)])
def test_a_switch_has_a_flag_for_on_and_for_off(flags, expected):
    assert read(flags).worker is expected


@pytest.mark.parametrize("flags, expected", [([], True), (["--no-round.auto"], False), (["--round.auto"], True)])
def test_a_switch_of_a_group_too(flags, expected):
    assert read(flags).round.auto is expected


def test_an_unknown_flag_stops_with_its_name(capsys):
    with pytest.raises(SystemExit):
        read(["--prot", "1"])
    assert "--prot" in capsys.readouterr().err


# -- names of before


def test_every_name_of_before_has_one_of_now():
    assert len(RENAMED) == 75 and len(set(RENAMED.values())) == 74  # one was renamed twice
    assert set(RENAMED.values()) <= {name for name in NAMES if "." in name}
    assert not set(RENAMED) & set(NAMES)


@pytest.mark.parametrize("old", RENAMED)
def test_a_flag_of_before_is_refused_with_the_name_of_now(old):
    """It would be an unknown flag, and nobody would know what it has become."""
    new = flag(RENAMED[old])
    for given in ([flag(old), "1"], [f"{flag(old)}=1"]):
        with pytest.raises(SettingsError) as refused:
            read(given)
        assert str(refused.value) == f"{flag(old)} is now {new}."


def test_a_switch_of_before_is_refused_too():
    with pytest.raises(SettingsError, match=r"^--no-auto-train is now --no-round\.auto\.$"):
        read(["--no-auto-train"])


@pytest.mark.parametrize("old", RENAMED)
def test_a_variable_of_before_is_refused_with_the_name_of_now(old, monkeypatch):
    """What is in the environment and no setting is ignored, so this one would have been."""
    monkeypatch.setenv(variable(old), Settings().environ()[variable(RENAMED[old])])
    if variable(old) == variable(RENAMED[old]):
        assert read([]) == Settings()
        return
    with pytest.raises(SettingsError) as refused:
        read([])
    assert str(refused.value) == f"{variable(old)} is now {variable(RENAMED[old])}."


def test_a_line_of_before_in_dotenv_is_refused_too():
    Path(".env").write_text("NUDGE_PPO_LR=0.1\nnudge_kl_target=4\nNUDGE_STOP=x\n", encoding="utf-16")
    with pytest.raises(SettingsError) as refused:
        read([])
    assert str(refused.value).splitlines() == [
        "NUDGE_STOP in .env is now NUDGE_CHAT_STOP.",
        "NUDGE_KL_TARGET in .env is now NUDGE_PPO_KL_TARGET.",
    ]


def test_other_commands_refuse_them_as_well():
    with pytest.raises(SettingsError, match="--gate-prompts is now --gate.prompts."):
        read(["--votes", "4", "--gate-prompts", "8"], SimulateSettings)


# -- values that do not fit

BAD = {
    "port": ("99999", "an integer at least 0 and at most 65535"),
    "chat.temperature": ("0", "a number at least 0.05 and at most 2"),
    "preferences.heldout_fraction": ("1", "a number above 0 and below 1"),
    "dtype": ("float16", "auto or float32 or bfloat16"),
    "device": ("gpu", "text matching ^(auto|cpu|mps|cuda(:\\d+)?)$"),
    "reward.layer": ("1.5", "a number at least 0 and at most 1"),
    "worker": ("maybe", "true or false"),
    "reward.batch": ("0", "an integer at least 1 and at most 1000000"),
    "ppo.lr": ("fast", "a number above 0 and at most 1"),
    "reward.quantisation": ("nf8", "nf4 or int8 or none"),
    "threads": ("-1", "an integer at least 0 and at most 256"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_named_with_its_flag_variable_value_and_what_is_accepted(name, monkeypatch):
    value, accepted = BAD[name]
    monkeypatch.setenv(variable(name), value)
    with pytest.raises(SettingsError) as caught:
        read([])
    assert str(caught.value).startswith(f"{flag(name)} ({variable(name)}): got {value!r}; accepted: {accepted}. ")


def test_a_bad_flag_is_explained_like_a_bad_variable():
    with pytest.raises(
        SettingsError,
        match=r"^--preferences\.heldout-fraction \(NUDGE_PREFERENCES_HELDOUT_FRACTION\): got '2'; accepted: a number "
        r"above 0 and below 1\. ",
    ):
        read(["--preferences.heldout-fraction", "2"])


def test_a_name_that_a_group_does_not_have_is_refused(monkeypatch):
    monkeypatch.setenv("NUDGE_PPO_LEARNING_RATE", "1")
    with pytest.raises(SettingsError, match=r"\(NUDGE_PPO_LEARNING_RATE\): there is no such setting"):
        read([])


@pytest.mark.parametrize("value", ["fast", "1"])
def test_a_group_is_no_setting_itself(value, monkeypatch):
    """What is no JSON ended in a traceback of the parser."""
    with pytest.raises(SettingsError, match="ppo"):
        read(["--ppo", value])
    monkeypatch.setenv("NUDGE_PPO", value)
    with pytest.raises(SettingsError, match="ppo"):
        read([])


def test_all_bad_values_are_told_at_once():
    with pytest.raises(SettingsError) as caught:
        read(["--port", "x", "--chat.top-k", "-1"])
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["--port", "--chat.top-k"]


@pytest.mark.parametrize(
    "name, value",
    [
        ("port", 65535),
        ("port", 0),
        ("chat.temperature", 0.05),
        ("chat.temperature", 2),
        ("ppo.gae_lambda", 1),
        ("chat.top_p", 1),
    ],
)
def test_a_bound_itself_is_accepted(name, value):
    assert read([flag(name), str(value)]).flat()[name] == value


def test_what_each_setting_accepts_can_be_said_in_words():
    first_word = {name: str(accepted(field)).split()[0] for name, field in fields(Settings).items()}
    words = {"an", "a", "true", "text", "auto", "nf4", "thompson", "base", "viewer"}
    assert {name: word for name, word in first_word.items() if word not in words} == {}


# -- the object


def test_every_setting_and_every_group_has_a_docstring():
    described = Settings.model_fields | fields(Settings)
    assert [name for name, field in described.items() if not (field.description or "").endswith(".")] == []


def test_what_an_admin_may_change_is_in_groups():
    assert all("." in name for names in sections().values() for name in names)


def test_every_setting_is_read_somewhere():
    """A setting that nothing reads is a promise that nothing keeps."""
    ours = [path for part in ("playground", "training") for path in (ROOT / part).rglob("*.py")]
    # in their own room all settings are named; only the derived folders are read there
    sources = [path for path in ours if path.parent.name != "settings" or path.name == "root.py"] + [ROOT / "app.py"]
    read_somewhere = {name for source in sources for name in names_read(ast.parse(source.read_text()))}
    assert set(NAMES) - read_somewhere == set()


def names_read(tree):
    """`settings.port` as "port", `self.settings.ppo.lr` as "ppo.lr", `"ppo.lr"` too; of a name that holds a group,
    `chat.top_k`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            yield node.value
        if isinstance(node, ast.Attribute):
            yield node.attr
            if isinstance(node.value, ast.Attribute | ast.Name):
                holder = node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id
                yield f"{holder}.{node.attr}"


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        read(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert [name for name in NAMES if flag(name) not in text] == []


def test_help_gives_meaning_and_default(capsys):
    with pytest.raises(SystemExit):
        read(["--help"])
    assert "TCP port of the page; 0 takes a free one. (default: 7860)" in " ".join(capsys.readouterr().out.split())


def test_a_command_shows_its_own_flags_and_all_where_asked(capsys):
    """The four flags of `python -m training.sft` stood among a hundred others."""

    class Command(Settings):
        """Does
        something."""

        data: Path
        """A file."""
        epochs: int = Field(4, ge=1)
        """Most passes."""
        given: str = Field("", alias="json")
        """Where to."""

    for asked in ("--help", "-h"):
        with pytest.raises(SystemExit) as caught:
            read(["--data", "x", asked], Command, "python -m command")
        text = capsys.readouterr().out
        assert caught.value.code == 0 and text.startswith(
            "usage: python -m command --data DATA [options]\n\nDoes something."
        )
        assert "--epochs\n      Most passes. It takes an integer at least 1. (default: 4)\n" in text
        assert "--json\n      Where to. It takes text.\n" in text
        assert len(text.splitlines()) < 20 and "--ppo.lr" not in text and "--help-all" in text
    with pytest.raises(SystemExit) as caught:
        read(["--help-all"], Command, "python -m command")
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "--epochs" in text and "--ppo.lr" in text


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Settings().port = 1
    with pytest.raises(ValidationError):
        Settings().ppo.lr = 1


def test_other_values_leave_the_rest_as_it_is():
    first = Settings(port=1003, ppo={"epochs": 3})
    second = first.with_values(seed=5, ppo={"lr": 0.1})
    assert (second.port, second.seed, second.ppo.epochs, second.ppo.lr, first.seed) == (1003, 5, 3, 0.1, 0)
    assert type(second) is Settings and first.with_values() == first
    as_stored = overridden(first, {"ppo.lr": 0.1, "round.auto": False})
    assert (as_stored.ppo.lr, as_stored.ppo.epochs, as_stored.round.auto) == (0.1, 3, False)


def test_other_values_are_checked():
    for changes, said in (
        ({"port": -1}, r"--port \(NUDGE_PORT\): got -1"),
        ({"ppo": {"lr": 2}}, r"--ppo.lr \(NUDGE_PPO_LR\): got 2"),
        ({"ppo": {"rate": 1}}, "no such setting"),
        ({"lr": 1}, "lr: there is no such setting"),
    ):
        with pytest.raises(SettingsError, match=said):
            Settings().with_values(**changes)


def test_settings_of_another_class_can_have_the_same_values():
    job = SimulateSettings.like(Settings(port=1003, ppo={"lr": 0.1}), votes=4, json="figures.json")
    assert (job.port, job.ppo.lr, job.votes, job.json_file) == (1003, 0.1, 4, "figures.json")
    assert job.with_values(seed=1).json_file == "figures.json"
    assert Settings.like(job) == Settings(port=1003, ppo={"lr": 0.1})


def changed(name):
    """Settings of which one has a value that is not its default."""
    default = Settings().flat()[name]
    candidates = [
        *get_args(fields(Settings)[name].annotation),
        "cpu",
        "/nudge",
        "10.0.0.0/8",
        "words, = é",
        "https://a.example/b-c",
        "hf-job:t4-small",
    ]
    if isinstance(default, bool):
        candidates = [not default]
    elif isinstance(default, int):
        candidates = [default + 1]
    elif isinstance(default, float):
        candidates = [default * 0.9, default * 1.1, 0.5]
    for value in candidates:
        with suppress(SettingsError):
            settings = Settings().with_values(**nested({name: value}))
            if settings != Settings():
                return settings
    raise AssertionError(f"no value found for {name}")


@pytest.mark.parametrize("name", NAMES)
def test_a_child_process_reads_the_same_settings(name, monkeypatch):
    """Each setting, at a value that is not its default."""
    here = changed(name)
    for variable_name, value in here.environ().items():
        monkeypatch.setenv(variable_name, value)
    assert read([]) == here


def test_environ_names_every_setting():
    assert set(Settings().environ()) == {variable(name) for name in NAMES}


def test_no_threads_given_means_one_for_each_core():
    assert Settings().threads == len(os.sched_getaffinity(0)), "as many cores as it may use"


def test_a_home_folder_is_expanded():
    assert Settings(data_dir="~/nudge").data_dir == Path.home() / "nudge"


def test_everything_that_is_written_lies_in_the_data_folder():
    settings = Settings(data_dir="some")
    assert {settings.database.parent, settings.adapters_dir.parent, settings.rounds_dir.parent} == {Path("some")}
